"""Every shipped model: proven, served, and used for each of its tasks from Python and from the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import grpc
import numpy as np
import pytest
from obspy import Stream, read

from seisserve import Client, bundle
from seisserve.bundle import Bundle
from seisserve.cli import run
from seisserve.runtime import load

tf = pytest.importorskip("tensorflow")
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's own
ALL = [bundle.find(name) for name in bundle.models(bundle.shipped())]
names = pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
MOST_MB = 60


def test_the_zoo_is_complete_and_fits_its_size() -> None:
    assert {one.name for one in ALL} == {
        "basicphaseae", "cred", "deepdenoiser", "deepphasepick", "dncnn", "eqtransformer", "gpd", "onset", "phasenet",
        "recovery",
    }  # fmt: skip
    size = sum(path.stat().st_size for path in bundle.shipped().rglob("*") if path.is_file())
    assert size < MOST_MB * 1e6


@names
def test_its_card_states_what_was_measured_and_on_what_it_learnt(one: Bundle) -> None:
    card = (one.folder / "CARD.md").read_text()
    assert one.manifest.training is not None
    assert one.manifest.metrics or one.manifest.figures
    for source in one.manifest.training.sources:
        assert source.name in card and source.licence in card


@names
def test_savedmodel_and_onnx_reproduce_the_golden_outputs(one: Bundle) -> None:
    for runtime in ("onnxruntime", "tensorflow"):
        load(one, runtime, 1)  # raises if it does not


@names
def test_stock_tensorflow_serving_stubs_get_what_this_process_computes(one: Bundle, address: str) -> None:
    windows, _ = bundle.golden(one.folder)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = one.name
    request.inputs["waveform"].CopyFrom(tf.make_tensor_proto(windows[:3]))
    with grpc.insecure_channel(address) as channel:
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    served = tf.make_ndarray(answer.outputs[one.manifest.output.name])
    here = load(one, "onnxruntime", 1).predict(one.manifest, {"waveform": windows[:3]})[one.manifest.output.name]
    np.testing.assert_array_equal(served, here)


@names
def test_it_does_its_tasks_in_this_process_and_on_a_server_alike(one: Bundle, address: str, example: Stream) -> None:
    with Client() as here, Client(address) as there:
        for task in one.manifest.tasks:
            if one.manifest.gives_waveforms:
                method = {"denoising": "denoise", "recovery": "recover"}[task]
                ours, theirs = (getattr(client, method)(example, model=one.name) for client in (here, there))
                assert len(ours) == len(theirs) == 3
                for a, b, given in zip(ours, theirs, example, strict=True):
                    np.testing.assert_array_equal(a.data, b.data)
                    assert a.id == given.id and len(a) == len(given) and a.stats.starttime == given.stats.starttime
            else:
                method = {"picking": "pick", "detection": "detect"}[task]
                ours, theirs = (getattr(client, method)(example, model=one.name) for client in (here, there))
                assert repr(list(ours)) == repr(list(theirs))
                assert len(ours) > 0, f"{one.name} finds nothing in ObsPy's example earthquake"


@names
def test_the_command_line_takes_it(one: Bundle, example: Stream, tmp_path: Path) -> None:
    example.write(str(tmp_path / "in.mseed"), format="MSEED")
    command = {"picking": "pick", "detection": "detect", "denoising": "denoise", "recovery": "recover"}
    for task in one.manifest.tasks:
        output = tmp_path / f"{task}.{'mseed' if one.manifest.gives_waveforms else 'jsonl'}"
        code = run([command[task], str(tmp_path / "in.mseed"), "--model", one.name, "-o", os.fspath(output)])
        assert code == 0
        if one.manifest.gives_waveforms:
            assert len(read(str(output))) == 3
        else:
            assert all(json.loads(line)["model"] == one.name for line in output.read_text().splitlines())
