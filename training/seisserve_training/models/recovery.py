"""Clipped waveforms: the task of Zhu, Mousavi and Beroza (2020), Advances in Geophysics 61, with PhaseNet's U-Net."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from seisserve_training.clipping import TOLERANCE
from seisserve_training.config import Network
from seisserve_training.models.architecture import Architecture, Serving
from seisserve_training.models.phasenet import features
from seisserve_training.models.waveforms import half_overlap
from seisserve_training.tasks.recovery import CLIP_RECOVERY

__all__ = ["RECOVERY", "Clipped", "recovery"]

CITATION = "Zhu, Mousavi and Beroza (2020), Advances in Geophysics 61, doi:10.1016/bs.agph.2020.07.003"
REACH = 512  # samples
HIGHEST = 20.0  # times the clip level
LITTLE = -4.0  # where the softplus begins: the network starts from the cubic


@keras.saving.register_keras_serializable("seisserve")
class Clipped(keras.layers.Layer):
    """1 where samples are clipped at the top, -1 at the bottom, else 0: the rule of `clipping.clipped`.

    Input [n, samples, components] between -1 and 1 (a constant component is zero), output of the same shape.
    """

    def call(self, scaled):  # type: ignore[no-untyped-def]
        """[n, samples, components] -> the same shape."""
        top = _at_clip_level(ops.cast(scaled >= 1 - 2 * TOLERANCE, "float32"))
        return top - _at_clip_level(ops.cast(scaled <= 2 * TOLERANCE - 1, "float32"))


def _at_clip_level(level: Any) -> Any:
    """The ones of a component if three follow one another, or two at two places; else zeros.

    [n, samples, components] -> the same shape.
    """
    pairs = level * _moved(level, 1)
    begins = pairs * (1 - _moved(pairs, 1))
    long = ops.max(pairs * _moved(pairs, 1), axis=1, keepdims=True)
    two = ops.cast(ops.sum(begins, axis=1, keepdims=True) >= 2, "float32")
    return level * ops.maximum(long, two)


@keras.saving.register_keras_serializable("seisserve")
class Range(keras.layers.Layer):
    """Each component of each window between -1 and 1, and the middle and half of its range, [n, 1, components] each."""

    def call(self, waveform):  # type: ignore[no-untyped-def]
        """[n, samples, components] -> scaled, middle, half"""
        high, low = ops.max(waveform, axis=1, keepdims=True) / 2, ops.min(waveform, axis=1, keepdims=True) / 2
        middle, half = high + low, high - low
        return (waveform - middle) / ops.where(half > 0, half, ops.ones_like(half)), middle, half


@keras.saving.register_keras_serializable("seisserve")
class Bridge(keras.layers.Layer):
    """How far beyond the clip level a cubic through both edges of a clipped run goes, 0 to HIGHEST times that level.

    Inputs scaled and clipped (see Clipped), output of the same shape: the cubic with the values and slopes of the last
    sample before the run and the first behind it. Zero where a run is longer than REACH or ends with the window.
    """

    def call(self, scaled, clipped):  # type: ignore[no-untyped-def]
        """[n, samples, components] twice -> the same shape."""
        free = 1 - ops.abs(clipped)
        before, slope_in, left, known_left = _carry(scaled, free, 1)
        after, slope_out, right, known_right = _carry(scaled, free, -1)
        length = ops.maximum(left + right, 1)
        t = left / length
        cubic = (1 - t) * (1 - t) * ((1 + 2 * t) * before + left * slope_in)
        cubic = cubic + t * t * ((3 - 2 * t) * after + right * slope_out)
        return ops.clip(clipped * cubic - 1, 0, HIGHEST) * known_left * known_right


def _carry(scaled: Any, free: Any, way: int) -> tuple[Any, Any, Any, Any]:
    """Value and slope (towards the run) of the nearest free sample on one side of each, the distance to it, and 1 if
    there is one within REACH. way: 1 looks at earlier samples, -1 at later ones."""
    one, two = (_moved(scaled, way * step) for step in (1, 2))
    slope = (3 * scaled - 4 * one + two) / 2
    value, slope, distance, known = scaled * free, slope * free, ops.zeros_like(scaled), free
    step = 1
    while step < REACH:  # carries 1, 2, 4, ... samples at once
        take = (1 - known) * _moved(known, way * step)
        value, slope = value + take * _moved(value, way * step), slope + take * _moved(slope, way * step)
        distance = distance + take * (_moved(distance, way * step) + step)
        known, step = known + take, 2 * step
    return value, slope, distance, known


def _moved(x: Any, samples: int) -> Any:
    """Later by that many samples (earlier if negative); zeros move in. [n, samples, components]"""
    if samples > 0:
        return ops.pad(x, ((0, 0), (samples, 0), (0, 0)))[:, :-samples]
    return ops.pad(x, ((0, 0), (0, -samples), (0, 0)))[:, -samples:]


def recovery(components: int = 3, filters: int = 8, dropout: float = 0.0) -> keras.Model:
    """How far beyond the clip level the clipped samples were: a cubic from edge to edge, corrected by the network.

    Input `waveform` [n, samples, components] in raw counts, samples a multiple of 256; output `waveform` of the same
    shape and units. The network finds the clipped samples itself, and is shown where they are; all others come back bit
    by bit as they were, and clipped ones at the clip level or beyond.
    """
    waveform = keras.Input((None, components), name="waveform")
    scaled, middle, half = Range(name="range")(waveform)
    clipped = Clipped(name="clipped")(scaled)
    bridge = Bridge(name="bridge")(scaled, clipped)
    x = features(ops.expand_dims(ops.concatenate([scaled, clipped, bridge], axis=2), 1), filters, dropout)
    start = keras.initializers.Constant(LITTLE)
    more = ops.squeeze(layers.Conv2D(components, 1, activation="softplus", name="more", bias_initializer=start)(x), 1)
    times = ops.squeeze(layers.Conv2D(components, 1, activation="tanh", name="times")(x), 1)
    recovered = middle + clipped * half * (1 + bridge * ops.exp(times) + more)
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
