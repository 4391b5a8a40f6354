"""BasicPhaseAE: Woollam et al. (2019), Seismological Research Letters 90, doi:10.1785/0220180312."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from seisserve.manifest import Output
from seisserve_training.config import Network
from seisserve_training.labels import PHASES
from seisserve_training.models.architecture import Architecture, Serving
from seisserve_training.models.layers import Standardise
from seisserve_training.tasks.phases import PHASE_PICKING

__all__ = ["BASICPHASEAE", "CITATION", "WINDOW", "basicphaseae"]

CITATION = "Woollam et al. (2019), Seismological Research Letters 90, 491-502, doi:10.1785/0220180312"
WINDOW = 600  # samples; the way down ends at 4 values and the way up at 600, so no other length fits
KERNEL, STRIDE = 5, 4


def basicphaseae(components: int = 3, classes: int = 3, filters: int = 12, dropout: float = 0.0) -> keras.Model:
    """The autoencoder of the paper, normalisation included.

    Input `waveform` [n, 600, components] in raw counts; output `probability` [n, 600, classes]. filters: 12 in the
    paper, whose dropout is 0.3. There are no connections between the way down and the way up: what the network knows
    of time has to pass through 4 values of 4 * filters channels, hence a coarser curve than PhaseNet's.
    """
    waveform = keras.Input((WINDOW, components), name="waveform")
    x = ops.expand_dims(Standardise(name="standardise")(waveform), 1)
    x = _down(x, filters, "in", stride=1)  # 596 samples
    x = _down(x, 2 * filters, "down1")  # 148
    x = _down(x, 3 * filters, "down2")  # 37
    x = layers.Dropout(dropout, name="dropout")(x) if dropout else x
    x = _down(x, 4 * filters, "down3")  # 9
    x = layers.MaxPooling2D((1, 2), name="pool")(x)  # 4
    x = _up(x, 2, 4 * filters, "up3")  # 8
    x = _up(x, 5, 2 * filters, "up2")  # 40
    x = _up(x, 5, filters, "up1")  # 200
    x = layers.UpSampling2D((1, 3), name="out_repeat")(x)  # 600
    x = layers.Conv2D(classes, (1, KERNEL), padding="same", name="logits")(x)
    return keras.Model(waveform, layers.Softmax(name="softmax")(ops.squeeze(x, 1)), name="basicphaseae")


def _down(x: Any, filters: int, name: str, stride: int = STRIDE) -> Any:
    """[n, 1, samples, c] -> [n, 1, (samples - 5) // stride + 1, filters]"""
    return layers.Conv2D(filters, (1, KERNEL), (1, stride), activation="relu", name=name)(x)


def _up(x: Any, times: int, filters: int, name: str) -> Any:
    """[n, 1, samples, c] -> [n, 1, samples * times, filters]: every value repeated, then smoothed."""
    x = layers.UpSampling2D((1, times), name=f"{name}_repeat")(x)
    return layers.Conv2D(filters, (1, KERNEL), padding="same", activation="relu", name=name)(x)


def build(network: Network, components: int) -> keras.Model:
    """The network of a configuration. Raises ValueError unless its windows are of 600 samples."""
    if network.window_samples != WINDOW:
        raise ValueError(f"network.window_samples is {network.window_samples}; basicphaseae takes {WINDOW} only")
    return basicphaseae(components, len(PHASES), network.filters, network.dropout)


def serve(network: Network, components: int) -> Serving:
    """Windows that overlap by half."""
    return Serving(
        window_samples=WINDOW,
        hop_samples=WINDOW // 2,
        outputs=(Output(name="probability", shape=(-1, WINDOW, len(PHASES)), labels=PHASES),),
        thresholds={"P": 0.3, "S": 0.3},
    )


BASICPHASEAE = Architecture("picking", CITATION, build, serve, PHASE_PICKING)
