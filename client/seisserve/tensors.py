"""Arrays to TensorFlow's TensorProto and back, without TensorFlow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seisserve.errors import UsageError
from seisserve.proto.tensorflow_wire_pb2 import DT_FLOAT, DataType, TensorProto, TensorShapeProto

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["from_bytes", "shape_proto", "size_of", "to_array", "to_proto"]


def to_proto(array: NDArray[np.float32]) -> TensorProto:
    """The tensor as raw bytes, which decode ten times faster than a list of values."""
    content = np.ascontiguousarray(array, "<f4").tobytes()
    return TensorProto(dtype=DT_FLOAT, tensor_shape=shape_proto(array.shape), tensor_content=content)


def shape_proto(shape: Iterable[int]) -> TensorShapeProto:
    """A shape; -1 for a free axis."""
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])


def to_array(proto: TensorProto, name: str) -> NDArray[np.float32]:
    """The tensor's values, from `tensor_content` or `float_val`; the last of too few values fills the rest, as in
    TensorFlow. Raises UsageError that names the input."""
    if proto.dtype != DT_FLOAT:
        found = DataType.Name(proto.dtype) if proto.dtype in DataType.values() else str(proto.dtype)
        raise UsageError(f"input {name!r}: dtype is {found}; expected DT_FLOAT")
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank:
        raise UsageError(f"input {name!r}: shape {shape} is not fully known")
    size = size_of(shape, f"input {name!r}")
    if proto.tensor_content:
        return from_bytes(proto.tensor_content, shape, f"input {name!r}: tensor_content")
    values = np.array(proto.float_val, np.float32)
    if len(values) > size:
        raise UsageError(f"input {name!r}: float_val has {len(values)} values; shape {shape} holds {size}")
    if len(values) == size:
        return values.reshape(shape)
    if size > MOST_FILLED:
        raise UsageError(f"input {name!r}: float_val has {len(values)} values; shape {shape} needs {size}")
    return np.concatenate([values, np.full(size - len(values), values[-1] if len(values) else 0, np.float32)]).reshape(
        shape
    )


def size_of(shape: Sequence[int], what: str) -> int:
    """How many values a shape from the wire holds. Raises UsageError that names `what` unless numpy can have it."""
    if any(size < 0 for size in shape):
        raise UsageError(f"{what}: shape {shape} is not fully known")
    if len(shape) > MOST_AXES or math.prod(size or 1 for size in shape) > MOST_VALUES:
        raise UsageError(f"{what}: shape {shape} is too large")
    return math.prod(shape)


def from_bytes(content: bytes, shape: Sequence[int], what: str) -> NDArray[np.float32]:
    """The values in raw little-endian bytes, not copied. Raises UsageError that names `what`."""
    needed = 4 * math.prod(shape)
    if len(content) != needed:
        raise UsageError(f"{what} has {len(content)} bytes; shape {shape} needs {needed}")
    return np.frombuffer(content, "<f4").reshape(shape)


MOST_AXES, MOST_VALUES = 32, 1 << 40  # numpy takes no more axes, nor sizes that overflow
MOST_FILLED = 1 << 24  # a few bytes on the wire must not ask for more memory than this many values
