"""Which samples of a record are clipped: the rule, in numpy. `models/recovery.py` has the same rule in the network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_opening

__all__ = ["RUN", "TOLERANCE", "clipped"]

RUN = 3  # samples that a plateau has at least; an odd number
TOLERANCE = 1e-4  # of the range: how level a plateau is.


def clipped(waveform: NDArray[np.floating]) -> NDArray[np.int8]:
    """1 where samples are clipped at the top, -1 at the bottom, else 0, for each component by itself.

    waveform: [..., n]. Clipped are runs of at least RUN samples that lie within TOLERANCE of the range from its end:
    that is how amplifiers and digitisers clip. Where only single samples are that high, or all samples are the same,
    nothing is clipped. A saturated sensor that drifts near its limit has no such plateau; nor has a record that was
    filtered after it was clipped.
    """
    high, low = waveform.max(axis=-1, keepdims=True), waveform.min(axis=-1, keepdims=True)
    half = high / 2 - low / 2
    scaled = (waveform - (high / 2 + low / 2)) / np.where(half > 0, half, 1)
    structure = np.ones((1,) * (waveform.ndim - 1) + (RUN,))
    sign = np.zeros(waveform.shape, np.int8)
    sign[binary_opening(scaled >= 1 - 2 * TOLERANCE, structure)] = 1
    sign[binary_opening(scaled <= 2 * TOLERANCE - 1, structure)] = -1
    return sign
