"""Events that stand so far above their noise that they count as clean: denoising and recovery learn from them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seisserve_training.clipping import clipped
from seisserve_training.datasets import LabelledTrace

__all__ = ["CLEAN_DB", "clean_event", "onset_snr_db"]

CLEAN_DB = 20.0
BEFORE_S, AFTER_S = 5.0, 10.0  # noise and signal that the ratio is measured on, at most
LEAST_BEFORE_S, LEAST_AFTER_S = 1.0, 3.0
GUARD_S = 0.5  # before P, may already belong to it: labels are not exact
RAMP_S, END_S = 0.5, 2.0


def onset_snr_db(waveform: NDArray[np.float32], p: float, rate_hz: float) -> float:
    """Energy after P over that before it, all components together, in dB; NaN where there is too little of either.

    waveform: [components, n]; p: sample of the onset.
    """
    guard, least = round(GUARD_S * rate_hz), round(LEAST_BEFORE_S * rate_hz)
    if np.isnan(p) or p - guard < least or waveform.shape[1] - p < LEAST_AFTER_S * rate_hz:
        return float("nan")
    at = int(p)
    peak = float(np.abs(waveform).max()) or 1.0
    before = waveform[:, max(at - guard - round(BEFORE_S * rate_hz), 0) : at - guard].astype(np.float64) / peak
    after = waveform[:, at : at + round(AFTER_S * rate_hz)].astype(np.float64) / peak
    middle = before.mean(axis=1, keepdims=True)
    noise, signal = np.square(before - middle).mean(), np.square(after - middle).mean()
    return float(10 * np.log10(signal / noise)) if signal and noise else float("nan")


def clean_event(trace: LabelledTrace, rate_hz: float, least_db: float = CLEAN_DB) -> NDArray[np.float32] | None:
    """float32 [components, n], about zero, silent before P and at the very end; None unless it is clean.

    As Zhu, Mousavi and Beroza (2019), what stands `least_db` above the noise is taken for noise-free; the noise before
    P, which is not part of the event, goes. Clipped records are none.
    """
    if trace.row.noise or not onset_snr_db(trace.waveform, trace.p, rate_hz) >= least_db:
        return None
    if clipped(trace.waveform).any():
        return None
    quiet = int(trace.p - GUARD_S * rate_hz)
    waveform = trace.waveform - trace.waveform[:, :quiet].mean(axis=1, keepdims=True, dtype=np.float64)
    time = np.arange(waveform.shape[1])
    begin = np.clip((time - quiet) / (RAMP_S * rate_hz), 0, 1)  # complete at P at the latest
    end = np.clip((len(time) - 1 - time) / (END_S * rate_hz), 0, 1)
    taper = np.sin(0.5 * np.pi * begin) ** 2 * np.sin(0.5 * np.pi * end) ** 2
    return np.asarray(waveform * taper * _live(trace), np.float32)


def _live(trace: LabelledTrace) -> NDArray[np.float64]:
    """[components, 1]: 0 where nothing was recorded."""
    return np.array(trace.live, np.float64)[:, None]
