"""Annotations: probability curves as results, with times."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.extras import need
from seisserve.windows import Curve

if TYPE_CHECKING:
    from collections.abc import Iterable

    from obspy import Stream

__all__ = ["Annotation", "from_curve", "to_stream"]


class Annotation(NamedTuple):
    """The curves over one segment: values [samples, labels], the first sample at `start_ns` since 1970 UTC."""

    trace_id: str
    start_ns: int
    sampling_rate_hz: float
    labels: tuple[str, ...]
    values: NDArray[np.float32]


def from_curve(curve: Curve) -> list[Annotation]:
    """One annotation for each segment of a curve."""
    return [
        Annotation(
            segment.trace_id,
            segment.time_ns(0),
            segment.sampling_rate_hz,
            curve.labels,
            curve.values[curve.bounds[k] : curve.bounds[k + 1]],
        )
        for k, segment in enumerate(curve.segments)
    ]


def to_stream(annotated: Iterable[Annotation]) -> Stream:
    """An ObsPy stream with one trace for each label of each segment; the channel code ends in the label (HHP, HHS)."""
    obspy = need("obspy", "obspy")
    stream = obspy.Stream()
    for item in annotated:
        network, station, location, band = item.trace_id.split(".")
        for label, values in zip(item.labels, item.values.T, strict=True):
            header = {
                "network": network, "station": station, "location": location, "channel": f"{band}{label}",
                "sampling_rate": item.sampling_rate_hz, "starttime": obspy.UTCDateTime(ns=item.start_ns),
            }  # fmt: skip
            stream.append(obspy.Trace(np.ascontiguousarray(values), header))
    return stream
