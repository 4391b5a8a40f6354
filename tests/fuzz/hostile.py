"""Requests that somebody hostile, or a broken client, would send: valid ones with something wrong in them."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

__all__ = ["mutated", "mutated_bytes", "mutated_json", "mutated_miniseed", "names_of", "wrecked"]

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 599, 600, 601, 1000, 65_535, 1 << 24, 1 << 31, 1 << 40, 1 << 62)
FLOATS = (
    0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 5e-324, 1e-9, 1e-3, 99.99999, 100.0, 1e5, 1e9, 1e38, 3.5e38, 1e308, -1e308,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
TEXTS = (
    "", " ", "\0", "x" * 5000, "../../etc/passwd", "/etc/passwd", "eqtransformer", "cred", "recovery", "none",
    "serving_default", "fragment", "waveform", "P", "S", "..", "XX.STA..HHZ", "XX.STA..HHE", "A.B.C.D.E",
    "ü\u202e\U0001f600", "1", "-1",
    "9" * 30, "FP32", "BYTES", "INT64", "%s%n{0}", "tensorflow/serving/classify", "signature_def", "max", "causal",
)  # fmt: skip
RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1), FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
}  # fmt: skip
MOST_COPIES = 40


def mutated(message: Message, rng: random.Random, times: int = 1) -> Message:
    """A copy with so many things changed: a field anywhere in it that gets another value, goes, or comes."""
    made = type(message)()
    made.CopyFrom(message)
    for _ in range(times):
        _mutate(made, rng)
    return made


def names_of(descriptor: Any) -> set[str]:
    """The names of all fields of a message, and of the messages in it."""
    names: set[str] = set()
    left, seen = [descriptor], set()
    while left:
        one = left.pop()
        if one.full_name in seen:
            continue
        seen.add(one.full_name)
        for field in one.fields:
            if not one.GetOptions().map_entry:
                names.add(field.name)
            if field.message_type:
                left.append(field.message_type)
    return names


def _mutate(message: Message, rng: random.Random) -> None:
    """Change one field of a message, or of one in it; mostly of those that are there."""
    fields = message.DESCRIPTOR.fields
    there = [field for field, _ in message.ListFields()]
    if not fields:
        return
    field = rng.choice(there) if there and rng.random() < 0.8 else rng.choice(fields)
    if field.message_type and field.message_type.GetOptions().map_entry:
        _mutate_map(getattr(message, field.name), field.message_type.fields_by_name["value"], rng)
    elif field.is_repeated:
        _mutate_list(message, field, rng)
    elif rng.random() < 0.08:
        message.ClearField(field.name)
    elif field.message_type:
        inner = getattr(message, field.name)
        inner.SetInParent()
        _mutate(inner, rng)
    else:
        setattr(message, field.name, _value(field, getattr(message, field.name), rng))


def _mutate_map(found: Any, value: FieldDescriptor, rng: random.Random) -> None:
    keys = list(found)
    key = rng.choice(keys) if keys and rng.random() < 0.7 else None
    if key is not None and rng.random() < 0.15:
        del found[key]
    elif value.message_type:
        if key is None or rng.random() < 0.1:
            new = rng.choice(TEXTS)
            if keys:
                found[new].CopyFrom(found[keys[0]])
            else:
                found[new].SetInParent()
        else:
            _mutate(found[key], rng)
    elif key is None:
        found[rng.choice(TEXTS)] = _value(value, _nothing(value), rng)
    else:
        found[key] = _value(value, found[key], rng)


def _mutate_list(message: Message, field: FieldDescriptor, rng: random.Random) -> None:
    items = getattr(message, field.name)
    what = rng.random()
    place = rng.randrange(len(items)) if items else None
    if place is None or what < 0.1:  # one more
        if field.message_type:
            new = items.add()
            if place is not None:
                new.CopyFrom(items[place])
            else:
                _mutate(new, rng)
        else:
            items.append(_value(field, _nothing(field), rng))
    elif what < 0.2:
        del items[place]
    elif what < 0.25:
        message.ClearField(field.name)
    elif what < 0.3:  # many more
        items.extend([items[place]] * rng.randrange(MOST_COPIES))
    elif field.message_type:
        _mutate(items[place], rng)
    else:
        items[place] = _value(field, items[place], rng)


def _nothing(field: FieldDescriptor) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return b"" if field.type == FieldDescriptor.TYPE_BYTES else ""
    return 0


def _value(field: FieldDescriptor, old: Any, rng: random.Random) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return not old
    if kind in RANGES:
        low, high = RANGES[kind]
        if kind == FieldDescriptor.CPPTYPE_ENUM and rng.random() < 0.7:
            return rng.choice(field.enum_type.values).number
        wanted = rng.choice([*NUMBERS, low, low + 1, high, high - 1, old + 1, old - 1, -old, rng.randint(low, high)])
        return min(max(wanted, low), high)
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice([*FLOATS, old * 2, old / 3, rng.uniform(-1e4, 1e4)])
    if field.type == FieldDescriptor.TYPE_BYTES:
        if len(old) >= 48 and old[6:7] in b"DRQM":
            return mutated_miniseed(old, rng)
        return mutated_bytes(old, rng)
    return rng.choice([*TEXTS, old[:-1], old + "x", old.upper(), old[: len(old) // 2]])


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes with some flipped, cut out, doubled, put in, or of special floats."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(made) + 1)
        end = min(place + rng.choice((1, 1, 2, 4, 8, 64)), len(made))
        match rng.randrange(8):
            case 0:
                del made[place:]
            case 1:
                del made[place:end]
            case 2:
                made[place:place] = rng.randbytes(rng.choice((1, 3, 4, 16)))
            case 3:
                made[place:end] = rng.randbytes(end - place)
            case 4:
                made[place:place] = made[place:end]
            case 5:
                special = struct.pack("<f", rng.choice((float("nan"), float("inf"), 3.4e38, 1e-45)))
                place -= place % 4
                made[place : place + 4] = special
            case 6 if place < len(made):
                made[place] ^= 1 << rng.randrange(8)
            case _:
                made[place:end] = b"\xff" * (end - place)
    return bytes(made)


# Of a miniSEED header: where a number stands, and how it is packed.
HEADER = (
    (8, "5s"), (13, "2s"), (15, "3s"), (18, "2s"), (20, ">H"), (22, ">H"), (24, "B"), (25, "B"), (26, "B"), (28, ">H"),
    (30, ">H"), (32, ">h"), (34, ">h"), (36, "B"), (37, "B"), (38, "B"), (39, "B"), (40, ">i"), (44, ">H"), (46, ">H"),
    (48, ">H"), (50, ">H"), (52, "B"), (53, "B"), (54, "B"), (64, ">I"), (68, ">i"), (72, ">i"),
)  # fmt: skip


def mutated_miniseed(content: bytes, rng: random.Random, record: int = 512) -> bytes:
    """Records of which one lies in its header; or records that are cut, doubled, out of order, or damaged."""
    made = bytearray(content)
    match rng.randrange(6):
        case 0:
            return mutated_bytes(content, rng)
        case 1:
            return content[: rng.randrange(len(content) + 1)]
        case 2:
            records = [content[low : low + record] for low in range(0, len(content), record)]
            rng.shuffle(records)
            return b"".join(records + records[: rng.randrange(3)])
        case _:
            for _ in range(rng.choice((1, 1, 2, 4))):
                base = rng.randrange(max(len(made) // record, 1)) * record
                offset, kind = rng.choice(HEADER)
                size = struct.calcsize(kind)
                if base + offset + size > len(made):
                    continue
                if kind.endswith("s"):
                    made[base + offset : base + offset + size] = rng.choice(
                        (b"\0" * size, b"\xff" * size, b"." * size, b" " * size, rng.randbytes(size))
                    )
                    continue
                bits = 8 * size
                low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[-1].islower() else (0, (1 << bits) - 1)
                value = rng.choice((low, high, 0, 1, 47, 63, 511, 10, 11, rng.randint(low, high)))
                made[base + offset : base + offset + size] = struct.pack(kind, min(max(value, low), high))
            return bytes(made)


ATOMS: Sequence[Any] = (
    None, True, False, 0, -1, 1, 1 << 31, 1 << 63, 1 << 64, -(1 << 70), 0.5, 1e308,
    "", "x", "NaN", "\u0001NaN", "9" * 40,
    [], {}, [[]], {"b64": "AAAA"}, {"b64": "!"}, {"b64": 1}, [[1, 2], [3]], "\ud7ff", "../../x",
)  # fmt: skip
RAW_JSON = (
    b"", b" ", b"{", b"[", b"nul", b"NaN", b"{}{}", b"[" * 100_000, b'{"inputs":' * 20_000, b"\xff\xfe", b'"\\ud800"',
    b'{"instances": [' + b"[" * 5000 + b"]" * 5000 + b"]}", b'{"inputs": 1e999}', b'{"inputs": NaN}', b"1" * 5000,
    b'{"\\ud800": 1}', b'{"signature_name": "\\ud800"}', b'{"inputs": "\\ud800"}', b"\0", b'{"inputs": -}',
    b"\xef\xbb\xbf{}",
)  # fmt: skip


def mutated_json(value: Any, rng: random.Random) -> bytes:
    """JSON with something in it changed, or what is no JSON at all."""
    match rng.randrange(8):
        case 0:
            return rng.choice(RAW_JSON)
        case 1:
            return mutated_bytes(json.dumps(value).encode(), rng)
        case _:
            made = json.loads(json.dumps(value))
            for _ in range(rng.choice((1, 1, 2, 3))):
                made = _changed(made, rng)
            return json.dumps(made).encode()


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {name: one for name, one in value.items() if name != key}
            case 1:
                return {**value, rng.choice(TEXTS): rng.choice(ATOMS)}
            case 2:
                return {(rng.choice(TEXTS) if name == key else name): one for name, one in value.items()}
            case _:
                return {**value, key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        match rng.randrange(6):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return value + value[place : place + 1] * rng.randrange(4)
            case _:
                return [*value[:place], _changed(value[place], rng), *value[place + 1 :]]
    return rng.choice([*ATOMS, [value], {"x": value}])


def wrecked(message: Message, rng: random.Random) -> bytes:
    """A message as bytes: well-formed with wrong content, or no message at all."""
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: rng.randbytes(rng.choice((0, 1, 5, 40, 300))),
        lambda: mutated_bytes(message.SerializeToString(), rng),
    )
    if rng.random() < 0.25:
        return rng.choice(makers)()
    return mutated(message, rng, rng.choice((1, 1, 1, 2, 4))).SerializeToString()
