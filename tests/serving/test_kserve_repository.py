"""The V2 repository extension with Triton's official client: load, unload, index, readiness, health."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving.small_models import add_bundle, add_onnx, end, eventually, served, window
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from seisserve_serving.models import Models
from seisserve_serving.server import Server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    add_bundle(tmp_path / "picker", 1)
    add_onnx(tmp_path / "sum", 4)
    damaged = add_bundle(tmp_path / "bad", 2)
    (damaged / "golden.npz").unlink()
    return tmp_path


@pytest.fixture
def models(root: Path) -> Iterator[Models]:
    loaded = served(root)
    yield loaded
    end(loaded)


@pytest.fixture
def server(models: Models) -> Iterator[Server]:
    started = Server(models, port=0)
    started.start()
    yield started
    started.stop(grace_s=1)


@pytest.fixture
def client(server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.address) as opened:
        yield opened


def rows(client: InferenceServerClient) -> list[tuple[str, str, str]]:
    return [(entry.name, entry.version, entry.state) for entry in client.get_model_repository_index().models]


def status(error: pytest.ExceptionInfo[InferenceServerException]) -> str:
    return str(error.value.status()).removeprefix("StatusCode.")


def test_the_index_has_every_version_with_its_state_and_reason(client: InferenceServerClient) -> None:
    assert rows(client) == [("bad", "2", "UNAVAILABLE"), ("picker", "1", "READY"), ("sum", "4", "READY")]
    (bad, *_) = client.get_model_repository_index().models
    assert "golden.npz" in bad.reason


def test_a_model_that_is_unloaded_is_not_ready_and_comes_back_when_loaded(
    client: InferenceServerClient, server: Server
) -> None:
    def healthy() -> int:
        with grpc.insecure_channel(server.address) as channel:
            request = health_pb2.HealthCheckRequest(service="picker")
            return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=30).status)

    assert healthy() == health_pb2.HealthCheckResponse.SERVING
    client.unload_model("picker")
    assert not client.is_model_ready("picker") and not client.is_model_ready("picker", "1")
    assert healthy() == health_pb2.HealthCheckResponse.NOT_SERVING
    assert client.is_server_ready()
    eventually(lambda: ("picker", "1", "UNAVAILABLE") in rows(client))
    (entry,) = [entry for entry in client.get_model_repository_index().models if entry.name == "picker"]
    assert entry.reason == "unloaded"
    tensor = InferInput("waveform", [1, 600, 3], "FP32")
    tensor.set_data_from_numpy(window())
    with pytest.raises(InferenceServerException) as caught:
        client.infer("picker", [tensor])
    assert status(caught) == "NOT_FOUND"
    client.load_model("picker")
    assert client.is_model_ready("picker", "1")
    assert healthy() == health_pb2.HealthCheckResponse.SERVING
    assert client.infer("picker", [tensor]).as_numpy("probability").shape == (1, 600, 2)


def test_loading_finds_new_versions_and_new_models(client: InferenceServerClient, root: Path) -> None:
    add_bundle(root / "picker", 2)
    add_bundle(root / "new", 1)
    assert not client.is_model_ready("picker", "2")
    client.load_model("picker")
    assert client.is_model_ready("picker", "2") and not client.is_model_ready("picker", "1")
    client.load_model("new")
    assert client.is_model_ready("new")
    assert client.get_model_metadata("picker").versions == ["2"]


def test_a_model_that_failed_is_loaded_once_it_is_mended(client: InferenceServerClient, root: Path) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("bad")
    assert status(caught) == "FAILED_PRECONDITION"
    assert "golden.npz" in caught.value.message()
    shutil.rmtree(root / "bad" / "2")
    add_bundle(root / "bad", 2)
    client.load_model("bad")
    assert client.is_model_ready("bad")


@pytest.mark.parametrize("name", ["nope", "../picker", "picker/1", "/etc", ".."])
def test_what_is_not_in_the_repository_is_not_found(client: InferenceServerClient, name: str) -> None:
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException) as caught:
            call(name)
        assert status(caught) == "NOT_FOUND"


@pytest.mark.parametrize(
    "options", [{"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"x"}}], ids=["config", "file"]
)
def test_overrides_of_configuration_and_files_are_refused(
    client: InferenceServerClient, models: Models, options: dict[str, Any]
) -> None:
    before = models.served
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("picker", **options)
    assert status(caught) == "INVALID_ARGUMENT"
    assert "is not supported; the model is loaded as it is in the repository" in caught.value.message()
    assert models.served is before


@pytest.mark.parametrize("kind", ["Load", "Unload"])
def test_the_request_must_name_a_model_and_no_other_repository(server: Server, kind: str) -> None:
    make = getattr(service_pb2, f"RepositoryModel{kind}Request")
    with grpc.insecure_channel(server.address) as channel:
        method = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), f"RepositoryModel{kind}")
        for fields, text in (({}, "model_name is empty"), ({"repository_name": "x"}, "repository_name is 'x'")):
            with pytest.raises(grpc.RpcError) as caught:
                method(make(**fields), timeout=30)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert text in caught.value.details()
