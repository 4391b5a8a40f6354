"""A streaming phase picker for a datalogger or a small computer: packets of samples in, picks out, each exactly once.

This file and the folder that it lies in are all there is to it; it needs numpy and onnxruntime and nothing else.

    python picker.py --selftest
    python picker.py --stdin --rate 100 --start 2024-05-01T00:00:00Z < samples.f32 > picks.csv

    picker = Picker(Path("."), station="NET.STA.LOC.BI")
    for packet in packets:  # samples by component, time of the first in nanoseconds since 1970 UTC, rate
        for pick in picker.push({"Z": z, "N": n, "E": e}, packet.start_ns, 100.0):
            ...
    last = picker.flush()

The picks are those that a seisserve server finds in the whole record. What of it is not known before the record goes on
is waited for: a pick comes about one window (less its blinding) and three seconds after its time, or with the end of
its segment. Memory does not grow, however long the record.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

__all__ = ["Model", "Pick", "Picker", "selftest"]

NS = 1_000_000_000
MAX_AMPLITUDE = float(np.finfo(np.float32).max) / 4
NOISE_S, GUARD_S, SIGNAL_S = 5.0, 0.2, 2.0  # before the pick, left out, after the pick: what the SNR is taken from
HALF_MAXIMUM_TO_SIGMA = 2.3548
REACH = 300  # samples on either side of a peak in which its width is looked for
DETECTION = "detection"  # the label that is no phase
COLUMNS = ("trace_id", "phase", "time", "probability", "uncertainty_s", "snr_db", "flags", "model", "version")
GOLDEN_STATION, GOLDEN_START_NS = "XX.GOLD..HH", 1_704_067_200 * NS

Columns = NDArray[Any]


class Pick(NamedTuple):
    """One arrival: all that the server says about it, in the same words.

    trace_id: NET.STA.LOC.BI; time_ns: nanoseconds since 1970 UTC, whole microseconds; uncertainty_s: one standard
    deviation; snr_db: NaN where the segment is too short to tell; flags: `edge`, `fragment`, `missing_N` and so on.
    """

    trace_id: str
    phase: str
    time_ns: int
    probability: float
    uncertainty_s: float
    snr_db: float
    flags: tuple[str, ...]


class Model:
    """The network of an edge folder and how to read it. Raises ValueError for a file that is not the folder's."""

    def __init__(self, folder: Path, file: str = "model.onnx") -> None:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.name, self.version = str(manifest["name"]), int((folder / "VERSION").read_text())
        self.rate_hz = float(manifest["sampling_rate_hz"])
        self.components = str(manifest["components"])
        self.window, self.hop = int(manifest["window_samples"]), int(manifest["hop_samples"])
        self.blinding, self.edge = int(manifest["blinding_samples"]), int(manifest["edge_samples"])
        self.lengths = sorted({*manifest["fragment_windows"], self.window})
        self.maximum = manifest["stacking"] == "max"
        self.distance = round(manifest["minimum_pick_distance_s"] * self.rate_hz)
        self.golden_tolerance = float(manifest["golden_tolerance"])
        self.readings = {label: reading for label, reading in manifest["labels"].items() if label != DETECTION}
        output = manifest["outputs"][0]
        self.labels, self.stride, self.single = output["labels"], output["stride"], len(output["shape"]) == 2
        _check_digest(folder, file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
        self._input = manifest["input"]["name"]
        # In an ONNX file no output may have the name of the input.
        self._output = output["name"] + ("_out" if output["name"] == self._input else "")

    def run(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """[length, components] -> [frames, labels], or [labels] of a network that says one thing of a window."""
        found: NDArray[np.float32] = self._session.run([self._output], {self._input: window[None]})[0][0]
        return found

    def curve(self, samples: Columns) -> NDArray[np.float32]:
        """[components, n] -> [labels, n], or [labels]: what the network says of one window or of a fragment of one.

        The middle of each component's range is subtracted, so that large counts keep their last bits in float32; a
        fragment is padded with its last values to the shortest window that the network takes.
        """
        length = next(length for length in self.lengths if length >= samples.shape[1])
        middle = samples.max(axis=1, keepdims=True) / 2 + samples.min(axis=1, keepdims=True) / 2
        padded = np.pad(samples - middle, ((0, 0), (0, length - samples.shape[1])), mode="edge")
        found = self.run(np.ascontiguousarray(padded.T, np.float32))
        return found if self.single else _between_frames(found, self.stride).T[:, : samples.shape[1]]


def _check_digest(folder: Path, file: str) -> None:
    lines = (line.split() for line in (folder / "SHA256SUMS").read_text().splitlines())
    expected = next((digest for digest, name in lines if name == file), None)
    if hashlib.sha256((folder / file).read_bytes()).hexdigest() != expected:
        raise ValueError(f"{folder / file}: its sha256 is not the one in SHA256SUMS; export the folder anew")


def _between_frames(frames: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """[frames, labels] -> [frames * stride, labels]: straight lines between the middles of the frames."""
    if stride == 1:
        return frames
    last = len(frames) - 1
    place = np.clip((np.arange(len(frames) * stride) + 0.5) / stride - 0.5, 0, last)
    below = place.astype(np.int64)
    share = (place - below).astype(np.float32)[:, None]
    lower = frames[below]
    return lower + (frames[np.minimum(below + 1, last)] - lower) * share


class _Tape:
    """The last columns of an endless record [rows, n], in one piece of memory that is allocated once.

    Columns are numbered from the beginning of the record; those from `begin` to `end` are there.
    """

    def __init__(self, rows: int, room: int, dtype: type[np.floating[Any]]) -> None:
        self._held = np.zeros((rows, 2 * room), dtype)  # twice: so that columns seldom have to move to the front
        self._front = self.begin = self.end = 0

    def part(self, begin: int, end: int) -> Columns:
        """Columns begin to end, to read and to write."""
        return self._held[:, begin - self._front : end - self._front]

    def extend(self, end: int) -> Columns:
        """Make it reach to `end`; the new columns, to be filled."""
        if end - self._front > self._held.shape[1]:
            kept = self.part(self.begin, self.end).copy()
            self._front = self.begin
            self._held[:, : kept.shape[1]] = kept
        begin, self.end = self.end, end
        return self.part(begin, end)

    def forget(self, before: int) -> None:
        """The columns before that one are no longer needed."""
        self.begin = max(self.begin, min(before, self.end))


class _Clock(NamedTuple):
    """Times of a segment's samples. first: number of the first on the grid of whole intervals since 1970; offset_ns:
    how much later than its grid point it was really taken."""

    first: int
    offset_ns: int
    rate_hz: float

    def time_ns(self, sample: int, fraction: float) -> int:
        """Time of a sample and a fraction of the interval after it, whole microseconds."""
        grid = (self.first + sample) * NS / _exact_rate(self.rate_hz)
        return round((grid + self.offset_ns + round(fraction * NS / self.rate_hz)) / 1000) * 1000


@dataclass
class _Peak:
    """The highest place of a stretch, and the pick that it makes if no neighbour takes precedence."""

    sample: int
    height: float
    pick: Pick
    kept: bool = True
    told: bool = False


class _Segment:
    """A record without a gap in which the same components are alive: samples in, final picks out."""

    def __init__(self, model: Model, station: str, live: tuple[bool, ...], clock: _Clock) -> None:
        self.model, self.live, self.clock, self.station = model, live, clock, station
        noise, guard, signal = (round(seconds * model.rate_hz) for seconds in (NOISE_S, GUARD_S, SIGNAL_S))
        self._noise, self._guard, self._signal = noise, guard, signal
        self._block = max(1, round(model.rate_hz / 4))  # picks are looked for that often, however small the packets
        self.chunk = model.window  # the most samples that `feed` takes at once
        room = 2 * model.window + self.chunk + self._block + 2 * REACH + noise + guard + signal + model.edge
        self.samples = _Tape(len(live), room, np.float64)
        self.curve = _Tape(len(model.labels), room, np.float32)  # final up to _final, sums or maxima beyond
        self._count = _Tape(1, room, np.float32)
        self._next, self._done = 0, -1  # begin of the window to come, and of the last one
        self._final = self._read = 0
        self._knot: NDArray[np.float32] | None = None  # the last value of a network that says one thing of a window
        self._phases = [_Phase(self, label) for label in model.readings]

    def feed(self, samples: Columns) -> list[Pick]:
        """Picks that became final with these samples [live components, at most `chunk`]."""
        self.samples.extend(self.samples.end + samples.shape[1])[list(self.live)] = samples
        end = self.samples.end
        self.samples.part(end - samples.shape[1], end)[[not live for live in self.live]] = 0
        # A window's blinded end counts if its segment ends there: with blinding it waits for one sample more.
        while self._next + self.model.window + (self.model.blinding > 0) <= end:
            self._run(self._next, closes=False)
            self._next += self.model.hop - (self.clock.first + self._next) % self.model.hop
        if self._done < 0:
            return []
        # Windows to come are those of the grid, and one flush with the end wherever that will be: none begins before
        # this place. What they add counts only behind their blinding.
        soonest = max(end - self.model.window, self._done + 1) + self.model.blinding
        self._settle(self.curve.end if self.model.single else soonest)
        ready = min(self._final - REACH, end - self._signal, end - self.model.edge)
        return self._picks(ready, closed=False) if ready - self._read >= self._block else []

    def finish(self) -> list[Pick]:
        """The remaining picks: the segment ends here."""
        end = self.samples.end
        last = max(end - self.model.window, 0)
        if last > self._done:
            self._run(last, closes=True)
        elif self.model.single and self._knot is not None:
            self.curve.extend(end)[:] = self._knot[:, None]
        self._settle(end)
        return self._picks(end, closed=True)

    def _run(self, start: int, closes: bool) -> None:
        """Lay the window that begins there over the curve."""
        end = min(start + self.model.window, self.samples.end)
        found = self.model.curve(self.samples.part(start, end))
        self._done = start
        if self.model.single:
            self._line(start, end, found, closes)
            return
        begin = start + self.model.blinding if start else 0
        reach = end if closes else end - self.model.blinding
        if reach > self.curve.end:
            self.curve.extend(reach)[:] = -np.inf if self.model.maximum else 0
            self._count.extend(reach)[:] = 0
        here, part = self.curve.part(begin, reach), found[:, begin - start : reach - start]
        if self.model.maximum:
            np.maximum(here, part, out=here)
        else:
            here += part
        self._count.part(begin, reach)[:] += 1

    def _line(self, start: int, end: int, value: NDArray[np.float32], closes: bool) -> None:
        """The curve on to the middle of this window in straight lines; to the ends of the segment it is held."""
        length = next(length for length in self.model.lengths if length >= end - start)
        middle = min(start + length // 2, end - 1)
        begin = self.curve.end
        before, knot = (0, value) if self._knot is None else (begin - 1, self._knot)
        for row, low, high in zip(self.curve.extend(middle + 1), knot, value, strict=True):
            row[:] = np.interp(np.arange(begin, middle + 1), [before, middle], [low, high])
        self._knot = value
        if closes:
            self.curve.extend(end)[:] = value[:, None]

    def _settle(self, final: int) -> None:
        """Samples before that one get nothing more."""
        if final > self._final and not (self.model.single or self.model.maximum):
            here = self.curve.part(self._final, final)
            here /= self._count.part(self._final, final)
        self._final = max(final, self._final)

    def _picks(self, ready: int, closed: bool) -> list[Pick]:
        """Read the curve up to a sample; all that a pick before it depends on must be known."""
        found = [pick for phase in self._phases for pick in phase.read(self._read, ready, closed)]
        self._read = ready
        self.curve.forget(ready - REACH)
        self._count.forget(self._final)
        self.samples.forget(min(self.samples.end - self.model.window, ready - self._noise - self._guard))
        return sorted(found, key=lambda pick: (pick.time_ns, pick.phase))

    def measure(self, label: str, sample: int) -> Pick:
        """The pick of a peak of the curve."""
        begin, end = max(sample - REACH, 0), min(sample + REACH, self._final)
        row = self.curve.part(begin, end)[self.model.labels.index(label)]
        reading, peak = self.model.readings[label], sample - begin
        fraction = _vertex(row, peak) if 0 < sample < self._final - 1 else 0.0
        width = _half_width(row, peak) * 2 / HALF_MAXIMUM_TO_SIGMA / self.model.rate_hz
        return Pick(
            self.station,
            label,
            self.clock.time_ns(sample, fraction),
            _calibrated(float(row[peak]), reading["calibration"]),
            round(width * reading["uncertainty_scale"], 4),
            self._snr_db(sample),
            self._flags(sample),
        )

    def _snr_db(self, sample: int) -> float:
        begin = sample - self._guard - self._noise
        if begin < 0 or sample + self._signal > self.samples.end:
            return float("nan")
        part = self.samples.part(begin, sample + self._signal).copy()
        power_before = float(part[:, : self._noise].var(axis=1).sum())
        power_after = float(part[:, self._noise + self._guard :].var(axis=1).sum())
        if power_before <= 0 or power_after <= 0:
            return float("nan")
        return round(10 * float(np.log10(power_after / power_before)), 2)

    def _flags(self, sample: int) -> tuple[str, ...]:
        """Where it is called while the segment goes on, its end is farther away than `edge`."""
        edge = ["edge"] if min(sample, self.samples.end - 1 - sample) < self.model.edge else []
        fragment = ["fragment"] if self.samples.end < self.model.window else []
        missing = [f"missing_{c}" for c, live in zip(self.model.components, self.live, strict=True) if not live]
        return (*edge, *fragment, *missing)


class _Phase:
    """Picks of one phase: on where its curve reaches the threshold, until it falls below half of it."""

    def __init__(self, segment: _Segment, label: str) -> None:
        self._segment, self._label, self._row = segment, label, segment.model.labels.index(label)
        threshold = segment.model.readings[label]["threshold"]
        self._threshold, self._half = np.float32(threshold), np.float32(threshold / 2)
        self._open, self._height = False, -math.inf  # the stretch that goes on, if there is one
        self._top: _Peak | None = None  # its highest place, if that reaches the threshold
        self._recent: list[_Peak] = []

    def read(self, begin: int, end: int, closed: bool) -> list[Pick]:
        """Picks that are final once the curve is known from begin to end."""
        values = self._segment.curve.part(begin, end)[self._row]
        edges = np.flatnonzero(np.diff(values >= self._half, prepend=False, append=False)).tolist()
        if self._open and edges[:1] != [0]:
            self._close()
        for low, high in zip(edges[::2], edges[1::2], strict=True):
            self._open = True
            top = low + int(np.argmax(values[low:high]))
            if values[top] > self._height:  # of equal ones the first
                self._height = float(values[top])
                if values[top] >= self._threshold:
                    pick = self._segment.measure(self._label, begin + top)
                    self._top = _Peak(begin + top, self._height, pick)
            if high < len(values):
                self._close()
        if closed and self._open:
            self._close()
        return self._settled(end, closed)

    def _close(self) -> None:
        """The stretch is over. Of two peaks nearer than the minimum distance the lower one (the later of equal ones)
        goes, whether or not the other stays."""
        top = self._top
        self._open, self._top, self._height = False, None, -math.inf
        if top is None:
            return
        for peak in self._recent:
            if top.sample - peak.sample < self._segment.model.distance:
                lower = peak if top.height > peak.height else top
                lower.kept = False
        self._recent.append(top)

    def _settled(self, end: int, closed: bool) -> list[Pick]:
        """Picks that nothing to come can change."""
        found, distance = [], self._segment.model.distance
        for peak in self._recent:
            rival = self._top is not None and self._top.height > peak.height
            near = self._top is not None and self._top.sample - peak.sample < distance
            if not peak.told and (closed or (peak.sample + distance <= end and not (rival and near))):
                peak.told = True
                found += [peak.pick] if peak.kept else []
        soonest = end if self._top is None else min(end, self._top.sample)  # of the peaks to come
        self._recent = [peak for peak in self._recent if not peak.told or peak.sample + distance > soonest]
        return found


class Picker:
    """Packets in, picks out. station: NET.STA.LOC.BI, BI being the band and instrument code."""

    def __init__(self, folder: Path, station: str = "XX.EDGE..HH", file: str = "model.onnx") -> None:
        self.model, self.station = Model(folder, file), station
        self._segment: _Segment | None = None
        self._end: int | None = None  # of the last packet, on the grid
        self._offsets: dict[str, int] = {}  # of each component since it has been there without a gap

    def push(self, samples: Mapping[str, ArrayLike], start_ns: int, sampling_rate_hz: float) -> list[Pick]:
        """Picks that became final with this packet.

        samples: for each component that there is (Z, N, E) as many raw samples, of any number; start_ns: time of the
        first. A packet that does not continue the record, or has other components, ends the segment. Raises ValueError
        for what makes no sense; then the packet is as if it had not come.
        """
        model = self.model
        if _exact_rate(sampling_rate_hz) != _exact_rate(model.rate_hz):
            raise ValueError(f"sampling rate is {sampling_rate_hz} Hz; {model.name} takes {model.rate_hz:g} Hz only")
        array = _checked(samples, model.components)
        index, offset_ns = _on_grid(start_ns, _exact_rate(model.rate_hz))
        if self._end is not None and index < self._end:
            back = (self._end - index) / model.rate_hz
            raise ValueError(f"packet begins {back:g} s before the end of the last one; packets come in order of time")
        if not array.shape[1]:
            return []
        live = tuple(component in samples for component in model.components)
        picks: list[Pick] = []
        if self._segment is not None and (index != self._end or self._segment.live != live):
            picks += self.flush()
        known = self._offsets if index == self._end else {}
        self._offsets = {code: known.get(code, offset_ns) for code in model.components if code in samples}
        if self._segment is None:
            clock = _Clock(index, next(iter(self._offsets.values())), model.rate_hz)
            self._segment = _Segment(model, self.station, live, clock)
        for begin in range(0, array.shape[1], self._segment.chunk):
            picks += self._segment.feed(array[:, begin : begin + self._segment.chunk])
        self._end = index + array.shape[1]
        return picks

    def flush(self) -> list[Pick]:
        """The remaining picks; what comes next begins a segment of its own."""
        picks = [] if self._segment is None else self._segment.finish()
        self._segment = None
        return picks

    def row(self, pick: Pick) -> tuple[str | float | int, ...]:
        """The pick as a line of a table with the columns in COLUMNS."""
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=pick.time_ns // 1000)
        return (
            pick.trace_id,
            pick.phase,
            moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            round(pick.probability, 6),
            pick.uncertainty_s,
            "" if math.isnan(pick.snr_db) else pick.snr_db,
            "|".join(pick.flags),
            self.model.name,
            self.model.version,
        )


def _checked(samples: Mapping[str, ArrayLike], components: str) -> Columns:
    """[live components, n] in order of the components."""
    unknown = set(samples) - set(components)
    if unknown or not samples:
        raise ValueError(f"packet has components {sorted(samples)}; expected some of {', '.join(components)}")
    rows = [np.asarray(samples[code]) for code in components if code in samples]
    if any(row.ndim != 1 or len(row) != len(rows[0]) for row in rows):
        raise ValueError(f"samples have shapes {[row.shape for row in rows]}; expected one dimension, equally long")
    for row in rows:
        if row.dtype.kind not in "iuf":
            raise ValueError(f"samples are {row.dtype}; expected integers or floats")
        if row.dtype.kind == "f" and not (np.abs(row) <= MAX_AMPLITUDE).all():
            raise ValueError(f"samples are NaN or exceed {MAX_AMPLITUDE:.0e}; leave them out: that makes a gap")
    return np.stack([row.astype(np.float64) for row in rows])


@lru_cache
def _exact_rate(rate_hz: float) -> Fraction:
    """The sampling rate as the fraction of small integers that the header meant (33.333333 is 100/3)."""
    return Fraction(rate_hz).limit_denominator(1000)


def _on_grid(start_ns: int, rate: Fraction) -> tuple[int, int]:
    """Number of a sample on the grid of whole intervals since 1970, and how much later it was taken, to 100 ns."""
    intervals, interval = start_ns * rate.numerator, NS * rate.denominator
    index = (2 * intervals + interval) // (2 * interval)
    late, unit = intervals - index * interval, 100 * rate.numerator
    return index, (2 * late + unit) // (2 * unit) * 100


def _vertex(values: NDArray[np.float32], peak: int) -> float:
    """Where a parabola through the peak and its neighbours is highest: -0.5 to 0.5 samples from the peak."""
    before, top, after = (float(value) for value in values[peak - 1 : peak + 2])
    bend = before - 2 * top + after
    return 0.0 if bend >= 0 else min(max(0.5 * (before - after) / bend, -0.5), 0.5)


def _half_width(values: NDArray[np.float32], peak: int) -> float:
    """Half of the full width at half the peak's height, in samples."""
    half = values[peak] / 2
    after = values[peak : peak + REACH] < half
    before = values[max(peak - REACH, 0) : peak + 1][::-1] < half
    sides = [float(np.argmax(side)) if side.any() else float(len(side)) for side in (before, after)]
    return sum(sides) / 2


def _calibrated(height: float, calibration: list[list[float]]) -> float:
    """The probability that a pick with a peak of that height is right; the height itself if nothing is known."""
    if not calibration:
        return height
    heights, shares = zip(*calibration, strict=True)
    return float(np.float32(np.interp(height, heights, shares)))


def selftest(folder: Path, file: str = "model.onnx") -> str:
    """Compare with what seisserve found when it made the folder; a line that says how well. Raises ValueError.

    golden_input.bin and golden_output.bin: windows and what the network says of them. golden_picks.csv: the picks of
    the record that these windows make one after the other, which is sent here in packets of changing size.
    """
    picker = Picker(folder, GOLDEN_STATION, file)
    model = picker.model
    windows = np.fromfile(folder / "golden_input.bin", "<f4").reshape(-1, model.window, len(model.components))
    outputs = np.fromfile(folder / "golden_output.bin", "<f4").reshape(len(windows), -1, len(model.labels))
    found = [model.run(window).reshape(-1, len(model.labels)) for window in windows]
    error = max(float(np.abs(a - b).max()) for a, b in zip(found, outputs, strict=True))
    if not error <= model.golden_tolerance:
        raise ValueError(f"golden windows: outputs differ by {error:.2g}, tolerance {model.golden_tolerance:.2g}")
    record = np.concatenate(list(windows)).T
    picks, begin = [], 0
    while begin < record.shape[1]:
        packet = record[:, begin : begin + 1 + begin * 7919 % 1009]
        start_ns = GOLDEN_START_NS + round(begin * NS / _exact_rate(model.rate_hz))
        picks += picker.push(dict(zip(model.components, packet, strict=True)), start_ns, model.rate_hz)
        begin += packet.shape[1]
    rows = sorted(picker.row(pick) for pick in picks + picker.flush())
    with (folder / "golden_picks.csv").open(newline="") as table:
        expected = sorted(list(csv.reader(table))[1:])
    _compare_picks(rows, expected, model)
    return f"selftest passed: {len(windows)} windows, largest difference {error:.1g}; {len(rows)} picks as expected"


def _compare_picks(rows: list[tuple[str | float | int, ...]], expected: list[list[str]], model: Model) -> None:
    """The same picks, each within half a sample and the golden tolerance (other processors round otherwise)."""
    if [row[:2] for row in rows] != [(row[0], row[1]) for row in expected]:
        raise ValueError(f"golden record: {len(rows)} picks, expected {len(expected)}")
    for row, wanted in zip(rows, expected, strict=True):
        late = abs(datetime.fromisoformat(str(row[2])) - datetime.fromisoformat(wanted[2])).total_seconds()
        if late * model.rate_hz > 0.5 or abs(float(row[3]) - float(wanted[3])) > model.golden_tolerance + 1e-6:
            raise ValueError(f"golden record: pick {row[:4]}, expected {wanted[:4]}")


def _stream(picker: Picker, components: str, rate_hz: float, start: str, target: TextIO) -> None:
    """Samples from standard input, picks to `target` as they become final."""
    moment = datetime.fromisoformat(start)
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    start_ns = (since.days * 86_400 + since.seconds) * NS + since.microseconds * 1000
    table = csv.writer(target, lineterminator="\n")
    table.writerow(COLUMNS)
    frame, rest, done = 4 * len(components), b"", 0
    picker.push({code: [] for code in components}, start_ns, rate_hz)  # complain before the first sample comes
    while received := os.read(sys.stdin.fileno(), 1 << 16):  # what is there, however little
        rest += received
        whole = len(rest) // frame * frame
        samples = np.frombuffer(rest[:whole], "<f4").reshape(-1, len(components))
        rest = rest[whole:]
        begin_ns = start_ns + round(done * NS / _exact_rate(rate_hz))
        picks = picker.push(dict(zip(components, samples.T, strict=True)), begin_ns, rate_hz)
        done += len(samples)
        table.writerows(picker.row(pick) for pick in picks)
        target.flush()
    table.writerows(picker.row(pick) for pick in picker.flush())
    target.flush()
    if rest:
        raise ValueError(f"input ended within a sample: {len(rest)} bytes over; one of each component is {frame} bytes")


def main() -> int:
    """Run the self test, or pick what comes in."""
    parser = argparse.ArgumentParser(description="A streaming phase picker that needs numpy and onnxruntime only.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--selftest", action="store_true", help="compare with the golden windows and picks")
    what.add_argument("--stdin", action="store_true", help="pick interleaved little-endian float32 samples; print CSV")
    parser.add_argument("--rate", type=float, help="sampling rate, Hz")
    parser.add_argument("--start", metavar="TIME", help="of the first sample, ISO 8601, UTC")
    parser.add_argument("--components", help="order of the components in the input; default: the model's")
    parser.add_argument("--station", default="XX.EDGE..HH", help="NET.STA.LOC.BI; default: %(default)s")
    parser.add_argument("--file", default="model.onnx", help="model.onnx or model.ort; default: %(default)s")
    options = parser.parse_args()
    if options.stdin and (options.rate is None or options.start is None):
        parser.error("--stdin needs --rate and --start")
    folder = Path(__file__).resolve().parent
    try:
        if options.selftest:
            print(selftest(folder, options.file))
        else:
            picker = Picker(folder, options.station, options.file)
            components = options.components or picker.model.components
            _stream(picker, components, options.rate, options.start, sys.stdout)
    except (ValueError, OSError) as error:
        print(f"picker.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
