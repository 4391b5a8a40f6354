"""Arrays to TensorFlow's TensorProto and back, without TensorFlow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seisserve.errors import UsageError
from seisserve.proto.tensorflow_wire_pb2 import DataType, TensorProto, TensorShapeProto

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["from_bytes", "from_values", "shape_proto", "size_of", "to_array", "to_proto", "type_of"]

# Of each type in TensorFlow: numpy's, and the field for single values. Strings are objects (bytes or str).
TYPES: dict[int, tuple[np.dtype[Any], str]] = {
    DataType.Value(f"DT_{name}"): (np.dtype(dtype), field)
    for name, dtype, field in (
        ("FLOAT", "<f4", "float_val"), ("DOUBLE", "<f8", "double_val"), ("HALF", "<f2", "half_val"),
        ("INT8", "i1", "int_val"), ("INT16", "<i2", "int_val"), ("INT32", "<i4", "int_val"),
        ("INT64", "<i8", "int64_val"), ("UINT8", "u1", "int_val"), ("UINT16", "<u2", "int_val"),
        ("UINT32", "<u4", "uint32_val"), ("UINT64", "<u8", "uint64_val"), ("BOOL", "?", "bool_val"),
        ("STRING", "O", "string_val"),
    )
}  # fmt: skip
OF_NUMPY = {dtype: number for number, (dtype, _) in TYPES.items()}
FLOAT = np.dtype("<f4")


def to_proto(array: NDArray[Any], made: TensorProto | None = None) -> TensorProto:
    """The tensor as raw bytes, which decode ten times faster than a list of values; strings as a list. made: an empty
    one to write it to."""
    if made is None:
        made = TensorProto()
    made.dtype = type_of(array.dtype)
    made.tensor_shape.CopyFrom(shape_proto(array.shape))
    if array.dtype.kind == "O":
        made.string_val.extend(text.encode() if isinstance(text, str) else text for text in array.ravel().tolist())
    else:
        made.tensor_content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return made


def type_of(dtype: np.dtype[Any]) -> Any:
    """TensorFlow's number for a type of numpy's. Raises UsageError if it has none here."""
    number = OF_NUMPY.get(dtype) or OF_NUMPY.get(dtype.newbyteorder("<"))
    if number is None:
        raise UsageError(f"dtype {dtype} cannot be sent; it must be one of {', '.join(map(str, OF_NUMPY))}")
    return number


def shape_proto(shape: Iterable[int]) -> TensorShapeProto:
    """A shape; -1 for a free axis."""
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])


def to_array(proto: TensorProto, name: str, dtype: np.dtype[Any] = FLOAT) -> NDArray[Any]:
    """The tensor's values, from `tensor_content` or the field of its type; the last of too few values fills the rest,
    as in TensorFlow. Raises UsageError that names the input, also unless the type is the one that is expected."""
    expected = type_of(dtype)
    if proto.dtype != expected:
        found = DataType.Name(proto.dtype) if proto.dtype in DataType.values() else str(proto.dtype)
        raise UsageError(f"input {name!r}: dtype is {found}; expected {DataType.Name(expected)}")
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank:
        raise UsageError(f"input {name!r}: shape {shape} is not fully known")
    size = size_of(shape, f"input {name!r}")
    little, field = TYPES[expected]
    if proto.tensor_content and field != "string_val":
        return from_bytes(proto.tensor_content, shape, f"input {name!r}: tensor_content", little)
    what = f"input {name!r}: {field}"
    if field == "half_val":  # the bits of each, as a number
        values = from_values(proto.half_val, np.dtype("<u2"), what).view(little)
    else:
        values = from_values(getattr(proto, field), little, what)
    if len(values) > size:
        raise UsageError(f"input {name!r}: {field} has {len(values)} values; shape {shape} holds {size}")
    if len(values) == size:
        return values.reshape(shape)
    if size > MOST_FILLED:
        raise UsageError(f"input {name!r}: {field} has {len(values)} values; shape {shape} needs {size}")
    nothing = b"" if field == "string_val" else 0
    rest = np.full(size - len(values), values[-1] if len(values) else nothing, little)
    return np.concatenate([values, rest]).reshape(shape)


def from_values(values: Any, dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """The values of a message's field, as one axis. Raises UsageError that names `what` for one that the type cannot
    hold."""
    if dtype.kind == "O":
        made = np.empty(len(values), object)
        made[:] = list(values)
        return made
    if dtype.kind not in "iu" or dtype.itemsize == 8:
        return np.array(values, dtype)
    wide, most = np.array(values, np.int64), np.iinfo(dtype)
    if wide.size and (wide.min() < most.min or wide.max() > most.max):
        raise UsageError(f"{what}: values from {wide.min()} to {wide.max()}; {dtype} holds {most.min} to {most.max}")
    return wide.astype(dtype)


def size_of(shape: Sequence[int], what: str) -> int:
    """How many values a shape from the wire holds. Raises UsageError that names `what` unless numpy can have it."""
    if min(shape, default=0) < 0:
        raise UsageError(f"{what}: shape {shape} is not fully known")
    if len(shape) > MOST_AXES or math.prod(filter(None, shape)) > MOST_VALUES:
        raise UsageError(f"{what}: shape {shape} is too large")
    return math.prod(shape)


def from_bytes(content: bytes, shape: Sequence[int], what: str, dtype: np.dtype[Any] = FLOAT) -> NDArray[Any]:
    """The values in raw little-endian bytes, not copied. Raises UsageError that names `what`."""
    needed = dtype.itemsize * math.prod(shape)
    if len(content) != needed:
        raise UsageError(f"{what} has {len(content)} bytes; shape {shape} needs {needed}")
    return np.frombuffer(content, dtype).reshape(shape)


MOST_AXES, MOST_VALUES = 32, 1 << 40  # numpy takes no more axes, nor sizes that overflow
MOST_FILLED = 1 << 24  # a few bytes on the wire must not ask for more memory than this many values
