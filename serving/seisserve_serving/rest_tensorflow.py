"""TensorFlow Serving's REST API: JSON in, the messages of its gRPC services, JSON out.

What the values of an input are follows from the signature, as there: JSON has one kind of number only.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray

from seisserve.errors import UsageError
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.proto.tensorflow_wire_pb2 import Example, TensorInfo
from seisserve.tensors import TYPES, to_array, to_proto
from seisserve_serving.calls import Call
from seisserve_serving.front import Methods
from seisserve_serving.rest_json import Base64, array, document, dump, joined, load
from seisserve_serving.rest_routes import Asked, Reply, Route, number, timed
from seisserve_serving.tensorflow_api import MODEL_SERVICE, PREDICTION_SERVICE

__all__ = ["routes"]

DEFAULT_SIGNATURE = "serving_default"
MODEL = "/v1/models/{model:servable}"
CHOICES = ("", "/versions/{version}", "/labels/{label}")
OK = 0
CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
Array = NDArray[Any]
Raw = msgspec.Raw


class _Predict(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a prediction, in rows (instances) or in columns (inputs)."""

    signature_name: str = ""
    instances: Raw | msgspec.UnsetType = msgspec.UNSET
    inputs: Raw | msgspec.UnsetType = msgspec.UNSET


class _Examples(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a classification or regression."""

    examples: list[dict[str, Raw]]
    signature_name: str = ""
    context: dict[str, Raw] | msgspec.UnsetType = msgspec.UNSET


class _Input(NamedTuple):
    """An input of a signature."""

    name: str
    dtype: np.dtype[Any]


def routes(services: Mapping[str, Methods]) -> list[Route]:
    """The routes, over the methods of the gRPC services."""
    predictions, models = services[PREDICTION_SERVICE], services[MODEL_SERVICE]

    def predict(asked: Asked, call: Call) -> Reply:
        with timed(call, "decode"):
            body: _Predict = document(asked.body, _Predict)
            spec = _spec(asked, body.signature_name)
            inputs = _inputs(_signatures(spec, call), body.signature_name)
            rows = _rows(body)
            arrays = _of_rows(rows, inputs) if rows is not None else _of_columns(body, inputs)
            request = wire.PredictRequest(model_spec=spec)
            for name, values in arrays.items():
                request.inputs[name].CopyFrom(to_proto(values))
        response = predictions["Predict"][0](request, call)
        with timed(call, "encode"):
            outputs = {
                name: to_array(tensor, name, TYPES[tensor.dtype][0]) for name, tensor in response.outputs.items()
            }
            return Reply(_row_format(outputs) if rows is not None else _column_format(outputs))

    def _signatures(spec: wire.ModelSpec, call: Call) -> wire.SignatureDefMap:
        request = wire.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        response = predictions["GetModelMetadata"][0](request, call)
        return wire.SignatureDefMap.FromString(response.metadata["signature_def"].value)

    def classify(asked: Asked, call: Call) -> Reply:
        request = wire.ClassificationRequest()
        _fill(request, asked)
        result = predictions["Classify"][0](request, call).result
        return Reply(dump({"results": [
            [[found.label, np.float32(found.score)] for found in one.classes] for one in result.classifications
        ]}))  # fmt: skip

    def regress(asked: Asked, call: Call) -> Reply:
        request = wire.RegressionRequest()
        _fill(request, asked)
        result = predictions["Regress"][0](request, call).result
        return Reply(dump({"results": [np.float32(one.value) for one in result.regressions]}))

    def metadata(asked: Asked, call: Call) -> Reply:
        spec = _spec(asked)
        request = wire.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        response = predictions["GetModelMetadata"][0](request, call)
        packed = response.metadata["signature_def"]
        found = wire.SignatureDefMap.FromString(packed.value)
        return Reply(dump({
            "model_spec": _plain(response.model_spec),
            "metadata": {"signature_def": {"@type": packed.type_url} | _plain(found)},
        }))  # fmt: skip

    def status(asked: Asked, call: Call) -> Reply:
        response = models["GetModelStatus"][0](wire.GetModelStatusRequest(model_spec=_spec(asked)), call)
        return Reply(dump({"model_version_status": [
            {
                "version": str(one.version),
                "state": wire.ModelVersionStatus.State.Name(one.state),
                "status": {"error_code": CODES[one.status.error_code], "error_message": one.status.error_message},
            }
            for one in response.model_version_status
        ]}))  # fmt: skip

    works: list[tuple[str, str, str, Callable[[Asked, Call], Reply]]] = [
        ("POST", ":predict", f"/{PREDICTION_SERVICE}/Predict", predict),
        ("POST", ":classify", f"/{PREDICTION_SERVICE}/Classify", classify),
        ("POST", ":regress", f"/{PREDICTION_SERVICE}/Regress", regress),
        ("GET", "/metadata", f"/{PREDICTION_SERVICE}/GetModelMetadata", metadata),
        ("GET", "", f"/{MODEL_SERVICE}/GetModelStatus", status),
    ]
    return [
        Route(verb, f"{MODEL}{choice}{end}", method, work) for verb, end, method, work in works for choice in CHOICES
    ]


def _spec(asked: Asked, signature: str = "") -> wire.ModelSpec:
    asked.options()
    spec = wire.ModelSpec(name=asked.path["model"], signature_name=signature)
    if "version" in asked.path:
        spec.version.value = number(asked.path["version"], "the version")
    if "label" in asked.path:
        spec.version_label = asked.path["label"]
    return spec


def _inputs(signatures: wire.SignatureDefMap, name: str) -> dict[str, _Input]:
    """The inputs of a signature. Raises UsageError for one that the model hasn't."""
    found = signatures.signature_def
    chosen = name or DEFAULT_SIGNATURE
    if chosen not in found:
        raise UsageError(f"signature_name is {name!r}; there is {', '.join(sorted(found))}")
    return {alias: _Input(alias, _dtype(alias, info)) for alias, info in found[chosen].inputs.items()}


def _dtype(alias: str, info: TensorInfo) -> np.dtype[Any]:
    if info.dtype not in TYPES:
        raise UsageError(f"input {alias!r} is of a type that cannot be sent as JSON; use gRPC")
    return TYPES[info.dtype][0]


def _rows(body: _Predict) -> list[Raw] | None:
    """The instances, None if the body has columns."""
    if body.instances is msgspec.UNSET:
        if body.inputs is msgspec.UNSET:
            raise UsageError("the body has neither instances (rows) nor inputs (columns)")
        return None
    if body.inputs is not msgspec.UNSET:
        raise UsageError("the body has both instances (rows) and inputs (columns); it must have one of them")
    rows: list[Raw] = load(body.instances, list[Raw], "instances")
    if not rows:
        raise UsageError("instances is empty; it must have at least one row")
    return rows


def _of_rows(rows: list[Raw], inputs: Mapping[str, _Input]) -> dict[str, Array]:
    """The inputs by name, each with as many rows."""
    if not _named(rows[0], inputs):
        only = _only(inputs, "instances")
        return {only.name: array(joined(rows), only.dtype, "instances")}
    objects = [load(row, dict[str, Raw], f"instances[{place}]") for place, row in enumerate(rows)]
    for place, row in enumerate(objects):
        if set(row) != set(inputs):
            raise UsageError(f"instances[{place}] has {sorted(row)}; it must have {sorted(inputs)}")
    return {
        name: array(joined(row[name] for row in objects), one.dtype, f"input {name!r} of instances")
        for name, one in inputs.items()
    }


def _of_columns(body: _Predict, inputs: Mapping[str, _Input]) -> dict[str, Array]:
    assert isinstance(body.inputs, Raw)
    if not _named(body.inputs, inputs):
        only = _only(inputs, "inputs")
        return {only.name: array(body.inputs, only.dtype, "inputs")}
    columns = load(body.inputs, dict[str, Raw], "inputs")
    if set(columns) != set(inputs):
        raise UsageError(f"inputs has {sorted(columns)}; it must have {sorted(inputs)}")
    return {name: array(columns[name], one.dtype, f"input {name!r}") for name, one in inputs.items()}


def _named(value: Raw, inputs: Mapping[str, _Input]) -> bool:
    """Whether it is an object with a value for each input, rather than the value of the only one."""
    if not bytes(value).lstrip().startswith(b"{"):
        return False
    return "b64" in inputs or set(load(value, dict[str, Raw], "an input")) != {"b64"}


def _only(inputs: Mapping[str, _Input], field: str) -> _Input:
    if len(inputs) != 1:
        raise UsageError(f"{field} must name its values: there are the inputs {', '.join(sorted(inputs))}")
    return next(iter(inputs.values()))


def _row_format(outputs: Mapping[str, Array]) -> bytes:
    sizes = {name: len(values) if values.ndim else None for name, values in outputs.items()}
    if None in sizes.values() or len(set(sizes.values())) > 1:
        raise UsageError(f"the outputs have {sizes} rows, so they fit into no rows; ask in columns (inputs)")
    shown = {name: _shown(name, values) for name, values in outputs.items()}
    if len(shown) == 1:
        (predictions,) = shown.values()
    else:
        predictions = [dict(zip(shown, row, strict=True)) for row in zip(*shown.values(), strict=True)]
    return dump({"predictions": predictions}, outputs.values())


def _column_format(outputs: Mapping[str, Array]) -> bytes:
    shown = {name: _shown(name, values) for name, values in outputs.items()}
    return dump({"outputs": next(iter(shown.values())) if len(shown) == 1 else shown}, outputs.values())


def _shown(name: str, values: Array) -> Any:
    """An output as JSON has it: strings as text, bytes (by the output's name, or what is in them) as base64."""
    if values.dtype.kind != "O":
        return np.ascontiguousarray(values)
    flat = np.empty(values.shape, object)
    flat.ravel()[:] = [_text(one, always_base64=name.endswith("_bytes")) for one in values.ravel()]
    return flat.tolist()


def _text(content: bytes, *, always_base64: bool) -> str | dict[str, str]:
    if not always_base64:
        try:
            return content.decode()
        except UnicodeDecodeError:
            pass  # no text: bytes, whatever the output is called
    return {"b64": base64.b64encode(content).decode()}


def _fill(request: Any, asked: Asked) -> None:
    """Examples of JSON as those of the message."""
    body: _Examples = document(asked.body, _Examples)
    request.model_spec.CopyFrom(_spec(asked, body.signature_name))
    if not body.examples:
        raise UsageError("examples is empty; it must have at least one")
    examples = [_example(one, f"examples[{place}]") for place, one in enumerate(body.examples)]
    if body.context is msgspec.UNSET:
        request.input.example_list.examples.extend(examples)
    else:
        request.input.example_list_with_context.examples.extend(examples)
        request.input.example_list_with_context.context.CopyFrom(_example(body.context, "context"))


def _example(features: Mapping[str, Raw], where: str) -> Example:
    made = Example()
    for name, raw in features.items():
        what = f"{where}: feature {name!r}"
        value = load(raw, list[_Value] | _Value, what)
        values = value if isinstance(value, list) else [value]
        feature = made.features.feature[name]
        kinds = {_kind(one) for one in values}
        if len(kinds) > 1:
            raise UsageError(f"{what}: its values are of different types")
        if kinds == {"bytes"}:
            feature.bytes_list.value.extend(
                one.decoded(what) if isinstance(one, Base64) else str(one).encode() for one in values
            )
        elif kinds == {"float"}:
            feature.float_list.value.extend(values)
        elif kinds == {"int"}:
            if any(not -(1 << 63) <= one < 1 << 63 for one in values):
                raise UsageError(f"{what}: a value is beyond int64")
            feature.int64_list.value.extend(map(int, values))
    return made


_Value = bool | int | float | str | Base64


def _kind(value: Any) -> str:
    if isinstance(value, (str, Base64)):
        return "bytes"
    return "float" if isinstance(value, float) else "int"


def _plain(message: Any) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
