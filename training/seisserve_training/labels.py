"""Targets: what the network should say about every sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from seisserve_training.augment import Example

__all__ = ["PHASES", "box", "detection_box", "gaussian", "steps", "target", "triangle"]

PHASES = ("N", "P", "S")  # the order of the original PhaseNet: noise first
CODA = 1.4  # times S - P after S an event's coda ends: Mousavi et al. (2020), doi:10.1038/s41467-020-17591-w


def gaussian(onsets: Sequence[float], samples: int, sigma: float) -> NDArray[np.float32]:
    """A Gaussian of height one about each onset (in samples, sub-sample places allowed): float32 [samples]."""
    time = np.arange(samples)
    curve = np.zeros(samples)
    for onset in onsets:
        np.maximum(curve, np.exp(-0.5 * ((time - onset) / sigma) ** 2), out=curve)
    curve[curve < 1e-3] = 0
    return curve.astype(np.float32)


def triangle(onsets: Sequence[float], samples: int, half_width: float) -> NDArray[np.float32]:
    """One at each onset, falling linearly to zero `half_width` samples away: float32 [samples]."""
    return np.clip(1 - _distance(onsets, samples) / half_width, 0, 1).astype(np.float32)


def box(onsets: Sequence[float], samples: int, half_width: float) -> NDArray[np.float32]:
    """One up to `half_width` samples to either side of each onset: float32 [samples]."""
    return (_distance(onsets, samples) <= half_width).astype(np.float32)


def steps(p: Sequence[float], s: Sequence[float], samples: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Which phase came last: P is one from each P to the next S, S from each S to the next P. Two float32 [samples]."""
    time = np.arange(samples)
    last_p, last_s = (
        np.max([np.where(time >= onset, onset, -np.inf) for onset in onsets], axis=0, initial=-np.inf)
        if onsets
        else np.full(samples, -np.inf)
        for onsets in (p, s)
    )
    some = np.isfinite(np.maximum(last_p, last_s))
    return (some & (last_p > last_s)).astype(np.float32), (some & (last_s >= last_p)).astype(np.float32)


SHAPES: dict[str, Callable[[Sequence[float], int, float], NDArray[np.float32]]] = {
    "gaussian": gaussian,
    "triangle": triangle,
    "box": box,
}


def target(example: Example, sigma: float, shape: str = "gaussian") -> NDArray[np.float32]:
    """float32 [samples, 4]: probability of N, P, S (which add up to one), and 1 where the labels are sure, else 0.

    shape: of the probability about an onset, "gaussian" (of that sigma), "triangle" or "box" (sigma is half the width),
    or "step" (the phase that came last).
    """
    samples = len(example.waveform)
    if shape == "step":
        p, s = steps(example.p, example.s, samples)
    else:
        p, s = SHAPES[shape](example.p, samples, sigma), SHAPES[shape](example.s, samples, sigma)
    total = np.maximum(p + s, 1)  # P and S closer than their Gaussians are wide share what there is
    p, s = p / total, s / total
    return np.stack([1 - p - s, p, s, example.sure.astype(np.float32)], axis=1)


def detection_box(example: Example, rate_hz: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """float32 [samples], 1 inside events, each from P to S + 1.4 (S - P); and bool [samples], where that is sure.

    Where an event lacks one of its onsets its end is not known: nothing is sure from half a second before its other
    onset on.
    """
    time = np.arange(len(example.waveform))
    inside, sure = np.zeros(len(time), np.float32), example.sure.copy()
    if len(example.p) != len(example.s):
        return inside, sure & (time < min(example.p + example.s) - 0.5 * rate_hz)
    for p, s in zip(sorted(example.p), sorted(example.s), strict=True):
        inside[(time >= p) & (time <= s + CODA * (s - p))] = 1
    return inside, sure


def _distance(onsets: Sequence[float], samples: int) -> NDArray[np.float64]:
    """Of each sample from the nearest onset, in samples; infinite without any."""
    time = np.arange(samples)
    return np.min([np.abs(time - onset) for onset in onsets], axis=0) if onsets else np.full(samples, np.inf)
