"""From a SavedModel to ONNX: convert, clean up, free the axes, and check that every node is one that runs anywhere.

The signature `serving_default`, whose length is fixed, is what is converted, and the time axis is freed afterwards:
with a free length tf2onnx computes the size of every transposed convolution while the network runs (221 nodes in place
of 73 for PhaseNet, 6 % slower). Lengths that are multiples of the network's stride need none of that; the gate
compares every length that the manifest offers with the SavedModel's own signature `fragment`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seisserve.errors import BundleError
from seisserve.extras import need
from seisserve.manifest import Manifest
from seisserve.runtime import onnxruntime_errors
from seisserve_export.fold import fold
from seisserve_export.recurrent import rewrite_lstm
from seisserve_export.transposed import join_crops

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

__all__ = ["OPSET", "check_operators", "convert", "fold_narrow", "free_lengths", "to_clean_onnx"]

OPSET = 18
LOOPS = {"If", "Loop", "Scan"}


def convert(folder: Path, model: Manifest, destination: Path) -> None:
    """Write the SavedModel in `folder` as ONNX, float32. Raises BundleError if it cannot be done faithfully.

    Axes: `batch` is free; so is `samples` if the manifest has fragment windows.
    """
    graph = free_lengths(fold_narrow(to_clean_onnx(folder, model), model), model)
    check_operators(graph)
    need("onnx", "export").save(graph, str(destination))


def to_clean_onnx(folder: Path, model: Manifest) -> onnx.ModelProto:
    """The SavedModel's signature `serving_default` as ONNX, cleaned up; its length is that of a window still."""
    graph = _to_onnx(folder, model)
    graph = need("onnxslim", "export").slim(graph)
    join_crops(graph)
    _name_ends(graph, model)
    _hold_transposes(graph)
    _write_out_softmax(graph)
    _plain_resizes(graph)
    return graph


def fold_narrow(graph: onnx.ModelProto, model: Manifest) -> onnx.ModelProto:
    """The graph with its narrow convolutions folded, for all lengths that the manifest offers."""
    return fold(graph, model.window_samples, (model.window_samples, *model.fragment_windows))


def free_lengths(graph: onnx.ModelProto, model: Manifest) -> onnx.ModelProto:
    """The graph with its time axis free, if the manifest has fragment windows."""
    if model.fragment_windows:
        _free_samples(graph, model)
    return graph


def check_operators(graph: onnx.ModelProto) -> None:
    """Raises BundleError that names the node unless all are standard ONNX, without loops, and onnxruntime has them."""
    onnx = need("onnx", "export")
    for node in _nodes(graph.graph):
        named = f"node {node.name!r} ({node.op_type})"
        if node.domain not in ("", "ai.onnx"):
            raise BundleError(f"{named} is of the domain {node.domain!r}; only standard ONNX operators run everywhere")
        if node.op_type in LOOPS:
            raise BundleError(f"{named} is control flow: the network was not converted to one pass")
        if not onnx.defs.has(node.op_type, OPSET, ""):
            raise BundleError(f"{named} is no ONNX operator: tf2onnx could not convert it")
    ort = need("onnxruntime", "export")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        onnx.checker.check_model(graph, full_check=True)
        ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, *onnxruntime_errors()) as error:
        raise BundleError(f"the converted graph cannot run: {' '.join(str(error).split())}") from error


def _to_onnx(folder: Path, model: Manifest) -> onnx.ModelProto:
    """tf2onnx without its ways of going on after an error."""
    tf, loader = need("tensorflow", "export"), need("tf2onnx.tf_loader", "export")
    tfonnx, optimizer = need("tf2onnx.tfonnx", "export"), need("tf2onnx.optimizer", "export")
    try:
        frozen, inputs, outputs, names = loader.from_saved_model(
            str(folder), None, None, tag=["serve"], signatures=["serving_default"], return_tensors_to_rename=True
        )
        names |= {output: model.onnx_output(names[output]) for output in outputs}
        with tf.Graph().as_default() as tf_graph:
            tf.import_graph_def(frozen, name="")
            graph = tfonnx.process_tf_graph(
                tf_graph, opset=OPSET, input_names=inputs, output_names=outputs, tensors_to_rename=names,
                custom_rewriter=[rewrite_lstm],
            )  # fmt: skip
            return optimizer.optimize_graph(graph, catch_errors=False).make_model(graph_doc="")
    except (OSError, ValueError, KeyError, AssertionError, NotImplementedError, tf.errors.OpError) as error:
        raise BundleError(f"{folder}: tf2onnx cannot convert it: {' '.join(str(error).split())}") from error


def _nodes(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    """All nodes, those inside control flow included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _name_ends(graph: onnx.ModelProto, model: Manifest) -> None:
    """Check the names of inputs and outputs, call the batch axis `batch`, and drop what only tf2onnx needed."""
    inputs, outputs = ({value.name for value in values} for values in (graph.graph.input, graph.graph.output))
    if inputs != {model.input.name}:
        raise BundleError(
            f"the graph takes {sorted(inputs)}, not {model.input.name} alone: hold constants as variables"
        )
    if outputs != {model.onnx_output(output.name) for output in model.outputs}:
        raise BundleError(f"the graph gives {sorted(outputs)}, the manifest has {[o.name for o in model.outputs]}")
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.graph.value_info[:], graph.opset_import[:]
    graph.opset_import.append(need("onnx", "export").helper.make_opsetid("", OPSET))
    graph.graph.name, graph.producer_name = model.name, "seisserve"
    _number_names(graph)


def _number_names(graph: onnx.ModelProto) -> None:
    """Name nodes by operator and number, and all values after the first node that makes or takes them: the names of
    the TensorFlow graph vary from run to run, and the same network should always give the same file."""
    names = {value.name: value.name for value in (*graph.graph.input, *graph.graph.output)} | {"": ""}
    for number, node in enumerate(graph.graph.node):
        node.name = f"{node.op_type}_{number}"
        for place, name in enumerate(node.input):
            names.setdefault(name, f"{node.name}/input_{place}")
        for place, name in enumerate(node.output):
            names.setdefault(name, f"{node.name}/output_{place}")
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for constant in graph.graph.initializer:
        constant.name = names[constant.name]
    graph.graph.initializer.sort(key=lambda constant: str(constant.name))


def _hold_transposes(graph: onnx.ModelProto) -> None:
    """Put an idle Reshape behind each Transpose of the input.

    onnxruntime otherwise moves the Transpose behind the first sums of the normalisation, which then run along an axis
    that is not the last: slower (5 % of PhaseNet), and in an order that depends on how many windows there are.
    """
    onnx = need("onnx", "export")
    ends = {value.name for value in graph.graph.input}
    nodes = list(graph.graph.node)
    for node in nodes:
        if node.op_type != "Transpose" or node.input[0] not in ends:
            continue
        result, moved, shape = node.output[0], f"{node.output[0]}/held", f"{node.output[0]}/shape"
        axes = len(onnx.helper.get_node_attr_value(node, "perm"))
        graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0] * (axes - 1) + [-1]), shape))
        node.output[0] = moved
        hold = onnx.helper.make_node("Reshape", [moved, shape], [result], f"{node.name}/hold")
        graph.graph.node.insert(list(graph.graph.node).index(node) + 1, hold)


def _write_out_softmax(graph: onnx.ModelProto) -> None:
    """Softmax over an axis that is not the last as its five steps: onnxruntime's own transposes there and back and
    works row by row of a few classes (6 to 7 % of PhaseNet)."""
    onnx = need("onnx", "export")
    for node in list(graph.graph.node):
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
        if node.op_type != "Softmax" or axis == -1:
            continue
        (source,), (result,), name = node.input, node.output, node.name
        graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([axis]), f"{name}/axis"))
        steps = [
            onnx.helper.make_node("ReduceMax", [source, f"{name}/axis"], [f"{name}/max"], f"{name}/ReduceMax"),
            onnx.helper.make_node("Sub", [source, f"{name}/max"], [f"{name}/lowered"], f"{name}/Sub"),
            onnx.helper.make_node("Exp", [f"{name}/lowered"], [f"{name}/exp"], f"{name}/Exp"),
            onnx.helper.make_node("ReduceSum", [f"{name}/exp", f"{name}/axis"], [f"{name}/sum"], f"{name}/ReduceSum"),
            onnx.helper.make_node("Div", [f"{name}/exp", f"{name}/sum"], [result], f"{name}/Div"),
        ]
        place = list(graph.graph.node).index(node)
        graph.graph.node.remove(node)
        for step in reversed(steps):
            graph.graph.node.insert(place, step)


def _plain_resizes(graph: onnx.ModelProto) -> None:
    """Upsampling by repetition said plainly: the mode that tf2onnx writes is deprecated, and onnxruntime warns of it.

    For whole factors `asymmetric` rounded down is the same.
    """
    onnx = need("onnx", "export")
    for node in graph.graph.node:
        values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Resize" and values.get("coordinate_transformation_mode") == b"tf_half_pixel_for_nn":
            kept = [attribute for attribute in node.attribute if attribute.name in ("mode", "antialias")]
            del node.attribute[:]
            node.attribute.extend(kept)
            for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
                node.attribute.append(onnx.helper.make_attribute(name, value))


def _free_samples(graph: onnx.ModelProto, model: Manifest) -> None:
    """Make the time axis free: `samples`, or `NAME_samples` of an output that has fewer.

    A transposed convolution's output shape, which tf2onnx writes down, goes: the padding, explicit too, implies it.
    A Reshape from the batch on takes the sizes that it leaves alone from its input, and infers the first other one.
    """
    sizes = _known_sizes(graph)
    constants = {constant.name: constant for constant in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants and node.input[0] in sizes:
            _infer_samples(constants[node.input[1]], sizes[node.input[0]])
        if node.op_type == "ConvTranspose":
            kept = [attribute for attribute in node.attribute if attribute.name != "output_shape"]
            del node.attribute[:]
            node.attribute.extend(kept)
    for value in (*graph.graph.input, *graph.graph.output):
        axis = value.type.tensor_type.shape.dim[1]
        axis.dim_param = "samples" if axis.dim_value == model.window_samples else f"{value.name}_samples"


def _known_sizes(graph: onnx.ModelProto) -> dict[str, list[int]]:
    """Sizes of all values by name, 0 where an axis is free."""
    inferred = need("onnx", "export").shape_inference.infer_shapes(graph, data_prop=True)
    values = (*inferred.graph.input, *inferred.graph.value_info)
    return {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values}


def _infer_samples(shape: onnx.TensorProto, sizes: list[int]) -> None:
    """Rewrite a Reshape's target [-1, components, length, ...] as [0, 0, -1, ...]: 0 copies, -1 infers."""
    onnx = need("onnx", "export")
    target = onnx.numpy_helper.to_array(shape).tolist()
    if target[0] != -1 or len(target) < 3 or target[1] != sizes[1]:
        return
    target[:3] = [0, 0, -1]
    shape.CopyFrom(onnx.numpy_helper.from_array(np.array(target, np.int64), shape.name))
