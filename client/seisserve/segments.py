"""Segments: from traces of any order, rate and overlap to gapless blocks of all components at the model's rate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.resample import NS, Phase, check_phase, exact_rate, resample
from seisserve.traces import Trace, check

__all__ = ["SLOT_CODES", "Segment", "by_instrument", "segments", "slot_codes"]

# One slot for each way of naming it. Where two codes of one slot occur, the first is used: 1 and Z never meet.
SLOT_CODES = {"Z": "Z3", "N": "N1", "E": "E2"}


class Segment(NamedTuple):
    """A stretch without gaps in which the same components are alive.

    trace_id: NET.STA.LOC.BI. samples: [components, n]; a missing component is zero.
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


class _Run(NamedTuple):
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
    slots: list[list[_Run]] = []
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


def _runs(traces: list[Trace], target_hz: float, phase: Phase, warnings: list[str]) -> list[_Run]:
    """The runs of one channel at the target rate, in time order."""
    runs: list[_Run] = []
    by_rate: dict[Fraction, list[Trace]] = defaultdict(list)
    for trace in traces:
        by_rate[exact_rate(trace.sampling_rate_hz)].append(trace)
    for rate, alike in sorted(by_rate.items()):
        merged = _merge([_on_grid(trace, rate) for trace in alike], traces[0].id, float(rate), warnings)
        if rate != exact_rate(target_hz):
            merged = [_resampled(run, rate, target_hz, phase) for run in merged]
        runs.extend(run for run in merged if len(run.samples))
    return _merge(runs, traces[0].id, target_hz, warnings, touching=False) if len(by_rate) > 1 else runs


def _on_grid(trace: Trace, rate: Fraction) -> _Run:
    """The trace by number of its first sample, in whole numbers: exact and fast.

    What is left is rounded to 100 ns: where the interval is no whole number of nanoseconds, the pieces of a cut record
    have starts that were rounded differently; they are still one record.
    """
    intervals, interval = trace.start_ns * rate.numerator, NS * rate.denominator
    grid_index = (2 * intervals + interval) // (2 * interval)
    late, unit = intervals - grid_index * interval, 100 * rate.numerator
    return _Run(grid_index, (2 * late + unit) // (2 * unit) * 100, trace.samples)


def _resampled(run: _Run, rate: Fraction, target_hz: float, phase: Phase) -> _Run:
    samples, index = resample(run.samples, run.grid_index * NS / rate + run.offset_ns, float(rate), target_hz, phase)
    return _Run(index, 0, samples)


def _merge(pieces: list[_Run], name: str, rate_hz: float, warnings: list[str], *, touching: bool = True) -> list[_Run]:
    """Runs without gap or overlap: pieces that agree where they overlap (or just touch, unless they came from
    different rates or from either side of a gap: `touching` is False) are joined; overlaps that conflict are dropped.
    """
    runs: list[_Run] = []
    cluster: list[_Run] = []
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


def _join_pieces(pieces: list[_Run], name: str, rate_hz: float, warnings: list[str]) -> list[_Run]:
    if len(pieces) == 1:
        return pieces
    first = pieces[0].grid_index
    length = max(piece.end for piece in pieces) - first
    samples = np.zeros(length, np.result_type(*(piece.samples for piece in pieces)))
    filled = np.zeros(length, bool)
    conflict = np.zeros(length, bool)
    for piece in pieces:
        here = slice(piece.grid_index - first, piece.end - first)
        overlap = filled[here] & ~conflict[here]
        if np.any(overlap & (samples[here] != piece.samples)):
            conflict[here] |= overlap
        np.copyto(samples[here], piece.samples, where=~filled[here])
        filled[here] = True
    if not conflict.any():
        return [_Run(first, pieces[0].offset_ns, samples)]
    seconds = np.count_nonzero(conflict) / rate_hz
    warnings.append(f"{name}: overlapping records disagree; {seconds:g} s were dropped")
    edges = np.flatnonzero(np.diff(np.concatenate([[True], conflict, [True]])))
    kept = []
    for begin, end in edges.reshape(-1, 2).tolist():
        offset_ns = next(p.offset_ns for p in pieces if p.grid_index <= first + begin < p.end)
        kept.append(_Run(first + begin, offset_ns, samples[begin:end]))
    return kept


def _join(name: str, slots: list[list[_Run]], rate_hz: float) -> list[Segment]:
    """Segments from the runs of each component: cut wherever a component comes or goes. Empties the lists of runs."""
    bounds = np.unique([edge for runs in slots for run in runs for edge in (run.grid_index, run.end)])
    covering = [_covering(runs, bounds[:-1]) for runs in slots]
    dtype = np.result_type(*(run.samples.dtype for runs in slots for run in runs)) if len(bounds) else np.float64
    found, places = [], []
    for begin, end, *here in zip(bounds[:-1].tolist(), bounds[1:].tolist(), *covering, strict=True):
        offsets = [runs[k].offset_ns for runs, k in zip(slots, here, strict=True) if k is not None]
        if offsets:
            samples = np.zeros((len(slots), end - begin), dtype)
            live = tuple(k is not None for k in here)
            found.append(Segment(name, begin, offsets[0], rate_hz, samples, live))
            places.append(here)
    for row, runs in enumerate(slots):  # component after component, so that its runs can go when they have been copied
        for segment, here in zip(found, places, strict=True):
            if here[row] is not None:
                run = runs[here[row]]
                begin = segment.grid_index - run.grid_index
                segment.samples[row] = run.samples[begin : begin + segment.samples.shape[1]]
        runs.clear()
    return found


def _covering(runs: list[_Run], begins: NDArray[np.int64]) -> list[int | None]:
    """For each stretch that begins there, the number of the run that covers it."""
    if not runs:
        return [None] * len(begins)
    starts, ends = (np.array(edges) for edges in zip(*((run.grid_index, run.end) for run in runs), strict=True))
    position = np.searchsorted(starts, begins, side="right") - 1
    covered = (position >= 0) & (begins < ends[position])
    return [k if yes else None for k, yes in zip(position.tolist(), covered.tolist(), strict=True)]
