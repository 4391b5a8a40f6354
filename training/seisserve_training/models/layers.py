"""Layers that several networks share."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

__all__ = ["Standardise", "StandardiseLocally"]


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


@keras.saving.register_keras_serializable("seisserve")
class StandardiseLocally(keras.layers.Layer):
    """Each component minus its running mean, over its running rms, both over 13 blocks of 256 samples (33 s at 100 Hz).

    [n, samples, components] -> [n, 1, samples, components], samples a multiple of 256. Blocks are averaged first; the
    values between their centres are interpolated linearly. What comes out depends on 40 s either way at most, mostly on
    the nearest 17 s, so a record needs no windows that overlap. Where a component is constant it becomes zero.
    """

    def call(self, waveform):  # type: ignore[no-untyped-def]
        """[n, samples, components] -> [n, 1, samples, components]"""
        x = ops.expand_dims(waveform, 1)
        high, low = ops.max(x, axis=2, keepdims=True) / 2, ops.min(x, axis=2, keepdims=True) / 2
        x = _over(x - (high + low), high - low)
        x = x - _running_mean(x)
        # The rounding errors of a stretch that is constant must not be blown up to a signal.
        return x / ops.maximum(ops.sqrt(ops.maximum(_running_mean(ops.square(x)), 0)), ROUNDING)


BLOCK, BLOCKS = 256, 13
ROUNDING = 1e-6  # of the window's range, in float32


def _running_mean(x: Any) -> Any:
    """[n, 1, samples, components] -> the same: means over BLOCKS blocks, linear between the blocks' centres."""
    components = x.shape[-1]
    means = ops.average_pool(x, (1, BLOCK), (1, BLOCK), "valid")
    means = ops.average_pool(means, (1, BLOCKS), 1, "same")  # at the ends over the blocks that there are
    triangle = 1 - np.abs(np.arange(2 * BLOCK) - BLOCK + 0.5) / BLOCK
    kernel = (triangle[:, None, None] * np.eye(components))[None].astype(np.float32)

    def between(values: Any) -> Any:
        spread = ops.conv_transpose(values, ops.convert_to_tensor(kernel), (1, BLOCK), "valid")
        return spread[:, :, BLOCK // 2 : -(BLOCK // 2)]

    return between(means) / between(ops.ones_like(means))  # before the first and after the last centre: as there


def _over(values: Any, size: Any) -> Any:
    """values / size, and values where size is zero."""
    return values / ops.where(size > 0, size, ops.ones_like(size))
