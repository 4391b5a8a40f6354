"""SeisBench's EQTransformer, which OBSTransformer is too: detection, P and S from one network with attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from seisserve.manifest import DETECTION
from seisserve_export.importers.seisbench_network import Arguments, Network, Normalisation, phases
from seisserve_export.importers.seisbench_state import (
    HardLstm,
    Layer,
    State,
    convolve,
    dense,
    halve,
    lstm,
    repeat,
    rescale,
)

__all__ = ["eqtransformer"]

CITATION = (
    "Mousavi, Ellsworth, Zhu, Chuang and Beroza (2020), Nature Communications 11, 3952, doi:10.1038/s41467-020-17591-w"
)
WINDOW = 6000
FILTERS, KERNELS = [8, 16, 16, 32, 32, 64, 64], [11, 9, 7, 7, 5, 5, 3]
RESIDUAL_KERNELS = [3, 3, 3, 3, 2, 3, 2]
UNITS, ATTENTION, HIDDEN, NEAR, TAPER = 16, 32, 128, 3, 6
CROPPED = 3  # the step where the original cuts off both ends, for the odd sample that came in one step before
CUSTOM = "bi_lstm_stack.members.0.lstm.cell_f.weight_ih"  # in what was converted from the original
CONSERVATIVE = "pick_lstms.0.cell_f.weight_ih"  # in what keeps its hard sigmoid too

Cell = Layer | HardLstm


class Attention(NamedTuple):
    """Additive attention: query, key, offset, and what makes a number of their sum."""

    query: tf.Variable
    key: tf.Variable
    offset: tf.Variable
    score: Layer


class Transformer(NamedTuple):
    """Attention and a network of two layers, each followed by a normalisation over the channels."""

    attention: Attention
    first: Layer
    wide: Layer
    narrow: Layer
    second: Layer


def eqtransformer(state: State, arguments: Arguments) -> Network:
    """Three curves, each a probability of its own; which of the two originals the weights fit, their names tell."""
    custom, hard = CUSTOM in state.arrays, CONSERVATIVE in state.arrays
    expected = ("conservative",) if hard else ("non-conservative", True) if custom else (False,)
    arguments.choice("original_compatible", expected, expected[0])
    labels = phases(arguments, "PS", 2)
    window = arguments.whole("in_samples", WINDOW)
    arguments.take("drop_rate")
    blocks = 0
    while f"bi_lstm_stack.members.{blocks}.conv.weight" in state.arrays:
        blocks += 1
    if arguments.whole("lstm_blocks", blocks) != blocks:
        raise arguments.refused("lstm_blocks", "another number than the weights have", f"{blocks}")
    norm = arguments.choice("norm", ("std", "peak"), "std")
    detrend = arguments.flag("norm_detrend")
    if arguments.flag("norm_amp_per_comp"):
        norm = "peak"
    return Network(
        name="EQTransformer",
        citation=CITATION,
        task="picking",
        window=window,
        labels=(DETECTION, *labels),
        run=_eqtransformer(state, window, len(labels), blocks, custom, hard),
        normalisation=Normalisation(norm, norm == "std", detrend, TAPER),  # a peak is that of each component
        thresholds={DETECTION: 0.3} | dict.fromkeys(labels, 0.1),
        overlap=3000,
        stacking="max",
        blinding=(500, 500),
    )


def _eqtransformer(
    state: State, window: int, labels: int, blocks: int, custom: bool, hard: bool
) -> Callable[[tf.Tensor], tf.Tensor]:
    epsilon = 1e-7 if custom else 1e-5
    channels = [len(state.components), *FILTERS]
    down = [
        state.convolution(f"encoder.convs.{i}", channels[i + 1], channels[i], KERNELS[i], first=i == 0)
        for i in range(len(FILTERS))
    ]
    residual = [
        _residual_layers(state, f"res_cnn_stack.members.{i}", kernel) for i, kernel in enumerate(RESIDUAL_KERNELS)
    ]
    recurrent = [_recurrent_layers(state, i, custom, hard) for i in range(blocks)]
    transformers = [_transformer_layers(state, name) for name in ("transformer_d0", "transformer_d")]
    picks = [
        (_cells(state, f"pick_lstms.{i}", UNITS, hard, hard)[0], _attention_layers(state, f"pick_attentions.{i}"))
        for i in range(labels)
    ]
    decoders = [_decoder_layers(state, "decoder_d", "conv_d")]
    decoders += [_decoder_layers(state, f"pick_decoders.{i}", f"pick_convs.{i}") for i in range(labels)]

    def run(x: tf.Tensor) -> tf.Tensor:
        x = tf.expand_dims(x, 1)
        sizes = []
        for layer in down:
            sizes.append(x.shape[2])
            x = halve(tf.nn.relu(convolve(x, layer)), "SAME")
        for block in residual:
            y = x
            for norm, layer in block:
                pads = None if layer.kernel.shape[1] % 2 else [(0, 0), (0, 1)]
                y = convolve(tf.nn.relu(rescale(y, norm)), layer, 1, pads)
            x = x + y
        x = tf.squeeze(x, 1)
        for forwards, backwards, joint in recurrent:
            x = dense(tf.concat([lstm(x, forwards), lstm(x, backwards, backwards=True)], 2), joint)
        for transformer in transformers:
            x = _transformer(x, transformer, epsilon)
        curves = [_decoder(x, decoders[0], sizes, custom)]
        for (cell, attention), decoder in zip(picks, decoders[1:], strict=True):
            near = _attention(lstm(x, cell), attention, epsilon, NEAR)
            curves.append(_decoder(near, decoder, sizes, custom))
        return tf.sigmoid(tf.squeeze(tf.concat(curves, 3), 1))

    return run


def _residual_layers(state: State, name: str, kernel: int) -> list[tuple[Layer, Layer]]:
    n = FILTERS[-1]
    return [(state.norm(f"{name}.norm{i}", n), state.convolution(f"{name}.conv{i}", n, n, kernel)) for i in (1, 2)]


def _recurrent_layers(state: State, number: int, custom: bool, hard: bool) -> tuple[Cell, Cell, Layer]:
    """Both directions, and the dense layer after them with its batch norm."""
    name = f"bi_lstm_stack.members.{number}"
    forwards, backwards = _cells(state, f"{name}.lstm", FILTERS[-1] if number == 0 else UNITS, custom, hard, both=True)
    return forwards, backwards, state.pointwise(f"{name}.conv", 2 * UNITS, UNITS, norm=f"{name}.norm")


def _cells(state: State, name: str, inputs: int, custom: bool, hard: bool, both: bool = False) -> list[Cell]:
    """An LSTM, or two; custom: of SeisBench's own cells, whose names differ from PyTorch's."""
    names = [(f"{name}.cell_{way}", "") for way in "fb"] if custom else [(name, "_l0"), (name, "_l0_reverse")]
    return [state.lstm(cell, inputs, UNITS, suffix, hard) for cell, suffix in names[: 1 + both]]


def _attention_layers(state: State, name: str) -> Attention:
    query, key = (state.variable(state.take(f"{name}.{part}", UNITS, ATTENTION)) for part in ("Wt", "Wx"))
    offset = state.variable(state.take(f"{name}.bh", ATTENTION))
    score = (state.variable(state.take(f"{name}.Wa", ATTENTION, 1)), state.variable(state.take(f"{name}.ba", 1)))
    return Attention(query, key, offset, Layer(*score))


def _transformer_layers(state: State, name: str) -> Transformer:
    norms = [
        Layer(*(state.variable(state.take(f"{name}.norm{i}.{part}", UNITS, 1)[:, 0]) for part in ("gamma", "beta")))
        for i in (1, 2)
    ]
    wide, narrow = state.dense(f"{name}.ff.lin1", UNITS, HIDDEN), state.dense(f"{name}.ff.lin2", HIDDEN, UNITS)
    return Transformer(_attention_layers(state, f"{name}.attention"), norms[0], wide, narrow, norms[1])


def _decoder_layers(state: State, name: str, last: str) -> list[Layer]:
    channels, kernels = [UNITS, *FILTERS[::-1]], KERNELS[::-1]
    layers = [
        state.convolution(f"{name}.convs.{i}", channels[i + 1], channels[i], kernel) for i, kernel in enumerate(kernels)
    ]
    return [*layers, state.convolution(last, 1, FILTERS[0], KERNELS[0])]


def _transformer(x: tf.Tensor, layers: Transformer, epsilon: float) -> tf.Tensor:
    x = _layer_norm(x + _attention(x, layers.attention, epsilon), layers.first)
    return _layer_norm(x + dense(tf.nn.relu(dense(x, layers.wide)), layers.narrow), layers.second)


def _attention(x: tf.Tensor, layers: Attention, epsilon: float, near: int | None = None) -> tf.Tensor:
    """[n, steps, channels] to the same. near: how many steps around its own each step sees."""
    steps = x.shape[1]
    query, key = tf.matmul(x, layers.query), tf.matmul(x, layers.key)
    score = tf.squeeze(dense(tf.tanh(query[:, :, None] + key[:, None] + layers.offset), layers.score), 3)
    weight = tf.exp(score - tf.reduce_max(score, 2, keepdims=True))
    if near is not None:
        # Step j is seen from steps j - near // 2 up to, not including, j - near // 2 + near.
        lag = np.arange(steps)[:, None] - np.arange(steps) + near // 2
        weight = weight * ((lag >= 0) & (lag < near)).astype(np.float32)
    return tf.matmul(weight / (tf.reduce_sum(weight, 2, keepdims=True) + epsilon), x)


def _layer_norm(x: tf.Tensor, layer: Layer) -> tf.Tensor:
    x = x - tf.reduce_mean(x, 2, keepdims=True)
    variance = tf.reduce_mean(x * x, 2, keepdims=True)
    return rescale(x / tf.sqrt(variance + 1e-14), layer)


def _decoder(x: tf.Tensor, layers: list[Layer], sizes: list[int], custom: bool) -> tf.Tensor:
    """[n, steps, channels] -> logits [n, 1, samples, 1]; sizes: samples before each halving."""
    x = tf.expand_dims(x, 1)
    for number, (layer, size) in enumerate(zip(layers[:-1], sizes[::-1], strict=True)):
        x = repeat(x, 2)
        if not custom:
            x = x[:, :, :size]
        elif number == CROPPED:
            x = x[:, :, 1:-1]
        x = tf.nn.relu(convolve(x, layer))
    return convolve(x, layers[-1])
