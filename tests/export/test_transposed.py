"""What is joined into a transposed convolution changes no bit, and what is no part of it stays."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from export.small import Array
from onnx import TensorProto, helper, numpy_helper

from seisserve_export.transposed import join_crops

CHANNELS, SAMPLES, STRIDE, TAPS = 5, 47, 4, 7
WHOLE = (SAMPLES - 1) * STRIDE + TAPS


def network(steps: list[str], begin: int = 1, end: int = 188, step: int = 1, bias: bool = False) -> onnx.ModelProto:
    """A transposed convolution without padding, and Slice, Add and Relu behind it in that order."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(8, CHANNELS, 1, TAPS)).astype(np.float32),
        "b": rng.normal(size=CHANNELS).astype(np.float32),
        "c": rng.normal(size=(1, CHANNELS, 1, 1)).astype(np.float32),
        "begin": np.array([0, 0, begin]), "end": np.array([2**31 - 1, 2**31 - 1, end]),
        "axes": np.array([0, 2, 3]), "steps": np.array([1, 1, step]),
    }  # fmt: skip
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    nodes = [helper.make_node("ConvTranspose", inputs, ["v0"], "up", kernel_shape=[1, TAPS], strides=[1, STRIDE])]
    more = {"Slice": ["begin", "end", "axes", "steps"], "Add": ["c"], "Relu": [], "Sigmoid": []}
    for number, kind in enumerate(steps):
        nodes.append(helper.make_node(kind, [f"v{number}", *more[kind]], [f"v{number + 1}"], f"{kind}_{number}"))
    nodes.append(helper.make_node("Neg", [f"v{len(steps)}"], ["y"], "last"))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8, 1, SAMPLES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CHANNELS, 1, "samples"])],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def joined(plain: onnx.ModelProto) -> onnx.ModelProto:
    graph = onnx.ModelProto()
    graph.CopyFrom(plain)
    join_crops(graph)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def run(graph: onnx.ModelProto) -> Array:
    x = np.random.default_rng(1).normal(size=(3, 8, 1, SAMPLES)).astype(np.float32)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def kinds(graph: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in graph.graph.node]


@pytest.mark.parametrize(("begin", "end"), [(1, 188), (0, 188), (2, -4), (3, 2**31 - 1), (0, WHOLE)])
@pytest.mark.parametrize(
    "steps",
    [
        ["Slice", "Add", "Relu"],
        ["Add", "Slice", "Relu"],
        ["Add", "Relu", "Slice"],
        ["Slice", "Relu"],
        ["Relu", "Slice"],
    ],
)
def test_all_is_one(steps: list[str], begin: int, end: int) -> None:
    for bias in (False, True) if "Add" not in steps else (False,):
        plain = network(steps, begin, end, bias=bias)
        graph = joined(plain)
        assert kinds(graph) == ["ConvTranspose", "Relu", "Neg"]
        assert len(graph.graph.initializer) == 1 + (bias or "Add" in steps)
        np.testing.assert_array_equal(run(graph), run(plain))


@pytest.mark.parametrize(
    ("plain", "left"),
    [
        (network(["Slice", "Add"]), ["Slice", "Add"]),  # no Relu: not a layer
        (network(["Slice", "Relu"], step=2), ["Slice", "Relu"]),
        (network(["Relu", "Add", "Slice"]), ["Relu", "Add", "Slice"]),  # behind the Relu it is no bias
        (network(["Add", "Relu"], bias=True), ["Add", "Relu"]),  # two sums round otherwise than one
        (network(["Sigmoid", "Slice", "Relu"]), ["Sigmoid", "Slice", "Relu"]),
        (network(["Add", "Slice", "Slice", "Relu"], 2, -3), ["Relu"]),
    ],
)
def test_what_stays(plain: onnx.ModelProto, left: list[str]) -> None:
    graph = joined(plain)
    assert kinds(graph)[1:-1] == left
    np.testing.assert_array_equal(run(graph), run(plain))


def test_values_that_others_take_stay() -> None:
    plain = network(["Slice", "Add", "Relu"])
    plain.graph.output.append(helper.make_tensor_value_info("v1", TensorProto.FLOAT, ["batch", CHANNELS, 1, "samples"]))
    assert Counter(kinds(joined(plain)))["Add"] == 1
    plain = network(["Slice", "Add", "Relu"])
    plain.graph.node.append(helper.make_node("Neg", ["v0"], ["z"], "other"))
    assert Counter(kinds(joined(plain)))["Slice"] == 1
    plain = network(["Slice", "Relu"])
    shape = helper.make_attribute("output_shape", [1, 180])
    plain.graph.node[0].attribute.append(shape)
    assert Counter(kinds(joined(plain)))["Slice"] == 1
