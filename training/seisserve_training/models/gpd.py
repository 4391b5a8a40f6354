"""GPD: Ross et al. (2018), Bulletin of the Seismological Society of America 108, doi:10.1785/0120180080."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from seisserve.manifest import Output
from seisserve_training.config import Network
from seisserve_training.labels import PHASES
from seisserve_training.models.architecture import Architecture, Serving
from seisserve_training.models.layers import Standardise
from seisserve_training.tasks.point import POINT_PICKING, WINDOW

__all__ = ["CITATION", "GPD", "HOP", "gpd"]

CITATION = "Ross et al. (2018), Bulletin of the Seismological Society of America 108, doi:10.1785/0120180080"
HOP = 10  # samples from one window to the next, as in the authors' program
KERNELS = (21, 15, 11, 9)


def gpd(components: int = 3, classes: int = 3, filters: int = 8, dropout: float = 0.0) -> keras.Model:
    """The network of the paper, normalisation included.

    Input `waveform` [n, 400, components] in raw counts; output `probability` [n, classes] at the window's centre.
    filters: 32 is the size of the paper (1.7 million parameters); the two dense layers shrink along with it. The paper
    divides a filtered window by its largest amplitude; here each component is standardised, which needs no filter.
    """
    waveform = keras.Input((WINDOW, components), name="waveform")
    x = ops.expand_dims(Standardise(name="standardise")(waveform), 1)
    for level, kernel in enumerate(KERNELS):
        x = layers.Conv2D(filters << level, (1, kernel), padding="same", use_bias=False, name=f"conv{level}")(x)
        x = layers.MaxPooling2D((1, 2), name=f"pool{level}")(_finish(x, f"conv{level}", 0.0))
    x = layers.Flatten(name="flatten")(x)
    for level in range(2):
        x = layers.Dense(25 * filters // 4, use_bias=False, name=f"dense{level}")(x)
        x = _finish(x, f"dense{level}", dropout)
    return keras.Model(waveform, layers.Dense(classes, activation="softmax", name="probability")(x), name="gpd")


def _finish(x: Any, name: str, dropout: float) -> Any:
    x = layers.BatchNormalization(name=f"{name}_norm", momentum=0.98)(x)
    x = layers.ReLU(name=f"{name}_relu")(x)
    return layers.Dropout(dropout, name=f"{name}_dropout")(x) if dropout else x


def build(network: Network, components: int) -> keras.Model:
    """The network of a configuration. Raises ValueError unless its training windows hold one of 400 samples."""
    if network.window_samples < WINDOW:
        raise ValueError(f"network.window_samples is {network.window_samples}; gpd needs {WINDOW} or more")
    return gpd(components, len(PHASES), network.filters, network.dropout)


def serve(network: Network, components: int) -> Serving:
    """Windows of 400 samples, ten samples apart, whatever the length of the training windows."""
    return Serving(
        window_samples=WINDOW,
        hop_samples=HOP,
        edge_samples=WINDOW // 2,  # nearer than that to an end no window has its centre
        outputs=(Output(name="probability", shape=(-1, len(PHASES)), labels=PHASES, stride=HOP),),
        thresholds={"P": 0.5, "S": 0.5},
    )


GPD = Architecture("picking", CITATION, build, serve, POINT_PICKING)
