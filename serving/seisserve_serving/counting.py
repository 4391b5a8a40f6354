"""What calls tell the metrics of the waveforms they worked through (`metric_table` says what each number means)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping

from seisserve.detections import Detection
from seisserve.picks import Pick
from seisserve.realtime import Outcomes
from seisserve.traces import Trace
from seisserve_serving.calls import Call

__all__ = [
    "count_arrival", "count_detections", "count_latency", "count_left", "count_packets", "count_picks", "count_record",
    "hours_and_gaps",
]  # fmt: skip

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


def count_arrival(call: Call, station: str, traces: Iterable[Trace], now_ns: int, latest_ns: int | None = None) -> None:
    """How old the newest sample of a station is, as its packets come. now_ns: since 1970, as of time.time_ns.
    latest_ns: what ends later has a wrong date, and does not count."""
    ends = [trace.start_ns + round((len(trace.samples) - 1) * 1e9 / trace.sampling_rate_hz) for trace in traces]
    newest = max((end for end in ends if latest_ns is None or end <= latest_ns), default=None)
    if newest is not None:
        call.count("data_latency", (now_ns - newest) / 1e9, station)


def count_packets(call: Call, outcomes: Outcomes) -> None:
    """Packets of a session, by what became of them."""
    for outcome, number in outcomes._asdict().items():
        if number:
            call.count("packets", number, outcome)


def count_latency(call: Call, picks: Iterable[Pick], arrived: Mapping[str, float]) -> None:
    """How long ago what a pick still needed has come. arrived: by station, when (of time.monotonic) the first of the
    packets came that were worked on together; picks of others came without any, because their station is silent."""
    now = time.monotonic()
    for pick in picks:
        if pick.trace_id in arrived:
            call.count("pick_latency", now - arrived[pick.trace_id], pick.trace_id)


def count_left(call: Call, stations: Iterable[str]) -> None:
    """Stations that are not expected to send any more."""
    for station in stations:
        call.count("station_left", label=station)


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
