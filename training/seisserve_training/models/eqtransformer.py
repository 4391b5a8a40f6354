"""EQTransformer: Mousavi et al. (2020), Nature Communications 11, 3952, doi:10.1038/s41467-020-17591-w."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from seisserve.errors import UsageError
from seisserve.manifest import Output
from seisserve_training.config import Network
from seisserve_training.models import published
from seisserve_training.models.architecture import Architecture, Serving
from seisserve_training.models.layers import Standardise
from seisserve_training.models.recurrent import LSTM, Gates
from seisserve_training.tasks.detection_phases import DETECTION_AND_PHASES, DETECTION_LABELS

__all__ = ["EQTRANSFORMER", "WINDOW", "eqtransformer", "load_published"]

CITATION = "Mousavi et al. (2020), Nature Communications 11, 3952, doi:10.1038/s41467-020-17591-w"
WINDOW = 6000
ENCODER = ((11, 1), (9, 2), (7, 2), (7, 4), (5, 4), (5, 8), (3, 8))  # width, filters in those of the first layer
RESIDUAL = (3, 3, 3, 3, 2, 3, 2)  # widths
DECODER = ((3, 8), (5, 8), (5, 4), (7, 4), (7, 2), (9, 2), (11, 1))
CROPPED = 3  # the step of a decoder that loses a sample at each end: 752 -> 750
BLINDING = 500  # the ends of a window are seen with half their surroundings only


def eqtransformer(
    components: int = 3, filters: int = 8, dropout: float = 0.0, recurrent: int = 2, gates: Gates = "sigmoid"
) -> keras.Model:
    """The network of the paper, normalisation included.

    Input `waveform` [n, 6000, components] in raw counts; output `probability` [n, 6000, 3] of detection, P and S, each
    by itself between 0 and 1. filters: of the first layer, all others in proportion (8 as published). recurrent, gates:
    how many bidirectional LSTMs, and which function opens them (EqT_model2.h5 has 2 and "sigmoid", EqT_model.h5 has 3
    and "hard_sigmoid"). Dropout is for training only (the published models leave theirs on when they predict).
    """
    units = 2 * filters
    waveform = keras.Input((WINDOW, components), name="waveform")
    x = ops.expand_dims(Standardise(name="standardise")(waveform), 1)
    for number, (width, times) in enumerate(ENCODER, start=1):
        x = _conv(x, times * filters, width, f"encoder{number}", "relu")
        x = layers.MaxPooling2D((1, 2), padding="same", name=f"encoder{number}_pool")(x)
    for number, width in enumerate(RESIDUAL, start=1):
        y = x
        for part in ("a", "b"):
            y = _norm_relu(y, f"residual{number}{part}", dropout)
            y = _conv(y, x.shape[-1], width, f"residual{number}{part}")
        x = layers.Add(name=f"residual{number}")([x, y])
    x = ops.squeeze(x, 1)
    for number in range(1, recurrent + 1):
        both = [
            LSTM(units, gates=gates, name=f"recurrent{number}_forward")(x),
            LSTM(units, backwards=True, gates=gates, name=f"recurrent{number}_backward")(x),
        ]
        x = layers.Concatenate(name=f"recurrent{number}")(both)
        x = layers.Conv1D(units, 1, name=f"recurrent{number}_mix")(layers.SpatialDropout1D(dropout)(x))
        x = _norm(f"recurrent{number}_norm")(x)
    for number in (1, 2):
        x = LayerNorm(name=f"transformer{number}_norm1")(x + Attention(4 * filters, name=f"attention{number}")(x))
        y = layers.Dense(16 * filters, "relu", name=f"transformer{number}_wide")(x)
        y = layers.Dense(units, name=f"transformer{number}_narrow")(layers.Dropout(dropout)(y))
        x = LayerNorm(name=f"transformer{number}_norm2")(x + y)
    curves = [_decode(x, filters, "detection")]
    for label in ("P", "S"):
        y = LSTM(units, gates=gates, name=f"{label}_recurrent")(x)
        curves.append(_decode(Attention(4 * filters, local=True, name=f"{label}_attention")(y), filters, label))
    logits = ops.squeeze(layers.Concatenate(name="logits")(curves), 1)
    return keras.Model(waveform, layers.Activation("sigmoid", name="sigmoid")(logits), name="eqtransformer")


def _decode(x: Any, filters: int, label: str) -> Any:
    """[n, steps, units] -> [n, 1, samples, 1], before the sigmoid."""
    x = ops.expand_dims(x, 1)
    for number, (width, times) in enumerate(DECODER, start=1):
        x = ops.image.resize(x, (1, 2 * x.shape[2]), "nearest")  # UpSampling2D would be copies and reshapes in ONNX
        if number == CROPPED + 1:
            x = layers.Cropping2D((0, 1), name=f"{label}{number}_crop")(x)
        x = _conv(x, times * filters, width, f"{label}{number}", "relu")
    return _conv(x, 1, DECODER[-1][0], f"{label}_logit")


def _conv(x: Any, filters: int, width: int, name: str, activation: str | None = None) -> Any:
    """Two-dimensional of height one, for which runtimes have their fast kernels: [n, 1, samples, filters]."""
    return layers.Conv2D(filters, (1, width), padding="same", activation=activation, name=name)(x)


def _norm(name: str) -> Any:
    return layers.BatchNormalization(momentum=0.98, epsilon=1e-3, name=name)


def _norm_relu(x: Any, name: str, dropout: float) -> Any:
    x = layers.ReLU(name=f"{name}_relu")(_norm(f"{name}_norm")(x))
    return layers.SpatialDropout2D(dropout, name=f"{name}_dropout")(x) if dropout else x


@keras.saving.register_keras_serializable("seisserve")
class Attention(layers.Layer):
    """Additive self-attention: [n, steps, features] -> the same shape; every step takes from all (Bahdanau 2015).

    local: from itself and its two neighbours only. As in the published network the largest score of all steps is
    subtracted all the same and a small number added to the sum: a step whose neighbourhood scores low gives less.
    """

    def __init__(self, units: int, local: bool = False, name: str | None = None, **rest: Any) -> None:
        super().__init__(name=name, **rest)
        self.units, self.local = units, local

    def build(self, shape: tuple[int | None, ...]) -> None:
        """The weights in the published order."""
        self.query = self.add_weight((shape[-1], self.units), "glorot_normal", name="Wt")
        self.key = self.add_weight((shape[-1], self.units), "glorot_normal", name="Wx")
        self.bias = self.add_weight((self.units,), "zeros", name="bh")
        self.weight = self.add_weight((self.units, 1), "glorot_normal", name="Wa")
        self.offset = self.add_weight((1,), "zeros", name="ba")

    def call(self, x):  # type: ignore[no-untyped-def]
        """[n, steps, features] -> the same shape."""
        sums = ops.expand_dims(ops.matmul(x, self.query), 2) + ops.expand_dims(ops.matmul(x, self.key), 1)
        score = ops.squeeze(ops.matmul(ops.tanh(sums + self.bias), self.weight), 3) + self.offset  # [n, steps, steps]
        score = ops.exp(score - ops.max(score, axis=2, keepdims=True))
        if self.local:
            steps = np.arange(x.shape[1])
            score = score * (np.abs(steps[:, None] - steps) <= 1).astype(np.float32)
        return ops.matmul(score / (ops.sum(score, axis=2, keepdims=True) + 1e-7), x)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {**super().get_config(), "units": self.units, "local": self.local}


@keras.saving.register_keras_serializable("seisserve")
class LayerNorm(layers.LayerNormalization):
    """keras.layers.LayerNormalization with the published epsilon, which its own fused form is too coarse for."""

    def call(self, x):  # type: ignore[no-untyped-def]
        """[n, steps, features] -> the same shape."""
        x = x - ops.mean(x, axis=-1, keepdims=True)
        return self.gamma * x / ops.sqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-14) + self.beta


def load_published(model: keras.Model, path: Path) -> None:
    """Set the weights of an `eqtransformer` of the published size to those of EqT_model.h5 or EqT_model2.h5.

    Raises UsageError that names the first layer whose weights the file does not have, or not in that shape, and one if
    the file was trained with other gates or another number of LSTMs.
    """
    file = published.read(path)
    own = next(layer for layer in model.layers if isinstance(layer, LSTM))
    recurrent = sum(isinstance(layer, LSTM) and layer.backwards for layer in model.layers)
    found = sum(name.startswith("backward_lstm_") and name.endswith("/kernel") for name in file.arrays)
    gates = {
        text for text in ("sigmoid", "hard_sigmoid") if f'"recurrent_activation": "{text}"' in json.dumps(file.config)
    }
    if (found, gates) != (recurrent, {own.gates}):
        raise UsageError(
            f"{path} has {found} bidirectional LSTMs with the gates {sorted(gates)}; the network has {recurrent} with "
            f"{own.gates!r}"
        )
    for name, (layer, variables) in _published_names(recurrent).items():
        weights = model.get_layer(name).weights
        values = []
        for weight, variable in zip(weights, variables, strict=True):
            value = file.array(f"{layer}/{variable}", name, tuple(weight.shape))
            if layer == "conv1d_1" and variable == "kernel":
                value = value[:, :, ::-1]  # the published input is E, N, Z; ours is Z, N, E
            values.append(value)
        model.get_layer(name).set_weights(values)


def _published_names(recurrent: int) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Our layer names, with the published layer and its variables in our order."""
    convs = [f"encoder{number}" for number in range(1, 8)]
    convs += [f"residual{number}{part}" for number in range(1, 8) for part in ("a", "b")]
    norms = [f"residual{number}{part}_norm" for number in range(1, 8) for part in ("a", "b")]
    convs += [f"recurrent{number}_mix" for number in range(1, recurrent + 1)]
    norms += [f"recurrent{number}_norm" for number in range(1, recurrent + 1)]
    convs += [f"{label}{number}" for label in DETECTION_LABELS for number in range(1, 8)]
    affine, lstm = ("kernel", "bias"), ("kernel", "recurrent_kernel", "bias")
    names: dict[str, tuple[str, tuple[str, ...]]] = {}
    names |= {name: (f"conv1d_{number}", affine) for number, name in enumerate(convs, start=1)}
    for label, head in zip(DETECTION_LABELS, ("detector", "picker_P", "picker_S"), strict=True):
        names[f"{label}_logit"] = head, affine
    published = ("gamma", "beta", "moving_mean", "moving_variance")
    names |= {name: (f"batch_normalization_{number}", published) for number, name in enumerate(norms, start=1)}
    for number in range(1, recurrent + 1):
        for way in ("forward", "backward"):
            names[f"recurrent{number}_{way}"] = f"{way}_lstm_{number}", lstm
    for number, label in enumerate(("P", "S"), start=1):
        names[f"{label}_recurrent"] = f"lstm_{recurrent + number}", lstm
    attentions = {"attention1": "D0", "attention2": "D", "P_attention": "P", "S_attention": "S"}
    for name, letter in attentions.items():
        layer = f"attention{letter}"
        names[name] = layer, tuple(f"{layer}_Add_{variable}" for variable in ("Wt", "Wx", "bh", "Wa", "ba"))
    for block in (1, 2):
        for part in (1, 2):
            names[f"transformer{block}_norm{part}"] = f"layer_normalization_{2 * block + part - 2}", ("gamma", "beta")
        layer = f"feed_forward_{block}"
        names[f"transformer{block}_wide"] = layer, (f"{layer}_W1", f"{layer}_b1")
        names[f"transformer{block}_narrow"] = layer, (f"{layer}_W2", f"{layer}_b2")
    return names


def build(network: Network, components: int) -> keras.Model:
    """The network of a configuration."""
    if network.window_samples != WINDOW:
        raise UsageError(f"network.window_samples is {network.window_samples}; EQTransformer takes {WINDOW}")
    return eqtransformer(components, network.filters, network.dropout)


def serve(network: Network, components: int) -> Serving:
    """Windows that overlap by half; the network takes no other length."""
    return Serving(
        window_samples=WINDOW,
        hop_samples=WINDOW // 2,
        blinding_samples=BLINDING,
        edge_samples=BLINDING,
        outputs=(Output(name="probability", shape=(-1, WINDOW, len(DETECTION_LABELS)), labels=DETECTION_LABELS),),
        thresholds=dict.fromkeys(DETECTION_LABELS, 0.3),
    )


EQTRANSFORMER = Architecture("picking", CITATION, build, serve, DETECTION_AND_PHASES, load_published)
