"""JSON of the REST protocols: large tensors in and out quickly, types checked, NaN and infinities as tokens.

Standard JSON has no NaN, so the fast parser refuses it. Only where such a token is in the way, it is rewritten as a
string that no caller would send, and parsed again.
"""

from __future__ import annotations

import binascii
import functools
import json
import re
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from seisserve.errors import UsageError

__all__ = ["Base64", "array", "document", "dump", "joined", "load"]

MOST_AXES = 32
MARK = "\x01"
TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|-?Infinity|NaN', re.DOTALL)  # strings too: what is in them stays
Token = Literal["\x01NaN", "\x01Infinity", "\x01-Infinity"]
Array = NDArray[Any]


class Base64(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes in JSON."""

    b64: str

    def decoded(self, what: str) -> bytes:
        """The bytes; both alphabets, padded or not. Raises UsageError that names `what`."""
        text = self.b64.replace("-", "+").replace("_", "/").rstrip("=")
        try:
            return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
        except ValueError as error:
            raise UsageError(f"{what}: b64 holds no base64: {error}") from error


def document(body: bytes, kind: Any) -> Any:
    """The JSON in a request's body, as a type that msgspec knows. Parts that are left `msgspec.Raw` are for `load` and
    `array`. Raises UsageError that names the place at fault."""
    if not body.strip():
        raise UsageError("the body is empty; it must be a JSON object")
    try:
        return _decoder(kind).decode(body)
    except msgspec.ValidationError as error:  # JSON, but not what is expected
        raise UsageError(f"the body: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not (b"NaN" in body or b"Infinity" in body):
            raise UsageError(f"the body: {error}") from error
    return load(TOKENS.sub(_marked, body), kind, "the body")


def load(text: bytes | msgspec.Raw, kind: Any, what: str) -> Any:
    """A value of a type that msgspec knows. Raises UsageError that names `what` and the place at fault."""
    try:
        return _decoder(kind).decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{what}: {error}") from error


def array(raw: msgspec.Raw, dtype: np.dtype[Any], what: str) -> Array:
    """Nested lists as an array, of as many axes as the lists are deep; of dtype object, its values are bytes.

    Raises UsageError that names `what`: for values of another type or beyond it, lists of different lengths or depths.
    """
    text = bytes(raw)
    axes = _depth(text)
    if axes > MOST_AXES:
        raise UsageError(f"{what}: {axes} lists in one another; at most {MOST_AXES} may be")
    leaf = _LEAVES.get(dtype.kind)
    if leaf is None:
        raise UsageError(f"{what}: {dtype} cannot be sent as JSON")
    marked = dtype.kind == "f" and b"\\u0001" in text
    values = load(raw, _nested(float | Token if marked else leaf, axes), what)
    if dtype.kind == "O":
        return _of_bytes(values, axes, what)
    try:
        with np.errstate(over="raise"):
            if marked:
                flat = np.array(values, object)
                return np.array([_unmarked(value) for value in flat.ravel()], dtype).reshape(flat.shape)
            return np.array(values, dtype)
    except (OverflowError, FloatingPointError) as error:
        raise UsageError(f"{what}: a value is beyond {dtype}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{what}: its lists have different lengths") from error


def joined(parts: Iterable[msgspec.Raw]) -> msgspec.Raw:
    """A list of JSON values, as JSON."""
    return msgspec.Raw(b"[" + b",".join(map(bytes, parts)) + b"]")


def dump(value: Any, arrays: Iterable[Array] = ()) -> bytes:
    """JSON; `arrays` are those in the value, in which NaN and infinities become tokens."""
    if all(one.dtype.kind != "f" or np.isfinite(one).all() for one in arrays):
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return json.dumps(value, default=lambda one: one.tolist(), separators=(",", ":")).encode()


@functools.lru_cache(256)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


_LEAVES: dict[str, Any] = {"f": float, "i": int, "u": int, "b": bool, "O": str | Base64}


@functools.lru_cache(256)
def _nested(leaf: Any, axes: int) -> Any:
    return list[_nested(leaf, axes - 1)] if axes else leaf  # type: ignore[misc]  # a type that is only known now


def _depth(text: bytes) -> int:
    """How many lists there are before the first value."""
    return re.match(rb"[\s\[]*", text)[0].count(b"[")  # type: ignore[index]  # it always matches


def _marked(found: re.Match[bytes]) -> bytes:
    token = found[0]
    return token if token.startswith(b'"') else b'"\\u0001' + token + b'"'


def _unmarked(value: Any) -> float:
    if isinstance(value, list):
        raise ValueError("a list among values")
    return float(value.removeprefix(MARK) if isinstance(value, str) else value)


def _of_bytes(values: Any, axes: int, what: str) -> Array:
    found = np.empty(_shape(values, axes), object)
    flat = [values]
    for size in found.shape:
        if any(len(part) != size for part in flat):
            raise UsageError(f"{what}: its lists have different lengths")
        flat = [value for part in flat for value in part]
    found.ravel()[:] = [one.decoded(what) if isinstance(one, Base64) else one.encode() for one in flat]
    return found


def _shape(values: Any, axes: int) -> tuple[int, ...]:
    shape: list[int] = []
    for _ in range(axes):
        shape.append(len(values))
        if not values:
            break
        values = values[0]
    return tuple(shape)
