"""Which samples of a record are clipped: the rule, in numpy. `models/recovery.py` has the same rule in the network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["TOLERANCE", "clipped"]

TOLERANCE = 1e-4  # of the range: how level a plateau is


def clipped(waveform: NDArray[np.floating]) -> NDArray[np.int8]:
    """1 where samples are clipped at the top, -1 at the bottom, else 0, for each component by itself.

    waveform: [..., n]. Samples within TOLERANCE of the range from its end are clipped if that end has a plateau of
    three samples, or two of two: that is how amplifiers and digitisers clip. Where only single samples are that high,
    or all samples are the same, nothing is clipped. A saturated sensor that drifts near its limit has no such plateau;
    nor has a record that was filtered after it was clipped.
    """
    high, low = waveform.max(axis=-1, keepdims=True), waveform.min(axis=-1, keepdims=True)
    half = high / 2 - low / 2
    scaled = (waveform - (high / 2 + low / 2)) / np.where(half > 0, half, 1)
    sign = np.zeros(waveform.shape, np.int8)
    for side in (1, -1):
        level = side * scaled >= 1 - 2 * TOLERANCE
        sign[level & _is_clip_level(level)] = side
    return sign


def _is_clip_level(level: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[..., n] -> [..., 1]: whether the samples at one end of the range show that it ends there."""
    pairs = level[..., 1:] & level[..., :-1]  # and the next one too
    begins = pairs & ~np.concatenate([np.zeros_like(pairs[..., :1]), pairs[..., :-1]], axis=-1)
    found: NDArray[np.bool_] = np.any(pairs[..., 1:] & pairs[..., :-1], axis=-1, keepdims=True)
    found |= np.sum(begins, axis=-1, keepdims=True) >= 2
    return found
