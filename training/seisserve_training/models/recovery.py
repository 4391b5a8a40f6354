"""Clipped waveforms: the task of Zhu, Mousavi and Beroza (2020), Advances in Geophysics 61, with PhaseNet's U-Net."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from seisserve_training.clipping import RUN, TOLERANCE
from seisserve_training.config import Network
from seisserve_training.models.architecture import Architecture, Serving
from seisserve_training.models.phasenet import features
from seisserve_training.models.waveforms import half_overlap
from seisserve_training.tasks.recovery import CLIP_RECOVERY

__all__ = ["RECOVERY", "Clipped", "recovery"]

CITATION = "Zhu, Mousavi and Beroza (2020), Advances in Geophysics 61, doi:10.1016/bs.agph.2020.07.003"


@keras.saving.register_keras_serializable("seisserve")
class Clipped(keras.layers.Layer):
    """1 where samples are clipped at the top, -1 at the bottom, else 0: the rule of `clipping.clipped`.

    Input [n, samples, components] between -1 and 1 (a constant component is zero), output of the same shape.
    """

    def call(self, scaled):  # type: ignore[no-untyped-def]
        """[n, samples, components] -> the same shape."""
        top = _runs(ops.cast(scaled >= 1 - 2 * TOLERANCE, "float32"))
        return top - _runs(ops.cast(scaled <= 2 * TOLERANCE - 1, "float32"))


def _runs(mask: Any) -> Any:
    """Runs of ones shorter than RUN become zeros. [n, samples, components]"""
    ends = ((0, 0), (0, 0), (RUN // 2, RUN // 2), (0, 0))
    kept = 1 - ops.max_pool(1 - ops.pad(ops.expand_dims(mask, 1), ends), (1, RUN), 1, "valid")
    return ops.squeeze(ops.max_pool(ops.pad(kept, ends), (1, RUN), 1, "valid"), 1)


@keras.saving.register_keras_serializable("seisserve")
class Range(keras.layers.Layer):
    """Each component of each window between -1 and 1, and the middle and half of its range, [n, 1, components] each."""

    def call(self, waveform):  # type: ignore[no-untyped-def]
        """[n, samples, components] -> scaled, middle, half"""
        high, low = ops.max(waveform, axis=1, keepdims=True) / 2, ops.min(waveform, axis=1, keepdims=True) / 2
        middle, half = high + low, high - low
        return (waveform - middle) / ops.where(half > 0, half, ops.ones_like(half)), middle, half


def recovery(components: int = 3, filters: int = 8, dropout: float = 0.0) -> keras.Model:
    """How far beyond the clip level the clipped samples were.

    Input `waveform` [n, samples, components] in raw counts, samples a multiple of 256; output `waveform` of the same
    shape and units. The network finds the clipped samples itself, and is shown where they are; all others come back bit
    by bit as they were, and clipped ones at the clip level or beyond.
    """
    waveform = keras.Input((None, components), name="waveform")
    scaled, middle, half = Range(name="range")(waveform)
    clipped = Clipped(name="clipped")(scaled)
    x = features(ops.expand_dims(ops.concatenate([scaled, clipped], axis=2), 1), filters, dropout)
    excess = layers.Conv2D(components, 1, activation="softplus", name="excess")(x)
    recovered = middle + clipped * half * (1 + ops.squeeze(excess, 1))
    high, low = ops.max(waveform, axis=1, keepdims=True), ops.min(waveform, axis=1, keepdims=True)
    recovered = ops.where(clipped > 0, ops.maximum(recovered, high), ops.minimum(recovered, low))
    return keras.Model(waveform, ops.where(ops.abs(clipped) > 0, recovered, waveform), name="recovery")


def build(network: Network, components: int) -> keras.Model:
    """The network of a configuration."""
    return recovery(components, network.filters, network.dropout)


def serve(network: Network, components: int) -> Serving:
    """Windows that overlap by half."""
    return half_overlap(network, components)


RECOVERY = Architecture("recovery", CITATION, build, serve, CLIP_RECOVERY)
