"""Traces: what comes in. Samples of one channel without a gap, from ObsPy, from arrays or from a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisserve.deferred import is_deferred, spans
from seisserve.errors import UsageError, WaveformError
from seisserve.extras import need

if TYPE_CHECKING:
    from obspy import Stream

__all__ = [
    "Trace",
    "check",
    "check_samples",
    "from_arrays",
    "from_stream",
    "handed_over",
    "is_stream",
    "to_obspy",
    "to_traces",
]

MIN_RATE_HZ, MAX_RATE_HZ = 0.001, 100_000.0
MIN_NS, MAX_NS = -(1 << 63) + 10**17, (1 << 63) - 10**17  # years 1681 to 2259; messages hold three years more
MAX_AMPLITUDE = float(np.finfo(np.float32).max) / 4


class Trace(NamedTuple):
    """Samples of one channel without a gap.

    id: NET.STA.LOC.CHA; start_ns: time of the first sample, nanoseconds since 1970 UTC; samples: [n], raw counts.
    """

    id: str
    start_ns: int
    sampling_rate_hz: float
    samples: NDArray[Any]


def check(trace: Trace) -> Trace:
    """The trace itself, or WaveformError if a network could make no sense of it."""
    where = f"trace {trace.id}"
    if trace.id.count(".") != 3 or trace.id.endswith("."):
        raise WaveformError(f"{where}: the id must be NET.STA.LOC.CHA, and the channel code end in the component")
    if trace.samples.ndim != 1:
        raise WaveformError(f"{where}: samples have shape {trace.samples.shape}; expected one dimension")
    if trace.samples.dtype.kind not in "iuf":
        raise WaveformError(f"{where}: samples are {trace.samples.dtype}; expected integers or floats")
    if not MIN_RATE_HZ <= trace.sampling_rate_hz <= MAX_RATE_HZ:
        expected = f"{MIN_RATE_HZ} to {MAX_RATE_HZ:.0f}"
        raise WaveformError(f"{where}: sampling rate is {trace.sampling_rate_hz} Hz; expected {expected}")
    end_ns = trace.start_ns + trace.samples.size / trace.sampling_rate_hz * 1e9
    if trace.start_ns < MIN_NS or end_ns > MAX_NS:
        raise WaveformError(
            f"{where}: start_ns is {trace.start_ns}, with {trace.samples.size} samples at {trace.sampling_rate_hz:g} "
            "Hz; all of them must lie between the years 1681 and 2259"
        )
    return trace if is_deferred(trace.samples) else check_samples(trace)


def check_samples(trace: Trace) -> Trace:
    """The trace itself, or WaveformError if its samples are not finite, or larger than a network can take."""
    if trace.samples.dtype.kind != "f":
        return trace
    bad, highest = 0, 0.0
    for begin, end in spans(0, trace.samples.size):
        part = trace.samples[begin:end]
        bad += part.size - int(np.count_nonzero(np.isfinite(part)))
        highest = max(highest, float(np.abs(part).max()))
    if bad:
        raise WaveformError(f"trace {trace.id}: {bad} of {trace.samples.size} samples are NaN or infinite")
    if highest > MAX_AMPLITUDE:
        raise WaveformError(f"trace {trace.id}: amplitudes exceed {MAX_AMPLITUDE:.0e}")
    return trace


def from_arrays(
    samples: ArrayLike,
    *,
    sampling_rate_hz: float,
    start: datetime | str | float = 0.0,
    station: str = "XX.ARRAY..HH",
    components: str = "ZNE",
) -> list[Trace]:
    """Traces of one station from an array.

    samples: [components, n]; start: time of the first sample (datetime, ISO 8601 text, or seconds since 1970; UTC
    unless it says otherwise); station: NET.STA.LOC.BI, BI being the band and instrument code.
    """
    array = np.asarray(samples)
    if array.ndim != 2 or len(array) != len(components):
        raise UsageError(f"samples have shape {array.shape}; expected [{len(components)}, n] for {components!r}")
    start_ns = _nanoseconds(start)
    return [
        Trace(station + code, start_ns, float(sampling_rate_hz), row)
        for code, row in zip(components, array, strict=True)
    ]


def from_stream(stream: Stream) -> list[Trace]:
    """Traces of an ObsPy stream; masked arrays are split at their gaps, empty traces left out."""
    return [
        Trace(part.id, part.stats.starttime.ns, float(part.stats.sampling_rate), np.asarray(part.data))
        for trace in stream
        for part in (trace.split() if np.ma.isMaskedArray(trace.data) else [trace])
        if part.stats.npts
    ]


def to_obspy(traces: Iterable[Trace]) -> Stream:
    """An ObsPy stream of the traces."""
    obspy = need("obspy", "obspy")
    stream = obspy.Stream()
    for trace in traces:
        network, station, location, channel = trace.id.split(".")
        header = {
            "network": network, "station": station, "location": location, "channel": channel,
            "sampling_rate": trace.sampling_rate_hz, "starttime": obspy.UTCDateTime(ns=trace.start_ns),
        }  # fmt: skip
        stream.append(obspy.Trace(np.ascontiguousarray(trace.samples), header))
    return stream


def is_stream(waveforms: Stream | Iterable[Trace]) -> bool:
    """Whether it is an ObsPy stream (which is not loaded to find out)."""
    return not isinstance(waveforms, Sequence) and hasattr(waveforms, "traces")


def to_traces(waveforms: Stream | Iterable[Trace]) -> list[Trace]:
    """Traces from an ObsPy stream, or traces of ObsPy's or our own: one, or any number of them."""
    if is_stream(waveforms):
        return from_stream(waveforms)
    one = hasattr(waveforms, "stats") or isinstance(waveforms, Trace) or not isinstance(waveforms, Iterable)
    items: Iterable[Any] = [waveforms] if one else waveforms
    traces: list[Trace] = []
    for item in items:
        if isinstance(item, Trace):
            traces.append(item)
        elif hasattr(item, "stats"):
            traces += from_stream([item])
        else:
            where = " (read files with obspy.read)" if isinstance(item, (str, Path)) else ""
            raise UsageError(
                f"expected an ObsPy Stream, or traces of ObsPy or seisserve, got {type(item).__name__}{where}"
            )
    return traces


def handed_over(traces: list[Trace]) -> Iterator[Trace]:
    """The traces of a list, which forgets each as it is taken: then whoever takes them decides how long the samples
    stay in memory, not those who still hold the list."""
    traces.reverse()
    while traces:
        yield traces.pop()


def _nanoseconds(time: datetime | str | float) -> int:
    if isinstance(time, (int, float)):
        return round(time * 1e6) * 1000
    moment = datetime.fromisoformat(time) if isinstance(time, str) else time
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    whole = moment.replace(microsecond=0)
    return round(whole.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
