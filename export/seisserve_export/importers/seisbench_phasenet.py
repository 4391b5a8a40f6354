"""SeisBench's PhaseNet in its three forms: PhaseNet, VariableLengthPhaseNet and PhaseNetLight."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from seisserve_export.importers.seisbench_network import Arguments, Network, Normalisation, phases, sigmoid_or_softmax
from seisserve_export.importers.seisbench_state import State, convolve, upsample

__all__ = ["phasenet", "phasenet_light"]

CITATION = "Zhu and Beroza (2019), Geophysical Journal International 216, 261-273, doi:10.1093/gji/ggy423"
WINDOW = 3001
KERNEL, STRIDE, LEVELS, ROOT = 7, 4, 5, 8
DOWN_PADS = [(3, 3), (2, 3), (1, 3), (2, 3)]  # of PhaseNet's strided convolutions; the other forms have 3 everywhere
LIGHT = [8, 11, 16, 22, 32]  # channels of PhaseNetLight's levels
THRESHOLD = 0.3
VARIABLE = ("in_samples", "norm_axis", "output_activation")  # arguments that only VariableLengthPhaseNet has


def phasenet(state: State, arguments: Arguments) -> Network:
    """PhaseNet, or VariableLengthPhaseNet, whose arrays have the same names, if the arguments are of that."""
    variable = any(key in arguments for key in VARIABLE)
    labels = phases(arguments, "PSN" if variable else "NPS")
    activation, together = "softmax", False
    window = arguments.whole("in_samples", 600) if variable else WINDOW
    if variable:
        activation = arguments.choice("output_activation", ("softmax", "sigmoid"), "softmax")
        together = arguments.choice("norm_axis", ([-1], [-1, -2], [-2, -1]), [-1]) != [-1]
        arguments.choice("empty", (False,), False)
    root = state.shape("inc.weight")[0]
    if arguments.whole("filter_factor", root // ROOT) * ROOT != root:
        raise arguments.refused("filter_factor", root / ROOT, f"what the {root} channels of the weights say")
    return Network(
        name="VariableLengthPhaseNet" if variable else "PhaseNet",
        citation=CITATION,
        task="picking",
        window=window,
        labels=labels,
        run=_phasenet(state, root, len(labels), activation, variable),
        normalisation=_normalisation(arguments, "peak" if variable else "std", together),
        thresholds=_thresholds(labels),
        overlap=0.5 if variable else 1500,
    )


def phasenet_light(state: State, arguments: Arguments) -> Network:
    """The reduced network of SeisBench before version 0.3."""
    labels = phases(arguments, "NPS")
    return Network(
        name="PhaseNetLight",
        citation=CITATION,
        task="picking",
        window=WINDOW,
        labels=labels,
        run=_phasenet_light(state, len(labels)),
        normalisation=_normalisation(arguments, "std", False),
        thresholds=_thresholds(labels),
        overlap=1500,
    )


def _thresholds(labels: tuple[str, ...]) -> dict[str, float]:
    return {label: THRESHOLD for label in labels if label != "N"}


def _normalisation(arguments: Arguments, default: str, together: bool) -> Normalisation:
    by = arguments.choice("norm", ("std", "peak"), default)
    detrend = arguments.flag("norm_detrend")
    if arguments.flag("norm_amp_per_comp"):
        by = "peak"
    return Normalisation(by, together, detrend)


def _phasenet(
    state: State, root: int, labels: int, activation: str, variable: bool
) -> Callable[[tf.Tensor], tf.Tensor]:
    first = state.convolution("inc", root, len(state.components), KERNEL, norm="in_bn", first=True)
    down, reduce, enlarge, up = [], [], [], []
    for level in range(LEVELS):
        n, above = root * 2**level, root * 2 ** max(level - 1, 0)
        name = f"down_branch.{level}"
        down.append(state.convolution(f"{name}.0", n, above, KERNEL, biased=False, norm=f"{name}.1"))
        if level < LEVELS - 1:
            reduce.append(state.convolution(f"{name}.2", n, n, KERNEL, biased=False, norm=f"{name}.3"))
    for number in range(LEVELS - 1):
        n = root * 2 ** (LEVELS - 2 - number)
        name = f"up_branch.{number}"
        enlarge.append(state.transposed(f"{name}.0", 2 * n, n, KERNEL, norm=f"{name}.1"))
        up.append(state.convolution(f"{name}.2", n, 2 * n, KERNEL, biased=False, norm=f"{name}.3"))
    last = state.convolution("out", labels, root, 1)

    def run(x: tf.Tensor) -> tf.Tensor:
        x = tf.nn.relu(convolve(tf.expand_dims(x, 1), first))
        skips = []
        for level in range(LEVELS - 1):
            x = tf.nn.relu(convolve(x, down[level]))
            skips.append(x)
            pads = (3, 3) if variable else DOWN_PADS[level]
            x = tf.nn.relu(convolve(x, reduce[level], STRIDE, [(0, 0), pads]))
        x = tf.nn.relu(convolve(x, down[-1]))
        for number in range(LEVELS - 1):
            skip = skips.pop()
            before, after = (0, 0) if variable else (1, 2)  # samples that are cut off before the middle is taken
            full = (x.shape[2] - 1) * STRIDE + KERNEL - before - after
            begin = before + (full - skip.shape[2]) // 2
            x = tf.nn.relu(upsample(x, enlarge[number], STRIDE, begin, (1, skip.shape[2])))
            x = tf.nn.relu(convolve(tf.concat([skip, x], 3), up[number]))
        return sigmoid_or_softmax(tf.squeeze(convolve(x, last), 1), activation)

    return run


def _phasenet_light(state: State, labels: int) -> Callable[[tf.Tensor], tf.Tensor]:
    epsilon = 1e-5
    first = state.convolution("inc", LIGHT[0], len(state.components), 1, norm="in_bn", epsilon=epsilon, first=True)
    down = [
        state.convolution(f"conv{i}.conv", LIGHT[i], LIGHT[i - 1], KERNEL, norm=f"bnd{i}", epsilon=epsilon)
        for i in range(1, LEVELS)
    ]
    up = [
        state.transposed(
            f"up{i}", LIGHT[-i] * (1 if i == 1 else 2), LIGHT[-i - 1], KERNEL, biased=True, norm=f"bnu{i}",
            epsilon=epsilon,
        )
        for i in range(1, LEVELS)
    ]  # fmt: skip
    last = state.turned("out", 2 * LIGHT[0], labels, 1)

    def run(x: tf.Tensor) -> tf.Tensor:
        x = tf.nn.relu(convolve(tf.expand_dims(x, 1), first))
        skips = [x]
        for layer in down:
            x = tf.nn.relu(convolve(x, layer, STRIDE))
            skips.append(x)
        skips.pop()
        for number, layer in enumerate(up, 1):
            skip = skips.pop()
            begin = 3 if number == LEVELS - 1 else 2
            x = tf.nn.relu(upsample(x, layer, STRIDE, begin, (1, skip.shape[2])))
            x = tf.concat([x, skip], 3)
        return tf.nn.softmax(tf.squeeze(convolve(x, last), 1))

    return run
