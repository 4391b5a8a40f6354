"""What calls tell the metrics of the waveforms they worked through (`metric_table` says what each number means)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from seisserve.detections import Detection
from seisserve.picks import Pick
from seisserve.traces import Trace
from seisserve_serving.calls import Call

__all__ = ["count_arrival", "count_detections", "count_picks", "count_record", "hours_and_gaps"]

HOUR_NS = 3.6e12


def count_picks(call: Call, picks: Iterable[Pick]) -> None:
    """Picks that the call gives out, by phase."""
    for phase, number in Counter(pick.phase for pick in picks).items():
        call.count("picks", number, phase)


def count_detections(call: Call, detections: Iterable[Detection]) -> None:
    """Detections that the call gives out."""
    call.count("detections", sum(1 for _ in detections))


def count_record(call: Call, traces: Iterable[Trace]) -> None:
    """Hours and gaps of one instrument's record."""
    hours, gaps = hours_and_gaps(traces)
    call.count("station_hours", hours)
    call.count("gaps", gaps)


def count_arrival(call: Call, station: str, traces: Iterable[Trace], now_ns: int) -> None:
    """How old the newest sample of a station is, as its packets come. now_ns: since 1970, as of time.time_ns."""
    ends = [trace.start_ns + round((len(trace.samples) - 1) * 1e9 / trace.sampling_rate_hz) for trace in traces]
    if ends:
        call.count("data_latency", (now_ns - max(ends)) / 1e9, station)


def hours_and_gaps(traces: Iterable[Trace]) -> tuple[float, int]:
    """Hours in which at least one component was recorded, and how often that was interrupted by more than half a
    sample interval. Traces of one instrument, in any order; empty ones do not count."""
    spans = sorted(
        (
            trace.start_ns,
            trace.start_ns + round(len(trace.samples) * 1e9 / trace.sampling_rate_hz),
            trace.sampling_rate_hz,
        )
        for trace in traces
        if len(trace.samples)
    )
    covered = gaps = 0
    until = spans[0][0] if spans else 0
    for begin, end, rate_hz in spans:
        gaps += begin - until > 0.5e9 / rate_hz
        covered += max(end - max(begin, until), 0)
        until = max(until, end)
    return covered / HOUR_NS, gaps
