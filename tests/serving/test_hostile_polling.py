"""Hostile versions put beside one that is served, on a server that polls: it goes on serving, and says why it does not
take them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper
from serving.small_models import HOW, add_bundle, add_onnx, end, eventually, served, window
from serving.test_hostile_bundles import change, loop, rewritten, sign
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from seisserve_serving.models import Models, State
from seisserve_serving.server import Server

Spoil = Callable[[Path], object]
FAILED_PRECONDITION = 9


class Site:
    """A server that looks into its folder all the time, with version 1 of `picker` in it."""

    def __init__(self, root: Path) -> None:
        self.root = root / "models"
        add_bundle(self.root / "picker", 1)
        how = HOW._replace(run_timeout_s=5.0, per_model_batching=True)
        self.models: Models = served(self.root, how, poll_s=0.02, retries=0)
        self.server = Server(self.models, port=0)
        self.server.start()
        self.channel = grpc.insecure_channel(self.server.address)
        self.staging = root / "staging"

    def stop(self) -> None:
        self.channel.close()
        self.server.stop(grace_s=1)
        end(self.models)

    def states(self) -> dict[int, Any]:
        question = get_model_status_pb2.GetModelStatusRequest()
        question.model_spec.name = "picker"
        answer = model_service_pb2_grpc.ModelServiceStub(self.channel).GetModelStatus(question, timeout=60)
        return {version.version: version for version in answer.model_version_status}

    def answers(self) -> None:
        """Version 1 gives what it always gave."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "picker"
        request.inputs["waveform"].CopyFrom(tf.make_tensor_proto(window()))
        answer = prediction_service_pb2_grpc.PredictionServiceStub(self.channel).Predict(request, timeout=60)
        assert answer.model_spec.version.value == 1
        assert (tf.make_ndarray(answer.outputs["probability"]) == 0.5).all()

    def trying(self) -> bool:
        """Whether anything is to be loaded, or has failed."""
        assert self.models.repository is not None
        return bool(self.models.repository._attempts)

    def refused(self, spoil: Spoil) -> str:
        """Why version 2 is not served; it has gone again afterwards."""
        shutil.rmtree(self.staging, ignore_errors=True)
        made = add_bundle(self.staging / "picker", 2)
        spoil(made)
        there = self.root / "picker" / "2"
        made.rename(there)
        try:
            eventually(lambda: self.states().get(2) is not None and self.states()[2].status.error_code)
            self.answers()
            known = self.states()
        finally:
            there.rename(made)  # all at once: a folder that goes file by file would be tried again meanwhile
            eventually(lambda: not self.trying() and not self.models.failed)
            assert list(self.models.served["picker"]) == [1]
        assert (known[1].state, known[2].state) == (State.AVAILABLE, State.END)
        assert known[2].status.error_code == FAILED_PRECONDITION
        return str(known[2].status.error_message)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    started = Site(tmp_path_factory.mktemp("hostile"))
    yield started
    started.stop()


def write(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def manifest(edit: Callable[[dict[str, Any]], object]) -> Spoil:
    """Spoils what the manifest says; what it has no words for (NaN) goes in as JavaScript has it."""

    def spoil(folder: Path) -> None:
        found = json.loads((folder / "manifest.json").read_text())
        edit(found)
        (folder / "manifest.json").write_text(json.dumps(found))

    return spoil


def threshold(value: Any) -> Spoil:
    return manifest(lambda found: found["labels"]["P"].update(threshold=value))


def labels(found: dict[str, Any]) -> None:
    found["outputs"][0]["labels"] = ["P", "P"]
    found["labels"] = {"P": found["labels"]["P"]}


def sparse(name: str, size: int) -> Spoil:
    def spoil(folder: Path) -> None:
        os.truncate(folder / name, size)
        if name == "model.onnx":
            artifacts = json.loads((folder / "manifest.json").read_text())["artifacts"]
            change(artifacts={"onnx": {**artifacts["onnx"], "size_bytes": size}})(folder)

    return spoil


def replaced(name: str, make: Callable[[Path], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


def declared(model: onnx.ModelProto) -> None:
    """Says that its input and output are larger than any memory."""
    for tensor in (model.graph.input[0], model.graph.output[0]):
        tensor.type.tensor_type.shape.dim[1].dim_value = 1 << 62


def unfilled(model: onnx.ModelProto) -> None:
    """A weight of an exabyte, without a byte of it."""
    model.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 30, 1 << 28]))
    model.graph.node.append(helper.make_node("Neg", ["w"], ["v"]))
    model.graph.output.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, None))


def computed(model: onnx.ModelProto) -> None:
    """A constant of four terabytes that the runtime would make while it loads."""
    size = numpy_helper.from_array(np.array([1 << 40], np.int64), "size")
    model.graph.initializer.append(size)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["large"]))
    model.graph.node.append(helper.make_node("Identity", ["large"], ["larger"]))
    model.graph.output.append(helper.make_tensor_value_info("larger", TensorProto.FLOAT, ["k"]))


def deep(depth: int) -> bytes:
    return b'{"name":' + b'{"a":[' * depth + b"]}" * depth + b"}"


def outputs(found: dict[str, Any]) -> None:
    """Thousands of outputs, which the network has not."""
    first = found["outputs"][0]
    found["outputs"] = [first, *({**first, "name": f"more{number}"} for number in range(5000))]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (rewritten(declared), "does not take its golden windows"),
        (rewritten(unfilled), "2/model.onnx"), (rewritten(computed), "picker/2"),
        (rewritten(loop), "it has Loop"),
        (manifest(outputs), "has no output more0, more1, more10"),
        (manifest(lambda found: found["artifacts"]["onnx"].update(file="../1/model.onnx")), "file"),
        (manifest(lambda found: found["artifacts"]["onnx"].update(file="/etc/passwd")), "file"),
        (replaced("model.onnx", lambda path: path.symlink_to("/etc/passwd")), "is a link that leads out of"),
        (replaced("golden.npz", lambda path: path.symlink_to("../../../../outside")), "is a link that leads out of"),
        (lambda folder: (folder / "assets").symlink_to("/"), "is a link that leads out of"),
        (write("manifest.json", b""), "manifest.json"), (write("golden.npz", b""), "golden.npz"),
        (lambda folder: sign(folder, b""), "model.onnx"), (write("model.onnx", b""), "model.onnx: 0 bytes"),
        (manifest(labels), "labels ['P', 'P']; each must be there once"),
        (manifest(lambda found: found.update(outputs=[])), "outputs"),
        (manifest(lambda found: found.update(artifacts={})), "no onnx artifact"),
        (manifest(lambda found: found.update(components="")), "components"),
        (threshold(float("nan")), "manifest.json"), (threshold(float("inf")), "manifest.json"),
        (threshold("NaN"), "threshold"), (threshold(0), "threshold"), (threshold(-0.5), "threshold"),
        (write("manifest.json", deep(100_000)), "manifest.json"), (write("manifest.json", deep(500)), "manifest.json"),
        (sparse("manifest.json", 1 << 36), "manifest.json: larger than"),
        (sparse("model.onnx", 1 << 36), "model.onnx: larger than"),
        (sparse("golden.npz", 1 << 36), "golden.npz"),
        (lambda folder: os.truncate(folder / "model.onnx", 1 << 36), "68719476736 bytes, the manifest says"),
        (replaced("golden.npz", os.mkfifo), "is neither a file nor a folder"),
        (replaced("model.onnx", os.mkfifo), "is neither a file nor a folder"),
        (replaced("model.onnx", lambda path: path.mkdir()), "no onnx artifact"),
        (replaced("manifest.json", lambda path: path.mkdir()), "has no manifest.json"),
        (replaced("manifest.json", lambda path: None), "has no manifest.json"),
        (write("batching_params.pbtxt", b"max_batch_size { value: 4611686018427387904 }"), "it must be at most 8192"),
        (write("batching_params.pbtxt", b"max_batch: 1"), 'no field named "max_batch"'),
        (change(name="picker\0"), "`$.name`"),
        (change(name="other"), "the manifest says 'other'"),
    ],
)  # fmt: skip
def test_a_hostile_version_is_refused_with_the_reason_and_the_one_before_serves_on(
    site: Site, spoil: Spoil, why: str
) -> None:
    assert why in site.refused(spoil)


def test_after_all_of_them_a_good_version_takes_over(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert "manifest.json" in site.refused(write("manifest.json", b"{"))
    add_bundle(site.root / "picker", 3, scale=3)
    eventually(lambda: list(site.models.served["picker"]) == [3])
    assert site.states()[3].state == State.AVAILABLE
    site.stop()


def test_a_warm_up_file_that_would_take_for_ever_is_refused(site: Site) -> None:
    def spoil(folder: Path) -> None:
        (folder / "assets.extra").mkdir()
        path = folder / "assets.extra" / "tf_serving_warmup_requests"
        path.touch()
        os.truncate(path, 1 << 36)

    assert "tf_serving_warmup_requests: larger than 64 MB" in site.refused(spoil)


def test_a_plain_model_with_thousands_of_outputs_can_be_called(tmp_path: Path) -> None:
    folder = add_onnx(tmp_path / "sum", 1)
    model = onnx.load(folder / "model.onnx")
    for number in range(3000):
        model.graph.node.append(helper.make_node("Identity", ["sum"], [f"out{number}"]))
        model.graph.output.append(helper.make_tensor_value_info(f"out{number}", TensorProto.INT64, ["n", 2]))
    onnx.save(model, folder / "model.onnx")
    models = served(tmp_path)
    server = Server(models, port=0)
    server.start()
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "sum"
    for name in "ab":
        request.inputs[name].CopyFrom(tf.make_tensor_proto(np.ones((1, 2), np.int64)))
    with grpc.insecure_channel(server.address) as channel:
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    assert len(answer.outputs) == 3001
    server.stop(grace_s=1)
    end(models)
