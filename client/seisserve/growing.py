"""Growing segments: windows as soon as their samples are there, and picks as soon as nothing to come can change them.

The picks are those of `picks.extract` from the curve over the whole segment, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.manifest import Label, Manifest
from seisserve.picks import GUARD_S, NOISE_S, SIGNAL_S, WIDTH_REACH, Pick, measure
from seisserve.segments import Segment
from seisserve.stretches import flags_of
from seisserve.windows import BATCH_SAMPLES, between_frames

__all__ = ["Growing", "Job"]

READ_S = 0.25  # the curve is read that often, however small the packets


class Job(NamedTuple):
    """A window to run the network on: samples [components, at most `length`], and where it begins in its segment."""

    start: int
    length: int
    samples: NDArray[Any]
    closes: bool  # whether it ends with its segment


class _Tape:
    """The last columns of an endless record [rows, n], numbered from its beginning: those from `begin` to `end`."""

    def __init__(self, rows: int, dtype: Any) -> None:
        self._room: NDArray[Any] = np.zeros((rows, 0), dtype)
        self._first = self.begin = self.end = 0  # _first: number of the first column that there is room for

    @property
    def size(self) -> int:
        """Bytes of it."""
        return self._room.nbytes

    def part(self, begin: int, end: int) -> NDArray[Any]:
        """Columns begin to end, to read and to write."""
        return self._room[:, begin - self._first : end - self._first]

    def extend(self, end: int, dtype: Any = None) -> NDArray[Any]:
        """Make it reach to `end`; the new columns, to be filled. It takes a wider type if `dtype` needs one."""
        wanted = self._room.dtype if dtype is None else np.result_type(self._room.dtype, dtype)
        if end - self._first > self._room.shape[1] or wanted != self._room.dtype:
            kept = self.part(self.begin, self.end)
            needed = end - self.begin
            # Room for a quarter more: columns move to the front once in a while, not with every packet.
            self._room = np.zeros((len(self._room), needed + needed // 4 + 64), wanted)
            self._room[:, : kept.shape[1]] = kept
            self._first = self.begin
        begin, self.end = self.end, end
        return self.part(begin, end)

    def forget(self, before: int) -> None:
        """The columns before that one are no longer needed."""
        self.begin = max(self.begin, min(before, self.end))


@dataclass
class _Peak:
    """The highest place of a stretch, and the pick that it makes if no neighbour takes precedence."""

    sample: int
    height: float
    pick: Pick
    kept: bool = True
    told: bool = False


class Growing:
    """A segment that goes on: samples in, windows to run, what the network says of them in, final picks out.

    segment: without samples. The order is `feed` or `finish`, then `take` with an output for each of `jobs`, then
    `read`; not until then the next samples.
    """

    def __init__(self, model: Manifest, segment: Segment) -> None:
        self.model, self._segment = model, segment
        rate = model.sampling_rate_hz
        noise, guard, signal = (round(seconds * rate) for seconds in (NOISE_S, GUARD_S, SIGNAL_S))
        self._before, self._behind = max(WIDTH_REACH, noise + guard), max(WIDTH_REACH, signal)
        self._block = max(1, round(rate * READ_S))
        self.chunk = max(BATCH_SAMPLES, model.window_samples)  # the most samples that `feed` takes at once
        self._lengths = sorted({*model.fragment_windows, model.window_samples})
        self._columns = [model.output.labels.index(label) for label in model.phases]
        self._samples = _Tape(len(segment.live), np.int8)
        self._curve = _Tape(len(self._columns), np.float32)  # final up to _final, sums or maxima beyond
        self._count = _Tape(1, np.float32)
        self._next, self._done = 0, -1  # begin of the window to come, and of the last one
        self._final = self._read = 0
        self._knot: NDArray[np.float32] | None = None  # the last value of a network that says one thing of a window
        self._phases = [_Phase(self, row, *item) for row, item in enumerate(model.phases.items())]
        self.jobs: list[Job] = []
        self.closed = False

    @property
    def end(self) -> int:
        """Number of the sample behind the last, on the grid."""
        return self._segment.grid_index + self._samples.end

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._samples.size + self._curve.size + self._count.size

    def feed(self, samples: NDArray[Any]) -> None:
        """Take samples [components, at most `chunk`]; `jobs` has the windows that they complete."""
        self._samples.extend(self._samples.end + samples.shape[1], samples.dtype)[:] = samples
        end, window = self._samples.end, self.model.window_samples
        # A window's blinded end counts if its segment ends there: with blinding it waits for one sample more.
        while self._next + window + (self.model.blinding_samples > 0) <= end:
            self._job(self._next, closes=False)
            first = self._segment.grid_index + self._next
            self._next += self.model.hop_samples - first % self.model.hop_samples

    def finish(self) -> None:
        """The segment ends here; `jobs` has the window that ends with it, unless it has been run."""
        self.closed = True
        last = max(self._samples.end - self.model.window_samples, 0)
        if last > self._done:
            self._job(last, closes=True)

    def _job(self, start: int, closes: bool) -> None:
        end = min(start + self.model.window_samples, self._samples.end)
        length = next(length for length in self._lengths if length >= end - start)
        self.jobs.append(Job(start, length, self._samples.part(start, end), closes))
        self._done = start

    def take(self, output: NDArray[np.float32]) -> None:
        """What the network says of the first of `jobs`: [frames, labels] or [labels]."""
        job = self.jobs.pop(0)
        end = job.start + job.samples.shape[1]
        if self.model.output.single:
            self._line(job, end, output[self._columns])
            return
        blinding = self.model.blinding_samples
        found = between_frames(output[None], self.model.output.stride)[0]
        begin = job.start + blinding if job.start else 0
        reach = end if job.closes else end - blinding
        if reach > self._curve.end:
            self._curve.extend(reach)[:] = -np.inf if self.model.stacking == "max" else 0
            self._count.extend(reach)[:] = 0
        here = self._curve.part(begin, reach)
        part = found[begin - job.start : reach - job.start, self._columns].T
        if self.model.stacking == "max":
            np.maximum(here, part, out=here)
        else:
            here += part
        self._count.part(begin, reach)[:] += 1

    def _line(self, job: Job, end: int, value: NDArray[np.float32]) -> None:
        """The curve on to the middle of this window in straight lines; to the ends of the segment it is held."""
        middle = min(job.start + job.length // 2, end - 1)
        begin = self._curve.end
        before, knot = (0, value) if self._knot is None else (begin - 1, self._knot)
        for row, low, high in zip(self._curve.extend(middle + 1), knot, value, strict=True):
            row[:] = np.interp(np.arange(begin, middle + 1), [before, middle], [low, high])
        self._knot = value

    def read(self) -> list[Pick]:
        """Picks that are final once all jobs are done."""
        end, model = self._samples.end, self.model
        if self.closed:
            if model.output.single and self._knot is not None:
                self._curve.extend(end)[:] = self._knot[:, None]
            self._settle(end)
            return self._picks(end)
        if self._done < 0:
            return []
        # Windows to come are those of the grid, and one flush with the end wherever that will be: none begins before
        # this place. What they add counts only behind their blinding.
        soonest = max(end - model.window_samples, self._done + 1) + model.blinding_samples
        self._settle(self._curve.end if model.output.single else soonest)
        ready = min(self._final - self._behind, end - model.edge_samples)
        return self._picks(ready) if ready - self._read >= self._block else []

    def _settle(self, final: int) -> None:
        """Samples before that one get nothing more."""
        if final > self._final and not (self.model.output.single or self.model.stacking == "max"):
            here = self._curve.part(self._final, final)
            here /= self._count.part(self._final, final)
        self._final = max(final, self._final)

    def _picks(self, ready: int) -> list[Pick]:
        """Read the curve up to a sample; all that a pick before it depends on must be known."""
        found = [pick for phase in self._phases for pick in phase.read(self._read, ready)]
        self._read = ready
        self._curve.forget(ready - self._before)
        self._count.forget(self._final)
        self._samples.forget(min(self._samples.end - self.model.window_samples, ready - self._before))
        return found

    @property
    def watermark(self) -> int:
        """Number (on the grid) of a sample that no pick to come lies before."""
        return self._segment.grid_index + min((phase.soonest(self._read) for phase in self._phases), default=0) - 1

    def watermark_ns(self) -> int:
        """The time of that sample."""
        return self._segment.time_ns(self.watermark - self._segment.grid_index)

    def values(self, row: int, begin: int, end: int) -> NDArray[np.float32]:
        """The curve of a phase."""
        curve: NDArray[np.float32] = self._curve.part(begin, end)[row]
        return curve

    def pick(self, label: str, reading: Label, row: int, sample: int) -> Pick:
        """The pick of a peak of the curve."""
        begin, end = max(sample - self._before, 0), min(sample + self._behind, self._samples.end)
        first = self._segment.grid_index + begin
        part = self._segment._replace(grid_index=first, samples=self._samples.part(begin, end))
        # Where this is asked for while the segment goes on, its end is farther away than any flag reaches.
        noted = flags_of(self._samples.end, self._segment.live, sample, sample, self.model)
        return measure(label, reading, part, self.values(row, begin, end), sample - begin, noted)


class _Phase:
    """Picks of one phase: on where its curve reaches the threshold, until it falls below half of it."""

    def __init__(self, owner: Growing, row: int, label: str, reading: Label) -> None:
        self._owner, self._row, self._label, self._reading = owner, row, label, reading
        self._threshold, self._half = np.float32(reading.threshold), np.float32(reading.threshold / 2)
        self._distance = round(owner.model.minimum_pick_distance_s * owner.model.sampling_rate_hz)
        self._open, self._height = False, -math.inf  # the stretch that goes on, if there is one
        self._top: _Peak | None = None  # its highest place, if that reaches the threshold
        self._recent: list[_Peak] = []  # peaks that may still change, or that those to come are measured against

    def read(self, begin: int, end: int) -> list[Pick]:
        """Picks that are final once the curve is known from begin to end."""
        values = self._owner.values(self._row, begin, end)
        edges = np.flatnonzero(np.diff(values >= self._half, prepend=False, append=False)).tolist()
        if self._open and edges[:1] != [0]:
            self._close()
        for low, high in zip(edges[::2], edges[1::2], strict=True):
            self._open = True
            top = low + int(np.argmax(values[low:high]))
            if values[top] > self._height:  # of equal ones the first
                self._height = float(values[top])
                if values[top] >= self._threshold:
                    pick = self._owner.pick(self._label, self._reading, self._row, begin + top)
                    self._top = _Peak(begin + top, self._height, pick)
            if high < len(values):
                self._close()
        if self._owner.closed and self._open:
            self._close()
        return self._settled(end)

    def _close(self) -> None:
        """The stretch is over. Of two peaks nearer than the minimum distance the lower one (the later of equal ones)
        goes, whether or not the other stays."""
        top = self._top
        self._open, self._top, self._height = False, None, -math.inf
        if top is None:
            return
        for peak in self._recent:
            if top.sample - peak.sample < self._distance:
                lower = peak if top.height > peak.height else top
                lower.kept = False
        self._recent.append(top)

    def _settled(self, end: int) -> list[Pick]:
        """Picks that nothing to come can change."""
        found = []
        for peak in self._recent:
            near = self._top is not None and self._top.sample - peak.sample < self._distance
            rival = near and self._top is not None and self._top.height > peak.height
            if not peak.told and (self._owner.closed or (peak.sample + self._distance <= end and not rival)):
                peak.told = True
                found += [peak.pick] if peak.kept else []
        # Those that no peak to come is near enough to be measured against.
        self._recent = [p for p in self._recent if not p.told or p.sample + self._distance > self._next_peak(end)]
        return found

    def _next_peak(self, read: int) -> int:
        """The first sample that a peak to come may lie at, once the curve has been read so far."""
        return read if self._top is None else min(read, self._top.sample)

    def soonest(self, read: int) -> int:
        """The first sample that a pick to come may lie at."""
        return min([self._next_peak(read), *(peak.sample for peak in self._recent if peak.kept and not peak.told)])
