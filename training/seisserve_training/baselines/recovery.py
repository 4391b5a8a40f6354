"""Clip recovery without learning: a cubic spline, and projections onto convex sets. Waveforms are [components, n].

Both keep unclipped samples as they are, and put clipped ones at the clip level or beyond. clipped: 1 where samples are
clipped at the top, -1 at the bottom, else 0 (`clipping.clipped`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

__all__ = ["cubic_spline", "projections"]

Array = NDArray[np.float32]


def cubic_spline(waveform: Array, clipped: NDArray[np.int8]) -> Array:
    """The cubic spline through the unclipped samples."""
    out = waveform.copy()
    time = np.arange(waveform.shape[-1])
    for component, (row, sign) in enumerate(zip(waveform, clipped, strict=True)):
        known = sign == 0
        if known.sum() >= 2 and not known.all():
            out[component, ~known] = CubicSpline(time[known], row[known].astype(np.float64))(time[~known])
    return _beyond(out, waveform, clipped)


def projections(
    waveform: Array, clipped: NDArray[np.int8], rate_hz: float, highest_hz: float = 8.0, iterations: int = 300
) -> Array:
    """Projections onto convex sets: in turn, nothing above `highest_hz`, and what is known of the samples.

    The iteration of Papoulis (1975, IEEE Transactions on Circuits and Systems 22), with the clip level as a bound.
    """
    size = 2 * waveform.shape[-1]  # mirrored: without a jump from the end to the beginning
    outside = np.fft.rfftfreq(size, 1 / rate_hz) > highest_hz
    out = waveform
    for _ in range(iterations if clipped.any() else 0):
        spectrum = np.fft.rfft(np.concatenate([out, out[:, ::-1]], axis=1), axis=1)
        spectrum[:, outside] = 0
        smooth = np.fft.irfft(spectrum, size, axis=1)[:, : waveform.shape[1]]
        out = _beyond(np.asarray(smooth, np.float32), waveform, clipped)
    return out


def _beyond(candidate: Array, waveform: Array, clipped: NDArray[np.int8]) -> Array:
    """The candidate where samples are clipped, but at least at the clip level; the waveform elsewhere."""
    raised = np.where(clipped > 0, np.maximum(candidate, waveform), np.minimum(candidate, waveform))
    return np.where(clipped == 0, waveform, raised)
