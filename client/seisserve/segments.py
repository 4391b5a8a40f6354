"""Segments: from traces of any order, rate and overlap to gapless blocks of all components at the model's rate."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.deferred import BLOCK, Make, deferred, in_blocks, recent_of, spans
from seisserve.resample import NS, Phase, check_phase, exact_rate, extent, needed, resample
from seisserve.traces import Trace, check

__all__ = ["SLOT_CODES", "Run", "Segment", "by_instrument", "on_grid", "segments", "slot_codes"]

# One slot for each way of naming it. Where two codes of one slot occur, the first is used: 1 and Z never meet.
SLOT_CODES = {"Z": "Z3", "N": "N1", "E": "E2"}


class Segment(NamedTuple):
    """A stretch without gaps in which the same components are alive.

    trace_id: NET.STA.LOC.BI. samples: [components, n]; a missing component is zero. Those of deferred traces are
    deferred too.
    grid_index: number of the first sample on the grid of whole sample intervals since 1970 UTC; offset_ns: how much
    later than its grid point the sample was really taken (half an interval at most, either way). live: which
    components were recorded.
    """

    trace_id: str
    grid_index: int
    offset_ns: int
    sampling_rate_hz: float
    samples: NDArray[Any]
    live: tuple[bool, ...]

    def time_ns(self, sample: int, fraction: float = 0.0) -> int:
        """Time of a sample (and a fraction of the interval after it), nanoseconds since 1970, whole microseconds."""
        grid = (self.grid_index + sample) * NS / exact_rate(self.sampling_rate_hz)
        return round((grid + self.offset_ns + round(fraction * NS / self.sampling_rate_hz)) / 1000) * 1000


class Run(NamedTuple):
    """Samples of one component without a gap: [n], the first at grid point `grid_index`."""

    grid_index: int
    offset_ns: int
    samples: NDArray[Any]

    @property
    def end(self) -> int:
        return self.grid_index + len(self.samples)


def by_instrument(traces: Iterable[Trace]) -> dict[str, list[Trace]]:
    """Traces by NET.STA.LOC.BI (band and instrument code), in order of the name."""
    groups: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        groups[trace.id[:-1]].append(trace)
    return dict(sorted(groups.items()))


def slot_codes(traces: Iterable[Trace], components: str) -> list[str | None]:
    """For each component the channel code (its last letter) that stands for it, among the traces of one instrument."""
    there = {trace.id[-1] for trace in traces}
    return [next((code for code in SLOT_CODES[component] if code in there), None) for component in components]


def segments(
    traces: Iterable[Trace], sampling_rate_hz: float, components: str, phase: Phase = "zero"
) -> tuple[list[Segment], list[str]]:
    """Gapless segments of one instrument (traces of one NET.STA.LOC.BI), and what the user should know about them.

    Records that overlap and agree are merged; where they conflict the overlap is dropped. Other rates are resampled.
    A segment ends wherever the set of live components changes; nothing is filled in. Raises WaveformError.
    """
    check_phase(phase)
    warnings: list[str] = []
    slots: list[list[Run]] = []
    name, channels = _by_code(traces)
    codes = set(channels)
    used = slot_codes((channel[0] for channel in channels.values()), components)
    # What has been copied is let go at once: the samples of a record are many, and should not be there twice.
    for code in used:
        slots.append(_runs(channels.pop(code), sampling_rate_hz, phase, warnings) if code else [])
    for code in sorted(codes - set(used)):
        warnings.append(f"{name}{code}: component not used (the model takes {components}, this one has no slot left)")
    return _join(name, slots, sampling_rate_hz), warnings


def _by_code(traces: Iterable[Trace]) -> tuple[str, dict[str, list[Trace]]]:
    """NET.STA.LOC.BI, and the traces by the last letter of their channel code."""
    channels: dict[str, list[Trace]] = defaultdict(list)
    name = ""
    for trace in map(check, traces):
        channels[trace.id[-1]].append(trace)
        name = trace.id[:-1]
    return name, channels


def _runs(traces: list[Trace], target_hz: float, phase: Phase, warnings: list[str]) -> list[Run]:
    """The runs of one channel at the target rate, in time order."""
    runs: list[Run] = []
    by_rate: dict[Fraction, list[Trace]] = defaultdict(list)
    for trace in traces:
        by_rate[exact_rate(trace.sampling_rate_hz)].append(trace)
    for rate, alike in sorted(by_rate.items()):
        merged = _merge([on_grid(trace, rate) for trace in alike], traces[0].id, float(rate), warnings)
        if rate != exact_rate(target_hz):
            merged = [_resampled(run, rate, target_hz, phase) for run in merged]
        runs.extend(run for run in merged if len(run.samples))
    return _merge(runs, traces[0].id, target_hz, warnings, touching=False) if len(by_rate) > 1 else runs


def on_grid(trace: Trace, rate: Fraction) -> Run:
    """The trace by number of its first sample, in whole numbers: exact and fast.

    What is left is rounded to 100 ns: where the interval is no whole number of nanoseconds, the pieces of a cut record
    have starts that were rounded differently; they are still one record.
    """
    intervals, interval = trace.start_ns * rate.numerator, NS * rate.denominator
    grid_index = (2 * intervals + interval) // (2 * interval)
    late, unit = intervals - grid_index * interval, 100 * rate.numerator
    return Run(grid_index, (2 * late + unit) // (2 * unit) * 100, trace.samples)


def _resampled(run: Run, rate: Fraction, target_hz: float, phase: Phase) -> Run:
    start_ns, recent = run.grid_index * NS / rate + run.offset_ns, recent_of(run.samples)
    if recent is None:
        samples, index = resample(run.samples, start_ns, float(rate), target_hz, phase)
        return Run(index, 0, samples)
    length = len(run.samples)
    count, index = extent(length, start_ns, float(rate), target_hz)

    def make(begin: int, end: int) -> NDArray[np.float64]:
        low, high = needed(index + begin, index + end, length, start_ns, float(rate), target_hz, phase)
        part, first = resample(run.samples[low:high], start_ns + low * NS / rate, float(rate), target_hz, phase)
        return part[index + begin - first :][: end - begin]

    edges = np.append(np.arange(0, count, BLOCK), count)
    return Run(index, 0, deferred((count,), np.float64, in_blocks(edges, make, recent), recent))


def _merge(pieces: list[Run], name: str, rate_hz: float, warnings: list[str], *, touching: bool = True) -> list[Run]:
    """Runs without gap or overlap: pieces that agree where they overlap (or just touch, unless they came from
    different rates or from either side of a gap: `touching` is False) are joined; overlaps that conflict are dropped.
    """
    runs: list[Run] = []
    cluster: list[Run] = []
    end = 0
    for piece in sorted((p for p in pieces if len(p.samples)), key=lambda p: (p.grid_index, p.end, p.offset_ns)):
        if cluster and piece.grid_index >= end + touching:
            runs.extend(_join_pieces(cluster, name, rate_hz, warnings))
            cluster = []
        end = max(end, piece.end) if cluster else piece.end
        cluster.append(piece)
    if cluster:
        runs.extend(_join_pieces(cluster, name, rate_hz, warnings))
    return runs


class _Source(NamedTuple):
    """From begin to end (grid points) the samples are those of this run."""

    begin: int
    end: int
    run: Run


def _join_pieces(pieces: list[Run], name: str, rate_hz: float, warnings: list[str]) -> list[Run]:
    """Runs from pieces, in order of time, that touch or overlap; where two overlap the first counts."""
    if len(pieces) == 1:
        return pieces
    first = end = pieces[0].grid_index
    sources: list[_Source] = []
    conflicts: list[tuple[int, int]] = []
    for piece in pieces:
        begin, stop = piece.grid_index, min(piece.end, end)
        if begin < stop:
            known = min(max(begin, conflicts[-1][1]), stop) if conflicts else begin  # before it: dropped already
            if _disagree(piece, known, stop, sources):
                if conflicts and begin <= conflicts[-1][1]:
                    begin, stop = conflicts[-1][0], max(conflicts.pop()[1], stop)
                conflicts.append((begin, stop))
        if piece.end > end:
            sources.append(_Source(end, piece.end, piece))
            end = piece.end
    if conflicts:
        seconds = sum(high - low for low, high in conflicts) / rate_hz
        warnings.append(f"{name}: overlapping records disagree; {seconds:g} s were dropped")
    dtype = np.result_type(*{piece.samples.dtype for piece in pieces})
    edges = [first, *(edge for conflict in conflicts for edge in conflict), end]
    kept = zip(edges[::2], edges[1::2], strict=True)
    return [_from_sources(sources, low, high, dtype) for low, high in kept if low < high]


def _disagree(piece: Run, begin: int, end: int, sources: list[_Source]) -> bool:
    """Whether the piece has other samples than the sources between two grid points."""
    for source in reversed(sources):
        if source.end <= begin:
            return False
        for low, high in spans(max(begin, source.begin), min(end, source.end)):
            if np.any(_samples(piece, low, high) != _samples(source.run, low, high)):
                return True
    return False


def _samples(run: Run, begin: int, end: int) -> NDArray[Any]:
    """The samples from one grid point to just before another."""
    return run.samples[begin - run.grid_index : end - run.grid_index]


def _from_sources(sources: list[_Source], begin: int, end: int, dtype: np.dtype[Any]) -> Run:
    """The run between two grid points."""
    used = [source for source in sources if source.begin < end and source.end > begin]
    begins = [source.begin for source in used]

    def make(low: int, high: int) -> NDArray[Any]:
        samples = np.empty(high - low, dtype)
        at = begin + low
        for source in used[max(bisect_right(begins, at) - 1, 0) :]:
            stop = min(source.end, begin + high)
            if stop <= at:
                break
            samples[at - begin - low : stop - begin - low] = _samples(source.run, at, stop)
            at = stop
        return samples

    recent = recent_of(*(source.run.samples for source in used))
    samples = make(0, end - begin) if recent is None else deferred((end - begin,), dtype, make, recent)
    return Run(begin, used[0].run.offset_ns, samples)


def _join(name: str, slots: list[list[Run]], rate_hz: float) -> list[Segment]:
    """Segments from the runs of each component: cut wherever a component comes or goes. Empties the lists of runs."""
    bounds = np.unique([edge for runs in slots for run in runs for edge in (run.grid_index, run.end)])
    covering = [_covering(runs, bounds[:-1]) for runs in slots]
    kinds = {run.samples.dtype for runs in slots for run in runs}
    dtype = np.result_type(*kinds) if kinds else np.dtype(np.float64)
    recent = recent_of(*(run.samples for runs in slots for run in runs))
    found, places = [], []
    for begin, end, *here in zip(bounds[:-1].tolist(), bounds[1:].tolist(), *covering, strict=True):
        offsets = [runs[k].offset_ns for runs, k in zip(slots, here, strict=True) if k is not None]
        if not offsets:
            continue
        live = tuple(k is not None for k in here)
        if recent is None:
            samples = np.zeros((len(slots), end - begin), dtype)
            places.append(here)
        else:
            rows = [None if k is None else runs[k] for runs, k in zip(slots, here, strict=True)]
            samples = deferred((len(slots), end - begin), dtype, _rows(rows, begin, dtype), recent)
        found.append(Segment(name, begin, offsets[0], rate_hz, samples, live))
    if recent is None:
        for row, runs in enumerate(slots):  # component after component: its runs can go when they have been copied
            for segment, here in zip(found, places, strict=True):
                if here[row] is not None:
                    begin, end = segment.grid_index, segment.grid_index + segment.samples.shape[1]
                    segment.samples[row] = _samples(runs[here[row]], begin, end)
            runs.clear()
    return found


def _rows(runs: list[Run | None], first: int, dtype: np.dtype[Any]) -> Make:
    """Makes the samples [components, n] of a segment that begins at this grid point."""

    def make(begin: int, end: int) -> NDArray[Any]:
        samples = np.empty((len(runs), end - begin), dtype)
        for row, run in zip(samples, runs, strict=True):
            row[:] = 0 if run is None else _samples(run, first + begin, first + end)
        return samples

    return make


def _covering(runs: list[Run], begins: NDArray[np.int64]) -> list[int | None]:
    """For each stretch that begins there, the number of the run that covers it."""
    if not runs:
        return [None] * len(begins)
    starts, ends = (np.array(edges) for edges in zip(*((run.grid_index, run.end) for run in runs), strict=True))
    position = np.searchsorted(starts, begins, side="right") - 1
    covered = (position >= 0) & (begins < ends[position])
    return [k if yes else None for k, yes in zip(position.tolist(), covered.tolist(), strict=True)]
