"""Recursive filters as convolutions: what ObsPy's filters do to a record, written as fixed taps of a graph."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from seisserve.extras import need

__all__ = ["apply", "impulse_response"]

NEGLIGIBLE = 1e-5  # of the sum of the sizes of all taps: the tail that is cut off
LONGEST = 1 << 16  # samples in which a response must have died away


def impulse_response(
    kind: str,
    rate: float,
    *,
    freq: float | None = None,
    freqmin: float | None = None,
    freqmax: float | None = None,
    corners: int = 4,
    zerophase: bool = False,
) -> NDArray[np.float64]:
    """Taps of the Butterworth filter that ObsPy applies under that name: an odd number, the middle one for delay zero.

    kind: bandpass and bandstop (freqmin, freqmax), lowpass and highpass (freq). rate, frequencies: Hz. zerophase: run
    forwards and backwards. Raises ValueError for other filters and for frequencies that the rate does not hold.
    """
    band = kind in ("bandpass", "bandstop")
    if kind not in ("bandpass", "bandstop", "lowpass", "highpass"):
        raise ValueError(f"{kind!r} is not bandpass, bandstop, lowpass or highpass")
    if (freq is None) != band or (freqmin is None) == band or (freqmax is None) == band:
        raise ValueError(f"{kind} takes {'freqmin and freqmax' if band else 'freq'}")
    edges = np.array([freqmin, freqmax] if band else [freq], float)
    if kind == "bandpass" and edges[1] >= rate / 2 * (1 - 1e-6):  # as ObsPy does
        kind, edges = "highpass", edges[:1]
    if not (edges[0] > 0 and edges[-1] < rate / 2 and (np.diff(edges) > 0).all()):
        raise ValueError(f"{kind} at {edges.tolist()} Hz is not below half of {rate:g} Hz")
    signal = need("scipy.signal", "export")
    sections = signal.iirfilter(
        corners, edges if band and len(edges) > 1 else edges[0], btype=kind, ftype="butter", fs=rate, output="sos"
    )
    after = signal.sosfilt(sections, np.eye(1, LONGEST)[0])
    reach = _reach(after)
    taps = np.concatenate([np.zeros(reach), after[: reach + 1]])
    if zerophase:
        both = signal.correlate(after[: 4 * reach], after[: 4 * reach], method="fft")
        middle = len(both) // 2
        reach = _reach(both[middle:])
        taps = both[middle - reach : middle + reach + 1]
    offset = float(abs(signal.sosfreqz(sections, [0.0])[1][0])) ** (2 if zerophase else 1)
    return np.asarray(taps + (offset - taps.sum()) / len(taps))  # what becomes of an offset is exact


def apply(x: tf.Tensor, taps: NDArray[np.float64]) -> tf.Tensor:
    """[n, component, sample] to the same without the samples at both ends that lack neighbours."""
    kernel = taps[::-1].reshape(1, -1, 1, 1).astype(np.float32)
    return tf.squeeze(tf.nn.conv2d(tf.expand_dims(x, 3), kernel, 1, "VALID"), 3)


def _reach(response: NDArray[np.float64]) -> int:
    """How many samples after the first one matter."""
    left = np.cumsum(np.abs(response[::-1]))[::-1]  # of this sample and all later ones
    reach = int(np.argmax(left < NEGLIGIBLE * left[0]))
    if reach == 0:
        raise ValueError(f"the filter still rings after {LONGEST} samples")
    return reach
