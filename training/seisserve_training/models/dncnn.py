"""DnCNN: Zhang, Zuo, Chen, Meng and Zhang (2017), IEEE TIP 26, doi:10.1109/TIP.2017.2662206, along time."""

from __future__ import annotations

import keras
from keras import layers, ops

from seisserve_training.config import Network
from seisserve_training.models.architecture import Architecture, Serving
from seisserve_training.models.layers import Deviation, Standardise
from seisserve_training.models.waveforms import half_overlap
from seisserve_training.tasks.denoising import DENOISING

__all__ = ["DNCNN", "dncnn"]

CITATION = "Zhang et al. (2017), IEEE TIP 26, doi:10.1109/TIP.2017.2662206"
KERNEL = 7
DILATIONS = (1, 2, 4, 8, 16, 32, 64, 1)  # 7.7 s of context; without dilations 17 layers see one second


def dncnn(components: int = 3, filters: int = 24, dropout: float = 0.0) -> keras.Model:
    """The noise, predicted by a plain stack of convolutions, taken away from the input (residual learning).

    Input `waveform` [n, samples, components] in raw counts, any number of samples; output `waveform` of the same shape
    and units: the signal, about zero. Unlike the published network for images, layers are dilated to see enough.
    """
    waveform = keras.Input((None, components), name="waveform")
    standardised = ops.expand_dims(Standardise(name="standardise")(waveform), 1)
    x = layers.Conv2D(filters, (1, KERNEL), padding="same", activation="relu", name="in")(standardised)
    for number, dilation in enumerate(DILATIONS):
        name = f"layer{number}"
        x = layers.Conv2D(
            filters, (1, KERNEL), padding="same", dilation_rate=(1, dilation), use_bias=False, name=name
        )(x)  # fmt: skip
        x = layers.BatchNormalization(name=f"{name}_norm", momentum=0.98)(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x) if dropout else x
    noise = layers.Conv2D(components, (1, KERNEL), padding="same", name="noise")(x)
    signal = (standardised - noise)[:, 0]
    return keras.Model(waveform, signal * Deviation(name="deviation")(waveform), name="dncnn")


def build(network: Network, components: int) -> keras.Model:
    """The network of a configuration."""
    return dncnn(components, network.filters, network.dropout)


def serve(network: Network, components: int) -> Serving:
    """Windows that overlap by half."""
    return half_overlap(network, components)


DNCNN = Architecture("denoising", CITATION, build, serve, DENOISING)
