"""The server against the official TensorFlow Serving stubs, and against TensorFlow itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from seisserve.bundle import Bundle
from seisserve_serving.models import Models

Array = NDArray[np.float32]
Refused = Callable[..., tuple[grpc.StatusCode, str]]
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def status_stub(channel: grpc.Channel) -> Any:
    return model_service_pb2_grpc.ModelServiceStub(channel)


@pytest.fixture(scope="module")
def expected(models: Models, windows: Array) -> Array:
    """What the runtime in this process says about the windows, one at a time."""
    served = models.get("phasenet")
    return np.concatenate(
        [served.transport.predict(served.manifest, {"waveform": window[None]})["probability"] for window in windows]
    )


def request(array: Array | TensorProto | None = None, **spec: Any) -> predict_pb2.PredictRequest:
    made = predict_pb2.PredictRequest()
    made.model_spec.name = spec.get("name", "phasenet")
    made.model_spec.signature_name = spec.get("signature", "")
    made.output_filter.extend(spec.get("only", ()))
    if "version" in spec:
        made.model_spec.version.value = spec["version"]
    if "label" in spec:
        made.model_spec.version_label = spec["label"]
    if array is not None:
        tensor = array if isinstance(array, TensorProto) else tf.make_tensor_proto(array)
        made.inputs[spec.get("alias", "waveform")].CopyFrom(tensor)
    return made


def floats(shape: list[int], values: Any) -> TensorProto:
    """A tensor with its values in float_val."""
    made = TensorProto(dtype=tf.float32.as_datatype_enum, float_val=values)
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    return made


def bytes_of(shape: list[int], content: bytes, dtype: tf.DType = tf.float32) -> TensorProto:
    """A tensor with its values in tensor_content."""
    made = floats(shape, ())
    made.dtype, made.tensor_content = dtype.as_datatype_enum, content
    return made


@pytest.mark.parametrize("count", [0, 1, 2, 31, 32, 33, 100])
def test_a_window_gives_the_same_bits_whatever_batch_it_comes_in(
    stub: Any, windows: Array, expected: Array, count: int
) -> None:
    answer = stub.Predict(request(windows[:count]), timeout=60)
    assert list(answer.outputs) == ["probability"]
    np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["probability"]), expected[:count])


def test_float_val_and_tensor_content_mean_the_same(stub: Any, windows: Array, expected: Array) -> None:
    shape = [2, *windows.shape[1:]]
    for tensor in (floats(shape, windows[:2].ravel()), bytes_of(shape, windows[:2].tobytes())):
        answer = stub.Predict(request(tensor), timeout=60)
        np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["probability"]), expected[:2])


@pytest.mark.parametrize("values", [[], [3.0], [1.0, 2.0, 7.0]])
def test_the_last_of_too_few_values_fills_the_tensor(stub: Any, windows: Array, values: list[float]) -> None:
    tensor = floats([1, *windows.shape[1:]], values)
    filled = stub.Predict(request(tf.make_ndarray(tensor)), timeout=60)
    assert stub.Predict(request(tensor), timeout=60).outputs == filled.outputs


@pytest.mark.parametrize("spec", [{}, {"version": 1}, {"signature": "serving_default"}])
def test_the_answer_names_the_version_and_signature_that_served(stub: Any, windows: Array, spec: Any) -> None:
    answer = stub.Predict(request(windows[:1], **spec), timeout=60)
    assert answer.model_spec.name == "phasenet"
    assert answer.model_spec.version.value == 1
    assert answer.model_spec.signature_name == "serving_default"


def test_an_output_filter_selects_outputs(stub: Any, windows: Array, expected: Array) -> None:
    answer = stub.Predict(request(windows[:1], only=["probability"]), timeout=60)
    np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["probability"]), expected[:1])


def test_the_fragment_signature_takes_each_length_that_the_manifest_names(
    stub: Any, windows: Array, models: Models
) -> None:
    served = models.get("phasenet")
    for length in (*served.manifest.fragment_windows, served.manifest.window_samples):
        part = np.ascontiguousarray(windows[:3, :length])
        answer = stub.Predict(request(part, signature="fragment"), timeout=60)
        direct = served.transport.predict(served.manifest, {"waveform": part})["probability"]
        np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["probability"]), direct)
        assert answer.model_spec.signature_name == "fragment"


def test_tensorflow_gives_the_same_numbers_from_the_saved_model(stub: Any, windows: Array, bundle: Bundle) -> None:
    loaded = tf.saved_model.load(str(bundle.folder))
    shortest = bundle.manifest.fragment_windows[0]
    for name, part in (("serving_default", windows[:5]), ("fragment", windows[:5, :shortest])):
        ours = tf.make_ndarray(stub.Predict(request(part, signature=name), timeout=60).outputs["probability"])
        theirs = loaded.signatures[name](waveform=tf.constant(part))["probability"].numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=bundle.manifest.golden_tolerance)


def test_the_metadata_are_those_of_the_saved_model(stub: Any, bundle: Bundle) -> None:
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "phasenet"
    answer = stub.GetModelMetadata(asked, timeout=30)
    assert answer.model_spec.version.value == 1
    ours = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(ours)
    graph = SavedModel.FromString((bundle.folder / "saved_model.pb").read_bytes()).meta_graphs[0]
    theirs = {name: signature for name, signature in graph.signature_def.items() if signature.method_name}
    assert dict(ours.signature_def) == theirs


def test_the_status_is_available_and_without_error(status_stub: Any) -> None:
    for version in (None, 1):
        asked = get_model_status_pb2.GetModelStatusRequest()
        asked.model_spec.name = "phasenet"
        if version:
            asked.model_spec.version.value = version
        (status,) = status_stub.GetModelStatus(asked, timeout=30).model_version_status
        assert (status.version, status.State.Name(status.state)) == (1, "AVAILABLE")
        assert (status.status.error_code, status.status.error_message) == (0, "")


W = [1, 3072, 3]
REFUSALS: list[tuple[str, Any, grpc.StatusCode, str]] = [
    ("unknown model", {"name": "nope"}, NOT_FOUND, "'nope'"),
    ("unknown version", {"version": 9}, NOT_FOUND, "9"),
    ("version zero", {"version": 0}, NOT_FOUND, "0"),
    ("negative version", {"version": -3}, NOT_FOUND, "-3"),
    ("version label", {"label": "stable"}, INVALID, "version_label"),
    ("no name", {"name": ""}, INVALID, "model_spec.name"),
    ("unknown signature", {"signature": "other"}, INVALID, "signature_name 'other'"),
    ("unknown alias", {"alias": "x"}, INVALID, "'waveform'"),
    ("no input", {"array": None}, INVALID, "'waveform'"),
    ("unknown output", {"only": ["q"]}, INVALID, "output_filter 'q'"),
    ("dtype", {"array": bytes_of(W, b"\0" * 8 * 9216, tf.float64)}, INVALID, "input 'waveform': dtype is DT_DOUBLE"),
    ("new dtype", {"array": bytes_of(W, b"\0" * 2 * 9216, tf.bfloat16)}, INVALID, "input 'waveform': dtype is"),
    ("rank", {"array": floats([3072, 3], [1])}, INVALID, "input 'waveform': shape [3072, 3]"),
    ("scalar", {"array": floats([], [1])}, INVALID, "input 'waveform': shape []"),
    ("length", {"array": floats([1, 3000, 3], [1])}, INVALID, "input 'waveform': shape [1, 3000, 3]"),
    ("components", {"array": floats([1, 3072, 2], [1])}, INVALID, "[-1, 3072, 3]"),
    ("fragment length", {"array": floats([1, 777, 3], [1]), "signature": "fragment"}, INVALID, "777 samples"),
    ("content size", {"array": bytes_of(W, b"\0" * 100)}, INVALID, "input 'waveform': tensor_content has 100 bytes"),
    ("negative size", {"array": floats([-1, 3072, 3], [1])}, INVALID, "input 'waveform': shape (-1, 3072, 3)"),
    ("too many values", {"array": floats([0, 3072, 3], [1])}, INVALID, "input 'waveform': float_val has 1 values"),
    ("huge", {"array": floats([1 << 40, 3072, 3], [1])}, INVALID, "input 'waveform'"),
    ("huge and empty", {"array": floats([0, 1 << 62, 3], [])}, INVALID, "input 'waveform'"),
    ("many axes", {"array": floats([1] * 80, [1])}, INVALID, "input 'waveform'"),
    ("NaN", {"array": floats(W, [1, float("nan")])}, INVALID, "input 'waveform': 9215 of 9216 values are NaN"),
    ("infinite", {"array": floats(W, [float("inf"), 1])}, INVALID, "input 'waveform': 1 of 9216 values are NaN"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code", "text"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_a_bad_request_is_refused_with_the_field_at_fault(
    stub: Any, refused: Refused, change: dict[str, Any], code: grpc.StatusCode, text: str
) -> None:
    made = request(**{"array": floats(W, [1]), **change})
    found, message = refused(stub.Predict, made)
    assert found is code
    assert text in message


def test_an_extra_input_is_refused(stub: Any, refused: Refused) -> None:
    made = request(floats(W, [1]))
    made.inputs["more"].CopyFrom(floats(W, [1]))
    assert refused(stub.Predict, made) == (INVALID, "inputs are ['more', 'waveform']; phasenet takes ['waveform']")


@pytest.mark.parametrize(
    ("name", "fields", "code", "text"),
    [
        ("nope", ["signature_def"], NOT_FOUND, "'nope'"),
        ("phasenet", [], INVALID, "metadata_field"),
        ("phasenet", ["graph"], INVALID, "metadata_field 'graph'"),
    ],
)
def test_bad_metadata_requests_are_refused(
    stub: Any, refused: Refused, name: str, fields: list[str], code: grpc.StatusCode, text: str
) -> None:
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    asked.model_spec.name = name
    found, message = refused(stub.GetModelMetadata, asked)
    assert found is code
    assert text in message


@pytest.mark.parametrize(
    ("name", "version", "code"), [("nope", None, NOT_FOUND), ("phasenet", 9, NOT_FOUND), ("", None, INVALID)]
)
def test_the_status_of_what_is_not_there_is_refused(
    status_stub: Any, refused: Refused, name: str, version: int | None, code: grpc.StatusCode
) -> None:
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = name
    if version:
        asked.model_spec.version.value = version
    assert refused(status_stub.GetModelStatus, asked)[0] is code
