"""Weights by name, and the layers that the SeisBench networks are made of, over `tf.nn`.

Curves are images of height 1, [n, 1, samples, channels]: onnxruntime runs those twice as fast as images of width 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from seisserve.errors import UsageError
from seisserve_export.importers.eqtransformer import hard_lstm

__all__ = ["HardLstm", "Layer", "State", "convolve", "dense", "halve", "lstm", "repeat", "rescale", "upsample"]

Array = NDArray[np.float64]
Pads = list[tuple[int, int]]  # zeros before and after, along height and width


class Layer(NamedTuple):
    """Kernel and bias. Convolution: [height, width, in, out] and [out]; transposed: [height, width, out, in]; dense:
    [in, out]; rescaling: [channels] twice; LSTM: [in + units, 4 units] and [4 units], gates i, c, f, o."""

    kernel: tf.Variable
    bias: tf.Variable


class HardLstm(NamedTuple):
    """An LSTM with piecewise linear gates, i, f, c, o: kernels [in, 4 units] and [units, 4 units], bias [4 units]."""

    kernel: tf.Variable
    recurrent_kernel: tf.Variable
    bias: tf.Variable


class State:
    """The arrays of a weight set, taken by name. `variables` are all that was made of them.

    components: the order that the network was trained on; `convolution(first=True)` takes them in the order Z, N, E.
    """

    def __init__(self, source: Path, arrays: Mapping[str, NDArray[Any]], components: str = "ZNE") -> None:
        self.source, self.arrays, self.components = source, arrays, components
        self.variables: list[tf.Variable] = []
        self._unused = {name for name in arrays if not name.endswith("num_batches_tracked")}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array. Raises UsageError if there is none of that name."""
        if name not in self.arrays:
            raise UsageError(f"{self.source}: the array {name!r} is missing; this is not the network it looks like")
        return self.arrays[name].shape

    def take(self, name: str, *shape: int) -> Array:
        """An array in float64. Raises UsageError if it is missing, of another shape, or not finite."""
        if self.shape(name) != shape:
            raise UsageError(f"{self.source}: {name!r} has shape {list(self.shape(name))}; expected {list(shape)}")
        self._unused.discard(name)
        array = np.asarray(self.arrays[name], np.float64)
        if not np.isfinite(array).all():
            raise UsageError(f"{self.source}: {name!r} holds values that are not finite")
        return array

    def finish(self) -> None:
        """Raises UsageError if the weight set holds arrays that nothing was made of."""
        if self._unused:
            named = ", ".join(sorted(self._unused)[:3])
            raise UsageError(f"{self.source}: {len(self._unused)} arrays have no place in the network: {named}")

    def variable(self, array: NDArray[Any]) -> tf.Variable:
        """The array as a part of the module."""
        self.variables.append(tf.Variable(np.ascontiguousarray(array, np.float32), trainable=False))
        return self.variables[-1]

    def convolution(
        self, name: str, *shape: int, biased: bool = True, norm: str | None = None, epsilon: float = 1e-3,
        first: bool = False,
    ) -> Layer:  # fmt: skip
        """shape: [out, in, width] or [out, in, height, width]. norm: the batch norm that follows at once.

        first: its inputs are the components.
        """
        kernel = self.take(f"{name}.weight", *shape)
        if first:
            ours = sorted(self.components, key="ZNE".index)
            kernel = kernel[:, [self.components.index(code) for code in ours]]
        bias = self.take(f"{name}.bias", shape[0]) if biased else np.zeros(shape[0])
        return self._folded(_image(kernel).transpose(2, 3, 1, 0), bias, norm, epsilon)

    def transposed(
        self, name: str, *shape: int, biased: bool = False, norm: str | None = None, epsilon: float = 1e-3
    ) -> Layer:
        """A transposed convolution for `upsample`; shape: [in, out, width] or [in, out, height, width]."""
        kernel = _image(self.take(f"{name}.weight", *shape)).transpose(2, 3, 0, 1)  # [height, width, in, out]
        bias = self.take(f"{name}.bias", shape[1]) if biased else np.zeros(shape[1])
        layer = self._fold(kernel, bias, norm, epsilon)
        return Layer(self.variable(layer[0].swapaxes(2, 3)), self.variable(layer[1]))

    def turned(self, name: str, *shape: int) -> Layer:
        """A transposed convolution of stride 1, [in, out, width], as the convolution that it is."""
        kernel = _image(self.take(f"{name}.weight", *shape)[..., ::-1]).transpose(2, 3, 0, 1)
        return Layer(self.variable(kernel), self.variable(self.take(f"{name}.bias", shape[1])))

    def dense(
        self, name: str, inputs: int, outputs: int, norm: str | None = None, order: NDArray[np.intp] | None = None
    ) -> Layer:
        """[in, out]. order: which of the inputs come in which place."""
        kernel = self.take(f"{name}.weight", outputs, inputs).T
        return self._folded(kernel if order is None else kernel[order], self.take(f"{name}.bias", outputs), norm, 1e-3)

    def pointwise(self, name: str, inputs: int, outputs: int, norm: str | None = None) -> Layer:
        """A convolution of width 1, [out, in, 1], as a dense layer."""
        kernel = self.take(f"{name}.weight", outputs, inputs, 1)[:, :, 0].T
        return self._folded(kernel, self.take(f"{name}.bias", outputs), norm, 1e-3)

    def norm(self, name: str, channels: int, epsilon: float = 1e-3) -> Layer:
        """A batch norm that no convolution goes before."""
        return Layer(*map(self.variable, self._norm(name, channels, epsilon)))

    def lstm(
        self, name: str, inputs: int, units: int, suffix: str = "_l0", hard: bool = False
    ) -> Layer | HardLstm:  # fmt: skip
        """PyTorch keeps gates in the order i, f, c, o and two biases. hard: with piecewise linear gates."""
        weights = [
            self.take(f"{name}.weight_{part}{suffix}", 4 * units, n).T for part, n in (("ih", inputs), ("hh", units))
        ]
        bias = self.take(f"{name}.bias_ih{suffix}", 4 * units) + self.take(f"{name}.bias_hh{suffix}", 4 * units)
        if hard:
            return HardLstm(*map(self.variable, (*weights, bias)))
        return Layer(self.variable(_reordered(np.concatenate(weights))), self.variable(_reordered(bias)))

    def _norm(self, name: str, channels: int, epsilon: float) -> tuple[Array, Array]:
        parts = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, variance = (self.take(f"{name}.{part}", channels) for part in parts)
        factor = gamma / np.sqrt(variance + epsilon)
        return factor, beta - mean * factor

    def _fold(self, kernel: Array, bias: Array, norm: str | None, epsilon: float) -> tuple[Array, Array]:
        """The batch norm multiplied into a kernel [..., out] and its bias."""
        if norm is None:
            return kernel, bias
        factor, offset = self._norm(norm, len(bias), epsilon)
        return kernel * factor, bias * factor + offset

    def _folded(self, kernel: Array, bias: Array, norm: str | None, epsilon: float) -> Layer:
        return Layer(*map(self.variable, self._fold(kernel, bias, norm, epsilon)))


def convolve(x: tf.Tensor, layer: Layer, stride: int = 1, pads: Pads | str | None = None) -> tf.Tensor:
    """[n, height, width, channels]. pads: by default half the kernel's size on all sides."""
    if pads is None:
        pads = [(size // 2, size // 2) for size in layer.kernel.shape[:2]]
    padding = pads if isinstance(pads, str) else [(0, 0), *pads, (0, 0)]
    return tf.nn.bias_add(tf.nn.conv2d(x, layer.kernel, [stride, stride], padding), layer.bias)


def upsample(x: tf.Tensor, layer: Layer, stride: int, begin: int, sizes: tuple[int, int]) -> tf.Tensor:
    """A transposed convolution without padding, and of its result (height, width) `sizes` from `begin` on.

    An axis of size 1 that stays so is left alone.
    """
    full = [(size - 1) * stride + kernel for size, kernel in zip(x.shape[1:3], layer.kernel.shape[:2], strict=True)]
    shape = tf.stack([tf.shape(x)[0], *full, layer.kernel.shape[2]])
    x = tf.nn.conv2d_transpose(x, layer.kernel, shape, [stride, stride], "VALID")
    rows, columns = (
        slice(None) if had == wanted else slice(begin, begin + wanted) for had, wanted in zip(full, sizes, strict=True)
    )
    return tf.nn.bias_add(x[:, rows, columns], layer.bias)


def dense(x: tf.Tensor, layer: Layer) -> tf.Tensor:
    """[..., in] -> [..., out]"""
    return tf.matmul(x, layer.kernel) + layer.bias


def rescale(x: tf.Tensor, layer: Layer) -> tf.Tensor:
    """A batch norm by itself."""
    return x * layer.kernel + layer.bias


def halve(x: tf.Tensor, padding: str = "VALID") -> tf.Tensor:
    """The larger of each two neighbours in time. SAME: a last one without neighbour is kept."""
    return tf.nn.max_pool2d(x, [1, 2], [1, 2], padding)


def repeat(x: tf.Tensor, times: int) -> tf.Tensor:
    """Each sample of a curve several times."""
    _, height, width, channels = x.shape
    x = tf.tile(tf.expand_dims(x, 3), [1, 1, 1, times, 1])
    return tf.reshape(x, [-1, height, width * times, channels])


def lstm(x: tf.Tensor, layer: Layer | HardLstm, backwards: bool = False) -> tf.Tensor:
    """[n, steps, features] -> [n, steps, units]; backwards: from the last step to the first."""
    x = tf.transpose(x, (1, 0, 2))
    if backwards:
        x = tf.reverse(x, [0])
    if isinstance(layer, HardLstm):
        states = hard_lstm(x, *layer)
    else:
        units = layer.bias.shape[0] // 4
        nothing, without = tf.zeros((tf.shape(x)[1], units)), tf.zeros((units,))
        states = tf.raw_ops.BlockLSTM(
            seq_len_max=tf.shape(x, tf.int64)[0], x=x, cs_prev=nothing, h_prev=nothing, w=layer.kernel, b=layer.bias,
            wci=without, wcf=without, wco=without, forget_bias=0.0, cell_clip=-1.0,
        ).h  # fmt: skip
    if backwards:
        states = tf.reverse(states, [0])
    return tf.transpose(states, (1, 0, 2))


def _image(kernel: Array) -> Array:
    """[a, b, width] -> [a, b, 1, width]"""
    return kernel[:, :, None] if kernel.ndim == 3 else kernel


def _reordered(weights: Array) -> Array:
    """Gates from i, f, c, o to i, c, f, o, along the last axis."""
    i, f, c, o = np.split(weights, 4, axis=-1)
    return np.concatenate([i, c, f, o], axis=-1)
