"""Targets: what the network should say about every sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seisserve_training.augment import Example

__all__ = ["PHASES", "gaussian", "target"]

PHASES = ("N", "P", "S")  # the order of the original PhaseNet: noise first


def gaussian(onsets: Sequence[float], samples: int, sigma: float) -> NDArray[np.float32]:
    """A Gaussian of height one about each onset (in samples, sub-sample places allowed): float32 [samples]."""
    time = np.arange(samples)
    curve = np.zeros(samples)
    for onset in onsets:
        np.maximum(curve, np.exp(-0.5 * ((time - onset) / sigma) ** 2), out=curve)
    curve[curve < 1e-3] = 0
    return curve.astype(np.float32)


def target(example: Example, sigma: float) -> NDArray[np.float32]:
    """float32 [samples, 4]: probability of N, P, S (which add up to one), and 1 where the labels are sure, else 0."""
    samples = len(example.waveform)
    p, s = gaussian(example.p, samples, sigma), gaussian(example.s, samples, sigma)
    total = np.maximum(p + s, 1)  # P and S closer than their Gaussians are wide share what there is
    p, s = p / total, s / total
    return np.stack([1 - p - s, p, s, example.sure.astype(np.float32)], axis=1)
