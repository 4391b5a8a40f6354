"""Traces as messages of SeismicService, and back."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from seisserve.errors import WaveformError
from seisserve.proto import seismic_pb2 as wire
from seisserve.traces import Trace

__all__ = ["from_message", "to_message", "to_waveforms"]

SAMPLE_TYPES = {wire.Trace.INT32: "<i4", wire.Trace.FLOAT32: "<f4", wire.Trace.FLOAT64: "<f8"}


def to_waveforms(traces: Iterable[Trace]) -> wire.Waveforms:
    """Traces as the `waveforms` of a request."""
    return wire.Waveforms(traces=map(to_message, traces))


def to_message(trace: Trace) -> wire.Trace:
    """A trace as a message; samples as int32, float32 or float64, whichever holds them."""
    kind = {"i4": wire.Trace.INT32, "f4": wire.Trace.FLOAT32}.get(trace.samples.dtype.str[1:], wire.Trace.FLOAT64)
    content = np.ascontiguousarray(trace.samples, SAMPLE_TYPES[kind]).tobytes()
    return wire.Trace(
        id=trace.id, start_ns=trace.start_ns, sampling_rate_hz=trace.sampling_rate_hz, sample_type=kind, samples=content
    )


def from_message(message: wire.Trace) -> Trace:
    """The trace in a message. Raises WaveformError that names the trace and the field."""
    if message.sample_type not in SAMPLE_TYPES:
        raise WaveformError(f"trace {message.id}: sample_type is missing; it must be INT32, FLOAT32 or FLOAT64")
    dtype = np.dtype(SAMPLE_TYPES[message.sample_type])
    if len(message.samples) % dtype.itemsize:
        raise WaveformError(
            f"trace {message.id}: samples has {len(message.samples)} bytes; {dtype.name} takes {dtype.itemsize} each"
        )
    return Trace(message.id, message.start_ns, message.sampling_rate_hz, np.frombuffer(message.samples, dtype))
