"""Picks: read arrival times off a probability curve."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.manifest import Label, Manifest
from seisserve.segments import Segment
from seisserve.stretches import flags, stretches
from seisserve.windows import Curve

__all__ = ["Pick", "extract", "measure"]

NOISE_S, GUARD_S, SIGNAL_S = 5.0, 0.2, 2.0  # before the pick, left out, after the pick: what the SNR is taken from
HALF_MAXIMUM_TO_SIGMA = 2.3548
WIDTH_REACH = 300  # samples on either side in which the width of a peak is looked for


class Pick(NamedTuple):
    """One arrival.

    trace_id: NET.STA.LOC.BI; time_ns: nanoseconds since 1970 UTC, whole microseconds; probability: the height of the
    curve's peak, or what the model's calibration says that it is worth; uncertainty_s: one standard
    deviation, from the width of the curve's peak; snr_db: power after the pick over power before it, NaN where the
    segment is too short to tell; flags: `edge` (closer to the end of its segment than the model can see), `fragment`
    (segment shorter than a window), `missing_N` and so on (components that were not there).
    """

    trace_id: str
    phase: str
    time_ns: int
    probability: float
    uncertainty_s: float
    snr_db: float
    flags: tuple[str, ...]


class _Peaks(NamedTuple):
    sample: NDArray[np.int64]
    segment: NDArray[np.int64]


def extract(curve: Curve, model: Manifest) -> list[Pick]:
    """Picks of all phases, in order of time.

    A label is on where its curve reaches the threshold, until it falls below half of it; the pick is the highest
    sample of that stretch, refined by a parabola through its neighbours. Of two picks of one phase nearer than the
    minimum distance the lower one goes.
    """
    distance = round(model.minimum_pick_distance_s * model.sampling_rate_hz)
    picks: list[Pick] = []
    for label, reading in model.phases.items():
        values = curve.values[:, curve.labels.index(label)]
        on = stretches(values, curve.bounds, reading.threshold)
        peaks = _spaced(values, _Peaks(on.top, on.segment), distance)
        for position, number in zip(peaks.sample.tolist(), peaks.segment.tolist(), strict=True):
            segment, first = curve.segments[number], int(curve.bounds[number])
            here = values[first : int(curve.bounds[number + 1])]
            sample = position - first
            picks.append(measure(label, reading, segment, here, sample, flags(segment, sample, sample, model)))
    return sorted(picks, key=lambda pick: (pick.time_ns, pick.phase))


def measure(
    label: str, reading: Label, segment: Segment, values: NDArray[np.float32], sample: int, noted: tuple[str, ...]
) -> Pick:
    """The pick of a peak of the curve [n] over a segment, or over a part of one that reaches WIDTH_REACH samples, and
    those that the SNR is taken from, to either side of the peak (as far as the segment does)."""
    width = _half_width(values, sample) * 2 / HALF_MAXIMUM_TO_SIGMA / segment.sampling_rate_hz
    return Pick(
        segment.trace_id,
        label,
        segment.time_ns(sample, _vertex(values, sample)),
        reading.calibrated(float(values[sample])),
        round(width * reading.uncertainty_scale, 4),
        _snr_db(segment, sample),
        noted,
    )


def _spaced(values: NDArray[np.float32], peaks: _Peaks, distance: int) -> _Peaks:
    """Without the peaks that have a higher one (or an equal, earlier one) nearer than `distance` samples.

    Each peak is judged by its neighbours alone, kept or not: a chain of peaks cannot carry a change further.
    """
    height, keep = values[peaks.sample], np.ones(len(peaks.sample), bool)
    for shift in range(1, len(peaks.sample)):
        near = (peaks.sample[shift:] - peaks.sample[:-shift] < distance) & (
            peaks.segment[shift:] == peaks.segment[:-shift]
        )
        if not near.any():
            break
        keep[shift:] &= ~(near & (height[shift:] <= height[:-shift]))
        keep[:-shift] &= ~(near & (height[shift:] > height[:-shift]))
    return _Peaks(peaks.sample[keep], peaks.segment[keep])


def _vertex(values: NDArray[np.float32], peak: int) -> float:
    """Where a parabola through the peak and its neighbours is highest: -0.5 to 0.5 samples from the peak."""
    if not 0 < peak < len(values) - 1:
        return 0.0
    before, top, after = (float(value) for value in values[peak - 1 : peak + 2])
    bend = before - 2 * top + after
    return 0.0 if bend >= 0 else min(max(0.5 * (before - after) / bend, -0.5), 0.5)


def _half_width(values: NDArray[np.float32], peak: int) -> float:
    """Half of the full width at half the peak's height, in samples."""
    half = values[peak] / 2
    after = values[peak : peak + WIDTH_REACH] < half
    before = values[max(peak - WIDTH_REACH, 0) : peak + 1][::-1] < half
    sides = [float(np.argmax(side)) if side.any() else float(len(side)) for side in (before, after)]
    return sum(sides) / 2


def _snr_db(segment: Segment, sample: int) -> float:
    noise, guard, signal = (round(seconds * segment.sampling_rate_hz) for seconds in (NOISE_S, GUARD_S, SIGNAL_S))
    begin = sample - guard - noise
    if begin < 0 or sample + signal > segment.samples.shape[1]:
        return float("nan")
    part = segment.samples[:, begin : sample + signal].astype(np.float64)
    power_before = float(part[:, :noise].var(axis=1).sum())
    power_after = float(part[:, noise + guard :].var(axis=1).sum())
    if power_before <= 0 or power_after <= 0:
        return float("nan")
    return round(10 * float(np.log10(power_after / power_before)), 2)
