"""A server as a transport: TensorFlow Serving's Predict over gRPC; a chain in one call; what there is about models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import grpc

from seisserve import manifest as manifests
from seisserve.access import Access
from seisserve.chain import RESTORING, Options, Outcome, Stage
from seisserve.detections import Detection
from seisserve.errors import ModelNotFound, ServerError, UsageError
from seisserve.manifest import Manifest
from seisserve.messages import from_message, to_waveforms
from seisserve.picks import Pick
from seisserve.proto import inference_wire_pb2 as inference
from seisserve.proto import seismic_pb2 as seismic
from seisserve.proto import tensorflow_serving_wire_pb2 as serving
from seisserve.resample import Phase
from seisserve.results import Origin
from seisserve.tensors import to_array, to_proto
from seisserve.traces import Trace, check
from seisserve.transport import Arrays
from seisserve.windows import BATCH_SAMPLES

__all__ = ["MAX_MESSAGE", "GrpcTransport", "Remote", "split_model"]

MAX_MESSAGE = 256 << 20  # bytes; a day of three components as samples is 104 MB
ONE_CALL = 4 << 20  # bytes of a message that every gRPC server and every deadline allows
TRACE_BYTES = 100  # of a trace in a message, besides its samples
FRAGMENT_SIGNATURE = "fragment"


def split_model(model: str) -> tuple[str, int]:
    """NAME or NAME:VERSION as name and version, 0 for the latest."""
    name, _, version = model.partition(":")
    if version and not version.isdecimal():
        raise UsageError(f"model {model!r}: the version must be a whole number, as in {name}:1")
    return name, int(version or 0)


class Remote:
    """A connection to a seisserve server. Every call has a deadline; gRPC connects anew by itself after a loss."""

    def __init__(self, address: str, timeout_s: float, access: Access | None = None) -> None:
        self.address, self.timeout_s = address, timeout_s
        limits = [("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.max_send_message_length", MAX_MESSAGE)]
        self.channel = (access or Access()).channel(address, limits)

    def call(self, method: str, request: Any, response_type: Any) -> Any:
        """One unary call: `/package.Service/Method`. Raises ServerError, ModelNotFound or UsageError."""
        unary: Callable[..., Any] = self.channel.unary_unary(
            method, request_serializer=type(request).SerializeToString, response_deserializer=response_type.FromString
        )
        try:
            return unary(request, timeout=self.timeout_s)
        except grpc.RpcError as error:
            raise self.mapped(error) from error

    def model(self, model: str) -> RemoteModel:
        """The manifest of a model and the version that the server would use."""
        name, version = split_model(model)
        request = seismic.GetModelRequest(model=seismic.ModelSpec(name=name, version=version))
        answer = self.call("/seisserve.v1.SeismicService/GetModel", request, seismic.GetModelResponse)
        return RemoteModel(answer.model.version, manifests.decode(answer.manifest_json, self.address))

    def models(self) -> list[str]:
        """The names of all models that are served."""
        request = inference.RepositoryIndexRequest(ready=True)
        method = "/inference.GRPCInferenceService/RepositoryIndex"
        answer = self.call(method, request, inference.RepositoryIndexResponse)
        return sorted({model.name for model in answer.models})

    def process(
        self,
        traces: list[Trace],
        models: Mapping[Stage, Manifest],
        origin: Mapping[Stage, Origin],
        options: Options,
        phase: Phase,
        keep: Iterable[Stage],
    ) -> Outcome | None:
        """What a chain makes of one instrument, in one call: its waveforms stay on the server from stage to stage.

        None where the chain is to be run from here, window by window: for a record too long for one message; if the
        server's code is another version, so that its results have another provenance; and if it refuses the waveforms,
        since what `chain.process` raises says more. Raises WaveformError, ServerError.
        """
        wanted = set(keep)
        if not _fits(map(check, traces), [models[stage] for stage in wanted]):
            return None
        every = all(stage in wanted for stage in models if stage in RESTORING)
        request = seismic.ProcessRequest(waveforms=to_waveforms(traces), return_waveforms=every)
        for stage in models:
            getattr(request, stage).CopyFrom(seismic.ModelSpec(name=origin[stage].model, version=origin[stage].version))
        request.options.CopyFrom(
            seismic.Options(
                thresholds=options.thresholds, hop_samples=options.hop_samples, stacking=options.stacking,
                resampling=phase,
            )
        )  # fmt: skip
        try:
            answer = self.call("/seisserve.v1.SeismicService/Process", request, seismic.ProcessResponse)
        except UsageError:
            return None
        if any(stage.provenance != origin[stage.name].provenance for stage in answer.stages):
            return None
        return Outcome(
            {stage.name: list(map(from_message, stage.traces)) for stage in answer.stages if stage.name in wanted},
            [Pick(p.trace_id, p.phase, p.time_ns, p.probability, p.uncertainty_s, p.snr_db, tuple(p.flags))
             for p in answer.picks],
            [Detection(d.trace_id, d.start_ns, d.end_ns, d.probability, tuple(d.flags)) for d in answer.detections],
            list(answer.warnings),
        )  # fmt: skip

    def close(self) -> None:
        self.channel.close()

    def mapped(self, error: grpc.RpcError) -> Exception:
        """What a failed call means."""
        code, detail = error.code(), error.details() or ""
        if code is grpc.StatusCode.NOT_FOUND:
            return ModelNotFound(detail)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return UsageError(detail)
        if code is grpc.StatusCode.UNAVAILABLE:
            return ServerError(f"cannot reach a server at {self.address}: {detail.splitlines()[0] if detail else code}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return ServerError(f"{self.address} did not answer within {self.timeout_s:g} s")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return ServerError(f"{self.address} is not a seisserve server: {detail}")
        return ServerError(f"{self.address}: {code.name}: {detail}")


def _fits(traces: Iterable[Trace], makes: list[Manifest]) -> bool:
    """Whether the traces, and the waveforms that are made of them, fit into one message: 8 bytes a sample at most."""
    there = made = 0.0
    for trace in traces:
        there += TRACE_BYTES + len(trace.samples) * 8
        for model in makes:
            made += TRACE_BYTES + len(trace.samples) * 8 * model.sampling_rate_hz / trace.sampling_rate_hz
    return max(there, made) <= ONE_CALL


class RemoteModel(NamedTuple):
    """A model on a server."""

    version: int
    manifest: Manifest


class GrpcTransport:
    """One version of a model on a server."""

    def __init__(self, remote: Remote, version: int, lanes: int = 4) -> None:
        self.remote, self.version, self.lanes, self.batch_samples = remote, version, lanes, BATCH_SAMPLES

    def predict(self, model: Manifest, inputs: Arrays) -> Arrays:
        """Outputs by name, from the server's PredictionService."""
        request = serving.PredictRequest()
        request.model_spec.name = model.name
        request.model_spec.version.value = self.version
        if inputs[model.input.name].shape[1] != model.window_samples:
            request.model_spec.signature_name = FRAGMENT_SIGNATURE
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(to_proto(array))
        answer = self.remote.call("/tensorflow.serving.PredictionService/Predict", request, serving.PredictResponse)
        return {name: to_array(tensor, name) for name, tensor in answer.outputs.items()}
