"""SeisBench's DeepDenoiser: a mask over the spectrum of each component by itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from seisserve_export.importers.seisbench_network import Arguments, Network
from seisserve_export.importers.seisbench_state import State, convolve, upsample

__all__ = ["deep_denoiser"]

CITATION = (
    "Zhu, Mousavi and Beroza (2019), IEEE Transactions on Geoscience and Remote Sensing 57, 9476-9488, "
    "doi:10.1109/TGRS.2019.2926772"
)
WINDOW, FRAME, HOP, FFT = 3000, 30, 15, 60
FREQUENCIES, FRAMES = FFT // 2 + 1, WINDOW // HOP + 1
SCALED = 200  # frames whose mean and deviation normalise the spectrum
LEVELS, FILTERS = 5, 8


def deep_denoiser(state: State, arguments: Arguments) -> Network:
    """The signal that is left where the mask says so, in the units of the input."""
    return Network(
        name="DeepDenoiser",
        citation=CITATION,
        task="denoising",
        window=WINDOW,
        labels=("Z", "N", "E"),
        run=_deep_denoiser(state),
        normalisation=None,  # of the spectrum: the network takes the waveform as it is, its mean included
        thresholds={},
        overlap=1500,
    )


def _deep_denoiser(state: State) -> Callable[[tf.Tensor], tf.Tensor]:
    mask = _mask(state)

    def run(waveform: tf.Tensor) -> tf.Tensor:
        components = waveform.shape[2]
        x = tf.reshape(tf.transpose(waveform, [0, 2, 1]), [-1, WINDOW])
        peak = tf.reduce_max(tf.abs(x), 1, keepdims=True)
        peak = tf.where(peak > 0, peak, 1.0)  # squares of 1e-14 and of 1e9 are alike within float32 after it
        spectrum = _spectrum(x / peak)
        x = _signal(spectrum * mask(_normalised(spectrum))) * peak
        return tf.transpose(tf.reshape(x, [-1, components, WINDOW]), [0, 2, 1])

    return run


def _mask(state: State) -> Callable[[tf.Tensor], tf.Tensor]:
    n = FILTERS
    first = state.convolution("inc", n, 2, 3, 3, biased=False, norm="in_bn")
    down, reduce, enlarge, up = [], [], [], []
    for i in range(LEVELS):
        m, name = n * 2**i, f"down_conv_blocks.{i}"
        above = n * 2 ** max(i - 1, 0)
        down.append(state.convolution(f"{name}.conv1", m, above, 3, 3, biased=False, norm=f"{name}.bn1"))
        reduce.append(state.convolution(f"{name}.conv2", m, m, 3, 3, biased=False, norm=f"{name}.bn2"))
    bottom = state.convolution("conv5", n * 2**LEVELS, n * 2 ** (LEVELS - 1), 3, 3, biased=False, norm="bn5")
    for i in range(LEVELS):
        m, name = n * 2 ** (LEVELS - 1 - i), f"up_conv_blocks.{i}"
        enlarge.append(state.transposed(f"{name}.conv1", 2 * m, m, 3, 3, norm=f"{name}.bn1"))
        up.append(state.convolution(f"{name}.conv2", m, 2 * m, 3, 3, biased=False, norm=f"{name}.bn2"))
    last = state.convolution("outc", 2, n, 1, 1)

    def run(x: tf.Tensor) -> tf.Tensor:
        """[n, frequencies, frames, (real, imaginary)] -> share of the signal, [n, frequencies, frames, 1]"""
        x = tf.nn.relu(convolve(x, first))
        skips = []
        for wide, narrow in zip(down, reduce, strict=True):
            x = tf.nn.relu(convolve(x, wide))
            skips.append(x)
            x = tf.nn.relu(convolve(x, narrow, 2, "SAME"))
        x = tf.nn.relu(convolve(x, bottom))
        for wide, narrow in zip(enlarge, up, strict=True):
            skip = skips.pop()
            x = tf.nn.relu(upsample(x, wide, 2, 0, (skip.shape[1], skip.shape[2])))
            x = tf.nn.relu(convolve(tf.concat([skip, x], 3), narrow))
        return tf.nn.softmax(convolve(x, last))[..., :1]

    return run


def _waves() -> tuple[np.ndarray, np.ndarray]:
    """Hann window [FRAME] and complex waves [FRAME, FREQUENCIES]; frames are filled up with zeros to FFT samples."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
    return hann, np.exp(-2j * np.pi * np.outer(np.arange(FRAME), np.arange(FREQUENCIES)) / FFT)


def _spectrum(x: tf.Tensor) -> tf.Tensor:
    """[n, samples] -> [n, frequencies, frames, 2] (real and imaginary); beyond the ends there are zeros."""
    hann, waves = _waves()
    waves = waves * hann[:, None] * 2 / FRAME
    kernel = np.concatenate([waves.real, waves.imag], axis=1)[None, :, None].astype(np.float32)
    image = x[:, None, :, None]
    parts = tf.nn.conv2d(image, kernel, [1, HOP], [(0, 0), (0, 0), (HOP, HOP), (0, 0)])
    return tf.transpose(tf.reshape(parts, [-1, FRAMES, 2, FREQUENCIES]), [0, 3, 1, 2])


def _normalised(spectrum: tf.Tensor) -> tf.Tensor:
    """Mean 0 and standard deviation 1 over all frequencies and the first 200 frames.

    The original slides over longer spectra; of 201 frames all its steps come down to the same one.
    """
    part = spectrum[:, :, :SCALED]
    mean = tf.reduce_mean(part, [1, 2, 3], keepdims=True)
    variance = tf.reduce_sum((part - mean) ** 2, [1, 2, 3], keepdims=True) / (FREQUENCIES * SCALED * 2 - 1)
    std = tf.sqrt(variance)
    return (spectrum - mean) / tf.where(std > 0, std, 1.0)


def _signal(spectrum: tf.Tensor) -> tf.Tensor:
    """The inverse of `_spectrum`: frames laid over one another, divided by the sum of their squared windows."""
    hann, waves = _waves()
    twice = np.where(np.arange(FREQUENCIES) % (FREQUENCIES - 1) == 0, 1, 2)  # all but the first and the last
    waves = waves * twice * hann[:, None] * FRAME / 2 / FFT
    kernel = np.concatenate([waves.real, waves.imag], axis=1)[None, :, None].astype(np.float32)
    x = tf.reshape(tf.transpose(spectrum, [0, 2, 3, 1]), [-1, 1, FRAMES, 2 * FREQUENCIES])
    length = (FRAMES - 1) * HOP + FRAME
    x = tf.nn.conv2d_transpose(x, kernel, tf.stack([tf.shape(x)[0], 1, length, 1]), [1, HOP], "VALID")
    weight = np.zeros(length)
    for begin in range(0, FRAMES * HOP, HOP):
        weight[begin : begin + FRAME] += hann**2
    return x[:, 0, HOP : HOP + WINDOW, 0] / weight[HOP : HOP + WINDOW].astype(np.float32)
