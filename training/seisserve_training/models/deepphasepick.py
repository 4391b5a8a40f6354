"""DeepPhasePick: Soto and Schurr (2021), Geophysical Journal International 227, doi:10.1093/gji/ggab266.

One network of three parts. A convolutional one says whether the onset nearest the middle of a short window is one of P
or S. Two recurrent ones, for P and for S, say of every moment how likely it is that the onset has passed, under
Monte Carlo dropout. The curve of a phase is the density of its onset (the slope of that step), scaled to height one,
times the probability of the phase: its peak is the pick, and its width carries the spread of the Monte Carlo runs.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from seisserve.manifest import Output
from seisserve_training.config import Network
from seisserve_training.labels import PHASES
from seisserve_training.models.architecture import Architecture, Serving
from seisserve_training.models.layers import Standardise
from seisserve_training.models.recurrent import bidirectional
from seisserve_training.tasks.onsets import ONSETS, REACH, STRIDE

__all__ = ["DEEPPHASEPICK", "MonteCarloStep", "OnsetCurves", "deepphasepick"]

CITATION = "Soto and Schurr (2021), Geophysical Journal International 227, doi:10.1093/gji/ggab266"
LEVELS = 5  # of the detection network; each halves the time axis
RUNS = 32  # Monte Carlo dropout's
DROPOUT = 0.25
SMOOTH = 2.0  # samples: standard deviation of what the densities are smoothed with
SPREAD = 18  # samples that this reaches
BETWEEN = STRIDE / 2  # samples from the middle between two steps to the middle of the second
SLOWEST = 0.01  # density of a step that takes about the whole window: what rises more slowly is no onset


@keras.saving.register_keras_serializable("seisserve")
class MonteCarloStep(layers.Layer):
    """The probability of each moment that the onset has passed, from the features of a recurrent network.

    Input [n, steps, features], output [n, steps, 1]. While training, dropout hides features at random. When served, the
    mean over RUNS runs with dropout is taken whose masks were drawn once, so that the same window has the same answer
    always and everywhere. A mask over the features is one over the rows of the kernel, so all runs are one product.
    """

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Kernel, bias and the masks, which are not trained."""
        features = int(shape[-1] or 0)
        masks = (np.random.default_rng(2021).random((features, RUNS)) >= DROPOUT).astype(np.float32) / (1 - DROPOUT)
        self.dropout = layers.Dropout(DROPOUT, noise_shape=(None, 1, features))
        self.kernel = self.add_weight(name="kernel", shape=(features, 1))
        self.bias = self.add_weight(name="bias", shape=(1,), initializer="zeros")
        self.masks = self.add_weight(
            name="masks", shape=masks.shape, initializer=lambda *_, **__: ops.convert_to_tensor(masks), trainable=False
        )

    def call(self, features, training=False):  # type: ignore[no-untyped-def]
        """[n, steps, features] -> [n, steps, 1]."""
        if training:
            return ops.sigmoid(ops.matmul(self.dropout(features, training=True), self.kernel) + self.bias)
        runs = ops.sigmoid(ops.matmul(features, self.kernel * self.masks) + self.bias)
        return ops.mean(runs, axis=2, keepdims=True)


@keras.saving.register_keras_serializable("seisserve")
class OnsetCurves(layers.Layer):
    """From the classes of a window and the steps of P and S to the curves that picks are read from.

    Inputs: classes [n, 3] (N, P, S) and steps [n, samples / STRIDE, 2] (P, S). Output [n, samples, 3], N, P, S, which
    add up to one. While training it gives what the loss looks at instead: [n, samples / STRIDE, 5], the classes at
    every step and the steps.
    """

    def build(self, shapes: list[tuple[int | None, ...]]) -> None:
        """The Gaussian that carries steps to samples is a constant, which is not trained."""
        weight = np.exp(-0.5 * ((np.arange(SPREAD) - (SPREAD - 1) / 2 + BETWEEN) / SMOOTH) ** 2)
        weight = weight.astype(np.float32)[None, :, None, None]
        self.spread = self.add_weight(
            name="spread",
            shape=weight.shape,
            initializer=lambda *_, **__: ops.convert_to_tensor(weight),
            trainable=False,
        )

    def call(self, inputs, training=False):  # type: ignore[no-untyped-def]
        """[n, 3], [n, steps, 2] -> [n, samples, 3]; while training [n, steps, 5]."""
        classes, steps = inputs
        if training:
            return ops.concatenate([ops.repeat(classes[:, None], steps.shape[1], axis=1), steps], axis=2)
        passed = ops.transpose(steps, (0, 2, 1))
        before = ops.concatenate([passed[:, :, :1], passed[:, :, :-1]], axis=2)
        rise = ops.relu(passed - before)[..., None]
        density = ops.conv_transpose(rise, self.spread, (1, STRIDE), "same")[..., 0]
        shape = density / ops.maximum(ops.max(density, axis=2, keepdims=True), SLOWEST)
        curves = ops.transpose(shape * classes[:, 1:, None], (0, 2, 1))
        return ops.concatenate([1 - ops.sum(curves, axis=2, keepdims=True), curves], axis=2)


def deepphasepick(
    components: int = 3, window_samples: int = 480, filters: int = 8, dropout: float = 0.0
) -> keras.Model:
    """The three networks in one graph, normalisation included; all of them see all components.

    Input `waveform` [n, samples, components] in raw counts, samples a multiple of 32; output `probability`
    [n, samples, 3] (N, P, S). With training=True the output is [n, samples / STRIDE, 5], see OnsetCurves. dropout: of
    the detection network; the onset networks have their own.
    """
    waveform = keras.Input((window_samples, components), name="waveform")
    x = ops.expand_dims(Standardise(name="standardise")(waveform), 1)
    steps = layers.Concatenate(name="steps")([_onset(x, filters, phase) for phase in PHASES[1:]])
    curves = OnsetCurves(name="curves")([_classes(x, filters, dropout), steps])
    return keras.Model(waveform, curves, name="deepphasepick")


def _classes(x: Any, filters: int, dropout: float) -> Any:
    """The detection network: [n, 1, samples, components] -> [n, 3]."""
    for level in range(LEVELS):
        name = f"detect{level}"
        if level:
            x = layers.DepthwiseConv2D((1, 7), padding="same", use_bias=False, name=f"{name}_depth")(x)
        x = layers.Conv2D(
            2 * filters + filters * level, (1, 1 if level else 9), padding="same", use_bias=False, name=name
        )(x)
        x = layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_norm", momentum=0.98)(x))
        x = layers.MaxPooling2D((1, 2), name=f"{name}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(4 * filters, activation="relu", name="dense")(x)
    x = layers.Dropout(dropout, name="dropout")(x) if dropout else x
    return layers.Dense(len(PHASES), activation="softmax", name="classes")(x)


def _onset(x: Any, filters: int, phase: str) -> Any:
    """The onset network of a phase: [n, 1, samples, components] -> [n, samples / STRIDE, 1]."""
    name = f"onset_{phase.lower()}"
    x = layers.Conv2D(2 * filters, (1, 7), (1, STRIDE), "same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_norm", momentum=0.98)(x))
    x = bidirectional(ops.squeeze(x, 1), 3 * filters, name=f"{name}_bilstm")
    return MonteCarloStep(name=f"{name}_step")(x)


def build(network: Network, components: int) -> keras.Model:
    """The network of a configuration."""
    return deepphasepick(components, network.window_samples, network.filters, network.dropout)


def serve(network: Network, components: int) -> Serving:
    """Windows a quarter of their length apart; an onset counts in those in whose middle half it lies."""
    window = network.window_samples
    return Serving(
        window_samples=window,
        hop_samples=window // 4,
        blinding_samples=round((0.5 - REACH) * window),
        outputs=(Output(name="probability", shape=(-1, window, len(PHASES)), labels=PHASES),),
        thresholds={"P": 0.5, "S": 0.5},
        stacking="max",
    )


DEEPPHASEPICK = Architecture("picking", CITATION, build, serve, ONSETS)
