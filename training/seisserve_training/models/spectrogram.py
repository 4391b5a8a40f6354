"""Short-time Fourier transform and its inverse as convolutions with fixed kernels, which every runtime has.

DeepDenoiser's transform: a Hann window of 30 samples every 15, padded with zeros to 60, which gives 31 frequencies.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

__all__ = ["FREQUENCIES", "HOP", "InverseSpectrogram", "Spectrogram"]

SEGMENT, HOP, POINTS = 30, 15, 60
FREQUENCIES = POINTS // 2 + 1


def analysis() -> NDArray[np.float32]:
    """Kernel of the transform, float32 [1, SEGMENT, 1, 2 * FREQUENCIES]: real parts, then imaginary parts."""
    angle = 2 * np.pi * np.outer(np.arange(SEGMENT), np.arange(FREQUENCIES)) / POINTS
    waves = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1)
    return np.asarray((_hann()[:, None] * waves)[None, :, None], np.float32)


def synthesis() -> NDArray[np.float32]:
    """Kernel of the inverse, float32 [1, SEGMENT, 1, 2 * FREQUENCIES].

    Windowed again, and divided by the sum of the squared windows that overlap at a sample (Griffin and Lim 1984, IEEE
    Transactions on Acoustics, Speech and Signal Processing 32): the waveform whose transform is nearest to a given one.
    """
    angle = 2 * np.pi * np.outer(np.arange(SEGMENT), np.arange(FREQUENCIES)) / POINTS
    both_sides = np.where(np.isin(np.arange(FREQUENCIES), (0, POINTS // 2)), 1, 2) / POINTS
    waves = np.concatenate([np.cos(angle) * both_sides, -np.sin(angle) * both_sides], axis=1)
    overlap = np.tile((_hann() ** 2).reshape(-1, HOP).sum(axis=0), SEGMENT // HOP)
    return np.asarray(((_hann() / overlap)[:, None] * waves)[None, :, None], np.float32)


def _hann() -> NDArray[np.float64]:
    """Hann window, periodic."""
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(SEGMENT) / SEGMENT))


@keras.saving.register_keras_serializable("seisserve")
class Spectrogram(keras.layers.Layer):
    """[n, samples] -> [n, samples / HOP + 1, FREQUENCIES, 2]: real and imaginary part; samples a multiple of HOP."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Hold the kernel as a weight that is not trained."""
        self.kernel = _constant(self, analysis())

    def call(self, waveform):  # type: ignore[no-untyped-def]
        """[n, samples] -> [n, frames, FREQUENCIES, 2]"""
        samples = waveform.shape[1]
        padded = ops.pad(ops.reshape(waveform, (-1, 1, samples, 1)), ((0, 0), (0, 0), (HOP, HOP), (0, 0)))
        parts = ops.conv(padded, self.kernel, (1, HOP), "valid")
        parts = ops.reshape(parts, (-1, samples // HOP + 1, 2, FREQUENCIES))
        return ops.transpose(parts, (0, 1, 3, 2))


@keras.saving.register_keras_serializable("seisserve")
class InverseSpectrogram(keras.layers.Layer):
    """[n, frames, FREQUENCIES, 2] -> [n, (frames - 1) * HOP]: what Spectrogram was made from, to the last sample."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Hold the kernel as a weight that is not trained."""
        self.kernel = _constant(self, synthesis())

    def call(self, spectrogram):  # type: ignore[no-untyped-def]
        """[n, frames, FREQUENCIES, 2] -> [n, samples]"""
        frames = spectrogram.shape[1]
        parts = ops.reshape(ops.transpose(spectrogram, (0, 1, 3, 2)), (-1, 1, frames, 2 * FREQUENCIES))
        padded = ops.conv_transpose(parts, self.kernel, (1, HOP), "valid")
        return ops.reshape(padded[:, :, HOP:-HOP], (-1, (frames - 1) * HOP))


def _constant(layer: keras.layers.Layer, kernel: NDArray[np.float32]) -> Any:
    def as_it_is(shape: Any, dtype: Any = None) -> Any:
        return ops.convert_to_tensor(kernel, dtype)

    return layer.add_weight(shape=kernel.shape, initializer=as_it_is, trainable=False, name="kernel")
