"""Import the published EQTransformer (Mousavi et al., 2020) as a TensorFlow module that takes raw counts.

``load_eqtransformer_h5(path)`` reads either of the two networks that its authors published, as whole Keras models:
EqT_model.h5 (three bidirectional LSTMs, whose gates open along the piecewise linear "hard" sigmoid) and EqT_model2.h5
(two, with the logistic function). The network is written out below over ``tf.nn``; the file gives the numbers, by
name, and which gates they are meant for.

The module's ``serve`` maps ``waveform [n, 6000, 3]`` (raw, order Z, N, E, 100 Hz) to ``probability [n, 6000, 3]``
(detection, P, S). Normalisation and the order of components (published: E, N, Z) are part of the graph.

A file that is not there raises ``FileNotFoundError``, one that is not EQTransformer ``ValueError``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from seisserve.manifest import Label, Manifest, Output, Tensor
from seisserve_export.importers.keras_hdf5 import Variables, read_variables
from seisserve_export.importers.phasenet import normalise

__all__ = ["EQTRANSFORMER_ORIGINAL", "hard_lstm", "load_eqtransformer_h5"]

WINDOW, COMPONENTS = 6000, 3
LABELS = ("detection", "P", "S")
HEADS = ("detector", "picker_P", "picker_S")
ENCODER = ((11, 8), (9, 16), (7, 16), (7, 32), (5, 32), (5, 64), (3, 64))  # width and filters, each halving the length
RESIDUAL = (3, 3, 3, 3, 2, 3, 2)  # widths of the pairs of convolutions
DECODER = ((3, 64), (5, 64), (5, 32), (7, 32), (7, 16), (9, 16), (11, 8))  # each doubling the length
CROPPED = 3  # the step of a decoder that loses a sample at each end: 752 -> 750
UNITS, ATTENTION_UNITS, HIDDEN, HEAD_WIDTH = 16, 32, 128, 11
NEIGHBOURS = 1  # on either side, that local attention sees
BATCH_NORM_EPSILON, LAYER_NORM_EPSILON, ATTENTION_EPSILON = 1e-3, 1e-14, 1e-7  # of the original

EQTRANSFORMER_ORIGINAL = Manifest(
    name="eqtransformer_original",
    task="picking",
    summary="EQTransformer as its authors published it, trained on the Stanford Earthquake Dataset (STEAD)",
    licence="MIT",
    citation="Mousavi et al. (2020), Nature Communications 11, 3952, doi:10.1038/s41467-020-17591-w",
    sampling_rate_hz=100.0,
    components="ZNE",
    window_samples=WINDOW,
    hop_samples=WINDOW // 2,
    blinding_samples=500,
    edge_samples=500,
    input=Tensor(name="waveform", shape=(-1, WINDOW, COMPONENTS)),
    outputs=(Output(name="probability", shape=(-1, WINDOW, len(LABELS)), labels=LABELS),),
    labels={label: Label(threshold=0.3, chosen_on="as in the paper's applications") for label in LABELS},
)


def load_eqtransformer_h5(path: Path) -> tf.Module:
    """Read the published ``EqT_model.h5`` or ``EqT_model2.h5``."""
    network = _Network(path, read_variables(path), _gates(path))
    module = tf.Module(name="eqtransformer")
    module.weights = network.weights

    def serve(waveform: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probability": network(normalise(waveform))}

    signature = [tf.TensorSpec([None, WINDOW, COMPONENTS], tf.float32, name="waveform")]
    module.serve = tf.function(serve, input_signature=signature, autograph=False)
    return module


def _gates(path: Path) -> str:
    """The one `recurrent_activation` of all LSTMs, which the weights alone do not tell."""
    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise ValueError(f"{path}: only weights; expected a whole Keras model, which says which gates they have")
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
    cells: list[Any] = [layer["config"].get("layer", layer) for layer in layers]
    gates = {str(cell["config"].get("recurrent_activation", "")) for cell in cells} - {""}
    if len(gates) != 1 or not gates <= {"sigmoid", "hard_sigmoid"}:
        raise ValueError(f"{path}: not EQTransformer, the gates of its LSTMs are {sorted(gates)}")
    return gates.pop()


class _Network:
    """The layers by their published names and numbers.

    weights: the variables, each made when it is first used, batch norms multiplied in where a convolution precedes.
    """

    def __init__(self, source: Path, arrays: Variables, gates: str) -> None:
        self.source, self.arrays, self.gates = source, arrays, gates
        self.recurrent = sum(name.startswith("forward_lstm_") and name.endswith("/kernel") for name in arrays)
        self.weights: dict[str, tf.Variable] = {}
        self(tf.zeros((1, WINDOW, COMPONENTS)))  # what is missing is missed now

    def __call__(self, waveform: tf.Tensor) -> tf.Tensor:
        """Probabilities ``[n, sample, label]`` of normalised waveforms ``[n, sample, component]``."""
        x = tf.expand_dims(waveform, 1)  # images of height 1 are twice as fast as images of width 1
        for number, (width, filters) in enumerate(ENCODER, start=1):
            x = tf.nn.relu(self.conv(x, number, width, filters))
            x = tf.nn.max_pool2d(x, [1, 2], [1, 2], "SAME")
        for block, width in enumerate(RESIDUAL):
            first, filters = len(ENCODER) + 1 + 2 * block, x.shape[3]
            y = tf.nn.relu(self.norm(x, 2 * block + 1))
            y = tf.nn.relu(self.conv(y, first, width, filters, norm=2 * block + 2))
            x = x + self.conv(y, first + 1, width, filters)
        before = len(ENCODER) + 2 * len(RESIDUAL)
        for block in range(1, self.recurrent + 1):
            x = tf.squeeze(x, 1)
            both = [self.lstm(x, f"forward_lstm_{block}"), self.lstm(x, f"backward_lstm_{block}", backwards=True)]
            x = tf.expand_dims(tf.concat(both, 2), 1)
            x = self.conv(x, before + block, 1, UNITS, norm=2 * len(RESIDUAL) + block)
        x = tf.squeeze(x, 1)
        for block, name in enumerate(("attentionD0", "attentionD")):
            x = self.layer_norm(x + self.attention(x, name), 2 * block + 1)
            x = self.layer_norm(x + self.feed_forward(x, block + 1), 2 * block + 2)
        branches = [x] + [
            self.attention(self.lstm(x, f"lstm_{self.recurrent + number}"), name, local=True)
            for number, name in enumerate(("attentionP", "attentionS"), start=1)
        ]
        before += self.recurrent + 1
        curves = [
            self.decode(branch, before + len(DECODER) * number, HEADS[number]) for number, branch in enumerate(branches)
        ]
        return tf.sigmoid(tf.squeeze(tf.concat(curves, 3), 1))

    def decode(self, x: tf.Tensor, first: int, head: str) -> tf.Tensor:
        """[n, step, feature] -> [n, 1, sample, 1], before the sigmoid."""
        x = tf.expand_dims(x, 1)
        for step, (width, filters) in enumerate(DECODER):
            x = tf.image.resize(x, [1, 2 * x.shape[2]], "nearest")
            if step == CROPPED:
                x = x[:, :, 1:-1]
            x = tf.nn.relu(self.conv(x, first + step, width, filters))
        return self.conv(x, head, HEAD_WIDTH, 1)

    def conv(self, x: tf.Tensor, layer: int | str, width: int, filters: int, norm: int | None = None) -> tf.Tensor:
        """[n, 1, sample, feature] -> [n, 1, sample, filters], through the batch norm of that number if there is one."""
        layer = f"conv1d_{layer}" if isinstance(layer, int) else layer
        kernel = self.array(f"{layer}/kernel", width, x.shape[3], filters)
        bias = self.array(f"{layer}/bias", filters)
        if layer == "conv1d_1":
            kernel = kernel[:, ::-1]  # the published input is E, N, Z; ours is Z, N, E
        if norm is not None:
            factor, offset = self.scale(norm, filters)
            kernel, bias = kernel * factor, bias * factor + offset
        x = tf.nn.conv2d(x, self.variable(f"{layer}/kernel", kernel[None]), 1, "SAME")
        return tf.nn.bias_add(x, self.variable(f"{layer}/bias", bias))

    def norm(self, x: tf.Tensor, number: int) -> tf.Tensor:
        """A batch norm that follows no convolution."""
        factor, offset = self.scale(number, x.shape[3])
        name = f"batch_normalization_{number}"
        return x * self.variable(f"{name}/factor", factor) + self.variable(f"{name}/offset", offset)

    def scale(self, number: int, features: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """A batch norm as a factor and an offset."""
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        gamma, beta, mean, variance = (self.array(f"batch_normalization_{number}/{name}", features) for name in names)
        factor = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
        return factor, beta - mean * factor

    def lstm(self, x: tf.Tensor, layer: str, backwards: bool = False) -> tf.Tensor:
        """[n, step, feature] -> [n, step, UNITS]; backwards too, step by step of the input."""
        kernel = self.array(f"{layer}/kernel", x.shape[2], 4 * UNITS)
        recurrent_kernel = self.array(f"{layer}/recurrent_kernel", UNITS, 4 * UNITS)
        bias = self.array(f"{layer}/bias", 4 * UNITS)
        run = _lstm if self.gates == "sigmoid" else hard_lstm
        if self.gates == "sigmoid":  # BlockLSTM has the gates i, c, f, o, Keras i, f, c, o
            order = np.arange(4 * UNITS).reshape(4, UNITS)[[0, 2, 1, 3]].ravel()
            kernel, recurrent_kernel, bias = kernel[:, order], recurrent_kernel[:, order], bias[order]
        x = tf.transpose(x, [1, 0, 2])
        x = tf.reverse(x, [0]) if backwards else x
        states = run(
            x,
            self.variable(f"{layer}/kernel", kernel),
            self.variable(f"{layer}/recurrent_kernel", recurrent_kernel),
            self.variable(f"{layer}/bias", bias),
        )
        return tf.transpose(tf.reverse(states, [0]) if backwards else states, [1, 0, 2])

    def attention(self, x: tf.Tensor, layer: str, local: bool = False) -> tf.Tensor:
        """Additive self-attention: [n, step, feature] -> the same shape.

        local: only the nearest steps share, but the largest score of all is subtracted and the sum gets a small
        number, as in the original: where a step is far below the largest score it gives less than its share.
        """
        names = {"Wt": (UNITS, ATTENTION_UNITS), "Wx": (UNITS, ATTENTION_UNITS), "bh": (ATTENTION_UNITS,),
                 "Wa": (ATTENTION_UNITS, 1), "ba": (1,)}  # fmt: skip
        query, key, bias, weight, offset = (
            self.variable(f"{layer}/{name}", self.array(f"{layer}/{layer}_Add_{name}", *shape))
            for name, shape in names.items()
        )
        sums = tf.expand_dims(tf.matmul(x, query), 2) + tf.expand_dims(tf.matmul(x, key), 1)
        score = tf.squeeze(tf.matmul(tf.tanh(sums + bias), weight), 3) + offset  # [n, step, step]
        score = tf.exp(score - tf.reduce_max(score, 2, keepdims=True))
        if local:
            steps = np.arange(x.shape[1])
            score = score * (np.abs(steps[:, None] - steps) <= NEIGHBOURS).astype(np.float32)
        return tf.matmul(score / (tf.reduce_sum(score, 2, keepdims=True) + ATTENTION_EPSILON), x)

    def layer_norm(self, x: tf.Tensor, number: int) -> tf.Tensor:
        """Each step of [n, step, feature] over its features."""
        name = f"layer_normalization_{number}"
        gamma, beta = (
            self.variable(f"{name}/{part}", self.array(f"{name}/{part}", UNITS)) for part in ("gamma", "beta")
        )
        x = x - tf.reduce_mean(x, 2, keepdims=True)
        return gamma * x / tf.sqrt(tf.reduce_mean(x * x, 2, keepdims=True) + LAYER_NORM_EPSILON) + beta

    def feed_forward(self, x: tf.Tensor, number: int) -> tf.Tensor:
        """Two dense layers on the features of each step."""
        name = f"feed_forward_{number}"
        names = {"W1": (UNITS, HIDDEN), "b1": (HIDDEN,), "W2": (HIDDEN, UNITS), "b2": (UNITS,)}
        w1, b1, w2, b2 = (
            self.variable(f"{name}/{part}", self.array(f"{name}/{name}_{part}", *shape))
            for part, shape in names.items()
        )
        return tf.matmul(tf.nn.relu(tf.matmul(x, w1) + b1), w2) + b2

    def array(self, name: str, *shape: int) -> npt.NDArray[np.float64]:
        """The published numbers of that name."""
        if name not in self.arrays:
            raise ValueError(f"{self.source}: not EQTransformer, the variable '{name}' is missing")
        if self.arrays[name].shape != shape:
            found = self.arrays[name].shape
            raise ValueError(f"{self.source}: not EQTransformer, '{name}' has shape {found} instead of {shape}")
        return self.arrays[name].astype(np.float64)

    def variable(self, name: str, array: npt.NDArray[np.float64]) -> tf.Variable:
        """The array as a part of the module."""
        if name not in self.weights:
            self.weights[name] = tf.Variable(array.astype(np.float32), trainable=False)
        return self.weights[name]


def _lstm(x: tf.Tensor, kernel: tf.Tensor, recurrent_kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """[step, n, feature] -> [step, n, UNITS], gates by the logistic function: TensorFlow's own operator."""
    nothing, without = tf.zeros((tf.shape(x)[1], UNITS)), tf.zeros((UNITS,))
    return tf.raw_ops.BlockLSTM(
        seq_len_max=x.shape[0], x=x, cs_prev=nothing, h_prev=nothing, w=tf.concat([kernel, recurrent_kernel], 0),
        b=bias, wci=without, wcf=without, wco=without, forget_bias=0.0, cell_clip=-1.0,
    ).h  # fmt: skip


def hard_lstm(x: tf.Tensor, kernel: tf.Tensor, recurrent_kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """As `_lstm` with gates that open linearly between -2.5 and 2.5, written such that tf2onnx knows it for an LSTM."""

    def gate(x: tf.Tensor) -> tf.Tensor:
        return tf.maximum(tf.minimum(x * 0.2 + 0.5, 1.0), 0.0)

    def step(number: tf.Tensor, inputs: tf.TensorArray, states: tf.TensorArray, h: tf.Tensor, c: tf.Tensor) -> Any:
        sums = tf.matmul(inputs.read(number), kernel) + tf.matmul(h, recurrent_kernel)
        i, f, g, o = tf.split(tf.nn.bias_add(sums, bias), 4, 1)
        c = gate(f) * c + gate(i) * tf.tanh(g)
        h = gate(o) * tf.tanh(c)
        return number + 1, inputs, states.write(number, h), h, c

    steps, nothing = x.shape[0], tf.zeros((tf.shape(x)[1], UNITS))
    inputs = tf.TensorArray(tf.float32, steps, element_shape=(None, x.shape[2])).unstack(x)
    states = tf.TensorArray(tf.float32, steps, element_shape=(None, UNITS))
    start = (tf.constant(0), inputs, states, nothing, nothing)
    return tf.while_loop(lambda number, *_: number < steps, step, start, maximum_iterations=steps)[2].stack()
