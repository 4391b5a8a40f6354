"""The project's subset of public messages against the official ones: the same bytes, both ways."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2,
    regression_pb2,
)
from tritonclient.grpc import service_pb2

from seisserve.proto import inference_wire_pb2, tensorflow_serving_wire_pb2, tensorflow_wire_pb2
from seisserve.tensors import to_array, to_proto

OFFICIAL = (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    prediction_log_pb2,
    regression_pb2,
    service_pb2,
)  # imported, so they are in the default pool
OURS = [
    message
    for module in (tensorflow_wire_pb2, tensorflow_serving_wire_pb2, inference_wire_pb2)
    for message in module.DESCRIPTOR.message_types_by_name.values()
]
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: st.text(
        min_size=1, max_size=20
    ),  # the official TensorInfo tells an empty name from none
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=40).map(lambda content: base64.b64encode(content).decode()),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: st.integers(-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, (1 << 64) - 1),
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32, allow_nan=False, allow_infinity=False),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
}
ANY = st.integers(0, 99).map(lambda value: {"@type": "type.googleapis.com/google.protobuf.Int64Value", "value": value})


def contents(message: Descriptor) -> st.SearchStrategy[dict[str, Any]]:
    """JSON of a message of ours, with any of its fields set."""
    if message.full_name == "google.protobuf.Int64Value":
        return SCALARS[FieldDescriptor.TYPE_INT64]
    if message.full_name == "google.protobuf.Any":
        return ANY
    alone = {field.name: values(field) for field in message.fields if field.containing_oneof is None}
    choices = [
        st.one_of(st.just({}), *(st.fixed_dictionaries({field.name: values(field)}) for field in oneof.fields))
        for oneof in message.oneofs
    ]
    parts = st.tuples(st.fixed_dictionaries({}, optional=alone), *choices)
    return parts.map(lambda found: {name: value for part in found for name, value in part.items()})


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """JSON of a field."""
    if field.message_type and field.message_type.GetOptions().map_entry:
        return st.dictionaries(st.text(max_size=8), values(field.message_type.fields_by_name["value"]), max_size=2)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        one = st.deferred(lambda: contents(field.message_type))
    elif field.type == FieldDescriptor.TYPE_ENUM:
        one = st.sampled_from([value.name for value in field.enum_type.values])
    else:
        one = SCALARS[field.type]
    return st.lists(one, max_size=3) if field.is_repeated else one


def official(message: Descriptor) -> type[Message]:
    name = message.full_name.removeprefix("seisserve.wire.")
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))


def plain(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("descriptor", OURS, ids=[message.name for message in OURS])
def test_the_same_content_has_the_same_bytes_and_reads_back_both_ways(descriptor: Descriptor) -> None:
    our_class, their_class = message_factory.GetMessageClass(descriptor), official(descriptor)

    @settings(max_examples=40, deadline=None)
    @given(contents(descriptor))
    def check(content: dict[str, Any]) -> None:
        ours, theirs = json_format.ParseDict(content, our_class()), json_format.ParseDict(content, their_class())
        assert plain(ours) == plain(theirs)
        assert our_class.FromString(plain(theirs)) == ours
        assert their_class.FromString(plain(ours)) == theirs

    check()


@pytest.mark.parametrize("descriptor", OURS, ids=[message.name for message in OURS])
def test_every_field_has_the_official_name_number_and_type(descriptor: Descriptor) -> None:
    theirs = official(descriptor).DESCRIPTOR.fields_by_name
    for field in descriptor.fields:
        assert field.number == theirs[field.name].number
        assert field.is_repeated == theirs[field.name].is_repeated


def test_the_inference_service_has_the_official_methods() -> None:
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in inference_wire_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        official_method = theirs[method.name]
        for ours, other in ((method.input_type, official_method.input_type),
                            (method.output_type, official_method.output_type)):  # fmt: skip
            assert ours.full_name == f"seisserve.wire.{other.full_name}"


@pytest.mark.parametrize(
    ("theirs", "name"),
    [(prediction_service_pb2, "PredictionService"), (model_service_pb2, "ModelService")],
)
def test_the_services_of_tensorflow_serving_have_all_the_official_methods(theirs: Any, name: str) -> None:
    official_methods = theirs.DESCRIPTOR.services_by_name[name].methods
    ours = tensorflow_serving_wire_pb2.DESCRIPTOR.services_by_name[name].methods_by_name
    assert set(ours) == {method.name for method in official_methods}
    for method in official_methods:
        for own, other in ((ours[method.name].input_type, method.input_type),
                           (ours[method.name].output_type, method.output_type)):  # fmt: skip
            assert own.full_name == f"seisserve.wire.{other.full_name}"


ARRAYS = arrays(np.float32, array_shapes(min_dims=0, max_dims=4, min_side=0), elements=st.floats(width=32))


@settings(deadline=None)
@given(ARRAYS)
def test_an_array_reads_back_through_tensorflow_bit_for_bit(array: NDArray[np.float32]) -> None:
    theirs = tf.make_ndarray(TensorProto.FromString(to_proto(array).SerializeToString()))
    assert (theirs.shape, theirs.tobytes()) == (array.shape, array.tobytes())


DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
KEPT = {
    "f2": "half_val", "f4": "float_val", "f8": "double_val", "i8": "int64_val", "u4": "uint32_val", "u8": "uint64_val",
    "b1": "bool_val",
}  # fmt: skip
TYPED = st.sampled_from(DTYPES).flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0)))
TEXTS = arrays(object, array_shapes(min_dims=0, max_dims=2, min_side=0), elements=st.binary(max_size=5))


@settings(deadline=None)
@given(TYPED)
def test_arrays_of_every_type_go_through_tensorflow_and_back(array: NDArray[Any]) -> None:
    theirs = tf.make_ndarray(TensorProto.FromString(to_proto(array).SerializeToString()))
    assert (theirs.shape, theirs.dtype, theirs.tobytes()) == (array.shape, array.dtype, array.tobytes())
    proto = tf.make_tensor_proto(array, shape=array.shape)
    ours = to_array(tensorflow_wire_pb2.TensorProto.FromString(proto.SerializeToString()), "x", array.dtype)
    assert (ours.shape, ours.dtype, ours.tobytes()) == (array.shape, array.dtype, array.tobytes())


@settings(deadline=None)
@given(TYPED.filter(lambda array: array.size > 0))
def test_single_values_of_every_type_read_as_tensorflow_writes_them(array: NDArray[Any]) -> None:
    proto = tf.make_tensor_proto(array, shape=array.shape)
    field = KEPT.get(array.dtype.str[1:], "int_val")
    listed = TensorProto(dtype=proto.dtype, tensor_shape=proto.tensor_shape)
    bits = array.view(np.uint16) if array.dtype == np.float16 else array
    getattr(listed, field).extend(bits.ravel().tolist())
    ours = to_array(tensorflow_wire_pb2.TensorProto.FromString(listed.SerializeToString()), "x", array.dtype)
    np.testing.assert_array_equal(ours, tf.make_ndarray(listed), strict=True)


@settings(deadline=None)
@given(TEXTS)
def test_strings_go_through_tensorflow_and_back(array: NDArray[Any]) -> None:
    theirs = tf.make_ndarray(TensorProto.FromString(to_proto(array).SerializeToString()))
    assert theirs.tolist() == array.tolist()
    proto = tf.make_tensor_proto(array, dtype=tf.string, shape=array.shape)
    ours = to_array(tensorflow_wire_pb2.TensorProto.FromString(proto.SerializeToString()), "x", array.dtype)
    assert (ours.shape, ours.tolist()) == (array.shape, array.tolist())


@settings(deadline=None)
@given(ARRAYS)
def test_tensorflows_tensors_read_back_bit_for_bit(array: NDArray[np.float32]) -> None:
    proto = tf.make_tensor_proto(array, shape=array.shape)
    ours = to_array(tensorflow_wire_pb2.TensorProto.FromString(proto.SerializeToString()), "x")
    assert (ours.shape, ours.tobytes()) == (array.shape, array.tobytes())
