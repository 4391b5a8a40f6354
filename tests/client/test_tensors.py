"""Arrays to TensorProto and back, and what is refused on the way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from seisserve import UsageError
from seisserve.proto.tensorflow_wire_pb2 import DT_DOUBLE, DT_FLOAT, TensorProto
from seisserve.tensors import MOST_FILLED, shape_proto, to_array, to_proto

ARRAYS = arrays(np.float32, array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5), elements=st.floats(width=32))


def tensor(shape: Any, **values: Any) -> TensorProto:
    return TensorProto(dtype=DT_FLOAT, tensor_shape=shape_proto(shape), **values)


@given(ARRAYS)
def test_arrays_read_back_bit_for_bit(array: NDArray[np.float32]) -> None:
    for layout in (array, array.copy(order="F"), np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array):
        found = to_array(to_proto(layout), "x")
        assert (found.shape, found.dtype, found.tobytes()) == (array.shape, np.float32, array.tobytes())


@given(ARRAYS.filter(lambda array: array.size > 0))
def test_typed_values_mean_what_the_bytes_mean(array: NDArray[np.float32]) -> None:
    found = to_array(tensor(array.shape, float_val=array.ravel()), "x")
    np.testing.assert_array_equal(found, array)


@given(array_shapes(max_side=6), st.lists(st.floats(-10, 10, width=32), max_size=6))
def test_the_last_of_too_few_values_fills_the_rest(shape: tuple[int, ...], values: list[float]) -> None:
    size = math.prod(shape)
    if len(values) > size:
        with pytest.raises(UsageError, match=f"'x': float_val has {len(values)} values"):
            to_array(tensor(shape, float_val=values), "x")
    else:
        expected = values + [values[-1] if values else 0.0] * (size - len(values))
        assert to_array(tensor(shape, float_val=values), "x").ravel().tolist() == expected


SIZES = st.one_of(st.integers(-2, 4), st.integers(-(1 << 63), (1 << 63) - 1), st.sampled_from([1 << 31, 1 << 62]))


@given(
    st.lists(SIZES, max_size=70), st.binary(max_size=64), st.lists(st.floats(width=32), max_size=8), st.booleans(),
    st.integers(0, 200),
)  # fmt: skip
def test_whatever_arrives_is_an_array_or_a_refusal_that_names_the_input(
    shape: list[int], content: bytes, values: list[float], unknown: bool, dtype: int
) -> None:
    made = tensor(shape, tensor_content=content, float_val=values)
    made.tensor_shape.unknown_rank = unknown
    if dtype > 150:
        made.dtype = dtype
    try:
        found = to_array(made, "x")
    except UsageError as refusal:
        message = str(refusal)
    else:
        message = "input 'x': "
        assert found.shape == tuple(shape)
        assert found.dtype == np.float32
    assert message.startswith("input 'x': ")


@pytest.mark.parametrize(
    ("proto", "text"),
    [
        (TensorProto(), "dtype is DT_INVALID; expected DT_FLOAT"),
        (TensorProto(dtype=DT_DOUBLE), "dtype is DT_DOUBLE; expected DT_FLOAT"),
        (TensorProto(dtype=999), "dtype is 999; expected DT_FLOAT"),
        (tensor([2, -1]), "shape (2, -1) is not fully known"),
        (tensor([2, 2], tensor_content=b"12345"), "tensor_content has 5 bytes; shape (2, 2) needs 16"),
        (tensor([1], float_val=[1, 2]), "float_val has 2 values; shape (1,) holds 1"),
        (tensor([MOST_FILLED + 1], float_val=[1]), "float_val has 1 values; shape"),
        (tensor([1 << 40, 2]), "is too large"),
        (tensor([0, 1 << 62]), "is too large"),
        (tensor([1] * 65), "is too large"),
    ],
)
def test_a_bad_tensor_is_refused_with_what_was_expected(proto: TensorProto, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        to_array(proto, "x")
    assert text in str(caught.value)
