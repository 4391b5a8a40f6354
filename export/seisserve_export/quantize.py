"""Smaller numbers: convolutions in int8 (QDQ, U8S8, static, per channel), or weights alone stored as int8 or float16.

Plain post-training int8 loses picks, because 8 bits must hold the noise before an arrival and the coda after it. What
keeps them, measured in docs/quantization.md: channels are scaled to like ranges, exactly, since Relu lets a positive
factor pass (cross-layer equalisation: Nagel et al. 2019, doi:10.1109/ICCV.2019.00141); ranges leave out one value in
10,000; and as many layers at either end of the network stay float as the picks need. Only convolutions are
quantized, with the Relu and Concat between them; normalisation, softmax and STFT stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.errors import BundleError
from seisserve.extras import need
from seisserve_export.fold import CUT, LONGEST, MASK

if TYPE_CHECKING:
    import onnx
    from onnx import NodeProto

__all__ = [
    "DENSE", "EQUALISATION", "Ends", "Method", "Ranges", "calibrate", "equalise", "layers", "least_ends", "quantize",
    "search", "store",
]  # fmt: skip

Method = Literal["minmax", "percentile", "entropy"]
Ranges = Mapping[str, tuple[float, float]]  # lowest and highest value by name
DENSE = ("LSTM", "MatMul")  # layers that stay float, whose weights may be stored in fewer bits
EQUALISATION = 0.75  # power of a channel's share of the range: at 1 the weights take all of the loss
STEEPEST = 16.0  # the largest factor of a channel; dead ones would have any
LEFT_OUT = 0.01  # per cent of the values at either end, in `percentile`
BINS, LEVELS = 2048, 128  # of `entropy`
SMALLEST = 1024  # values; weights with fewer are not worth storing otherwise
LIKE = ("Concat", "Reshape", "Transpose")  # what goes in and what comes out have one scale


class Ends(NamedTuple):
    """How many convolutions stay float at the beginning and at the end."""

    first: int
    last: int


def layers(graph: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that can be quantized, in order."""
    constants = _constants(graph)
    return [
        node.name
        for node in graph.graph.node
        if node.op_type in ("Conv", "ConvTranspose")
        and len(node.input) == 3
        and all(name in constants for name in node.input[1:])
        and constants[node.input[1]].shape[-1] <= LONGEST
    ]


def equalise(
    graph: onnx.ModelProto,
    batches: Iterable[NDArray[np.float32]],
    power: float = EQUALISATION,
    free: onnx.ModelProto | None = None,
) -> onnx.ModelProto:
    """The same network with the channels behind each Relu scaled towards one range, and what takes them scaled back.

    batches: windows, float32 [n, samples, components]. free: the same graph for windows of their length, where the
    graph has another. Left alone is a Relu that is not between convolutions.
    """
    onnx, changed = need("onnx", "export"), _copy(graph)
    _own_constants(changed)
    by_output = {name: node for node in changed.graph.node for name in node.output}
    known, constants = set(layers(changed)), {name: array.copy() for name, array in _constants(changed).items()}
    takers: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in changed.graph.node:
        source = by_output.get(node.input[0]) if node.op_type == "Relu" else None
        if source is not None and source.name in known:
            found = _takers(changed, node.output[0], known, constants, by_output)
            if found:
                takers[node.output[0]] = found
    highest = _largest(free or graph, list(takers), batches)
    for value, found in takers.items():
        source = by_output[by_output[value].input[0]]
        # A layer takes all that is joined for it at one scale.
        layers_behind = {taker.name for taker, _ in found}
        joined = [one for one, behind in takers.items() if layers_behind & {taker.name for taker, _ in behind}]
        largest = max(highest[other].max() for other in joined) or np.float32(1)
        factor = ((largest / np.maximum(highest[value], largest / STEEPEST)) ** power).astype(np.float32)
        axis = 0 if source.op_type == "Conv" else 1
        constants[source.input[1]] *= _along(factor, axis, constants[source.input[1]].ndim)
        constants[source.input[2]] *= factor
        for taker, first in found:
            weights, axis = constants[taker.input[1]], 1 if taker.op_type == "Conv" else 0
            part = [slice(None)] * weights.ndim
            part[axis] = slice(first, first + len(factor))
            weights[tuple(part)] /= _along(factor, axis, weights.ndim)
    for item in changed.graph.initializer:
        item.CopyFrom(onnx.numpy_helper.from_array(constants[item.name], item.name))
    return changed


def calibrate(
    graph: onnx.ModelProto, batches: Iterable[NDArray[np.float32]], method: Method = "percentile"
) -> dict[str, tuple[float, float]]:
    """The range of every value that can be quantized.

    minmax: all that was seen. percentile: the widest range that holds all but 0.01 % at either end of a batch.
    entropy: the one whose 8 bits tell most about the histogram (Migacz 2017, GPU Technology Conference S7310).
    """
    names = sorted({name for group in _groups(graph, layers(graph)) for name in group})
    found: dict[str, tuple[float, float]] = {}
    if method != "entropy":
        ends = [0, 100] if method == "minmax" else [LEFT_OUT, 100 - LEFT_OUT]
        for values in _values(graph, names, batches):
            for name, value in values.items():
                low, high = np.percentile(value, ends).tolist()
                before = found.get(name, (0.0, 0.0))
                found[name] = (min(before[0], low), max(before[1], high))
        return found
    batches = list(batches)
    widest = calibrate(graph, batches, "minmax")
    counts = {name: np.zeros(BINS) for name in names}
    for values in _values(graph, names, batches):
        for name, value in values.items():
            largest = max(-widest[name][0], widest[name][1]) or 1.0
            counts[name] += np.histogram(np.abs(value[value != 0]), BINS, (0, largest))[0]
    for name, (low, high) in widest.items():
        share = _best_cut(counts[name]) / BINS
        largest = max(-low, high) * share
        found[name] = (max(low, -largest), min(high, largest))
    return found


def quantize(graph: onnx.ModelProto, ranges: Ranges, ends: Ends) -> onnx.ModelProto:
    """The graph with QuantizeLinear and DequantizeLinear around its convolutions, but for those at its ends.

    Weights are int8 with a scale for each output channel, activations uint8 with one scale and zero point.
    """
    onnx, changed = need("onnx", "export"), _copy(graph)
    names, constants = layers(graph), _constants(graph)
    chosen = set(names[ends.first : len(names) - ends.last])
    scales: dict[str, tuple[np.float32, np.uint8]] = {}
    for group in _groups(graph, chosen):
        low, high = (pick(ranges[name][k] for name in group) for k, pick in ((0, min), (1, max)))
        low, high = min(low, 0.0), max(high, 0.0)
        step = np.float32((high - low) / 255 or 1.0)
        scales |= dict.fromkeys(group, (step, np.uint8(np.clip(round(-low / float(step)), 0, 255))))
    nodes: list[NodeProto] = []

    def constant(name: str, values: NDArray[np.generic] | np.generic) -> str:
        changed.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def dequantized(name: str, values: NDArray[np.generic], scale: NDArray[np.float32], axis: int) -> str:
        zeros = constant(f"{name}/zero", np.zeros(len(scale), values.dtype))
        inputs = [constant(f"{name}/int", values), constant(f"{name}/scale", scale), zeros]
        nodes.append(onnx.helper.make_node("DequantizeLinear", inputs, [f"{name}/float"], f"{name}/float", axis=axis))
        return f"{name}/float"

    exact, int_masks = _floats(graph, chosen, scales), set[str]()
    for node in changed.graph.node:
        inside = node.name in chosen or (_is_like(node) and node.output[0] in scales)
        if _is_mask(node) and node.output[0] in scales.keys() - exact:
            inside, mask = True, f"{node.input[1]}/constant"
            if mask not in int_masks:
                held = [constant(f"{mask}/int", _mask(graph, node.input[1])), constant(f"{mask}/scale", np.float32(1)),
                        constant(f"{mask}/zero", np.uint8(0))]  # fmt: skip
                nodes.append(onnx.helper.make_node("DequantizeLinear", held, [f"{mask}/float"], f"{mask}/float"))
                int_masks.add(mask)
            node.input[1] = f"{mask}/float"
        if node.name in chosen:
            source, axis = node.input[0], 0 if node.op_type == "Conv" else 1
            weights, scale = _rounded(constants[node.input[1]], axis)
            bias_scale = (scales[source][0] * scale).astype(np.float32)
            bias = np.clip(np.rint(constants[node.input[2]] / bias_scale.astype(np.float64)), -(2**31), 2**31 - 1)
            node.input[1] = dequantized(f"{node.name}/weights", weights, scale, axis)
            node.input[2] = dequantized(f"{node.name}/bias", bias.astype(np.int32), bias_scale, 0)
        for place, name in enumerate(node.input):
            if name in scales and (inside or name not in exact):
                node.input[place] = f"{name}/dequantized"
        nodes.append(node)
        for name in node.output:
            if name in scales:
                held = [constant(f"{name}/scale", scales[name][0]), constant(f"{name}/zero", scales[name][1])]
                for kind, source, made in (("Quantize", name, "int"), ("Dequantize", f"{name}/int", "dequantized")):
                    made = f"{name}/{made}"
                    nodes.append(onnx.helper.make_node(f"{kind}Linear", [source, *held], [made], made))
    _replace_nodes(changed, nodes)
    return changed


def search(
    names: int, worth: Callable[[Ends], tuple[float, float]], good: tuple[float, float]
) -> tuple[Ends, list[tuple[Ends, tuple[float, float]]]]:
    """The ends that are to stay float: some more at a time, where they help most, until the picks are good enough.

    names: how many convolutions there are; a step is a sixteenth of them. worth: share of picks that match and 95 % of
    their residuals with such ends. good: the same two that are wanted. Returns the ends, and all that was tried; where
    even one layer alone in int8 is not good enough, the best of what was tried.
    """
    step, tried = max(1, names // 16), list[tuple[Ends, tuple[float, float]]]()

    def badness(ends: Ends) -> float:
        matched, p95 = worth(ends)
        tried.append((ends, (matched, p95)))
        return max(good[0] - matched, 0) * 100 + max(p95 - good[1], 0)

    here = chosen = least_ends(names)
    missing = best = badness(here)
    while missing > 0 and here.first + here.last + step < names:
        ways = [Ends(here.first + step, here.last), Ends(here.first, here.last + step)]
        missing, here = min(((badness(way), way) for way in ways), key=lambda one: one[0])
        if missing < best:
            best, chosen = missing, here
    return chosen, tried


def least_ends(names: int) -> Ends:
    """What stays float in any case: the first and the last of more than a few layers."""
    return Ends(1, 1) if names > 4 else Ends(0, 0)


def store(
    graph: onnx.ModelProto, precision: Literal["bfloat16", "float16", "weights8"], kinds: Iterable[str] | None = None
) -> onnx.ModelProto:
    """The graph with its weights in fewer bits; runtimes make float32 of them when they load it, and compute in that.

    bfloat16, float16: as they are. weights8: int8 with a float32 scale for each output channel (for each, where there
    are none).
    kinds: of the layers that it is done to, all by default.
    """
    onnx, changed = need("onnx", "export"), _copy(graph)
    first: list[NodeProto] = []
    channels = {"ConvTranspose": 1, "MatMul": 1, "LSTM": 1}  # the axis of the output channels, else the first
    axes = {name: channels.get(node.op_type, 0) for node in changed.graph.node for name in node.input[1:]}
    wanted = {node.op_type for node in changed.graph.node} if kinds is None else set(kinds)
    taken = {name for node in changed.graph.node if node.op_type in wanted for name in node.input}
    make, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    for item in list(changed.graph.initializer):
        values = onnx.numpy_helper.to_array(item)
        name = item.name
        if values.dtype != np.float32 or values.size < SMALLEST or name not in taken:
            continue
        changed.graph.initializer.remove(item)
        if precision != "weights8":
            if precision == "float16" and np.abs(values).max() > np.finfo(np.float16).max:
                raise BundleError(f"{name}: weights up to {np.abs(values).max():.3g} do not fit into float16")
            half = np.float16 if precision == "float16" else need("ml_dtypes", "export").bfloat16
            changed.graph.initializer.append(tensor(values.astype(half), f"{name}/half"))
            first.append(make("Cast", [f"{name}/half"], [name], f"{name}/Cast", to=onnx.TensorProto.FLOAT))
            continue
        axis = min(axes.get(name, 0), values.ndim - 1)
        whole, scale = _rounded(values, axis)
        changed.graph.initializer.append(tensor(whole, f"{name}/int"))
        changed.graph.initializer.append(tensor(_along(scale, axis, values.ndim), f"{name}/scale"))
        first.append(make("Cast", [f"{name}/int"], [f"{name}/whole"], f"{name}/Cast", to=onnx.TensorProto.FLOAT))
        first.append(make("Mul", [f"{name}/whole", f"{name}/scale"], [name], f"{name}/Mul"))
    _replace_nodes(changed, [*first, *changed.graph.node])
    return changed


def _rounded(weights: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8, -127 to 127, and the scale of each channel along the axis."""
    others = tuple(other for other in range(weights.ndim) if other != axis)
    largest = np.abs(weights).max(axis=others)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.clip(np.rint(weights / _along(scale, axis, weights.ndim)), -127, 127).astype(np.int8), scale


def _along(values: NDArray[np.float32], axis: int, axes: int) -> NDArray[np.float32]:
    return values.reshape([-1 if other == axis else 1 for other in range(axes)])


def _groups(graph: onnx.ModelProto, chosen: Iterable[str]) -> list[set[str]]:
    """Values to quantize so that these convolutions run in int8; those of one set have one scale."""
    constants, chosen = _constants(graph), set(chosen)
    by_output = {name: node for node in graph.graph.node for name in node.output}
    groups: dict[str, set[str]] = {}

    def trace(name: str) -> set[str]:
        """The set of a value, with all that it is only another arrangement of."""
        if name in groups:
            return groups[name]
        groups[name] = {name}
        node = by_output.get(name)
        if node is not None and (_is_like(node) or _is_mask(node)):
            for source in node.input if node.op_type == "Concat" else node.input[:1]:
                if source not in constants:
                    group = groups[name] | trace(source)
                    groups.update(dict.fromkeys(group, group))
        return groups[name]

    for node in graph.graph.node:
        if node.name in chosen:
            trace(node.input[0])
            takers = [other for other in graph.graph.node if node.output[0] in other.input]
            only_relu = len(takers) == 1 and takers[0].op_type == "Relu"
            trace(takers[0].output[0] if only_relu else node.output[0])
    return list({id(group): group for group in groups.values()}.values())


def _mask(graph: onnx.ModelProto, name: str) -> NDArray[np.uint8]:
    """The zeros and ones that `fold` computes for every window."""
    constants, by_output = _constants(graph), {name: node for node in graph.graph.node for name in node.output}
    phases, weights = by_output[name].input
    ones = constants[by_output[phases].input[1]]
    return np.tensordot(constants[weights][:, :, 0, 0], ones[0], (1, 0))[None].astype(np.uint8)


def _is_like(node: NodeProto) -> bool:
    return node.op_type in LIKE or str(node.name).endswith(CUT)


def _is_mask(node: NodeProto) -> bool:
    """Whether it makes zeros behind the end of a folded value, and leaves the rest as it is."""
    return node.op_type == "Mul" and str(node.input[1]).startswith(MASK)


def _floats(graph: onnx.ModelProto, chosen: set[str], values: Iterable[str]) -> set[str]:
    """Those of the values that float layers make."""
    by_output = {name: node for node in graph.graph.node for name in node.output}

    def made_by(name: str) -> Iterator[str]:
        node = by_output.get(name)
        if node is not None and (_is_like(node) or _is_mask(node) or node.op_type == "Relu"):
            for source in node.input[:1] if _is_mask(node) else node.input:
                yield from made_by(source)
        elif node is not None:
            yield node.name

    return {name for name in values if not chosen & set(made_by(name))}


def _takers(
    graph: onnx.ModelProto,
    value: str,
    known: set[str],
    constants: Mapping[str, NDArray[np.float32]],
    by_output: Mapping[str, NodeProto],
) -> list[tuple[NodeProto, int]]:
    """The convolutions that take a value, and from which channel on; none if anything else does."""

    def channels(name: str) -> int:
        node = by_output[name]
        if node.op_type == "Relu":
            return channels(node.input[0])
        return len(constants[node.input[2]]) if node.name in known else 0

    found: list[tuple[NodeProto, int]] = []
    for node in graph.graph.node:
        if value not in node.input:
            continue
        if node.name in known:
            found.append((node, 0))
        elif node.op_type == "Concat" and all(name in by_output and channels(name) for name in node.input):
            offset = sum(channels(name) for name in node.input[: list(node.input).index(value)])
            behind = [other for other in graph.graph.node if node.output[0] in other.input]
            if not all(other.name in known for other in behind):
                return []
            found += [(other, offset) for other in behind]
        else:
            return []
    return found


def _largest(
    graph: onnx.ModelProto, names: list[str], batches: Iterable[NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Of each channel of values [n, channels, ...], without one in 10,000."""
    found = {name: np.zeros(1, np.float32) for name in names}
    for values in _values(graph, names, batches):
        for name, value in values.items():
            axes = (0, *range(2, value.ndim))
            found[name] = np.maximum(found[name], np.percentile(value, 100 - LEFT_OUT, axis=axes).astype(np.float32))
    return found


def _values(
    graph: onnx.ModelProto, names: list[str], batches: Iterable[NDArray[np.float32]]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Values inside the network, batch after batch."""
    onnx, ort = need("onnx", "export"), need("onnxruntime", "export")
    changed = _copy(graph)
    ends = {value.name for value in (*graph.graph.input, *graph.graph.output)}
    for name in names:
        if name not in ends:
            changed.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(changed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    for batch in batches:
        yield dict(zip(names, session.run(names, {source.name: batch}), strict=True)) if names else {}


def _best_cut(counts: NDArray[np.float64]) -> int:
    """Bins to keep, of a histogram of sizes, so that LEVELS levels lose least of what it tells (Kullback-Leibler)."""
    losses = {}
    for kept in range(LEVELS, BINS + 1, LEVELS // 8):
        true = counts[:kept].copy()
        true[-1] += counts[kept:].sum()
        edges = np.linspace(0, kept, LEVELS + 1).astype(int)
        sums = np.add.reduceat(counts[:kept], edges[:-1])
        filled = np.add.reduceat((counts[:kept] > 0).astype(float), edges[:-1])
        width = np.diff(edges)
        coarse = np.repeat(np.divide(sums, filled, out=np.zeros_like(sums), where=filled > 0), width)
        coarse[counts[:kept] == 0] = 0
        p, q = true / max(true.sum(), 1), coarse / max(coarse.sum(), 1)
        both = (p > 0) & (q > 0)
        losses[kept] = float(np.sum(p[both] * np.log(p[both] / q[both])) + np.sum(p[(p > 0) & (q == 0)]) * np.log(BINS))
    return min(losses, key=lambda kept: losses[kept])


def _constants(graph: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    to_array = need("onnx", "export").numpy_helper.to_array
    return {item.name: to_array(item) for item in graph.graph.initializer}


def _own_constants(graph: onnx.ModelProto) -> None:
    """Give each convolution weights and bias of its own, where several have the same."""
    onnx, constants, seen = need("onnx", "export"), _constants(graph), set()
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            if name in seen and node.op_type in ("Conv", "ConvTranspose"):
                node.input[place] = f"{node.name}/own_{place}"
                graph.graph.initializer.append(onnx.numpy_helper.from_array(constants[name], node.input[place]))
            elif name in constants:
                seen.add(name)


def _copy(graph: onnx.ModelProto) -> onnx.ModelProto:
    changed = need("onnx", "export").ModelProto()
    changed.CopyFrom(graph)
    return changed


def _replace_nodes(graph: onnx.ModelProto, nodes: list[NodeProto]) -> None:
    """New nodes in place of all, but those that nothing comes of, and no constants that none of them takes."""
    del graph.graph.node[:], graph.graph.value_info[:]
    used = {value.name for value in graph.graph.output}
    needed: list[NodeProto] = []
    for node in reversed(nodes):
        if used & set(node.output):
            used.update(node.input)
            needed.append(node)
    graph.graph.node.extend(reversed(needed))
    kept = [item for item in graph.graph.initializer if item.name in used]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
