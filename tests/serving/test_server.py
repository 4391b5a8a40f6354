"""The server as a whole: health, reflection, limits, damaged bundles, secrets, and how it stops."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from numpy.typing import NDArray

from seisserve import Client, FakeTransport, ServerError
from seisserve.bundle import Bundle, shipped
from seisserve.cli import run
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.tensors import to_array, to_proto
from seisserve_serving.lanes import Lanes
from seisserve_serving.models import Models
from seisserve_serving.repository import load
from seisserve_serving.server import Server

SERVICES = {
    "tensorflow.serving.PredictionService",
    "tensorflow.serving.ModelService",
    "inference.GRPCInferenceService",
    "seisserve.v1.SeismicService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
}
Refused = Callable[..., tuple[grpc.StatusCode, str]]


def method(channel: grpc.Channel, path: str, response: Any) -> Any:
    return channel.unary_unary(
        path, request_serializer=lambda request: request.SerializeToString(), response_deserializer=response.FromString
    )


def reflected(channel: grpc.Channel, **question: Any) -> Any:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)]), timeout=30)
    return answer


@pytest.mark.parametrize("name", ["", "phasenet"])
def test_health_is_serving_overall_and_for_each_model(channel: grpc.Channel, name: str) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=30).status == 1


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_health_of_bytes_that_are_no_message_is_the_callers_error(channel: grpc.Channel, method: str) -> None:
    call = channel.unary_stream(f"/grpc.health.v1.Health/{method}")
    with pytest.raises(grpc.RpcError, match="the request is no HealthCheckRequest message") as caught:
        list(call(b"\xff", timeout=30))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_health_of_an_unknown_model_is_not_found(channel: grpc.Channel, refused: Refused) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    assert refused(stub.Check, health_pb2.HealthCheckRequest(service="nope"))[0] is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_every_service(channel: grpc.Channel) -> None:
    listed = reflected(channel, list_services="").list_services_response.service
    assert {service.name for service in listed} == SERVICES


def reflected_pool(channel: grpc.Channel) -> descriptor_pool.DescriptorPool:
    """What a client learns from the server alone: a pool with the files of all services and what they import."""
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    pool = descriptor_pool.DescriptorPool()

    def fetch(**question: Any) -> None:
        for content in reflected(channel, **question).file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(content)
            if file.name not in files:
                files[file.name] = file
                for needed in file.dependency:
                    fetch(file_by_filename=needed)
                pool.Add(file)

    for service in sorted(SERVICES):
        fetch(file_containing_symbol=service)
    return pool


def test_a_client_made_from_reflection_alone_gets_predictions(
    channel: grpc.Channel, windows: NDArray[np.float32], models: Models
) -> None:
    pool = reflected_pool(channel)
    predict = pool.FindServiceByName("tensorflow.serving.PredictionService").methods_by_name["Predict"]
    assert predict.input_type.full_name == "tensorflow.serving.PredictRequest"
    request = message_factory.GetMessageClass(predict.input_type)()
    request.model_spec.name = "phasenet"
    request.inputs["waveform"].dtype = pool.FindEnumTypeByName("tensorflow.DataType").values_by_name["DT_FLOAT"].number
    for size in windows[:2].shape:
        request.inputs["waveform"].tensor_shape.dim.add(size=size)
    request.inputs["waveform"].tensor_content = windows[:2].tobytes()
    response = message_factory.GetMessageClass(predict.output_type)
    answer = method(channel, "/tensorflow.serving.PredictionService/Predict", response)(request, timeout=60)
    served = models.get("phasenet")
    expected = served.transport.predict(served.manifest, {"waveform": windows[:2]})["probability"]
    assert answer.outputs["probability"].tensor_content == expected.tobytes()


def test_a_client_made_from_reflection_alone_asks_the_inference_service(channel: grpc.Channel) -> None:
    pool = reflected_pool(channel)
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    live = service.methods_by_name["ServerLive"]
    assert live.input_type.full_name == "inference.ServerLiveRequest"
    request, response = map(message_factory.GetMessageClass, (live.input_type, live.output_type))
    assert method(channel, "/inference.GRPCInferenceService/ServerLive", response)(request(), timeout=30).live


def test_reflection_never_shows_the_projects_own_names_for_public_messages(channel: grpc.Channel) -> None:
    for service in sorted(SERVICES):
        answer = reflected(channel, file_containing_symbol=service)
        assert answer.file_descriptor_response.file_descriptor_proto
        assert b"seisserve.wire" not in b"".join(answer.file_descriptor_response.file_descriptor_proto)


def test_a_port_that_is_taken_is_an_error_that_names_it(server: Server, models: Models) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(ServerError, match=rf"cannot listen on 127\.0\.0\.1:{port}"):
        Server(models, port=port)


def test_a_message_over_the_limit_is_refused(models: Models, windows: NDArray[np.float32], refused: Refused) -> None:
    small = Server(models, port=0, max_message=1 << 20)
    small.start()
    try:
        with grpc.insecure_channel(small.address) as channel:
            call = method(channel, "/tensorflow.serving.PredictionService/Predict", wire.PredictResponse)
            request = wire.PredictRequest(model_spec=wire.ModelSpec(name="phasenet"))
            request.inputs["waveform"].CopyFrom(to_proto(windows[:40]))
            assert refused(call, request)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
            request.inputs["waveform"].CopyFrom(to_proto(windows[:2]))
            assert to_array(call(request, timeout=30).outputs["probability"], "probability").shape[0] == 2
    finally:
        small.stop(grace_s=1)


def test_an_inner_error_stays_inside_and_the_caller_gets_its_id(
    bundle: Bundle, windows: NDArray[np.float32], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        raise RuntimeError("the secret is 42")

    broken_models = Models(Lanes(1))
    broken_models.add(1, bundle.manifest, FakeTransport(broken))
    server = Server(broken_models, port=0)
    server.start()
    try:
        with grpc.insecure_channel(server.address) as channel:
            call = method(channel, "/tensorflow.serving.PredictionService/Predict", wire.PredictResponse)
            request = wire.PredictRequest(model_spec=wire.ModelSpec(name="phasenet"))
            request.inputs["waveform"].CopyFrom(to_proto(windows[:1]))
            for sent in ((), (("x-request-id", "mine-7"),)):
                with pytest.raises(grpc.RpcError) as caught:
                    call(request, timeout=30, metadata=sent)
                error = caught.value
                request_id = dict(error.trailing_metadata())["x-request-id"]
                assert error.code() is grpc.StatusCode.INTERNAL
                assert "secret" not in error.details()
                assert "RuntimeError" not in error.details()
                assert request_id in error.details()
                assert request_id == "mine-7" or not sent
                assert f"request {request_id} failed" in caplog.text
        assert "the secret is 42" in caplog.text
    finally:
        server.stop(grace_s=1)


def change_a_byte(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)


def change_the_golden_outputs(folder: Path) -> None:
    with np.load(folder / "golden.npz") as arrays:
        np.savez(folder / "golden.npz", input=arrays["input"], output=arrays["output"] + np.float32(0.01))


def empty_the_golden_file(folder: Path) -> None:
    (folder / "golden.npz").write_bytes(b"")


def add_a_key(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "typo": 1}))


def cut_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"schema": 1, "name":')


def lose_the_network(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def change_the_name(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "name": "other"}))


DAMAGE = [
    (change_a_byte, "sha256"), (change_the_golden_outputs, "golden outputs differ by 0.01"),
    (empty_the_golden_file, "golden.npz"), (add_a_key, "typo"), (cut_the_manifest, "manifest.json"),
    (lose_the_network, "no onnx artifact"), (change_the_name, "'other'"),
]  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    """The shipped picker, whole, as `phasenet`, and once more to be damaged, as `broken`."""
    for name in ("phasenet", "broken"):
        folder = tmp_path / name / "1"
        shutil.copytree(shipped() / "phasenet" / "1", folder, ignore=shutil.ignore_patterns("variables", "*.pb"))
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "name": name}))
    return tmp_path


@pytest.mark.parametrize(("damage", "reason"), DAMAGE, ids=[damage.__name__ for damage, _ in DAMAGE])
def test_a_damaged_bundle_is_refused_with_the_reason_and_the_others_are_served(
    repository: Path, damage: Callable[[Path], None], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(repository / "broken" / "1")
    loaded = load(repository, "onnxruntime", 1)
    assert list(loaded.served) == ["phasenet"]
    server = Server(loaded, port=0)
    server.start()
    try:
        with grpc.insecure_channel(server.address) as channel, Client(server.address) as client:
            call = method(channel, "/tensorflow.serving.ModelService/GetModelStatus", wire.GetModelStatusResponse)
            asked = wire.GetModelStatusRequest(model_spec=wire.ModelSpec(name="broken"))
            (status,) = call(asked, timeout=30).model_version_status
            assert (status.version, status.state) == (1, wire.ModelVersionStatus.END)
            assert status.status.error_code != 0
            assert reason in status.status.error_message
            assert client.model("phasenet").version == 1
    finally:
        server.stop(grace_s=1)
    shutil.rmtree(repository / "phasenet")
    assert run(["serve", str(repository), "--port", "0"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("seisserve:")]
    assert reason in line
