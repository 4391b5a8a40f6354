"""Detections: read stretches of earthquake signal off a probability curve."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.manifest import DETECTION, Manifest
from seisserve.stretches import Stretches, flags, stretches
from seisserve.windows import Curve

__all__ = ["Detection", "extract_detections"]


class Detection(NamedTuple):
    """One stretch of signal.

    trace_id: NET.STA.LOC.BI; start_ns, end_ns: its first and last sample, nanoseconds since 1970 UTC, whole
    microseconds; probability: of the highest sample, calibrated; flags: as of a pick, `edge` if either end of the
    detection is that close to the end of its segment.
    """

    trace_id: str
    start_ns: int
    end_ns: int
    probability: float
    flags: tuple[str, ...]


def extract_detections(curve: Curve, model: Manifest) -> list[Detection]:
    """Detections of one instrument in order of time.

    A detection begins where the curve of the label `detection` reaches the threshold and ends where it falls below
    half of it. Those less than `detection_gap_s` apart are one; what is then shorter than `minimum_detection_s` goes.
    """
    values = curve.values[:, curve.labels.index(DETECTION)]
    seconds = (model.detection_gap_s, model.minimum_detection_s)
    gap, shortest = (round(length * model.sampling_rate_hz) for length in seconds)
    reading = model.labels[DETECTION]
    on = stretches(values, curve.bounds, reading.threshold)
    found = []
    for number, begin, top, end in zip(*(column.tolist() for column in _joined(on, values, gap)), strict=True):
        if end - begin < shortest:
            continue
        segment, first = curve.segments[number], int(curve.bounds[number])
        found.append(
            Detection(
                segment.trace_id,
                segment.time_ns(begin - first),
                segment.time_ns(end - first),
                reading.calibrated(float(values[top])),
                flags(segment, begin - first, end - first, model),
            )
        )
    return found


def _joined(on: Stretches, values: NDArray[np.float32], gap: int) -> Stretches:
    """Stretches of one segment with less than that many samples from the end of one to the begin of the next as one."""
    if not len(on.begin):
        return on
    near = (on.begin[1:] - on.end[:-1] < gap) & (on.segment[1:] == on.segment[:-1])
    opens = np.flatnonzero(np.append(True, ~near))
    closes = np.append(opens[1:], len(near) + 1) - 1
    tops = [part[np.argmax(values[part])] for part in np.split(on.top, opens[1:])]
    return Stretches(on.segment[opens], on.begin[opens], np.array(tops), on.end[closes])
