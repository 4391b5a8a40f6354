"""A server as a transport: TensorFlow Serving's Predict over gRPC, and what the client asks the server about models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

from seisserve import manifest as manifests
from seisserve.errors import ModelNotFound, ServerError, UsageError
from seisserve.manifest import Manifest
from seisserve.proto import inference_wire_pb2 as inference
from seisserve.proto import seismic_pb2 as seismic
from seisserve.proto import tensorflow_serving_wire_pb2 as serving
from seisserve.tensors import to_array, to_proto
from seisserve.transport import Arrays
from seisserve.windows import BATCH_SAMPLES

__all__ = ["MAX_MESSAGE", "GrpcTransport", "Remote", "split_model"]

MAX_MESSAGE = 256 << 20  # bytes; a day of three components as samples is 104 MB
FRAGMENT_SIGNATURE = "fragment"


def split_model(model: str) -> tuple[str, int]:
    """NAME or NAME:VERSION as name and version, 0 for the latest."""
    name, _, version = model.partition(":")
    if version and not version.isdecimal():
        raise UsageError(f"model {model!r}: the version must be a whole number, as in {name}:1")
    return name, int(version or 0)


class Remote:
    """A connection to a seisserve server. Every call has a deadline; gRPC connects anew by itself after a loss."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self.address, self.timeout_s = address, timeout_s
        limits = [("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.max_send_message_length", MAX_MESSAGE)]
        self.channel = grpc.insecure_channel(address, options=limits)

    def call(self, method: str, request: Any, response_type: Any) -> Any:
        """One unary call: `/package.Service/Method`. Raises ServerError, ModelNotFound or UsageError."""
        unary: Callable[..., Any] = self.channel.unary_unary(
            method, request_serializer=type(request).SerializeToString, response_deserializer=response_type.FromString
        )
        try:
            return unary(request, timeout=self.timeout_s)
        except grpc.RpcError as error:
            raise self._mapped(error) from error

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

    def close(self) -> None:
        self.channel.close()

    def _mapped(self, error: grpc.RpcError) -> Exception:
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
