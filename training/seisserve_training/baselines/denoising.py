"""Denoising without learning: a band-pass and a Wiener filter. Waveforms are [components, n]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import ShortTimeFFT, butter, sosfiltfilt
from scipy.signal.windows import hann

__all__ = ["band_pass", "wiener"]

Array = NDArray[np.floating]
QUIET = 0.25  # share of the segments that are taken for noise where no noise is given
FLOOR = 0.05  # of the amplitude, left of what is below the noise: less musical noise


def band_pass(waveform: Array, rate_hz: float, low_hz: float = 1.0, high_hz: float = 20.0) -> NDArray[np.float32]:
    """Butterworth of four poles, forwards and backwards."""
    sections = butter(4, (low_hz, min(high_hz, 0.45 * rate_hz)), "bandpass", fs=rate_hz, output="sos")
    return np.asarray(sosfiltfilt(sections, waveform, axis=-1), np.float32)


def wiener(waveform: Array, rate_hz: float, noise: Array | None = None) -> NDArray[np.float32]:
    """Spectral Wiener filter: each time and frequency times 1 - noise power / power.

    noise: [components, n], a stretch without signal to measure the noise's spectrum on, as is at hand where P is known;
    by default the quietest quarter of the segments (0.6 s) of each frequency stands for it.
    """
    length = round(0.6 * rate_hz)
    transform = ShortTimeFFT(hann(length, sym=False), hop=length // 4, fs=rate_hz)
    peak = np.abs(waveform).max(axis=-1, keepdims=True)
    unit = np.where(peak > 0, peak, 1)
    spectrogram = transform.stft(waveform / unit)
    power = np.abs(spectrogram) ** 2
    if noise is not None and noise.shape[-1] > 2 * length:
        level = (np.abs(transform.stft(noise / unit)) ** 2).mean(axis=-1, keepdims=True)
    else:
        # The quantile of an exponential distribution, to which the power of noise keeps, gives its mean.
        level = np.quantile(power, QUIET, axis=-1, keepdims=True) / -np.log(1 - QUIET)
    smooth = np.stack([np.stack([np.convolve(row, np.ones(3) / 3, "same") for row in one]) for one in power])
    gain = np.maximum(1 - level / np.where(smooth > 0, smooth, np.inf), FLOOR)
    return np.asarray(transform.istft(spectrogram * gain, k1=waveform.shape[-1]).real * unit, np.float32)
