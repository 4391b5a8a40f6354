"""LSTM as LSTM: TensorFlow's BlockLSTM, all steps of a layer in one operator, becomes ONNX's operator of that kind."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["rewrite_lstm"]

H = 6  # of BlockLSTM's outputs


def rewrite_lstm(graph: Any, nodes: list[Any]) -> list[Any]:
    """Replace each BlockLSTM of a tf2onnx graph; a rewriter for tf2onnx's `custom_rewriter`.

    Raises ValueError that names a BlockLSTM with weights that are no constants, with states to begin with other than
    zeros, or with peepholes, clipping or a use of another output than h.
    """
    for node in nodes:
        if node.type == "BlockLSTM":
            _replace(graph, node)
    return list(graph.get_nodes())


def _replace(graph: Any, node: Any) -> None:
    x, w, b = node.inputs[1], node.inputs[4], node.inputs[8]
    _check(graph, node)
    units = b.get_tensor_value(as_list=False).shape[0] // 4
    weight, bias = (_reordered(array.get_tensor_value(as_list=False)) for array in (w, b))
    bias[:, 2 * units : 3 * units] += node.get_attr_value("forget_bias", 1.0)
    features = weight.shape[1] - units
    constants = {
        "W": np.ascontiguousarray(weight[None, :, :features]),
        "R": np.ascontiguousarray(weight[None, :, features:]),
        "B": np.concatenate([bias, np.zeros_like(bias)], 1),
    }
    # BlockLSTM between two reversals of time is ONNX's own way of running backwards.
    after = graph.find_output_consumers(node.output[H])
    backwards = _reverses_time(x) and bool(after) and all(_reverses_time(reverse) for reverse in after)
    shape, dtype = graph.get_shape(node.output[H]), graph.get_dtype(node.output[H])
    states = graph.make_node(
        "LSTM",
        [x.input[0] if backwards else node.input[1]]
        + [graph.make_const(f"{node.name}/{name}", array).output[0] for name, array in constants.items()],
        attr={"hidden_size": units, "direction": "reverse" if backwards else "forward"},
        skip_conversion=True, shapes=[[shape[0], 1, *shape[1:]]], dtypes=[dtype],
    )  # fmt: skip
    axis = graph.make_const(f"{node.name}/direction", np.array([1]))
    result = graph.make_node(
        "Squeeze", [states.output[0], axis.output[0]], skip_conversion=True, shapes=[shape], dtypes=[dtype]
    )
    for old in [reverse.output[0] for reverse in after] if backwards else [node.output[H]]:
        graph.replace_all_inputs(old, result.output[0])
    graph.remove_node(node.name)


def _check(graph: Any, node: Any) -> None:
    states, w, b = node.inputs[2:4], node.inputs[4], node.inputs[8]
    named = f"the LSTM {node.name!r}"
    if not (w.is_const() and b.is_const()):
        raise ValueError(f"{named} has weights that are no constants")
    if not all(map(_is_zero, states)):
        raise ValueError(f"{named} does not begin with states of zeros")
    if node.get_attr_value("use_peephole", False) or node.get_attr_value("cell_clip", 3.0) > 0:
        raise ValueError(f"{named} has peepholes or clips its cells, which ONNX's does not; set cell_clip to -1")
    if any(graph.find_output_consumers(output) for place, output in enumerate(node.output) if place != H):
        raise ValueError(f"{named} is used for more than its output h")


def _reordered(weights: Any) -> Any:
    """[rows or none, 4 * units] in the order i, c, f, o -> [4 * units, rows or 1] in ONNX's i, o, f, c."""
    i, c, f, o = np.split(np.atleast_2d(weights), 4, axis=1)
    return np.concatenate([i, o, f, c], axis=1).T if weights.ndim == 2 else np.concatenate([i, o, f, c], axis=1)


def _is_zero(state: Any) -> bool:
    value = state.inputs[1] if state.type == "Fill" else state
    return bool(value.is_const() and not np.any(value.get_tensor_value(as_list=False)))


def _reverses_time(node: Any) -> bool:
    return node.type == "ReverseV2" and bool(node.inputs[1].get_tensor_value() == [0])
