"""miniSEED files a block at a time: traces from the headers of the records alone, samples when they are asked for.

Traces begin and end exactly where ObsPy begins and ends them, and ObsPy decodes the samples. A file that is out of the
ordinary in any way (records of several lengths or byte orders, leap seconds, text, damage) is not read like this.
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.deferred import BLOCK, Make, Recent, deferred, in_blocks
from seisserve.errors import WaveformError
from seisserve.extras import need
from seisserve.traces import Trace
from seisserve.turns import turn

__all__ = ["Miniseed", "Undecodable", "scan"]

DATA_QUALITIES = b"DRQM"
DTYPES = {1: np.int32, 3: np.int32, 4: np.float32, 5: np.float64, 10: np.int32, 11: np.int32}  # by encoding
HARMLESS = (100, 200, 201, 300, 310, 320, 390, 395, 400, 405, 500, 1000, 1001, 2000)  # blockettes that ObsPy knows
MOST_BLOCKETTES = 8
CORRECTED, LEAP_SECONDS = 0x02, 0x30  # activity flags: the time correction is already in the time; leap seconds
MICROSECONDS = 1_000_000
READ_BYTES = 4 << 20
LEAST = 128  # bytes of a record
RATE_TOLERANCE = 1e-4
FIELDS = {
    "sequence": (0, "V6"), "quality": (6, "u1"), "reserved": (7, "u1"), "station": (8, "V5"), "location": (13, "V2"),
    "channel": (15, "V3"), "network": (18, "V2"), "year": (20, "u2"), "day": (22, "u2"), "hour": (24, "u1"),
    "minute": (25, "u1"), "second": (26, "u1"), "fraction": (28, "u2"), "samples": (30, "u2"), "factor": (32, "i2"),
    "multiplier": (34, "i2"), "activity": (36, "u1"), "blockettes": (39, "u1"), "correction": (40, "i4"),
    "data": (44, "u2"), "first": (46, "u2"),
}  # fmt: skip


class Undecodable(WaveformError):
    """Records of a file (`path`) that cannot be decoded."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


class _Layout(NamedTuple):
    """What all records of a file have in common: length in bytes, and byte order of the headers."""

    length: int
    order: str

    @property
    def fields(self) -> np.dtype[Any]:
        """The beginning of a record, as long as the record."""
        offsets, formats = zip(*FIELDS.values(), strict=True)
        return np.dtype({
            "names": list(FIELDS), "offsets": offsets, "formats": [self.order + kind for kind in formats],
            "itemsize": self.length,
        })  # fmt: skip


class _Headers(NamedTuple):
    """What the headers say, one value for each record: name of the channel (and quality), microseconds since 1970 of
    the first sample, number of samples, rate, encoding."""

    name: NDArray[np.void]
    start_us: NDArray[np.int64]
    samples: NDArray[np.int64]
    rate_hz: NDArray[np.float64]
    encoding: NDArray[np.uint8]


# A trace: its samples are those of its channel from `first` on.
PART = np.dtype([("channel", "i4"), ("start_us", "i8"), ("rate_hz", "f8"), ("first", "i8"), ("samples", "i8")])


class Miniseed:
    """A miniSEED file.

    names: of the channels; parts: of the dtype PART, one for each trace, by channel; damaged: what ObsPy had to say of
    blocks of records that it decoded all the same.
    """

    def __init__(self, path: Path, layout: _Layout, records: int) -> None:
        self.path, self._layout, self._records = path, layout, records
        self._size = path.stat().st_size
        self.names: list[str] = []  # NET.STA.LOC.CHA of each channel
        self.parts = np.zeros(0, PART)
        self._dtypes: list[np.dtype[Any]] = []
        self._edges: list[NDArray[np.int64]] = []  # of the blocks of each channel, in samples
        self._index: NDArray[np.int64] | None = None
        self.damaged: dict[tuple[int, int], list[str]] = {}

    @property
    def samples(self) -> int:
        """Of all traces together."""
        return int(self.parts["samples"].sum())

    @property
    def rest(self) -> int:
        """Bytes at the end that are no whole record."""
        return self._size % self._layout.length

    def ids(self) -> set[str]:
        """NET.STA.LOC.CHA of all traces."""
        return {self.names[channel] for channel in np.unique(self.parts["channel"]).tolist()}

    def traces(self, recent: Recent, rows: NDArray[np.int64] | slice = slice(None)) -> list[Trace]:
        """The traces (those of some of the parts), as ObsPy would read them, with deferred samples."""
        recent.get((self, "index"), self._indexed)
        makes = [in_blocks(edges, self._decoding(channel, recent), recent) for channel, edges in enumerate(self._edges)]
        return [
            Trace(
                self.names[channel],
                start_us * 1000,
                rate_hz,
                deferred((samples,), self._dtypes[channel], makes[channel], recent, first),
            )
            for channel, start_us, rate_hz, first, samples in self.parts[rows].tolist()
        ]

    def _decoding(self, channel: int, recent: Recent) -> Make:
        def make(begin: int, end: int) -> NDArray[Any]:
            channels, counts = recent.get((self, "index"), self._indexed)
            numbers = np.flatnonzero(channels == channel)
            first, last = np.searchsorted(np.cumsum(counts[numbers]), [begin, end], side="right").tolist()
            records = self._read(numbers[first:last])
            decoded, problems = _decode(records, self._layout, self.path)
            if len(decoded) != end - begin or decoded.dtype != self._dtypes[channel]:
                raise Undecodable(self.path, f"{self.path}: {len(decoded)} samples in records of {end - begin}")
            if problems:
                self.damaged[channel, begin] = problems
            return decoded

        return make

    def _read(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Records by number [n, length]; neighbours are read at once."""
        length = self._layout.length
        records = np.empty((len(numbers), length), np.uint8)
        edges = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
        with self.path.open("rb", buffering=0) as file:
            for low, high in itertools.pairwise(edges):
                file.seek(int(numbers[low]) * length)
                if file.readinto(records[low:high].reshape(-1).data) != (high - low) * length:
                    raise Undecodable(self.path, f"{self.path}: became shorter while it was read")
        return records

    def _indexed(self) -> NDArray[np.int64]:
        """[2, records]: the channel and the number of samples of each record. Of many long files that takes memory too,
        so it is not kept for ever, but found anew when it is needed."""
        index, self._index = self._index, None
        if index is not None:
            return index
        headers = _headers(self.path, self._layout, self._records)
        if headers is None or self.path.stat().st_size != self._size:
            raise Undecodable(self.path, f"{self.path}: changed while it was read")
        return np.stack([_channels(headers), headers.samples])

    def scanned(self) -> Miniseed | None:
        """The file itself, its traces found; None if there is anything in it that needs ObsPy."""
        headers = _headers(self.path, self._layout, self._records)
        if headers is None or not headers.samples.any():
            return None
        channels = _channels(headers)
        self._index = np.stack([channels, headers.samples])
        parts = []
        for channel in range(int(channels.max()) + 1):
            one = _Headers(*(column[channels == channel] for column in headers))
            ends = np.cumsum(one.samples)
            kinds = {DTYPES[code] for code in np.unique(one.encoding).tolist()}
            name = _id(one.name[0])
            breaks = _breaks(one)
            if name is None or breaks is None or len(kinds) != 1:
                return None
            self._dtypes.append(np.dtype(kinds.pop()))
            borders = np.searchsorted(ends, np.arange(BLOCK, int(ends[-1]), BLOCK))
            self._edges.append(np.unique(np.concatenate([[0], ends[borders], ends[-1:]])))
            self.names.append(name)
            firsts = np.append(0, ends)[breaks]
            some = np.zeros(len(breaks), PART)
            some["channel"], some["start_us"], some["rate_hz"] = channel, one.start_us[breaks], one.rate_hz[breaks]
            some["first"], some["samples"] = firsts, np.diff(firsts, append=ends[-1])
            parts.append(some[some["samples"] > 0])
        self.parts = np.concatenate(parts)
        return self


def scan(path: Path) -> Miniseed | None:
    """A miniSEED file, from its headers; None if it is none, or one out of the ordinary: that needs ObsPy."""
    with path.open("rb") as file:
        begin = np.frombuffer(file.read(LEAST), np.uint8)
    if len(begin) < LEAST:
        return None
    for order in "<>":
        guess = _Layout(LEAST, order)
        first = begin.view(guess.fields)[0]
        if _valid_day(first["year"], first["day"]):
            kinds = _blockettes(begin[None], guess) or {}
            if 1000 not in kinds:
                return None
            exponent = int(begin[kinds[1000].place[0] + 6])
            if 1 << exponent < LEAST:
                return None
            records = path.stat().st_size >> exponent
            return Miniseed(path, _Layout(1 << exponent, order), records).scanned() if records else None
    return None


def _headers(path: Path, layout: _Layout, records: int) -> _Headers | None:
    """The headers of so many records, None if one is out of the ordinary."""
    found: list[_Headers] = []
    step = max(READ_BYTES // layout.length, 1)
    with path.open("rb", buffering=0) as file:
        for low in range(0, records, step):
            content = file.read(min(step, records - low) * layout.length)
            if len(content) % layout.length:
                return None
            some = _parsed(np.frombuffer(content, np.uint8).reshape(-1, layout.length), layout)
            if some is None:
                return None
            found.append(some)
    return _Headers(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


def _parsed(content: NDArray[np.uint8], layout: _Layout) -> _Headers | None:
    """The headers of records [n, length], None if one is out of the ordinary."""
    head = content.view(layout.fields)[:, 0]
    sequence = content[:, :6]
    good = np.all((sequence >= ord("0")) & (sequence <= ord("9")) | (sequence == ord(" ")) | (sequence == 0))
    good &= np.isin(head["quality"], list(DATA_QUALITIES)).all() and np.isin(head["reserved"], [0, ord(" ")]).all()
    good &= _valid_day(head["year"], head["day"]).all() and (head["fraction"] <= 9999).all()
    good &= (head["hour"] <= 23).all() and (head["minute"] <= 59).all() and (head["second"] <= 59).all()
    good &= not (head["activity"] & LEAP_SECONDS).any()
    good &= ((head["data"] >= 48) & (head["data"] < layout.length) | (head["samples"] == 0)).all()
    kinds = _blockettes(content, layout) if good else None
    if not kinds or 1000 not in kinds or len(kinds[1000].row) != len(content):
        return None
    encoding, length = (content[kinds[1000].row, kinds[1000].place + offset] for offset in (4, 6))
    if not np.isin(encoding, list(DTYPES)).all() or (1 << length.astype(np.int64) != layout.length).any():
        return None
    rate_hz = _nominal_rate(head["factor"].astype(np.float64), head["multiplier"].astype(np.float64))
    days = head["year"].astype("i8") - 1970
    days = days.astype("M8[Y]").astype("M8[D]").astype(np.int64) + head["day"] - 1
    seconds = ((days * 24 + head["hour"]) * 60 + head["minute"]) * 60 + head["second"]
    start_us = seconds * MICROSECONDS + head["fraction"].astype(np.int64) * 100
    applies = (head["activity"] & CORRECTED) == 0
    start_us += np.where(applies, head["correction"].astype(np.int64) * 100, 0)
    if 1001 in kinds:
        row, place = kinds[1001]
        start_us[row] += content[row, place + 5].view(np.int8).astype(np.int64)
    if 100 in kinds:
        rate_hz[kinds[100].row] = _values(content, kinds[100], 4, layout.order + "f4").astype(np.float64)
    if not (np.isfinite(rate_hz) & (rate_hz > 0)).all():
        return None
    name = np.ascontiguousarray(content[:, [*range(18, 20), *range(8, 18), 6]]).view("V13")[:, 0]
    return _Headers(name, start_us, head["samples"].astype(np.int64), rate_hz, encoding)


class _Places(NamedTuple):
    """Where blockettes of one type are: row (record), and the byte that they begin with."""

    row: NDArray[np.int64]
    place: NDArray[np.int64]


def _blockettes(content: NDArray[np.uint8], layout: _Layout) -> dict[int, _Places] | None:
    """The blockettes of records [n, length] by type, one of each in a record; None if any is out of the ordinary."""
    found: dict[int, list[_Places]] = {}
    at = _Places(np.arange(len(content)), content.view(layout.fields)[:, 0]["first"].astype(np.int64))
    before = np.zeros(len(content), np.int64)
    for _ in range(MOST_BLOCKETTES):
        there = at.place > 0
        at, before = _Places(at.row[there], at.place[there]), before[there]
        if not len(at.row):
            return {kind: _Places(*map(np.concatenate, zip(*places, strict=True))) for kind, places in found.items()}
        if (at.place < np.maximum(before + 4, 48)).any() or (at.place > layout.length - 8).any():
            return None
        kinds = _values(content, at, 0, layout.order + "u2")
        for kind in np.unique(kinds).tolist():
            if kind not in HARMLESS:
                return None
            here = kinds == kind
            if any(np.isin(at.row[here], earlier.row).any() for earlier in found.get(kind, [])):
                return None
            found.setdefault(kind, []).append(_Places(at.row[here], at.place[here]))
        before, at = at.place, _Places(at.row, _values(content, at, 2, layout.order + "u2").astype(np.int64))
    return None


def _values(content: NDArray[np.uint8], at: _Places, offset: int, kind: str) -> NDArray[Any]:
    """Values of that type, so many bytes after these places."""
    places = at.place[:, None] + np.arange(offset, offset + np.dtype(kind).itemsize)
    values: NDArray[Any] = content[at.row[:, None], places].view(kind)[:, 0]
    return values


def _nominal_rate(factor: NDArray[np.float64], multiplier: NDArray[np.float64]) -> NDArray[np.float64]:
    """Samples per second; negative numbers are seconds per sample, and divisors."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(factor < 0, -1.0 / factor, factor)
        product = np.where(multiplier > 0, rate * multiplier, rate)
        return np.asarray(np.where(multiplier < 0, -1.0 * (rate / multiplier), product))


def _valid_day(year: Any, day: Any) -> Any:
    return (year >= 1900) & (year <= 2100) & (day >= 1) & (day <= 366)


def _channels(headers: _Headers) -> NDArray[np.int64]:
    """For each record the number of its channel; channels are numbered as they come."""
    _, first, inverse = np.unique(headers.name, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _breaks(headers: _Headers) -> NDArray[np.int64] | None:
    """Which records of a channel begin a trace; None if rates are different, but hardly.

    A record goes on where the one before it ends if its time is right to half a sample (intervals are cut to whole
    microseconds, as ObsPy's library does) and its rate is the same.
    """
    rate = headers.rate_hz
    change = np.abs(1.0 - rate[:-1] / rate[1:])
    if ((change > 0) & (change < 2 * RATE_TOLERANCE)).any():
        return None
    length_us = ((headers.samples - 1) / rate * MICROSECONDS + 0.5).astype(np.int64)
    interval_us = (MICROSECONDS / rate).astype(np.int64)
    gap_us = headers.start_us[1:] - (headers.start_us[:-1] + np.maximum(length_us[:-1], 0)) - interval_us[:-1]
    empty = headers.samples == 0  # a trace by itself
    new = (change > 0) | (np.abs(gap_us) > interval_us[:-1] // 2) | empty[1:] | empty[:-1]
    return np.append(0, np.flatnonzero(new) + 1)


def _id(name: np.void) -> str | None:
    """NET.STA.LOC.CHA from the codes as they stand in the header; None if they are not plain letters."""
    codes = [name.tobytes()[low:high].partition(b"\0")[0] for low, high in ((0, 2), (2, 7), (7, 9), (9, 12))]
    if not all(32 <= letter < 127 for letter in b"".join(codes)):
        return None
    return ".".join(code.decode().strip() for code in codes)


def _decode(records: NDArray[np.uint8], layout: _Layout, path: Path) -> tuple[NDArray[Any], list[str]]:
    """The samples of records [n, length] of one channel, one after the other, and what ObsPy found wrong with them.

    The records are given times that follow one another, one sample a second, and no blockette but the first: then what
    ObsPy decodes is one trace, where ten thousand gaps would be ten thousand.
    """
    head = records.view(layout.fields)[:, 0]
    kinds = _blockettes(records, layout)
    if kinds is None:
        raise Undecodable(path, f"{path}: changed while it was read")
    row, place = kinds[1000]
    records[row[:, None], place[:, None] + [2, 3]] = 0  # no blockette after this one
    head["first"][row] = place
    counts = head["samples"].astype(np.int64)
    seconds = np.cumsum(counts) - counts
    for field, values in {
        "year": 2000, "day": seconds // 86_400 + 1, "hour": seconds // 3600 % 24, "minute": seconds // 60 % 60,
        "second": seconds % 60, "fraction": 0, "factor": 1, "multiplier": 1, "activity": 0, "correction": 0,
        "blockettes": 1,
    }.items():  # fmt: skip
        head[field] = values
    with turn() as problems:
        try:
            stream = need("obspy", "obspy").read(
                io.BytesIO(records[counts > 0].tobytes()), format="MSEED", check_compression=False
            )
        except Exception as error:  # ObsPy's readers raise bare Exception, TypeError, struct.error and more
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            message = f"{path}: not a waveform file that ObsPy can read ({reason})"
            raise Undecodable(path, message) from error
    samples: NDArray[Any] = np.concatenate([trace.data for trace in stream])
    return samples, problems
