"""The Open Inference protocol (KServe V2): messages in, data plane, messages out.

What its specification leaves open is as in Triton, whose clients most callers have.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from numpy.typing import NDArray

from seisserve import __version__
from seisserve.errors import ModelNotFound, UsageError
from seisserve.manifest import Tensor
from seisserve.proto import inference_wire_pb2 as wire
from seisserve.runtime import TensorFlowRuntime
from seisserve.tensors import from_bytes, size_of
from seisserve_serving.models import Models, Served
from seisserve_serving.predict import check_outputs, predict, signature_names
from seisserve_serving.status import Methods, service

__all__ = ["INFERENCE_SERVICE", "handlers"]

INFERENCE_SERVICE = "inference.GRPCInferenceService"
DATATYPE = "FP32"
# Parameters are each server's own. Those that mean nothing here are ignored: KServe's client always sends some.
# These, of Triton, would change the answer.
REFUSED = {"classification", "sequence_end", "sequence_id", "sequence_start", "shared_memory_region"}


def handlers(models: Models, pool: ThreadPoolExecutor) -> grpc.GenericRpcHandler:
    """The service's methods."""

    def live(request: wire.ServerLiveRequest) -> wire.ServerLiveResponse:
        return wire.ServerLiveResponse(live=True)

    def ready(request: wire.ServerReadyRequest) -> wire.ServerReadyResponse:
        return wire.ServerReadyResponse(ready=bool(models.served))

    def model_ready(request: wire.ModelReadyRequest) -> wire.ModelReadyResponse:
        try:
            find(models, request.name, request.version)
        except ModelNotFound:  # not an error here: who waits for a model asks until it is there
            return wire.ModelReadyResponse(ready=False)
        return wire.ModelReadyResponse(ready=True)

    def metadata(request: wire.ServerMetadataRequest) -> wire.ServerMetadataResponse:
        # `model_repository` would promise loading and unloading too.
        return wire.ServerMetadataResponse(name="seisserve", version=__version__, extensions=[])

    def model_metadata(request: wire.ModelMetadataRequest) -> wire.ModelMetadataResponse:
        served = find(models, request.name, request.version)
        manifest = served.manifest
        return wire.ModelMetadataResponse(
            name=manifest.name,
            versions=map(str, sorted(models.served[manifest.name])),
            platform=platform(served),
            inputs=[tensor_metadata(manifest.input)],
            outputs=map(tensor_metadata, manifest.outputs),
        )

    def infer(request: wire.ModelInferRequest) -> wire.ModelInferResponse:
        served = find(models, request.model_name, request.model_version, "model_")
        check_parameters(request)
        inputs, only = arrays(request), wanted(request, served)
        # V2 has no signatures: the one with free lengths takes windows too.
        signature = signature_names(served.manifest)[-1]
        return answer(request, served, predict(served, inputs, signature, only, pool))

    def index(request: wire.RepositoryIndexRequest) -> wire.RepositoryIndexResponse:
        if request.repository_name:
            raise UsageError(f"repository_name is {request.repository_name!r}; it must be empty: there is one only")
        return wire.RepositoryIndexResponse(models=entries(models, request.ready))

    methods: Methods = {
        "ServerLive": (live, wire.ServerLiveRequest, wire.ServerLiveResponse),
        "ServerReady": (ready, wire.ServerReadyRequest, wire.ServerReadyResponse),
        "ModelReady": (model_ready, wire.ModelReadyRequest, wire.ModelReadyResponse),
        "ServerMetadata": (metadata, wire.ServerMetadataRequest, wire.ServerMetadataResponse),
        "ModelMetadata": (model_metadata, wire.ModelMetadataRequest, wire.ModelMetadataResponse),
        "ModelInfer": (infer, wire.ModelInferRequest, wire.ModelInferResponse),
        "RepositoryIndex": (index, wire.RepositoryIndexRequest, wire.RepositoryIndexResponse),
    }
    return service(INFERENCE_SERVICE, methods)


def find(models: Models, name: str, version: str, prefix: str = "") -> Served:
    """The version that is meant, the latest if none is named. prefix: of the fields' names. Raises UsageError,
    ModelNotFound."""
    if not name:
        raise UsageError(f"{prefix}name is empty; it must name a model")
    if version and not re.fullmatch("[1-9][0-9]{0,18}", version):
        raise UsageError(f"{prefix}version is {version!r}; it must be a whole number above 0, or empty for the latest")
    return models.get(name, int(version or 0))


def platform(served: Served) -> str:
    """What runs the model, as Triton names it."""
    return "tensorflow_savedmodel" if isinstance(served.transport, TensorFlowRuntime) else "onnxruntime_onnx"


def tensor_metadata(tensor: Tensor) -> wire.ModelMetadataResponse.TensorMetadata:
    """A tensor as the manifest has it: every shape that fits is taken. (Fragments are shorter, of a few lengths only,
    which the message has no words for.)"""
    return wire.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=DATATYPE, shape=tensor.shape)


def check_parameters(request: wire.ModelInferRequest) -> None:
    """Raises UsageError for a parameter that asks for another answer than the one that will come."""
    places = [("", request.parameters)]
    places += [(f"input {tensor.name!r}: ", tensor.parameters) for tensor in request.inputs]
    places += [(f"output {tensor.name!r}: ", tensor.parameters) for tensor in request.outputs]
    for place, parameters in places:
        for name in sorted(REFUSED.intersection(parameters)):
            raise UsageError(f"{place}parameter {name!r} is not supported")


def wanted(request: wire.ModelInferRequest, served: Served) -> list[str]:
    """Names of the outputs that are asked for, none for all. Raises UsageError for one that the model hasn't."""
    names = [output.name for output in request.outputs]
    check_outputs(served.manifest, names, "output")
    return names


def arrays(request: wire.ModelInferRequest) -> dict[str, NDArray[np.float32]]:
    """The inputs by name. Their values are all in `raw_input_contents`, or all in their own `contents`."""
    raw: list[bytes] | list[None] = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise UsageError(f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs")
    found: dict[str, NDArray[np.float32]] = {}
    for tensor, content in zip(request.inputs, raw or [None] * len(request.inputs), strict=True):
        if tensor.name in found:
            raise UsageError(f"input {tensor.name!r} is there twice")
        found[tensor.name] = to_array(tensor, content)
    return found


def to_array(tensor: wire.ModelInferRequest.InferInputTensor, raw: bytes | None) -> NDArray[np.float32]:
    """An input's values. Raises UsageError that names the input."""
    name, shape = f"input {tensor.name!r}", list(tensor.shape)
    if tensor.datatype != DATATYPE:
        raise UsageError(f"{name}: datatype is {tensor.datatype!r}; expected {DATATYPE}")
    size = size_of(shape, name)
    if raw is not None:
        if tensor.HasField("contents"):
            raise UsageError(f"{name}: contents must be absent where there is raw_input_contents")
        return from_bytes(raw, shape, f"{name}: raw_input_contents")
    for field, _ in tensor.contents.ListFields():
        if field.name != "fp32_contents":
            raise UsageError(f"{name}: contents has {field.name}; {DATATYPE} takes fp32_contents")
    values = np.array(tensor.contents.fp32_contents, np.float32)
    if len(values) != size:
        raise UsageError(f"{name}: fp32_contents has {len(values)} values; shape {shape} needs {size}")
    return values.reshape(shape)


def answer(
    request: wire.ModelInferRequest, served: Served, outputs: dict[str, NDArray[np.float32]]
) -> wire.ModelInferResponse:
    """The outputs in the form of the inputs, as KServe answers. Triton's own client reads raw contents only, and
    sends nothing else; who types values (grpcurl, say) gets values that can be read."""
    response = wire.ModelInferResponse(
        model_name=served.manifest.name, model_version=str(served.version), id=request.id
    )
    for name, array in outputs.items():
        tensor = response.outputs.add(name=name, datatype=DATATYPE, shape=array.shape)
        if request.raw_input_contents:
            response.raw_output_contents.append(np.ascontiguousarray(array, "<f4").tobytes())
        else:
            tensor.contents.fp32_contents.extend(array.ravel().tolist())
    return response


def entries(models: Models, ready_only: bool) -> list[wire.RepositoryIndexResponse.ModelIndex]:
    """The versions that are served and, unless only ready ones are asked for, those that could not be loaded."""
    found = {(name, version): ("READY", "") for name, versions in models.served.items() for version in versions}
    if not ready_only:
        for name, reasons in models.failed.items():
            found |= {(name, version): ("UNAVAILABLE", reason) for version, reason in reasons.items()}
    return [
        wire.RepositoryIndexResponse.ModelIndex(name=name, version=str(version), state=state, reason=reason)
        for (name, version), (state, reason) in sorted(found.items())
    ]
