"""SeisBench's GPD and BasicPhaseAE: convolutions over short windows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from seisserve_export.importers.seisbench_network import Arguments, Network, Normalisation, phases, sigmoid_or_softmax
from seisserve_export.importers.seisbench_state import State, convolve, dense, halve, repeat

__all__ = ["basic_phase_ae", "gpd"]

GPD_CITATION = "Ross, Meier, Hauksson and Heaton (2018), BSSA 108, 2894-2901, doi:10.1785/0120180080"
AE_CITATION = "Woollam, Rietbrock, Bueno and De Angelis (2019), SRL 90, 491-502, doi:10.1785/0220180312"
GPD_WINDOW, GPD_LAST = 400, 25  # samples in, and after four poolings
AE_WINDOW, AE_BLINDING = 600, 130


def gpd(state: State, arguments: Arguments) -> Network:
    """One set of probabilities for a window of 4 s, which belong to its middle."""
    labels = phases(arguments, None, 3)
    arguments.take("eps")  # beside the largest amplitude, against a division by zero
    arguments.choice("pred_sample", (GPD_WINDOW // 2,), GPD_WINDOW // 2)
    return Network(
        name="GPD",
        citation=GPD_CITATION,
        task="picking",
        window=GPD_WINDOW,
        labels=labels,
        run=_gpd(state, len(labels), arguments.flag("original_compatible")),
        normalisation=Normalisation("peak", together=True),
        thresholds={label: 0.7 for label in labels if label != "N"},
        single=True,
        stride=10,
    )


def basic_phase_ae(state: State, arguments: Arguments) -> Network:
    """An autoencoder over 6 s, whose first and last 130 samples SeisBench leaves out."""
    labels = phases(arguments, "NPS")
    return Network(
        name="BasicPhaseAE",
        citation=AE_CITATION,
        task="picking",
        window=AE_WINDOW,
        labels=labels,
        run=_basic_phase_ae(state, len(labels)),
        normalisation=Normalisation("std"),
        thresholds={label: 0.3 for label in labels if label != "N"},
        overlap=300,
        blinding=(AE_BLINDING, AE_BLINDING),
    )


def _gpd(state: State, labels: int, original: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    channels, kernels = [len(state.components), 32, 64, 128, 256], [21, 15, 11, 9]
    layers = [
        state.convolution(f"conv{i}", channels[i], channels[i - 1], kernels[i - 1], norm=f"bn{i}", first=i == 1)
        for i in range(1, 5)
    ]
    inputs = np.arange(channels[-1] * GPD_LAST)
    # Ours come sample by sample, as in the original; SeisBench's own networks have them channel by channel.
    order = inputs if original else inputs.reshape(channels[-1], GPD_LAST).T.ravel()
    full = [
        state.dense("fc1", len(inputs), 200, norm="bn5", order=order),
        state.dense("fc2", 200, 200, norm="bn6"),
    ]
    last = state.dense("fc3", 200, labels)

    def run(x: tf.Tensor) -> tf.Tensor:
        x = tf.expand_dims(x, 1)
        for layer in layers:
            x = halve(tf.nn.relu(convolve(x, layer)))
        x = tf.reshape(x, [-1, len(inputs)])
        for layer in full:
            x = tf.nn.relu(dense(x, layer))
        return sigmoid_or_softmax(dense(x, last), "sigmoid" if labels == 1 else "softmax")

    return run


def _basic_phase_ae(state: State, labels: int) -> Callable[[tf.Tensor], tf.Tensor]:
    channels = [3, 12, 24, 36, 48]
    down = [state.convolution(f"conv{i}", channels[i], channels[i - 1], 5, first=i == 1) for i in range(1, 5)]
    up = [
        state.turned(f"conv{i}", inputs, outputs, 5) for i, inputs, outputs in ((5, 48, 48), (6, 48, 24), (7, 24, 12))
    ]
    last = state.turned("out", 12, labels, 5)

    def run(x: tf.Tensor) -> tf.Tensor:
        x = tf.expand_dims(x, 1)
        for layer, stride in zip(down, (1, 4, 4, 4), strict=True):
            x = tf.nn.relu(convolve(x, layer, stride, "VALID"))
        x = repeat(halve(x), 2)
        for layer, times in zip(up, (5, 5, 3), strict=True):
            x = repeat(tf.nn.relu(convolve(x, layer)), times)
        return tf.nn.softmax(tf.squeeze(convolve(x, last), 1))

    return run
