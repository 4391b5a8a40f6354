"""Layers that several networks share."""

from __future__ import annotations

import keras
from keras import ops

__all__ = ["Standardise"]


@keras.saving.register_keras_serializable("seisserve")
class Standardise(keras.layers.Layer):
    """Each component of each window: minus its mean, over its standard deviation; a constant component becomes zero.

    Input and output [n, samples, components]. Scaled by the largest amplitude first, so that squares neither
    overflow nor vanish in float32 whatever the unit: there is no smallest amplitude.
    """

    def call(self, waveform):  # type: ignore[no-untyped-def]
        """[n, samples, components] -> the same shape. Sums run along the last axis, where runtimes are fast."""
        x = ops.transpose(waveform, (0, 2, 1))
        x = x - ops.mean(x, axis=2, keepdims=True)
        x = _over(x, ops.max(ops.abs(x), axis=2, keepdims=True))
        x = _over(x, ops.sqrt(ops.mean(ops.square(x), axis=2, keepdims=True)))
        return ops.transpose(x, (0, 2, 1))


def _over(values, size):  # type: ignore[no-untyped-def]
    return values / ops.where(size > 0, size, ops.ones_like(size))
