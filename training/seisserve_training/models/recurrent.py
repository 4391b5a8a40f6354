"""Recurrent layers in one pass: Hochreiter and Schmidhuber (1997), Neural Computation, doi:10.1162/neco.1997.9.8.1735.

Keras' own LSTM is a loop over small operations in the graph: slow in training, and a loop again in ONNX. BlockLSTM,
an operator of every TensorFlow, runs all steps in one kernel and has a gradient; export makes it ONNX's LSTM. (Its
successor BlockLSTMV2 is registered, in TensorFlow 2.21, with the gradient of BlockLSTM, whose gates have another order:
what it learns is wrong.)
"""

from __future__ import annotations

from typing import Any, Literal

import keras
import tensorflow as tf
from keras import layers, ops

__all__ = ["LSTM", "Gates", "bidirectional"]

Gates = Literal["sigmoid", "hard_sigmoid"]


@keras.saving.register_keras_serializable("seisserve")
class LSTM(layers.Layer):
    """keras.layers.LSTM with weights of the same names, shapes and order.

    Input [n, steps, features]; output [n, steps, units], or the last step's [n, units] without return_sequences.
    backwards: runs from the last step to the first; step i of the output still belongs to step i of the input, and the
    last one computed is that of the first step. gates: the function that opens them, the logistic one, or for weights
    of Keras before 2.3 the line 0.2 x + 0.5 between 0 and 1; only the former runs in one pass in TensorFlow.
    """

    def __init__(
        self, units: int, return_sequences: bool = True, backwards: bool = False, gates: Gates = "sigmoid",
        name: str | None = None, **rest: Any,
    ) -> None:  # fmt: skip
        super().__init__(name=name, **rest)
        self.units, self.return_sequences, self.backwards = units, return_sequences, backwards
        self.gates: Gates = gates
        self._run = {"sigmoid": _in_one_pass, "hard_sigmoid": _step_by_step}[gates]

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Kernels [features or units, 4 units] and bias [4 units], gates in the order i, f, c, o."""
        self.kernel = self.add_weight((shape[-1], 4 * self.units), "glorot_uniform", name="kernel")
        self.recurrent_kernel = self.add_weight((self.units, 4 * self.units), "orthogonal", name="recurrent_kernel")
        self.bias = self.add_weight((4 * self.units,), self._remember, name="bias")

    def call(self, x):  # type: ignore[no-untyped-def]
        """[n, steps, features] -> [n, steps, units] or [n, units]"""
        x = tf.transpose(x, (1, 0, 2))
        if self.backwards:
            x = tf.reverse(x, [0])
        states = self._run(x, self.kernel, self.recurrent_kernel, self.bias)
        if self.backwards:
            states = tf.reverse(states, [0])
        if not self.return_sequences:
            return states[0 if self.backwards else -1]
        return tf.transpose(states, (1, 0, 2))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """That of the input with `units` features, without the steps if only the last one is returned."""
        return (*shape[: 2 if self.return_sequences else 1], self.units)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        names = ("units", "return_sequences", "backwards", "gates")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def _remember(self, shape: Any, dtype: Any = None) -> Any:
        """Forget gates begin open (Jozefowicz et al. 2015), all other biases at zero."""
        units = self.units
        return ops.concatenate([ops.zeros(units, dtype), ops.ones(units, dtype), ops.zeros(2 * units, dtype)])


def bidirectional(x: Any, units: int, merge: str = "concat", *, name: str) -> Any:
    """[n, steps, features] forwards and backwards: [n, steps, 2 * units], or [n, steps, units] if merge is "sum"."""
    both = [LSTM(units, name=f"{name}_forward")(x), LSTM(units, backwards=True, name=f"{name}_backward")(x)]
    return {"concat": layers.Concatenate, "sum": layers.Add}[merge](name=name)(both)


def _in_one_pass(x: Any, kernel: Any, recurrent_kernel: Any, bias: Any) -> Any:
    """[steps, n, features] -> [steps, n, units]"""
    units = bias.shape[0] // 4
    nothing, without = tf.zeros((tf.shape(x)[1], units), x.dtype), tf.zeros((units,), x.dtype)  # states, peepholes
    return tf.raw_ops.BlockLSTM(
        seq_len_max=tf.shape(x, tf.int64)[0], x=x, cs_prev=nothing, h_prev=nothing, b=_reordered(bias),
        w=_reordered(tf.concat([kernel, recurrent_kernel], 0)), wci=without, wcf=without, wco=without,
        forget_bias=0.0, cell_clip=-1.0,
    ).h  # fmt: skip


def _step_by_step(x: Any, kernel: Any, recurrent_kernel: Any, bias: Any) -> Any:
    """As `_in_one_pass` with hard gates, in the form that tf2onnx knows for an LSTM."""
    steps, units = tf.shape(x)[0], bias.shape[0] // 4

    def gate(x: Any) -> Any:
        return tf.maximum(tf.minimum(x * 0.2 + 0.5, 1.0), 0.0)

    def step(number: Any, inputs: Any, states: Any, h: Any, c: Any) -> Any:
        sums = tf.matmul(inputs.read(number), kernel) + tf.matmul(h, recurrent_kernel)
        i, f, g, o = tf.split(tf.nn.bias_add(sums, bias), 4, 1)
        c = gate(f) * c + gate(i) * tf.tanh(g)
        h = gate(o) * tf.tanh(c)
        return number + 1, inputs, states.write(number, h), h, c

    nothing = tf.zeros((tf.shape(x)[1], units), x.dtype)
    inputs = tf.TensorArray(x.dtype, steps, element_shape=(None, x.shape[2])).unstack(x)
    states = tf.TensorArray(x.dtype, steps, element_shape=(None, units))
    start = (tf.constant(0), inputs, states, nothing, nothing)
    return tf.while_loop(lambda number, *_: number < steps, step, start, maximum_iterations=steps)[2].stack()


def _reordered(weights: Any) -> Any:
    """Gates from Keras' order i, f, c, o to BlockLSTM's i, c, f, o, along the last axis."""
    i, f, c, o = tf.split(weights, 4, -1)
    return tf.concat([i, c, f, o], -1)
