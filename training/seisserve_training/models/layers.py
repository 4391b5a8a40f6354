"""Layers that several networks share."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

__all__ = ["Standardise"]


@keras.saving.register_keras_serializable("seisserve")
class Standardise(keras.layers.Layer):
    """Each component of each window: minus its mean, over its standard deviation; a constant component becomes zero.

    Input and output [n, samples, components]. The middle of the range goes first, which is exact whatever the offset
    (the float32 mean of a constant is not that constant), and values are scaled by the range before they are squared:
    there is neither a smallest nor a largest amplitude. Sums run along the last axis, where runtimes are fast.
    """

    def call(self, waveform):  # type: ignore[no-untyped-def]
        """[n, samples, components] -> the same shape."""
        x = ops.transpose(waveform, (0, 2, 1))
        high, low = ops.max(x, axis=2, keepdims=True) / 2, ops.min(x, axis=2, keepdims=True) / 2
        x = _over(x - (high + low), high - low)
        x = x - ops.mean(x, axis=2, keepdims=True)
        x = _over(x, ops.sqrt(ops.mean(ops.square(x), axis=2, keepdims=True)))
        return ops.transpose(x, (0, 2, 1))


def _over(values: Any, size: Any) -> Any:
    """values / size, and values where size is zero."""
    return values / ops.where(size > 0, size, ops.ones_like(size))
