"""Detect, Denoise and Recover of SeismicService against this process, with models that are a formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from client.small_bundles import repository
from client.waveforms import START_NS, part, record
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from seisserve import Client
from seisserve.messages import from_message, to_waveforms
from seisserve.proto import seismic_pb2 as wire
from seisserve.traces import Trace
from seisserve_serving.repository import load
from seisserve_serving.server import Server

Refused = Callable[..., tuple[grpc.StatusCode, str]]
INVALID = grpc.StatusCode.INVALID_ARGUMENT
REQUESTS = {
    "Pick": (wire.PickRequest, wire.PickResponse),
    "Annotate": (wire.AnnotateRequest, wire.AnnotateResponse),
    "Detect": (wire.DetectRequest, wire.DetectResponse),
    "Denoise": (wire.DenoiseRequest, wire.DenoiseResponse),
    "Recover": (wire.RecoverRequest, wire.RecoverResponse),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def here(folder: Path) -> Client:
    return Client(repository=folder)


@pytest.fixture(scope="module")
def channel(folder: Path) -> Iterator[grpc.Channel]:
    server = Server(load(folder, "onnxruntime", 2), port=0)
    server.start()
    with grpc.insecure_channel(server.address) as opened:
        yield opened
    server.stop(grace_s=1)


@pytest.fixture(scope="module")
def method(channel: grpc.Channel) -> Callable[[str], Callable[..., Any]]:
    """A method of the service by its name, which takes a request."""

    def named(name: str) -> Callable[..., Any]:
        return channel.unary_unary(
            f"/seisserve.v1.SeismicService/{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=REQUESTS[name][1].FromString,
        )

    return named


def gappy() -> list[Trace]:
    """Half a minute of three components of one station, with a gap in one of them, at a rate of its own."""
    z, n, e = record(5, 30, 200.0)
    return [part(z, 0, 2500), part(z, 3000, 6000), n, e]


@pytest.mark.parametrize("model", ["", "eqtransformer", "cred"])
def test_detections_are_those_of_this_process_bit_for_bit(method: Any, here: Client, model: str) -> None:
    request = wire.DetectRequest(
        model=wire.ModelSpec(name=model), waveforms=to_waveforms(gappy()), options=wire.Options(resampling="causal")
    )
    response = method("Detect")(request, timeout=30)
    expected = here.detect(gappy(), model=model or "eqtransformer", resampling="causal")
    found = [(d.trace_id, d.start_ns, d.end_ns, d.probability, tuple(d.flags)) for d in response.detections]
    assert found == [tuple(d) for d in expected]
    assert len(found) > 2
    assert (response.model.name, response.model.version) == (model or "eqtransformer", 1)
    assert response.provenance == expected.provenance


@pytest.mark.parametrize("name", ["Denoise", "Recover"])
def test_waveforms_are_those_of_this_process_bit_for_bit(method: Any, here: Client, name: str) -> None:
    request = REQUESTS[name][0](waveforms=to_waveforms(gappy()))
    response = method(name)(request, timeout=30)
    model = {"Denoise": "deepdenoiser", "Recover": "recovery"}[name]
    expected = here.restore(gappy(), model=model)
    found = [from_message(message) for message in response.traces]
    assert [trace[:3] for trace in found] == [trace[:3] for trace in expected.traces()]
    assert len(found) == 3 + 2 + 3  # three segments, the one in the middle without Z
    for trace, here_trace in zip(found, expected.traces(), strict=True):
        assert trace.samples.dtype == here_trace.samples.dtype == {"Denoise": "<f4", "Recover": "<f8"}[name]
        np.testing.assert_array_equal(trace.samples, here_trace.samples)
    assert (response.model.name, response.provenance) == (model, expected.provenance)


def test_records_that_conflict_come_with_a_warning(method: Any) -> None:
    traces = record(0, 10)
    other = [part(t, 100, 200)._replace(samples=part(t, 100, 200).samples + 1) for t in traces]
    for name in ("Detect", "Denoise", "Recover"):
        response = method(name)(REQUESTS[name][0](waveforms=to_waveforms([*traces, *other])), timeout=30)
        assert sum("overlapping records disagree" in warning for warning in response.warnings) == 3


WRONG = [
    ("Detect", "recovery", {}, "'recovery' is for recovery; for detection there is cred, eqtransformer"),
    ("Pick", "cred", {}, "'cred' is for detection; for picking there is eqtransformer"),
    ("Denoise", "cred", {}, "for denoising there is deepdenoiser"),
    ("Recover", "deepdenoiser", {}, "'deepdenoiser' is for denoising; for recovery there is recovery"),
    ("Annotate", "deepdenoiser", {}, "gives waveforms, and no curves"),
    ("Denoise", "deepdenoiser", {"thresholds": {"P": 0.5}}, "threshold for 'P': deepdenoiser has none"),
    ("Denoise", "deepdenoiser", {"stacking": "max"}, "can only be averaged"),
    ("Detect", "eqtransformer", {"thresholds": {"detection": 2}}, "threshold for detection is 2"),
]


@pytest.mark.parametrize(("name", "model", "options", "text"), WRONG)
def test_a_model_or_option_that_does_not_fit_is_refused(
    method: Any, refused: Refused, name: str, model: str, options: dict[str, Any], text: str
) -> None:
    request = REQUESTS[name][0](
        model=wire.ModelSpec(name=model), waveforms=to_waveforms(record(0, 10)), options=wire.Options(**options)
    )
    code, message = refused(method(name), request)
    assert code is INVALID
    assert text in message


def test_reflection_knows_the_methods(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    question = reflection_pb2.ServerReflectionRequest(file_containing_symbol="seisserve.v1.SeismicService")
    (answer,) = stub.ServerReflectionInfo(iter([question]), timeout=30)
    files = [FileDescriptorProto.FromString(f) for f in answer.file_descriptor_response.file_descriptor_proto]
    methods = {method.name for file in files for service in file.service for method in service.method}
    assert methods == set(wire.DESCRIPTOR.services_by_name["SeismicService"].methods_by_name)
    assert methods >= {*REQUESTS, *(f"{name}Stream" for name in REQUESTS), "Process", "GetModel"}


def test_a_trace_without_samples_has_nothing(method: Any) -> None:
    nothing = to_waveforms([Trace("XX.STA..HHZ", START_NS, 100.0, np.zeros(0, np.int32))])
    assert not method("Detect")(wire.DetectRequest(waveforms=nothing), timeout=30).detections
    assert not method("Denoise")(wire.DenoiseRequest(waveforms=nothing), timeout=30).traces
    assert not method("Recover")(wire.RecoverRequest(waveforms=nothing), timeout=30).traces
