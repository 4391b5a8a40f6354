"""Transposed convolutions that are cut to length, and get their bias, in nodes of their own: all in one.

Some networks upsample without padding, and then cut along time, add a bias for each channel, and apply Relu, with the
cut in any place. Padding of the transposed convolution is that cut, and computes less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seisserve.extras import need

if TYPE_CHECKING:
    import onnx

__all__ = ["join_crops"]

Constants = dict[str, NDArray[np.generic]]


def join_crops(graph: onnx.ModelProto) -> None:
    """Make Slice and Add behind each ConvTranspose its padding and its bias; the numbers stay the same, bit for bit.

    Joined is what nothing else takes and no output is, before and behind a Relu: what has none is no layer but an
    inverse transform, and stays as it is. Sizes of the graph, but for the batch, are fixed still.
    """
    onnx = need("onnx", "export")
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True)
    sizes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in inferred.graph.value_info
    }
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.graph.initializer}
    before = len(graph.graph.node)
    for node in list(graph.graph.node):
        if node.op_type != "ConvTranspose" or not _pads_are_said(node):
            continue
        followers, last = _followers(graph, node), node
        if all(follower.op_type != "Relu" for follower in followers):
            continue
        for follower in followers:
            if follower.op_type == "Relu":
                last = follower
                continue
            value = last.output[0]
            cut = _cut(follower, sizes.get(value, []), constants)
            bias = _bias(follower, value, node, constants) if last is node and len(node.input) == 2 else None
            if cut is not None:
                _pad(node, cut)
            elif bias is not None:
                name = f"{follower.output[0]}/bias"
                graph.graph.initializer.append(onnx.numpy_helper.from_array(bias, name))
                node.input.append(name)
            else:
                break
            last.output[0] = follower.output[0]
            graph.graph.node.remove(follower)
    if len(graph.graph.node) < before:
        used = {name for node in graph.graph.node for name in node.input}
        kept = [item for item in graph.graph.initializer if item.name in used]
        del graph.graph.initializer[:], graph.graph.value_info[:]
        graph.graph.initializer.extend(kept)


def _followers(graph: onnx.ModelProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Slice, Add and Relu behind a node, as long as each alone takes what the one before it gives."""
    ends = {value.name for value in graph.graph.output}
    found: list[onnx.NodeProto] = []
    value = node.output[0]
    while value not in ends:
        takers = [other for other in graph.graph.node if value in other.input]
        if len(takers) != 1 or takers[0].op_type not in ("Slice", "Add", "Relu"):
            break
        found.append(takers[0])
        value = takers[0].output[0]
    return found


def _pads_are_said(node: onnx.NodeProto) -> bool:
    """Whether `pads` alone decide what is cut off."""
    values = _attributes(node)
    return not {"output_shape", "output_padding"} & values.keys() and values.get("auto_pad", b"NOTSET") == b"NOTSET"


def _cut(node: onnx.NodeProto, size: list[int], constants: Constants) -> list[tuple[int, int]] | None:
    """How much a Slice of the axes behind the channels takes away before and after; None if it is no such node."""
    if node.op_type != "Slice" or any(name not in constants for name in node.input[1:]):
        return None
    starts, stops, *rest = ([int(value) for value in constants[name].tolist()] for name in node.input[1:])
    axes = rest[0] if rest else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    found = [(0, 0)] * len(size)
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        length = size[axis] if -len(size) <= axis < len(size) else 0
        begin, end, _ = slice(start, stop, step).indices(length or 2**31 - 1)
        found[axis] = (begin, (length or 2**31 - 1) - end)
        if step != 1 or end <= begin or (found[axis] != (0, 0) and not length):
            return None
    return found[2:] if found and not any(map(any, found[:2])) else None


def _bias(node: onnx.NodeProto, value: str, layer: onnx.NodeProto, constants: Constants) -> NDArray[np.generic] | None:
    """The constant for each channel that an Add adds to a value; None if it is no such node."""
    others = [constants[name] for name in node.input if name != value and name in constants]
    if node.op_type != "Add" or len(others) != 1 or layer.input[1] not in constants:
        return None
    weights = constants[layer.input[1]]
    channels = weights.shape[1] * int(_attributes(layer).get("group", 1))
    wanted = (channels, *[1] * (weights.ndim - 2))
    return others[0].reshape(channels) if others[0].shape in (wanted, (1, *wanted)) else None


def _pad(node: onnx.NodeProto, cut: list[tuple[int, int]]) -> None:
    """Cut more off what a transposed convolution gives."""
    onnx = need("onnx", "export")
    pads = _attributes(node).get("pads", [0] * 2 * len(cut))
    more = [before for before, _ in cut] + [after for _, after in cut]
    kept = [attribute for attribute in node.attribute if attribute.name != "pads"]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.append(onnx.helper.make_attribute("pads", [old + new for old, new in zip(pads, more, strict=True)]))


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    get = need("onnx", "export").helper.get_attribute_value
    return {item.name: get(item) for item in node.attribute}
