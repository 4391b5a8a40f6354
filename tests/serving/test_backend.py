"""A TensorFlow Serving elsewhere that computes for this server; our own server stands in for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from client.small_bundles import repository
from msgspec.structs import replace

from seisserve import bundle, runtime
from seisserve.errors import BundleError, ServerError
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.runtimes.setup import Backend, Setup
from seisserve.tensors import to_proto
from seisserve_serving.lanes import Lanes
from seisserve_serving.models import Models
from seisserve_serving.repository import load
from seisserve_serving.server import Server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"))


@pytest.fixture
def backend(folder: Path) -> Iterator[Server]:
    models = load(folder, "onnxruntime", 1)
    server = Server(models, port=0)
    server.start()
    yield server
    server.stop(grace_s=1)
    models.close()


@pytest.mark.parametrize("name", ["eqtransformer", "cred", "deepdenoiser", "recovery"])
def test_it_gives_what_the_model_gives_here(name: str, folder: Path, backend: Server) -> None:
    found = bundle.find(name, folder)
    here = runtime.load(found, "onnxruntime", 1)
    manifest, there = runtime.prepare(found, Setup(backend=Backend(backend.address)))
    assert manifest == found.manifest
    rng = np.random.default_rng(1)
    for samples in (manifest.window_samples, *manifest.fragment_windows):
        windows = rng.normal(0, 2000, (5, samples, 3)).astype(np.float32)
        expected = here.predict(manifest, {manifest.input.name: windows})
        given = there.predict(manifest, {manifest.input.name: windows})
        assert set(given) == set(expected)
        for output in expected:
            np.testing.assert_array_equal(given[output], expected[output])


def test_no_artifact_needs_to_be_here(folder: Path, backend: Server, tmp_path: Path) -> None:
    shutil.copytree(folder / "cred", tmp_path / "cred", ignore=shutil.ignore_patterns("*.onnx"))
    runtime.load(bundle.find("cred", tmp_path), backend=Backend(backend.address))


def test_a_backend_with_another_network_under_that_name_is_refused(
    folder: Path, backend: Server, tmp_path: Path
) -> None:
    shutil.copytree(folder / "cred", tmp_path / "cred")
    windows, outputs = bundle.golden(tmp_path / "cred" / "1")
    bundle.write_golden(tmp_path / "cred" / "1", windows, outputs + np.float32(0.1))
    with pytest.raises(BundleError, match=rf"golden outputs differ by 0\.1 on {backend.address}"):
        runtime.load(bundle.find("cred", tmp_path), backend=Backend(backend.address))


def test_a_backend_without_that_model_or_version_is_refused(folder: Path, backend: Server, tmp_path: Path) -> None:
    shutil.copytree(folder / "cred" / "1", tmp_path / "cred" / "7")
    with pytest.raises(BundleError, match=r"not to be had from .* no version 7 of 'cred'"):
        runtime.load(bundle.find("cred", tmp_path), backend=Backend(backend.address))


def test_no_backend_at_all_is_refused(folder: Path) -> None:
    with pytest.raises(ServerError, match="what computes cred for this server does not answer"):
        runtime.load(bundle.find("cred", folder), backend=Backend("127.0.0.1:1", 5))


def test_when_it_goes_callers_get_unavailable_and_not_its_address(
    folder: Path, backend: Server, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, transport = runtime.prepare(bundle.find("cred", folder), Setup(backend=Backend(backend.address, 30)))
    models = Models(Lanes(1))
    models.add(1, manifest, transport)
    server = Server(models, port=0)
    server.start()
    request = wire.PredictRequest(model_spec=wire.ModelSpec(name="cred"))
    request.inputs[manifest.input.name].CopyFrom(to_proto(np.ones((1, manifest.window_samples, 3), np.float32)))
    try:
        with grpc.insecure_channel(server.address) as channel:
            call = channel.unary_unary(
                "/tensorflow.serving.PredictionService/Predict",
                request_serializer=wire.PredictRequest.SerializeToString,
                response_deserializer=wire.PredictResponse.FromString,
            )
            assert call(request, timeout=30).outputs
            backend.stop(grace_s=0)
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=30)
    finally:
        server.stop(grace_s=1)
        models.lanes.close()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert backend.address not in caught.value.details()
    assert backend.address in caplog.text


def test_an_answer_without_the_output_is_an_error(folder: Path, backend: Server) -> None:
    manifest, transport = runtime.prepare(bundle.find("cred", folder), Setup(backend=Backend(backend.address)))
    (output,) = manifest.outputs
    wrong = replace(manifest, outputs=(output, replace(output, name="other")))
    with pytest.raises(ServerError, match="gives no output other"):
        transport.predict(wrong, {manifest.input.name: np.ones((1, manifest.window_samples, 3), np.float32)})
