"""SeisBench's CRED: a detector over spectrograms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from seisserve.manifest import DETECTION
from seisserve_export.importers.seisbench_network import Arguments, Network, Normalisation
from seisserve_export.importers.seisbench_state import HardLstm, Layer, State, convolve, dense, lstm, rescale

__all__ = ["cred"]

CITATION = "Mousavi, Zhu, Sheng and Beroza (2019), Scientific Reports 9, 10267, doi:10.1038/s41598-019-45748-1"
FRAME, HOP = 80, 40  # samples of a frame of the spectrogram, and from one to the next
UNITS, FILTERS = 64, 8


def cred(state: State, arguments: Arguments) -> Network:
    """One probability for about 1.6 s, held for the samples that SeisBench gives it to."""
    window = arguments.whole("in_samples", 3000)
    return Network(
        name="CRED",
        citation=CITATION,
        task="detection",
        window=window,
        labels=(DETECTION,),
        run=_cred(state, window, arguments.flag("original_compatible")),
        normalisation=Normalisation("std", together=True),
        thresholds={DETECTION: 0.5},
        overlap=1500,
    )


def _cred(state: State, window: int, original: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    components, n = len(state.components), FILTERS
    first = state.convolution("conv1", n, components, 9, 9, first=True)
    second = state.convolution("conv2", 2 * n, n, 5, 5)
    blocks = [
        [
            (state.norm(f"{name}.norms.{i}", m), state.convolution(f"{name}.convs.{i}", m, m, kernel, kernel))
            for i in (0, 1)
        ]
        for name, m, kernel in (("cnn_block1", n, 7), ("cnn_block2", 2 * n, 3))
    ]
    height = _halved(_halved(FRAME // 2 + 1))
    both = [
        [state.lstm(f"lstm_block.lstms.{i}", inputs, UNITS, suffix) for suffix in ("_l0", "_l0_reverse")]
        for i, inputs in enumerate((height * 2 * n, 2 * UNITS))
    ]
    single = state.lstm("lstm", 2 * UNITS, UNITS)
    before, after = state.norm("norm1", UNITS), state.norm("norm2", UNITS)
    full, last = state.dense("fc1", UNITS, UNITS), state.dense("fc2", UNITS, 1)

    def run(x: tf.Tensor) -> tf.Tensor:
        x = tf.nn.relu(convolve(_spectrogram(x), first, 2))
        x = _residual(x, blocks[0])
        x = tf.nn.relu(convolve(x, second, 2, _pads(x, original)))
        x = _residual(x, blocks[1])
        frames = x.shape[1]
        x = tf.reshape(x, [-1, frames, height * 2 * n])
        x = _bidirectional(x, both[0])
        x = _bidirectional(x, both[1]) + x
        x = rescale(lstm(x, single), before)
        x = rescale(tf.nn.relu(dense(x, full)), after)
        held = np.arange(window) * frames // window
        return tf.gather(tf.sigmoid(dense(x, last)), held, axis=1)

    return run


def _spectrogram(x: tf.Tensor) -> tf.Tensor:
    """[n, samples, components] -> amplitudes [n, frames, frequencies, components]; beyond the ends there are zeros."""
    time, frequency = np.arange(FRAME), np.arange(FRAME // 2 + 1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * time / FRAME)
    wave = np.exp(-2j * np.pi * np.outer(time, frequency) / FRAME) * hann[:, None] * 2 / FRAME
    kernel = np.concatenate([wave.real, wave.imag], axis=1)[None, :, None].astype(np.float32)
    x = tf.expand_dims(tf.transpose(x, [0, 2, 1]), 3)
    pad = FRAME // 2
    real, imaginary = tf.split(tf.nn.conv2d(x, kernel, [1, HOP], [(0, 0), (0, 0), (pad, pad), (0, 0)]), 2, axis=3)
    return tf.transpose(tf.sqrt(real * real + imaginary * imaginary), [0, 2, 3, 1])


def _pads(x: tf.Tensor, original: bool) -> list[tuple[int, int]]:
    """The original's framework begins one frame later."""
    return [(1, 2 - x.shape[1] % 2) if original else (2, 2), (2, 2)]


def _residual(x: tf.Tensor, block: list[tuple[Layer, Layer]]) -> tf.Tensor:
    y = x
    for norm, layer in block:
        y = convolve(tf.nn.relu(rescale(y, norm)), layer)
    return x + y


def _bidirectional(x: tf.Tensor, layers: list[Layer | HardLstm]) -> tf.Tensor:
    return tf.concat([lstm(x, layers[0]), lstm(x, layers[1], backwards=True)], 2)


def _halved(size: int) -> int:
    return (size + 1) // 2
