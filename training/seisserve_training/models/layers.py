"""Layers that several networks share."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

__all__ = ["Deviation", "Standardise", "StandardiseLocally"]


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
class Deviation(keras.layers.Layer):
    """The standard deviation of each component of each window, which Standardise divides by: it undoes that division.

    Input [n, samples, components], output [n, 1, components]; zero for a constant component.
    """

    def call(self, waveform):  # type: ignore[no-untyped-def]
        """[n, samples, components] -> [n, 1, components]"""
        x = ops.transpose(waveform, (0, 2, 1))
        high, low = ops.max(x, axis=2, keepdims=True) / 2, ops.min(x, axis=2, keepdims=True) / 2
        x = _over(x - (high + low), high - low)
        x = x - ops.mean(x, axis=2, keepdims=True)
        deviation = ops.sqrt(ops.mean(ops.square(x), axis=2, keepdims=True)) * (high - low)
        return ops.transpose(deviation, (0, 2, 1))


@keras.saving.register_keras_serializable("seisserve")
class StandardiseLocally(keras.layers.Layer):
    """Each component minus its running mean, over its running rms, both over 13 blocks of 256 samples (33 s at 100 Hz).

    Input and output [n, samples, components], samples a multiple of 256. Blocks are averaged first; the values between
    their centres are interpolated linearly. What comes out depends on 40 s either way at most, mostly on the nearest
    17 s, so a record needs no windows that overlap. Where a component is constant it becomes zero.
    """

    def call(self, waveform):  # type: ignore[no-untyped-def]
        """[n, samples, components] -> the same shape."""
        x = ops.transpose(waveform, (0, 2, 1))
        high, low = ops.max(x, axis=2, keepdims=True) / 2, ops.min(x, axis=2, keepdims=True) / 2
        x = _over(x - (high + low), high - low)
        x = x - _between_blocks(_over_neighbours(_blocks(x)))
        rms = ops.sqrt(ops.maximum(_over_neighbours(_blocks(ops.square(x))), 0))
        # The rounding errors of a stretch that is constant must not be blown up to a signal.
        x = x / _between_blocks(ops.maximum(rms, ROUNDING))
        return ops.transpose(x, (0, 2, 1))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the input."""
        return shape


BLOCK, BLOCKS = 256, 13
ROUNDING = 1e-6  # of the window's range, in float32


def _blocks(x: Any) -> Any:
    """Means of blocks: [n, components, samples] -> [n, components, blocks]"""
    batch, components, samples = _sizes(x)
    return ops.mean(ops.reshape(x, (batch, components, samples // BLOCK, BLOCK)), axis=3)


def _over_neighbours(means: Any) -> Any:
    """The mean over BLOCKS blocks about each; at the ends over those that there are. [n, components, blocks]"""
    by_time = ops.transpose(means, (0, 2, 1))
    return ops.transpose(ops.average_pool(by_time, BLOCKS, 1, "same"), (0, 2, 1))


def _between_blocks(means: Any) -> Any:
    """Linear between the blocks' centres, constant outside: [n, components, blocks] -> [n, components, samples]"""
    ends = ops.concatenate([means[:, :, :1], means, means[:, :, -1:]], axis=2)
    before, after = ends[:, :, :-1, None], ends[:, :, 1:, None]
    weight = ((np.arange(BLOCK) + 0.5) / BLOCK).astype(np.float32)
    line = before + (after - before) * weight
    batch, components, blocks = _sizes(means)
    return ops.reshape(line, (batch, components, (blocks + 1) * BLOCK))[:, :, BLOCK // 2 : -(BLOCK // 2)]


def _sizes(x: Any) -> tuple[Any, Any, Any]:
    """The three sizes of x for a reshape: the batch is left to it (-1) unless another one is not known either."""
    batch, components, length = ops.shape(x)
    return batch if x.shape[2] is None else -1, components, length


def _over(values: Any, size: Any) -> Any:
    """values / size, and values where size is zero."""
    return values / ops.where(size > 0, size, ops.ones_like(size))
