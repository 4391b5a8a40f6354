"""DeepDenoiser: Zhu, Mousavi and Beroza (2019), IEEE TGRS 57, doi:10.1109/TGRS.2019.2926772."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from seisserve_training.config import Network
from seisserve_training.models.architecture import Architecture, Serving
from seisserve_training.models.layers import Deviation, Standardise
from seisserve_training.models.spectrogram import FREQUENCIES, HOP, InverseSpectrogram, Spectrogram
from seisserve_training.models.waveforms import half_overlap
from seisserve_training.tasks.denoising import DENOISING

__all__ = ["DEEPDENOISER", "deepdenoiser"]

CITATION = "Zhu, Mousavi and Beroza (2019), IEEE TGRS 57, doi:10.1109/TGRS.2019.2926772"
DEPTH, KERNEL = 5, 3
WIDEST = 48  # filters of the deepest levels: wider ones double the file


def deepdenoiser(components: int = 3, samples: int = 3000, filters: int = 8, dropout: float = 0.0) -> keras.Model:
    """A mask over the time-frequency plane of each component, between 0 (noise) and 1 (signal).

    Input `waveform` [n, samples, components] in raw counts, samples a multiple of 15; output `waveform` of the same
    shape and units: the signal, about zero. As published, the components are denoised each by itself, by one network,
    so any of them may be missing, and the noise is what is left (the published mask of noise is 1 - this one).
    """
    if samples % HOP:
        raise ValueError(f"samples is {samples}; DeepDenoiser takes multiples of {HOP}")
    waveform = keras.Input((samples, components), name="waveform")
    single = ops.reshape(ops.transpose(Standardise(name="standardise")(waveform), (0, 2, 1)), (-1, samples))
    spectrogram = Spectrogram(name="spectrogram")(single)
    signal = InverseSpectrogram(name="inverse")(spectrogram * mask(spectrogram, filters, dropout))
    signal = ops.transpose(ops.reshape(signal, (-1, components, samples)), (0, 2, 1))
    return keras.Model(waveform, signal * Deviation(name="deviation")(waveform), name="deepdenoiser")


def mask(spectrogram: Any, filters: int, dropout: float) -> Any:
    """The U-Net: [n, frames, FREQUENCIES, 2] -> [n, frames, FREQUENCIES, 1], 0 to 1."""
    frames, stride = spectrogram.shape[1], 1 << (DEPTH - 1)
    more = (-frames % stride, -FREQUENCIES % stride)
    x = layers.ZeroPadding2D(((0, more[0]), (0, more[1])), name="whole")(spectrogram)
    widths = [min(filters << level, WIDEST) for level in range(DEPTH)]
    skips = []
    for level, width in enumerate(widths):
        x = _conv(x, width, f"down{level}", dropout=dropout)
        if level < DEPTH - 1:
            skips.append(x)
            x = _conv(x, width, f"stride{level}", stride=2, dropout=dropout)
    for level in reversed(range(DEPTH - 1)):
        up = layers.Conv2DTranspose(widths[level], KERNEL, 2, "same", use_bias=False, name=f"up{level}")
        x = _finish(up(x), f"up{level}", dropout)
        x = layers.Concatenate(name=f"skip{level}")([skips[level], x])
        x = _conv(x, widths[level], f"join{level}", dropout=dropout)
    x = layers.Conv2D(1, 1, activation="sigmoid", name="mask")(x)
    return x[:, :frames, :FREQUENCIES]


def _conv(x: Any, filters: int, name: str, stride: int = 1, dropout: float = 0.0) -> Any:
    """[n, frames, frequencies, c] -> [n, frames / stride, frequencies / stride, filters]"""
    x = layers.Conv2D(filters, KERNEL, stride, "same", use_bias=False, name=name)(x)
    return _finish(x, name, dropout)


def _finish(x: Any, name: str, dropout: float) -> Any:
    x = layers.BatchNormalization(name=f"{name}_norm", momentum=0.98)(x)
    x = layers.ReLU(name=f"{name}_relu")(x)
    return layers.Dropout(dropout, name=f"{name}_dropout")(x) if dropout else x


def build(network: Network, components: int) -> keras.Model:
    """The network of a configuration."""
    return deepdenoiser(components, network.window_samples, network.filters, network.dropout)


def serve(network: Network, components: int) -> Serving:
    """Windows that overlap by half; their ends, where the mask sees one side only, do not count."""
    return half_overlap(network, components)


DEEPDENOISER = Architecture("denoising", CITATION, build, serve, DENOISING)
