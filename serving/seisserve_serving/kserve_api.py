"""The Open Inference protocol (KServe V2): messages in, data plane, messages out.

What its specification leaves open is as in Triton, whose clients most callers have.
"""

from __future__ import annotations

import operator
import re
import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisserve import __version__
from seisserve.errors import ModelNotFound, UsageError
from seisserve.proto import inference_wire_pb2 as wire
from seisserve.tensors import from_bytes, from_values, size_of
from seisserve_serving.calls import Call
from seisserve_serving.errors import NotReady, Unavailable, Unsupported
from seisserve_serving.front import Methods, Quick
from seisserve_serving.lanes import Later
from seisserve_serving.models import Models, Served, State, VersionState
from seisserve_serving.predict import predict
from seisserve_serving.repository import Repository
from seisserve_serving.shared_memory import NOTHING_SHARED, REGION, Memory, Regions, shared_bytes
from seisserve_serving.signatures import DEFAULT, NAME, Signature, TensorSpec

__all__ = ["INFERENCE_SERVICE", "services"]

INFERENCE_SERVICE = "inference.GRPCInferenceService"
# Of each datatype: numpy's, and the field of typed contents (there is none for half precision).
DATATYPES: dict[str, tuple[np.dtype[Any], str]] = {
    name: (np.dtype(dtype), field)
    for name, dtype, field in (
        ("BOOL", "?", "bool_contents"), ("INT8", "i1", "int_contents"), ("INT16", "<i2", "int_contents"),
        ("INT32", "<i4", "int_contents"), ("INT64", "<i8", "int64_contents"), ("UINT8", "u1", "uint_contents"),
        ("UINT16", "<u2", "uint_contents"), ("UINT32", "<u4", "uint_contents"), ("UINT64", "<u8", "uint64_contents"),
        ("FP16", "<f2", ""), ("FP32", "<f4", "fp32_contents"), ("FP64", "<f8", "fp64_contents"),
        ("BYTES", "O", "bytes_contents"),
    )
}  # fmt: skip
NAME_AND_DTYPE = operator.attrgetter("name", "dtype")
OF_NUMPY = {dtype: name for name, (dtype, _) in DATATYPES.items()}
# Parameters are each server's own. Those that mean nothing here are ignored: KServe's client always sends some.
# These, of Triton, would change the answer.
REFUSED = {"classification", "sequence_end", "sequence_id", "sequence_start"}
REFUSED_OF_CALLS = REFUSED | {REGION}
INDEX_STATES = {
    State.START: "LOADING", State.LOADING: "LOADING", State.AVAILABLE: "READY", State.UNLOADING: "UNLOADING",
    State.END: "UNAVAILABLE",
}  # fmt: skip


def quick(models: Models, regions: Regions | None = None) -> dict[str, Quick]:
    """The methods that give a `Later` in place of a response, by the service's name. regions: of shared memory, if
    callers may use that."""

    def infer_later(request: wire.ModelInferRequest, call: Call) -> Later[wire.ModelInferResponse]:
        served = find(models, request.model_name, request.model_version, "model_").of(call)
        memory = Memory(regions, call)
        check_parameters(request)
        memory.check(request)
        signature = usual(served)
        inputs = arrays(request, signature, memory)
        only = list(map(NAME, request.outputs))
        signature.check_outputs(only, "output")
        later = predict(served, inputs, signature.key, only, call)
        return later.then(lambda outputs: answer(request, served, outputs, memory))

    beside = (lambda request: 0) if regions is None else shared_bytes
    return {INFERENCE_SERVICE: {"ModelInfer": (infer_later, wire.ModelInferRequest, wire.ModelInferResponse, beside)}}


def services(models: Models, regions: Regions | None = None) -> dict[str, Methods]:
    """The service's methods, by its name. regions: of shared memory, if callers may use that."""
    infer_later = quick(models, regions)[INFERENCE_SERVICE]["ModelInfer"][0]

    def live(request: wire.ServerLiveRequest, call: Call) -> wire.ServerLiveResponse:
        return wire.ServerLiveResponse(live=not models.dead)

    def ready(request: wire.ServerReadyRequest, call: Call) -> wire.ServerReadyResponse:
        return wire.ServerReadyResponse(ready=bool(models.served))

    def model_ready(request: wire.ModelReadyRequest, call: Call) -> wire.ModelReadyResponse:
        try:
            find(models, request.name, request.version)
        except (
            ModelNotFound,
            NotReady,
            Unavailable,
        ):  # not an error here: who waits for a model asks until it is there
            return wire.ModelReadyResponse(ready=False)
        return wire.ModelReadyResponse(ready=True)

    def metadata(request: wire.ServerMetadataRequest, call: Call) -> wire.ServerMetadataResponse:
        extensions = [] if models.repository is None else ["model_repository", "model_repository(unload_dependents)"]
        extensions += [] if regions is None else ["system_shared_memory"]
        return wire.ServerMetadataResponse(name="seisserve", version=__version__, extensions=extensions)

    def model_metadata(request: wire.ModelMetadataRequest, call: Call) -> wire.ModelMetadataResponse:
        served = find(models, request.name, request.version).of(call)
        # Fragments are shorter, of a few lengths only, which the message has no words for: it shows whole windows.
        signature = served.signatures.get(DEFAULT) or usual(served)
        return wire.ModelMetadataResponse(
            name=served.name,
            versions=map(str, sorted(models.served.get(served.name, {served.version: served}))),
            platform=served.platform,
            inputs=map(tensor_metadata, signature.inputs),
            outputs=map(tensor_metadata, signature.outputs),
        )

    def infer(request: wire.ModelInferRequest, call: Call) -> wire.ModelInferResponse:
        response: wire.ModelInferResponse = infer_later(request, call).result()
        return response

    def index(request: wire.RepositoryIndexRequest, call: Call) -> wire.RepositoryIndexResponse:
        if request.repository_name:
            raise UsageError(f"repository_name is {request.repository_name!r}; it must be empty: there is one only")
        return wire.RepositoryIndexResponse(models=entries(models, request.ready))

    def load(request: wire.RepositoryModelLoadRequest, call: Call) -> wire.RepositoryModelLoadResponse:
        check_repository(request)
        for name in sorted(request.parameters):
            raise UsageError(f"parameter {name!r} is not supported; the model is loaded as it is in the repository")
        keeper(models).load(request.model_name, call)
        return wire.RepositoryModelLoadResponse()

    def unload(request: wire.RepositoryModelUnloadRequest, call: Call) -> wire.RepositoryModelUnloadResponse:
        check_repository(request)
        for name in sorted(set(request.parameters) - {"unload_dependents"}):  # no model here depends on another
            raise UsageError(f"parameter {name!r} is not supported; it must be unload_dependents, or absent")
        keeper(models).unload(request.model_name, call)
        return wire.RepositoryModelUnloadResponse()

    def shared() -> Regions:
        if regions is None:
            raise Unsupported("this server takes no shared memory; `shared_memory` of its settings turns that on")
        return regions

    def register(
        request: wire.SystemSharedMemoryRegisterRequest, call: Call
    ) -> wire.SystemSharedMemoryRegisterResponse:
        shared().register(request.name, request.key, request.offset, request.byte_size, call)
        return wire.SystemSharedMemoryRegisterResponse()

    def unregister(
        request: wire.SystemSharedMemoryUnregisterRequest, call: Call
    ) -> wire.SystemSharedMemoryUnregisterResponse:
        shared().unregister(request.name, call)
        return wire.SystemSharedMemoryUnregisterResponse()

    def status(request: wire.SystemSharedMemoryStatusRequest, call: Call) -> wire.SystemSharedMemoryStatusResponse:
        return shared().status(request.name, call)

    methods: Methods = {
        "ServerLive": (live, wire.ServerLiveRequest, wire.ServerLiveResponse),
        "ServerReady": (ready, wire.ServerReadyRequest, wire.ServerReadyResponse),
        "ModelReady": (model_ready, wire.ModelReadyRequest, wire.ModelReadyResponse),
        "ServerMetadata": (metadata, wire.ServerMetadataRequest, wire.ServerMetadataResponse),
        "ModelMetadata": (model_metadata, wire.ModelMetadataRequest, wire.ModelMetadataResponse),
        "ModelInfer": (infer, wire.ModelInferRequest, wire.ModelInferResponse),
        "RepositoryIndex": (index, wire.RepositoryIndexRequest, wire.RepositoryIndexResponse),
        "RepositoryModelLoad": (load, wire.RepositoryModelLoadRequest, wire.RepositoryModelLoadResponse),
        "RepositoryModelUnload": (unload, wire.RepositoryModelUnloadRequest, wire.RepositoryModelUnloadResponse),
        "SystemSharedMemoryRegister": (
            register, wire.SystemSharedMemoryRegisterRequest, wire.SystemSharedMemoryRegisterResponse
        ),
        "SystemSharedMemoryUnregister": (
            unregister, wire.SystemSharedMemoryUnregisterRequest, wire.SystemSharedMemoryUnregisterResponse
        ),
        "SystemSharedMemoryStatus": (
            status, wire.SystemSharedMemoryStatusRequest, wire.SystemSharedMemoryStatusResponse
        ),
    }  # fmt: skip
    return {INFERENCE_SERVICE: methods}


def find(models: Models, name: str, version: str, prefix: str = "") -> Served:
    """The version that is meant, the latest if none is named. prefix: of the fields' names. Raises UsageError,
    ModelNotFound."""
    if not name:
        raise UsageError(f"{prefix}name is empty; it must name a model")
    if version and not re.fullmatch("[1-9][0-9]{0,18}", version):
        raise UsageError(f"{prefix}version is {version!r}; it must be a whole number above 0, or empty for the latest")
    return models.get(name, int(version or 0))


def usual(served: Served) -> Signature:
    """The signature that is called: V2 has none. Of a bundle it is that with free lengths, which takes windows too."""
    keys = list(served.signatures)
    return served.signatures[keys[-1] if served.has_manifest else DEFAULT if DEFAULT in keys else keys[0]]


def keeper(models: Models) -> Repository:
    """What loads and unloads. Raises NotReady if nothing does."""
    if models.repository is None:
        raise NotReady("this server has no repository to load models from")
    return models.repository


def check_repository(request: wire.RepositoryModelLoadRequest | wire.RepositoryModelUnloadRequest) -> None:
    """Raises UsageError unless the request names a model, in the only repository."""
    if request.repository_name:
        raise UsageError(f"repository_name is {request.repository_name!r}; it must be empty: there is one only")
    if not request.model_name:
        raise UsageError("model_name is empty; it must name a model")


def tensor_metadata(tensor: TensorSpec) -> wire.ModelMetadataResponse.TensorMetadata:
    """A tensor of a signature; where any shape will do, it shows one free axis."""
    shape = (-1,) if tensor.shape is None else tensor.shape
    return wire.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=datatype(tensor.dtype), shape=shape)


def datatype(dtype: np.dtype[Any]) -> str:
    """What V2 calls a type of numpy's."""
    return OF_NUMPY[dtype.newbyteorder("<")]


def check_parameters(request: wire.ModelInferRequest) -> None:
    """Raises UsageError for a parameter that asks for another answer than the one that will come."""
    for name in sorted(REFUSED_OF_CALLS.intersection(request.parameters)):
        raise UsageError(f"parameter {name!r} is not supported")
    for kind, tensors in (("input", request.inputs), ("output", request.outputs)):
        for tensor in tensors:
            for name in sorted(REFUSED.intersection(tensor.parameters)):
                raise UsageError(f"{kind} {tensor.name!r}: parameter {name!r} is not supported")


def arrays(
    request: wire.ModelInferRequest, signature: Signature, memory: Memory = NOTHING_SHARED
) -> dict[str, NDArray[Any]]:
    """The inputs by name. Their values are all in `raw_input_contents`, or all in their own `contents`, but for those
    in shared memory."""
    raw: list[bytes] | list[None] = list(request.raw_input_contents)
    shared = [REGION in tensor.parameters for tensor in request.inputs]
    sent = shared.count(False)
    if raw and len(raw) != sent:
        raise UsageError(f"raw_input_contents has {len(raw)} entries for {sent} inputs")
    names = list(map(NAME, request.inputs))
    if len(set(names)) < len(names):
        name = next(name for name, count in Counter(names).items() if count > 1)
        raise UsageError(f"input {name!r} is there twice")
    signature.check_names(names)
    contents, given = iter(raw or [None] * sent), {}
    expected = dict(map(NAME_AND_DTYPE, signature.inputs))
    for name, tensor, is_shared in zip(names, request.inputs, shared, strict=True):
        given[name] = to_array(tensor, memory.read(tensor) if is_shared else next(contents), expected[name])
    return given


def to_array(tensor: wire.ModelInferRequest.InferInputTensor, raw: bytes | None, dtype: np.dtype[Any]) -> NDArray[Any]:
    """An input's values. Raises UsageError that names the input."""
    name, shape = f"input {tensor.name!r}", list(tensor.shape)
    expected = datatype(dtype)
    if tensor.datatype != expected:
        raise UsageError(f"{name}: datatype is {tensor.datatype!r}; expected {expected}")
    size = size_of(shape, name)
    if raw is not None:
        where = REGION if REGION in tensor.parameters else "raw_input_contents"
        if tensor.HasField("contents"):
            raise UsageError(f"{name}: contents must be absent where there is {where}")
        if expected == "BYTES":
            return _texts(raw, size, f"{name}: {where}").reshape(shape)
        return from_bytes(raw, shape, f"{name}: {where}", DATATYPES[expected][0])
    field = DATATYPES[expected][1]
    if not field:
        raise UsageError(f"{name}: {expected} takes raw_input_contents only")
    for other, _ in tensor.contents.ListFields():
        if other.name != field:
            raise UsageError(f"{name}: contents has {other.name}; {expected} takes {field}")
    values = from_values(getattr(tensor.contents, field), DATATYPES[expected][0], f"{name}: {field}")
    if len(values) != size:
        raise UsageError(f"{name}: {field} has {len(values)} values; shape {shape} needs {size}")
    return values.reshape(shape)


def answer(
    request: wire.ModelInferRequest,
    served: Served,
    outputs: Mapping[str, NDArray[Any]],
    memory: Memory = NOTHING_SHARED,
) -> wire.ModelInferResponse:
    """The outputs in the form of the inputs, as KServe answers, but for those that are wanted in shared memory.
    Triton's own client reads raw contents only, and sends nothing else; who types values (grpcurl, say) gets values
    that can be read. Half precision is always raw, and then everything is."""
    response = wire.ModelInferResponse(model_name=served.name, model_version=str(served.version), id=request.id)
    shared = {output.name: output.parameters for output in request.outputs if REGION in output.parameters}
    raw = bool(request.raw_input_contents) or any(REGION in tensor.parameters for tensor in request.inputs)
    raw = raw or any(array.dtype == np.float16 for array in outputs.values())
    for name, array in outputs.items():
        kind = datatype(array.dtype)
        tensor = response.outputs.add(name=name, datatype=kind, shape=array.shape)
        if name in shared:
            content = np.frombuffer(_raw(array), np.uint8) if kind == "BYTES" else array
            memory.write(content, tensor, shared[name])
            response.raw_output_contents.extend([b""] if raw else [])  # those of others keep their places
        elif raw:
            response.raw_output_contents.append(_raw(array))
        elif kind == "BYTES":
            tensor.contents.bytes_contents.extend(map(_bytes, array.ravel().tolist()))
        else:
            getattr(tensor.contents, DATATYPES[kind][1]).extend(array.ravel().tolist())
    return response


def entries(models: Models, ready_only: bool) -> list[wire.RepositoryIndexResponse.ModelIndex]:
    """All versions with their states, or only those that are ready."""
    found = [
        wire.RepositoryIndexResponse.ModelIndex(
            name=name, version=str(version), state=INDEX_STATES[state.state], reason=reason(state)
        )
        for name, versions in models.all_states().items()
        for version, state in versions.items()
        if state.state is State.AVAILABLE or not ready_only
    ]
    return sorted(found, key=lambda entry: (entry.name, int(entry.version)))


def reason(state: VersionState) -> str:
    """Why a version cannot be called; empty if it can, or will be."""
    return state.message or ("unloaded" if state.state is State.END else "")


def _raw(array: NDArray[Any]) -> bytes:
    if array.dtype.kind != "O":
        return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    texts = map(_bytes, array.ravel().tolist())
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _texts(raw: bytes, count: int, what: str) -> NDArray[Any]:
    """Strings, each after its length in four bytes. Raises UsageError that names `what`."""
    found, place = [], 0
    while place < len(raw):
        (length,) = struct.unpack("<I", raw[place : place + 4]) if place + 4 <= len(raw) else (len(raw),)
        found.append(raw[place + 4 : place + 4 + length])
        place += 4 + length
    if place != len(raw) or len(found) != count:
        raise UsageError(f"{what} has {len(found)} strings in {len(raw)} bytes; the shape needs {count}")
    made = np.empty(count, object)
    made[:] = found
    return made


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
