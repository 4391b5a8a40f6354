"""CRED: Mousavi, Zhu, Sheng and Beroza (2019), Scientific Reports 9, doi:10.1038/s41598-019-45748-1."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from seisserve.manifest import Output
from seisserve_training.config import Network
from seisserve_training.models.architecture import Architecture, Serving
from seisserve_training.models.layers import Standardise
from seisserve_training.models.recurrent import LSTM, bidirectional
from seisserve_training.tasks.detection import DETECTION, STRIDE

__all__ = ["CRED", "LogSpectrogram", "cred"]

CITATION = "Mousavi, Zhu, Sheng and Beroza (2019), Scientific Reports 9, doi:10.1038/s41598-019-45748-1"
HOP = STRIDE // 2  # samples from one frame of the spectrogram to the next; the first convolution takes every second one
FRAME = 100  # samples of a frame of the spectrogram
LOUDEST = 100.0  # power that the logarithm begins to press together is 1 / LOUDEST


@keras.saving.register_keras_serializable("seisserve")
class LogSpectrogram(layers.Layer):
    """Log power of Hann-weighted frames of FRAME samples, HOP apart, written as a convolution: runtimes have no FFT.

    Input [n, samples, components], samples a multiple of HOP; output [n, samples / HOP, FRAME / 2 + 1, components].
    Frame k is centred on the samples from k HOP to (k + 1) HOP; beyond the ends of the window there are zeros. Silence
    is zero.
    """

    def build(self, shape: tuple[int | None, ...]) -> None:
        """The cosines and sines are constants of the graph, kept as a weight that is not trained."""
        frequency, time = np.arange(FRAME // 2 + 1), np.arange(FRAME)
        wave = np.exp(-2j * np.pi * np.outer(time, frequency) / FRAME) * np.hanning(FRAME)[:, None]
        wave /= np.sqrt((np.hanning(FRAME) ** 2).sum())  # white noise of deviation one has the mean power one
        kernel = np.concatenate([wave.real, wave.imag], axis=1)[None, :, None].astype(np.float32)
        self.kernel = self.add_weight(
            name="waves",
            shape=kernel.shape,
            initializer=lambda *_, **__: ops.convert_to_tensor(kernel),
            trainable=False,
        )

    def call(self, waveform):  # type: ignore[no-untyped-def]
        """[n, samples, components] -> [n, frames, frequencies, components]."""
        traces = ops.expand_dims(ops.transpose(waveform, (0, 2, 1)), 3)
        waves = ops.conv(traces, self.kernel, (1, HOP), "same")
        real, imaginary = ops.split(waves, 2, axis=3)
        power = ops.square(real) + ops.square(imaginary)
        return ops.transpose(ops.log(1 + LOUDEST * power), (0, 2, 3, 1))


def cred(components: int = 3, window_samples: int = 3000, filters: int = 8, dropout: float = 0.0) -> keras.Model:
    """The residual network of convolutions and recurrent layers of the paper, normalisation and spectrogram included.

    Input `waveform` [n, samples, components] in raw counts, samples a multiple of STRIDE; output `probability`
    [n, samples / STRIDE, 1] that a frame lies in an earthquake's signal. Unlike the paper's the spectrogram is
    logarithmic, so that a small event beside a large one is seen, and there are 60 frames in 30 s in place of 19.
    """
    waveform = keras.Input((window_samples, components), name="waveform")
    x = LogSpectrogram(name="spectrogram")(Standardise(name="standardise")(waveform))
    x = layers.Conv2D(filters, 9, 2, "same", use_bias=False, name="conv1")(x)
    x = _residual(x, filters, 7, "residual1")
    x = layers.Conv2D(2 * filters, 5, (1, 2), "same", use_bias=False, name="conv2")(x)
    x = _residual(x, 2 * filters, 3, "residual2")
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm", momentum=0.98)(x))
    x = layers.Reshape((x.shape[1], x.shape[2] * x.shape[3]), name="frames")(x)
    x = bidirectional(x, 8 * filters, name="bilstm")
    x = layers.BatchNormalization(name="bilstm_norm", momentum=0.98)(x)
    x = _drop(LSTM(8 * filters, name="lstm")(x), dropout, "lstm")
    x = _drop(layers.Dense(8 * filters, activation="relu", name="dense")(x), dropout, "dense")
    return keras.Model(waveform, layers.Dense(1, activation="sigmoid", name="logits")(x), name="cred")


def _residual(x: Any, filters: int, kernel: int, name: str) -> Any:
    """x and what two convolutions make of it, each after its normalisation: the shape stays."""
    y = x
    for number in (1, 2):
        y = layers.ReLU(name=f"{name}_relu{number}")(
            layers.BatchNormalization(name=f"{name}_norm{number}", momentum=0.98)(y)
        )
        y = layers.Conv2D(filters, kernel, padding="same", use_bias=False, name=f"{name}_conv{number}")(y)
    return layers.Add(name=name)([x, y])


def _drop(x: Any, dropout: float, name: str) -> Any:
    return layers.Dropout(dropout, name=f"{name}_dropout")(x) if dropout else x


def build(network: Network, components: int) -> keras.Model:
    """The network of a configuration."""
    return cred(components, network.window_samples, network.filters, network.dropout)


def serve(network: Network, components: int) -> Serving:
    """Windows that overlap by half, on one grid of frames."""
    window = network.window_samples
    return Serving(
        window_samples=window,
        hop_samples=window // 2 // STRIDE * STRIDE,
        outputs=(Output(name="probability", shape=(-1, window // STRIDE, 1), labels=("detection",), stride=STRIDE),),
        thresholds={"detection": 0.5},
    )


CRED = Architecture("detection", CITATION, build, serve, DETECTION)
