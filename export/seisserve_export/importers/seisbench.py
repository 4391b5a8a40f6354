"""Import weight sets of SeisBench (Woollam et al. 2022, doi:10.1785/0220210324) as TensorFlow modules of raw counts.

Which network it is, is read off the names of the arrays; the description (NAME.json) has its arguments and defaults.
What SeisBench does with a stream before and with a window around the network is part of the graph here: the filter,
the mean, normalisation, tapers, spectrograms, and the order of the components. What cannot be is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from seisserve.errors import UsageError
from seisserve.manifest import Label, Manifest, Output, Tensor
from seisserve_export.importers.seisbench_classifiers import basic_phase_ae, gpd
from seisserve_export.importers.seisbench_cred import cred
from seisserve_export.importers.seisbench_deepdenoiser import deep_denoiser
from seisserve_export.importers.seisbench_eqtransformer import eqtransformer
from seisserve_export.importers.seisbench_files import Files, read_arrays, read_description
from seisserve_export.importers.seisbench_filter import apply, impulse_response
from seisserve_export.importers.seisbench_network import Arguments, Network, Normalisation
from seisserve_export.importers.seisbench_phasenet import phasenet, phasenet_light
from seisserve_export.importers.seisbench_state import State

__all__ = ["Imported", "load_seisbench"]

# Arrays that only one network has.
NETWORKS: dict[str, Callable[[State, Arguments], Network]] = {
    "down_branch.0.0.weight": phasenet,
    "bnd1.weight": phasenet_light,
    "transformer_d0.attention.Wx": eqtransformer,
    "fc3.weight": gpd,
    "cnn_block1.convs.0.weight": cred,
    "down_conv_blocks.0.conv1.weight": deep_denoiser,
    "conv7.weight": basic_phase_ae,
}
NO_NETWORK = {
    "conv1.depthwise.weight": "DeepPhasePick's detector",
    "lstm1.weight_ih_l0": "one of DeepPhasePick's pickers",
}
DESCRIPTION = {"docstring", "model_args", "seisbench_requirement", "version", "default_args"}
# What of the defaults is about SeisBench's own reading and batching, not about the network.
NOT_OURS = ("batch_size", "strict", "flexible_horizontal_components", "zerophase_resample")
EDGE_SAMPLES = 100  # of networks that leave nothing out at the ends of a window, as for the original PhaseNet
SUMMARY = 400  # characters of the description that are kept


class Imported(NamedTuple):
    """A module for `bundles.save_bundle`, and its manifest."""

    module: tf.Module
    manifest: Manifest


def load_seisbench(files: Files, name: str | None = None) -> Imported:
    """A weight set as a module whose `serve` maps `waveform` [n, samples, components] (raw, in the order Z, N, E) to
    `probability`, or `waveform` of a denoiser. name: of the model; by default made of the network's and the weights'.

    Raises UsageError for files that are damaged, networks that are not known, and arguments that cannot be carried.
    """
    description = read_description(files.description)
    unknown = sorted(set(description) - DESCRIPTION)
    if unknown:
        raise UsageError(f"{files.description}: unknown keys {', '.join(unknown)}; expected {', '.join(DESCRIPTION)}")
    made = _section(files, description, "model_args")
    defaults = {**(made.pop("default_args", None) or {}), **_section(files, description, "default_args")}
    arguments = Arguments(files.description, "model_args", made)
    rate = arguments.number("sampling_rate", 100)
    components = _components(arguments)
    taps = _filter(arguments, rate)
    state = State(files.weights, read_arrays(files.weights), components)
    network = _identify(state)(state, arguments)
    arguments.finish()
    state.finish()
    reach = 0 if taps is None else len(taps) // 2
    if reach and (network.normalisation is None or reach > network.window):
        raise UsageError(
            f"{files.description}: the filter rings for {reach} samples, longer than the network's window of "
            f"{network.window}; SeisBench filters whole records, which a graph over windows cannot"
        )
    ours = "".join(sorted(components, key="ZNE".index))
    reading = Arguments(files.description, "default_args", defaults)
    manifest = _manifest(files, description, network, ours, rate, reading, reach, name)
    return Imported(_module(network, state, len(ours), taps), manifest)


def _section(files: Files, description: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = description.get(key) or {}
    if not isinstance(section, dict):
        raise UsageError(f"{files.description}: {key} is {section!r}; expected names and values")
    return dict(section)


def _identify(state: State) -> Callable[[State, Arguments], Network]:
    for array, network in NETWORKS.items():
        if array in state.arrays:
            return network
    for array, part in NO_NETWORK.items():
        if array in state.arrays:
            raise UsageError(
                f"{state.source}: this is {part}. DeepPhasePick is three networks, of which the second and third look "
                "at what the first has found; that is no graph over fixed windows, and SeisBench itself cannot apply it"
            )
    raise UsageError(
        f"{state.source}: no network that can be imported has such arrays ({', '.join(list(state.arrays)[:3])}, ...); "
        "PhaseNet, PhaseNetLight, VariableLengthPhaseNet, EQTransformer, OBSTransformer, GPD, CRED, BasicPhaseAE and "
        "DeepDenoiser can be"
    )


def _components(arguments: Arguments) -> str:
    """Order of the components as trained, in Z, N and E."""
    if arguments.choice("grouping", ("instrument", "channel"), "instrument") == "channel":
        arguments.take("component_order")
        return "ZNE"
    arguments.choice("allow_padding", (False,), False)
    value = arguments.take("component_order", "ZNE")
    order = "".join(value) if isinstance(value, list) and all(isinstance(code, str) for code in value) else value
    order = order.replace("1", "N").replace("2", "E") if isinstance(order, str) else ""
    if not re.fullmatch(r"[ZNE]{1,3}", order) or len(set(order)) < len(order):
        raise arguments.refused(
            "component_order", value, "some of Z, N, E (or 1, 2), each once: no other component fits"
        )
    if arguments.whole("in_channels", len(order)) != len(order):
        raise arguments.refused("in_channels", "another number than that of the components", f"{len(order)}")
    return order


def _filter(arguments: Arguments, rate: float) -> NDArray[np.float64] | None:
    """Taps of what SeisBench would do to the record, centred on their middle."""
    names, options = arguments.take("filter_args"), arguments.take("filter_kwargs")
    if names is None and options is None:
        return None
    if not isinstance(names, list) or len(names) != 1 or not isinstance(options or {}, dict):
        raise arguments.refused("filter_args", names, "the name of one filter for all components, as ['bandpass']")
    try:
        return impulse_response(names[0], rate, **(options or {}))
    except (TypeError, ValueError) as error:
        raise arguments.refused("filter_args", (names, options), f"a filter of ObsPy: {error}") from error


def _manifest(
    files: Files, description: Mapping[str, Any], network: Network, components: str, rate: float, reading: Arguments,
    reach: int, name: str | None,
) -> Manifest:  # fmt: skip
    """reach: samples that the window has more than the network's at both ends, for the filter."""
    for key in NOT_OURS:
        reading.take(key)
    given = {label: reading.take(f"{label}_threshold") for label in network.thresholds}
    before, after = _blinding(reading, network)
    blinding = max(before, after)
    stacking = {"avg": "mean", "max": "max"}[reading.choice("stacking", ("avg", "max"), network.stacking)]
    hop = min(_hop(reading, network), network.window - 2 * blinding)
    reading.finish()
    if hop < 1:
        raise reading.refused("blinding", [before, after], f"less than half of the window's {network.window} samples")
    text = " ".join(str(description.get("docstring") or "").split())
    sentence = f"{network.name} with weights {files.name} of SeisBench ({files.weights.name}, sha256 {files.digest()})"
    labels = {
        label: Label(
            threshold=default if given[label] is None else given[label],
            chosen_on=f"default of SeisBench's {network.name}" if given[label] is None else "stated with the weights",
        )
        for label, default in network.thresholds.items()
    }
    window = network.window + 2 * reach
    edge = network.window // 2 if network.single else blinding or (0 if network.task == "denoising" else EDGE_SAMPLES)
    shape = (-1, len(network.labels)) if network.single else (-1, window, len(network.labels))
    output = "waveform" if network.task == "denoising" else "probability"
    return Manifest(
        name=name or _name(network, files),
        task=network.task,
        summary=f"{sentence}: {text[:SUMMARY]}{'...' if len(text) > SUMMARY else ''}" if text else sentence,
        licence=_licence(text),
        citation=f"{network.citation}; Woollam et al. (2022), SeisBench, doi:10.1785/0220210324",
        sampling_rate_hz=float(rate),
        components=components,
        window_samples=window,
        hop_samples=hop,
        stacking="max" if stacking == "max" else "mean",
        blinding_samples=0 if network.single else blinding + reach,
        edge_samples=edge + reach,
        input=Tensor(name="waveform", shape=(-1, window, len(components))),
        outputs=(Output(name=output, shape=shape, labels=network.labels, stride=hop if network.single else 1),),
        labels=labels,
    )


def _blinding(reading: Arguments, network: Network) -> tuple[int, int]:
    value = reading.take("blinding", list(network.blinding))
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(n, int) and n >= 0 for n in value):
        raise reading.refused("blinding", value, "two numbers of samples")
    return value[0], value[1]


def _hop(reading: Arguments, network: Network) -> int:
    if network.stride is not None:
        return reading.whole("stride", network.stride)
    overlap = reading.number("overlap", network.overlap)
    samples = int(overlap * network.window) if overlap < 1 else int(overlap)
    if samples >= network.window:
        raise reading.refused("overlap", overlap, f"less than the window's {network.window} samples")
    return network.window - samples


def _name(network: Network, files: Files) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{network.name.lower()}_{files.name}")
    return name[:64]


def _licence(text: str) -> str:
    """What the description says of it, word for word."""
    said = [sentence for sentence in re.split(r"(?<=[.!?])\s+", text) if re.search("licen[cs]e", sentence, re.I)]
    return (
        f"not stated with the weights, but: {' '.join(said)[:200].rstrip('.')}"
        if said
        else "not stated with the weights"
    )


def _module(network: Network, state: State, components: int, taps: NDArray[np.float64] | None) -> tf.Module:
    module = tf.Module(name=network.name.lower())
    module.weights = state.variables
    output = "waveform" if network.task == "denoising" else "probability"

    reach = 0 if taps is None else len(taps) // 2

    def serve(waveform: tf.Tensor) -> dict[str, tf.Tensor]:
        how = network.normalisation
        found = network.run(waveform if how is None else normalise(waveform, how, taps))
        if reach and not network.single:  # what the filter could not reach has no probability
            found = tf.pad(found, [[0, 0], [reach, reach], [0, 0]])
        return {output: found}

    signature = [tf.TensorSpec([None, network.window + 2 * reach, components], tf.float32, name="waveform")]
    module.serve = tf.function(serve, input_signature=signature, autograph=False)
    return module


def normalise(waveform: tf.Tensor, how: Normalisation, taps: NDArray[np.float64] | None = None) -> tf.Tensor:
    """[n, samples, components] as SeisBench would have it, whatever the amplitude; exact zeros if constant. With a
    filter, shorter by the samples at both ends that it needs.

    SeisBench adds 1e-10 to what it divides by; nothing is added here, so that records in metres per second do not
    vanish. The middle of the range of a constant is that constant, which cannot be said of its mean in float32.
    """
    x = tf.transpose(waveform, [0, 2, 1])  # [n, component, sample]: reductions along memory are much faster in ONNX
    high, low = tf.reduce_max(x, 2, keepdims=True), tf.reduce_min(x, 2, keepdims=True)
    axes = [1, 2] if how.together else [2]
    x = _divide(x - (0.5 * high + 0.5 * low), tf.reduce_max(0.5 * high - 0.5 * low, axes, keepdims=True))
    x = _centred(x if taps is None else apply(_centred(x), taps))
    if how.detrend:
        ramp = np.linspace(-1, 1, x.shape[2], dtype=np.float32)
        x = x - tf.reduce_sum(x * ramp, 2, keepdims=True) * (ramp / np.sum(ramp**2))
    if how.by == "peak":
        x = _divide(x, tf.reduce_max(tf.abs(x), axes, keepdims=True))
    else:  # of n - 1, and about zero, as the mean is off already
        count = x.shape[2] * (x.shape[1] if how.together else 1)
        x = _divide(x, tf.sqrt(tf.reduce_sum(x * x, axes, keepdims=True) / (count - 1)))
    if how.taper:
        rise = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, how.taper))
        x = x * np.concatenate([rise, np.ones(x.shape[2] - 2 * how.taper), rise[::-1]]).astype(np.float32)
    return tf.transpose(x, [0, 2, 1])


def _centred(x: tf.Tensor) -> tf.Tensor:
    return x - tf.reduce_mean(x, 2, keepdims=True)


def _divide(x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    return x / tf.where(scale > 0, scale, 1.0)
