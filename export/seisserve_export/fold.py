"""Fold time into channels where a network is narrow: four samples of 8 channels become one of 32.

Runtimes work on 16 or more channels at once, so a convolution of 8 wastes half of what is computed, and more in int8.
A convolution of `samples` is one of blocks of four samples too, with more weights (some of them zero) and the same
result; a transposed convolution is an ordinary one whose output is folded. Folding and unfolding are views in the
order of memory that the fast kernels use.

A length that is no multiple of four has a last block that is not full. What a convolution writes behind the end there
is not zero; it is cut off when the value is unfolded, and made zero before a convolution that reads that far.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.extras import need

if TYPE_CHECKING:
    import onnx

__all__ = ["CUT", "FOLD", "MASK", "fold", "polyphase"]

FOLD = 4  # samples in a block
NARROW = 8  # channels at the output of a convolution that is folded; wider ones fill the kernels by themselves
MASK, CUT = "mask/", "/unfolded/Slice"  # so begin the names of masks, and end those of nodes that cut spilled ones off
LONGEST = 64  # taps; longer kernels are no layers but filters of the normalisation


class _Form(NamedTuple):
    """A value as blocks of `fold` samples, sample after sample, for each of the `parts` that it was joined from."""

    name: str
    fold: int
    parts: tuple[int, ...]  # channels
    spilled: bool = False  # whether anything but zeros may be behind the end, in the last block


class _Layer(NamedTuple):
    """A convolution along time: weights [out, in, taps] (transposed: [in, out, taps])."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    stride: int
    before: int  # padding
    transposed: bool

    @property
    def channels(self) -> int:
        return len(self.bias)


def fold(graph: onnx.ModelProto, window_samples: int, lengths: Iterable[int]) -> onnx.ModelProto:
    """The same network with its narrow convolutions folded; unchanged where there are none.

    graph: its time axis has the length window_samples still. lengths: all that it will be run with; where there are
    several, they must be whole multiples of what is folded. Convolutions count that are of height one, keep the length
    or divide or multiply it by their stride (rounded up at the smaller side), and are followed by Relu, Concat of
    channels or each other.
    """
    return _Folding(graph, window_samples, tuple(lengths)).run()


def polyphase(
    layer: NDArray[np.float32], stride: int, before: int, blocks: tuple[int, int], transposed: bool = False
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Weights of a convolution on blocks of samples, [out * m, in * n, taps], and its padding before and after.

    layer: [out, in, taps] ([in, out, taps] if transposed), with its stride and its padding before; blocks: how many
    samples (n, m) are one at its input and output, n = stride * m (transposed: m = stride * n).
    """
    n, m = blocks
    places: dict[int, list[tuple[int, int, NDArray[np.float32]]]] = {}
    for tap in range(layer.shape[2]):
        if transposed:
            for sample in range(n):
                block, phase = divmod(stride * sample + tap - before, m)
                places.setdefault(-block, []).append((phase, sample, layer[:, :, tap].T))
        else:
            for phase in range(m):
                block, sample = divmod(stride * phase + tap - before, n)
                places.setdefault(block, []).append((phase, sample, layer[:, :, tap]))
    # Block 0 is always among them: a kernel that only looked back would still be padded on one side alone.
    first, last = min(*places, 0), max(*places, 0)
    outputs, inputs = (layer.shape[1], layer.shape[0]) if transposed else layer.shape[:2]
    weights = np.zeros((m, outputs, n, inputs, last - first + 1), layer.dtype)
    for block, found in places.items():
        for phase, sample, part in found:
            weights[phase, :, sample, :, block - first] = part
    return weights.reshape(m * outputs, n * inputs, -1), (-first, last)


class _Folding:
    """One pass through the nodes; `forms` knows each value of the folded part in the forms that it has by now."""

    def __init__(self, graph: onnx.ModelProto, window_samples: int, lengths: tuple[int, ...]) -> None:
        self.onnx = need("onnx", "export")
        self.graph = self.onnx.ModelProto()
        self.graph.CopyFrom(graph)
        self.constants = {item.name: item for item in self.graph.graph.initializer}
        self.before = list(self.graph.graph.node)
        self.shapes = _shapes(self.onnx, self.graph)
        self.window_samples, self.lengths = window_samples, lengths
        self.forms: dict[str, list[_Form]] = {}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> onnx.ModelProto:
        for node in self.before:
            layer = self.layer(node)
            if layer is not None and self.convolution(node, layer):
                continue
            if node.op_type == "Relu" and node.input[0] in self.forms:
                form = self.forms[node.input[0]][0]
                self.add("Relu", [form.name], node, form)
            elif node.op_type == "Concat" and self.joins(node):
                read = any(self.reads_behind(other) for other in self.takers(node))
                forms = [(self.without_spill if read else self.form)(name, FOLD) for name in node.input]
                joined = _Form("", FOLD, tuple(part for form in forms for part in form.parts),
                               any(form.spilled for form in forms))  # fmt: skip
                self.add("Concat", [form.name for form in forms], node, joined, axis=1)
            else:
                node.input[:] = [self.form(name, 1).name if name in self.forms else name for name in node.input]
                self.nodes.append(node)
        del self.graph.graph.node[:], self.graph.graph.value_info[:]
        self.graph.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = sorted((item for item in self.graph.graph.initializer if item.name in used), key=lambda item: item.name)
        del self.graph.graph.initializer[:]
        self.graph.graph.initializer.extend(kept)
        return self.graph

    def layer(self, node: onnx.NodeProto) -> _Layer | None:
        """A node that is a convolution along time and changes the length by its stride alone."""
        if node.op_type not in ("Conv", "ConvTranspose") or any(name not in self.constants for name in node.input[1:]):
            return None
        weights = self.onnx.numpy_helper.to_array(self.constants[node.input[1]])
        get = {item.name: self.onnx.helper.get_attribute_value(item) for item in node.attribute}
        if weights.ndim != 4 or weights.shape[2] != 1 or weights.shape[3] > LONGEST:
            return None
        plain = get.get("group", 1) == 1 and get.get("dilations", [1, 1]) == [1, 1] and not get.get("output_padding")
        if not plain or get.get("auto_pad", b"NOTSET") != b"NOTSET":
            return None
        top, before, bottom, after = get.get("pads", [0] * 4)
        stride, taps, transposed = get.get("strides", [1, 1])[1], weights.shape[3], node.op_type == "ConvTranspose"
        if top or bottom or not 0 < taps - before - after <= stride:
            return None
        outputs = weights.shape[1 if transposed else 0]
        bias = np.zeros(outputs, np.float32)
        if len(node.input) > 2:
            bias = self.onnx.numpy_helper.to_array(self.constants[node.input[2]])
        return _Layer(weights[:, :, 0], bias, stride, before, transposed)

    def convolution(self, node: onnx.NodeProto, layer: _Layer) -> bool:
        """Add it in blocks, if it is to be folded."""
        source, result = node.input[0], node.output[0]
        if layer.transposed:
            blocks = (1, layer.stride) if self.in_blocks(result, layer.stride) else (1, 1)
        elif layer.stride > 1:
            folded = any(one.fold == layer.stride for one in self.forms.get(source, []))
            blocks = (layer.stride, 1) if folded else (1, 1)
        else:
            blocks = (FOLD, FOLD) if self.narrow(node) else (1, 1)
        if blocks == (1, 1) or not (self.in_blocks(source, blocks[0]) and self.in_blocks(result, blocks[1])):
            return False
        samples = self.shapes[source][3], self.shapes[result][3]
        if -(-samples[0] // blocks[0]) != -(-samples[1] // blocks[1]):
            return False
        form = (self.without_spill if self.reads_behind(node) else self.form)(source, blocks[0])
        weights, (before, after) = polyphase(layer.weights, layer.stride, layer.before, blocks, layer.transposed)
        weights = weights.reshape(len(weights), blocks[0], -1, weights.shape[2])
        edges = np.cumsum([0, *form.parts])
        weights = np.concatenate(
            [weights[:, :, low:high].reshape(len(weights), -1, weights.shape[3])
             for low, high in pairwise(edges)], axis=1,
        )  # fmt: skip
        names = [self.constant(f"{node.name}/weights", weights[:, :, None])]
        names.append(self.constant(f"{node.name}/bias", np.tile(layer.bias, blocks[1])))
        made = _Form("", blocks[1], (layer.channels,), samples[1] % blocks[1] > 0)
        self.add("Conv", [form.name, *names], node, made,
                 kernel_shape=[1, weights.shape[2]], pads=[0, before, 0, after])  # fmt: skip
        return True

    def narrow(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a convolution that is worth folding, and its length can be."""
        layer = self.layer(node)
        if layer is None or layer.transposed or layer.stride > 1 or layer.channels > NARROW:
            return False
        return self.in_blocks(node.input[0], FOLD)

    def joins(self, node: onnx.NodeProto) -> bool:
        """Whether a Concat of channels stays folded: all that it joins is, and all that takes it can."""
        folded = all(any(form.fold == FOLD for form in self.forms.get(name, [])) for name in node.input)
        takers = self.takers(node)
        axis = self.onnx.helper.get_node_attr_value(node, "axis")
        ends = {value.name for value in self.graph.graph.output}
        return folded and axis == 1 and node.output[0] not in ends and all(self.narrow(other) for other in takers)

    def takers(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [other for other in self.before if node.output[0] in other.input]

    def reads_behind(self, node: onnx.NodeProto) -> bool:
        """Whether a convolution takes what is behind the end of a value in blocks."""
        layer = self.layer(node)
        if layer is None or layer.transposed:
            return False
        taken = layer.stride * (self.shapes[node.output[0]][3] - 1) + layer.weights.shape[2] - layer.before
        return bool(taken > self.shapes[node.input[0]][3])

    def in_blocks(self, name: str, block: int) -> bool:
        """Whether a value [n, channels, 1, samples] can be: it has one length, or whole blocks at every length."""
        shape = self.shapes.get(name, [])
        if len(shape) != 4 or shape[2] != 1 or not shape[1] or not shape[3]:
            return False
        one = set(self.lengths) == {self.window_samples}
        return one or all((shape[3] * length) % (self.window_samples * block) == 0 for length in self.lengths)

    def form(self, name: str, wanted: int) -> _Form:
        """A value in blocks of that many samples; made from a form that it has if need be."""
        forms = self.forms.setdefault(name, [_Form(name, 1, (self.shapes[name][1],))])
        for form in forms:
            if form.fold == wanted:
                return form
        form = forms[0] if wanted == 1 else self.form(name, 1)
        made = f"{name}/unfolded" if wanted == 1 else f"{name}/folded"
        (channels,) = form.parts
        missing = -self.shapes[name][3] % max(form.fold, wanted)  # in the last block
        target = self.constant(f"{made}/shape", np.array([0, 1, -1, channels * wanted]))
        make, source, blocks = self.onnx.helper.make_node, form.name, f"{made}/blocks"
        if missing and wanted > 1:
            source, pads = f"{made}/whole", self.constant(f"{made}/pads", np.array([0] * 7 + [missing]))
            self.nodes.append(make("Pad", [form.name, pads], [source], f"{made}/Pad"))
        self.nodes += [
            make("Transpose", [source], [f"{made}/last"], f"{made}/Transpose", perm=[0, 2, 3, 1]),
            make("Reshape", [f"{made}/last", target], [blocks], f"{made}/Reshape"),
        ]
        if missing and wanted == 1:
            ends = [self.constant(f"{made}/{key}", np.array([value])) for key, value in
                    (("first", 0), ("end", self.shapes[name][3]), ("axis", 2))]  # fmt: skip
            self.nodes.append(make("Slice", [blocks, *ends], [f"{made}/cut"], f"{made}/Slice"))
            blocks = f"{made}/cut"
        self.nodes.append(make("Transpose", [blocks], [made], f"{made}/Transpose_back", perm=[0, 3, 1, 2]))
        forms.append(_Form(made, wanted, form.parts))
        return forms[-1]

    def without_spill(self, name: str, wanted: int) -> _Form:
        """The same with zeros behind the end, from here on for all that take it."""
        form = self.form(name, wanted)
        if not form.spilled:
            return form
        mask = self.mask(self.shapes[name][3], form)
        clean = form._replace(name=f"{form.name}/masked", spilled=False)
        self.node("Mul", [form.name, mask], clean.name)
        forms = self.forms[name]
        forms[forms.index(form)] = clean
        return clean

    def mask(self, samples: int, form: _Form) -> str:
        """Ones up to the end of a value and zeros behind it, in blocks, for every window.

        It is the output of a convolution, because onnxruntime multiplies two of those in the order of memory that its
        convolutions use, and rearranges everything there and back for a constant (6 % of PhaseNet); and it takes the
        batch from the input, by whose name onnxruntime knows that both are equally large.
        """
        name = "x".join(map(str, (f"{MASK}{samples}", form.fold, *form.parts)))
        if name in {node.output[0] for node in self.nodes}:
            return name
        phases = f"{MASK}{samples}x{form.fold}/phases"
        if phases not in {node.output[0] for node in self.nodes}:
            blocks = -(-samples // form.fold)
            ones = (np.arange(blocks * form.fold) < samples).reshape(blocks, form.fold).T.astype(np.float32)
            self.node("Add", [self.zero(), self.constant(f"{phases}/ones", ones[None, :, None])], phases)
        same = np.eye(form.fold, dtype=np.float32)
        weights = np.concatenate([np.repeat(same, channels, 0) for channels in form.parts])[:, :, None, None]
        self.node("Conv", [phases, self.constant(f"{name}/weights", weights)], name, kernel_shape=[1, 1])
        return name

    def zero(self) -> str:
        """A zero [n, 1, 1, 1], whatever the input is."""
        name, value, source = f"{MASK}zero", f"{MASK}zero/value", self.graph.graph.input[0]
        if name not in {node.output[0] for node in self.nodes}:
            axes = np.arange(1, len(source.type.tensor_type.shape.dim))
            first, end, along = (
                self.constant(f"{name}/{key}", values)
                for key, values in (("first", 0 * axes), ("end", 0 * axes + 1), ("axes", axes))
            )
            self.node("Slice", [source.name, first, end, along], f"{name}/sample")
            self.node("Reshape", [f"{name}/sample", self.constant(f"{name}/shape", np.array([0, 1, 1, 1]))], value)
            self.node("Less", [value, value], f"{name}/less")
            self.node("Cast", [f"{name}/less"], name, to=self.onnx.TensorProto.FLOAT)
        return name

    def add(self, kind: str, inputs: Sequence[str], node: onnx.NodeProto, form: _Form, **rest: object) -> None:
        """A node in place of another. Outputs of the graph itself keep their name and are never folded."""
        (result,) = node.output
        name = f"{result}/blocks_of_{form.fold}" if form.fold > 1 else result
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], node.name, **rest))
        self.forms[result] = [form._replace(name=name)]
        if form.fold > 1 and result in {value.name for value in self.graph.graph.output}:
            plain = self.form(result, 1)
            self.nodes[-1].output[0] = result
            self.forms[result][-1] = plain._replace(name=result)

    def node(self, kind: str, inputs: Sequence[str], output: str, **rest: object) -> None:
        """A node of its own, with the name of its output."""
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [output], output, **rest))

    def constant(self, name: str, values: NDArray[np.float32] | NDArray[np.int64]) -> str:
        self.graph.graph.initializer.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name


def _shapes(onnx: object, graph: onnx.ModelProto) -> dict[str, list[int]]:
    """Sizes of all values by name, 0 where an axis is free."""
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True)  # type: ignore[attr-defined]
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    return {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values}
