"""The REST form of the Open Inference protocol (KServe V2): JSON, or JSON with the tensors' bytes after it.

Bodies become the messages of the gRPC service, and its answers become bodies, so both answer the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray

from seisserve.errors import UsageError
from seisserve.proto import inference_wire_pb2 as wire
from seisserve_serving.calls import Call
from seisserve_serving.errors import Unsupported
from seisserve_serving.front import Methods
from seisserve_serving.kserve_api import INFERENCE_SERVICE
from seisserve_serving.rest_json import array, document, dump
from seisserve_serving.rest_routes import JSON, Asked, Reply, Route, number, timed

__all__ = ["HEADER_LENGTH", "routes"]

HEADER_LENGTH = "inference-header-content-length"
BINARY = "application/octet-stream"
TYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BYTES": "O",
}  # fmt: skip
TRANSPORT = {"binary_data", "binary_data_output", "binary_data_size"}  # parameters that are about the body only
Array = NDArray[Any]
Raw = msgspec.Raw
Parameters = dict[str, Any]


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters = {}
    data: Raw | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct):
    name: str
    parameters: Parameters = {}


class _Infer(msgspec.Struct):
    inputs: list[_Input]
    outputs: list[_Output] = []
    id: str = ""
    parameters: Parameters = {}


class _Index(msgspec.Struct):
    ready: bool = False


class _Change(msgspec.Struct):
    parameters: Parameters = {}


def routes(services: Mapping[str, Methods]) -> list[Route]:
    """The routes, over the methods of the gRPC service; those of health are in `web`."""
    methods = services[INFERENCE_SERVICE]

    def model_ready(asked: Asked, call: Call) -> Reply:
        name, version = asked.path["model"], asked.path.get("version", "")
        found = methods["ModelReady"][0](wire.ModelReadyRequest(name=name, version=version), call).ready
        return Reply(dump({"name": name, "ready": found}), status=200 if found else 503)

    def metadata(asked: Asked, call: Call) -> Reply:
        found = methods["ServerMetadata"][0](wire.ServerMetadataRequest(), call)
        return Reply(dump(_plain(found) | {"extensions": [*found.extensions, "binary_tensor_data"]}))

    def model_metadata(asked: Asked, call: Call) -> Reply:
        request = wire.ModelMetadataRequest(name=asked.path["model"], version=asked.path.get("version", ""))
        found = methods["ModelMetadata"][0](request, call)
        tensors = {
            field: [
                {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in getattr(found, field)
            ]
            for field in ("inputs", "outputs")
        }
        return Reply(dump(_plain(found) | tensors))

    def infer(asked: Asked, call: Call) -> Reply:
        with timed(call, "decode"):
            head, tail = _halves(asked)
            body: _Infer = document(head, _Infer)
            request, binary = _message(asked, body, tail), _binary_outputs(body)
        response = methods["ModelInfer"][0](request, call)
        with timed(call, "encode"):
            return _answer(response, binary)

    def index(asked: Asked, call: Call) -> Reply:
        only_ready = document(asked.body or b"{}", _Index).ready
        found = methods["RepositoryIndex"][0](wire.RepositoryIndexRequest(ready=only_ready), call)
        return Reply(dump([_plain(one) for one in found.models]))

    def load(asked: Asked, call: Call) -> Reply:
        return change("RepositoryModelLoad", asked, call)

    def unload(asked: Asked, call: Call) -> Reply:
        return change("RepositoryModelUnload", asked, call)

    def change(method: str, asked: Asked, call: Call) -> Reply:
        if method not in methods:
            raise Unsupported(f"{method} is not offered by this server")
        request = methods[method][1](model_name=asked.path["model"])
        for name, value in document(asked.body or b"{}", _Change).parameters.items():
            request.parameters[name].CopyFrom(_parameter(wire.ModelRepositoryParameter, f"parameter {name!r}", value))
        methods[method][0](request, call)
        return Reply(b"{}")

    models = [f"/v2/models/{{model:servable}}{version}" for version in ("", "/versions/{version}")]
    repository = "/v2/repository/models/{model:servable}"
    service = f"/{INFERENCE_SERVICE}"
    return [
        Route("GET", "/v2", f"{service}/ServerMetadata", metadata),
        *[Route("GET", path, f"{service}/ModelMetadata", model_metadata) for path in models],
        *[Route("GET", f"{path}/ready", f"{service}/ModelReady", model_ready) for path in models],
        *[Route("POST", f"{path}/infer", f"{service}/ModelInfer", infer) for path in models],
        Route("POST", "/v2/repository/index", f"{service}/RepositoryIndex", index),
        Route("POST", f"{repository}/load", f"{service}/RepositoryModelLoad", load),
        Route("POST", f"{repository}/unload", f"{service}/RepositoryModelUnload", unload),
    ]


def _halves(asked: Asked) -> tuple[bytes, memoryview]:
    """The JSON and the bytes after it."""
    text = asked.headers.get(HEADER_LENGTH)
    if text is None:
        return asked.body, memoryview(b"")
    size = number(text, HEADER_LENGTH, 1)
    if size > len(asked.body):
        raise UsageError(f"{HEADER_LENGTH} is {size}; the body has {len(asked.body)} bytes")
    return asked.body[:size], memoryview(asked.body)[size:]


def _message(asked: Asked, body: _Infer, tail: memoryview) -> wire.ModelInferRequest:
    """The request as of gRPC, every input as raw bytes."""
    if not body.inputs:
        raise UsageError("inputs is empty; it must have the model's inputs")
    request = wire.ModelInferRequest(
        model_name=asked.path["model"], model_version=asked.path.get("version", ""), id=body.id
    )
    _copy(body.parameters, request.parameters, "")
    for one in body.inputs:
        what = f"input {one.name!r}"
        tensor = request.inputs.add(name=one.name, datatype=one.datatype)
        _copy(one.parameters, tensor.parameters, f"{what}: ")
        if any(not 0 <= size < 1 << 63 for size in one.shape):
            raise UsageError(f"{what}: shape {one.shape} has a size that is negative or too large")
        tensor.shape.extend(one.shape)
        content, tail = _content(one, what, tail)
        request.raw_input_contents.append(content)
    if tail:
        raise UsageError(f"the body has {len(tail)} bytes more than its inputs' binary_data_size say")
    for asked_output in body.outputs:
        output = request.outputs.add(name=asked_output.name)
        _copy(asked_output.parameters, output.parameters, f"output {asked_output.name!r}: ")
    return request


def _content(one: _Input, what: str, tail: memoryview) -> tuple[bytes, memoryview]:
    """The bytes of an input, and what comes after them."""
    size = one.parameters.get("binary_data_size")
    if size is None:
        if one.data is msgspec.UNSET:
            raise UsageError(f"{what}: has neither data nor the parameter binary_data_size")
        return _raw(one, what), tail
    if one.data is not msgspec.UNSET:
        raise UsageError(f"{what}: has both data and the parameter binary_data_size; it must have one of them")
    if type(size) is not int or not 0 <= size <= len(tail):
        raise UsageError(f"{what}: binary_data_size is {size!r}; {len(tail)} bytes are left of the body")
    return bytes(tail[:size]), tail[size:]


def _raw(one: _Input, what: str) -> bytes:
    """The bytes of values in JSON, nested as the shape is or flat."""
    if one.datatype not in TYPES:
        raise UsageError(f"{what}: datatype is {one.datatype!r}; as JSON there is {', '.join(TYPES)}")
    assert isinstance(one.data, Raw)
    values = array(one.data, np.dtype(TYPES[one.datatype]), f"{what}: data")
    needed = math.prod(one.shape)
    if values.size != needed:
        raise UsageError(f"{what}: data has {values.size} values; shape {one.shape} needs {needed}")
    if one.datatype == "BYTES":
        return b"".join(len(text).to_bytes(4, "little") + text for text in values.ravel())
    return values.tobytes()


def _copy(given: Parameters, parameters: Any, place: str) -> None:
    """Parameters that are not about the body, for the method to judge."""
    for name, value in given.items():
        if name not in TRANSPORT:
            parameters[name].CopyFrom(_parameter(wire.InferParameter, f"{place}parameter {name!r}", value))


def _parameter(kind: Any, what: str, value: Any) -> Any:
    if isinstance(value, bool):
        return kind(bool_param=value)
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return kind(int64_param=value)
    if isinstance(value, str):
        return kind(string_param=value)
    if isinstance(value, float) and "double_param" in kind.DESCRIPTOR.fields_by_name:
        return kind(double_param=value)
    raise UsageError(f"{what} is {str(value)[:40]!r}; it must be true or false, a number or a string")


def _binary_outputs(body: _Infer) -> Mapping[str, bool] | bool:
    """Whether outputs are wanted as bytes, by name; for those not named, or if none is, the default."""
    default = _flag(body.parameters, "binary_data_output", False, "")
    if not body.outputs:
        return default
    return {one.name: _flag(one.parameters, "binary_data", default, f"output {one.name!r}: ") for one in body.outputs}


def _flag(parameters: Parameters, name: str, default: bool, place: str) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise UsageError(f"{place}{name} is {str(value)[:40]!r}; it must be true or false")
    return value


def _answer(response: wire.ModelInferResponse, binary: Mapping[str, bool] | bool) -> Reply:
    outputs, arrays, tail = [], [], []
    for tensor, content in zip(response.outputs, response.raw_output_contents, strict=True):
        told: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if binary if isinstance(binary, bool) else binary[tensor.name]:
            told["parameters"] = {"binary_data_size": len(content)}
            tail.append(content)
        elif tensor.datatype == "BYTES":
            told["data"] = list(_texts(tensor.name, content))
        elif tensor.datatype not in TYPES:
            raise UsageError(f"output {tensor.name!r} is {tensor.datatype}, not for JSON; ask with binary_data true")
        else:
            values = np.frombuffer(content, TYPES[tensor.datatype])
            arrays.append(values)
            told["data"] = values
        outputs.append(told)
    head: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        head["id"] = response.id
    text = dump(head | {"outputs": outputs}, arrays)
    if not tail:
        return Reply(text, JSON)
    return Reply(b"".join([text, *tail]), BINARY, headers={HEADER_LENGTH: str(len(text))})


def _texts(name: str, content: bytes) -> Iterator[str]:
    place = 0
    while place < len(content):
        size = int.from_bytes(content[place : place + 4], "little")
        try:
            yield content[place + 4 : place + 4 + size].decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"output {name!r} is no text; ask for it with binary_data true") from error
        place += 4 + size


def _plain(message: Any) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
