"""Folded convolutions give what the plain ones give, and only what is worth folding is folded."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from export.small import WINDOW, Array, manifest, waveforms
from onnx import TensorProto, helper, numpy_helper

from seisserve_export.convert import fold_narrow, free_lengths, to_clean_onnx
from seisserve_export.fold import fold, polyphase
from seisserve_export.quantize import Ends, calibrate, quantize


def run(graph: onnx.ModelProto, windows: Array) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph.SerializeToString(), options)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: windows})[0])


def convolution(
    channels: tuple[int, int], taps: int, stride: int, samples: int = 64, transposed: bool = False
) -> onnx.ModelProto:
    """One convolution that keeps the length, or divides or multiplies it by its stride, and a Relu."""
    rng = np.random.default_rng(taps * stride)
    shape = (channels[0], channels[1], 1, taps) if transposed else (channels[1], channels[0], 1, taps)
    over = taps - stride
    pads = [0, over // 2, 0, over - over // 2]
    kind = "ConvTranspose" if transposed else "Conv"
    nodes = [
        helper.make_node(kind, ["x", "w", "b"], ["c"], "layer", kernel_shape=[1, taps], strides=[1, stride], pads=pads),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size, 1, length])
        for name, size, length in (
            ("x", channels[0], samples),
            ("y", channels[1], samples * stride if transposed else samples // stride),
        )
    ]
    constants = [
        numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in (("w", rng.normal(size=shape)), ("b", rng.normal(size=channels[1])))
    ]
    graph = helper.make_graph(nodes, "one", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 7, 12])
def test_narrow_convolution(taps: int) -> None:
    plain = convolution((3, 5), taps, 1)
    folded = fold(plain, 64, (64, 32))
    onnx.checker.check_model(folded, full_check=True)
    layer = next(node for node in folded.graph.node if node.op_type == "Conv")
    weights = next(item for item in folded.graph.initializer if item.name == layer.input[1])
    assert list(weights.dims)[:2] == [20, 12]
    x = np.random.default_rng(0).normal(size=(3, 3, 1, 64)).astype(np.float32)
    np.testing.assert_allclose(run(folded, x), run(plain, x), atol=1e-5)


@pytest.mark.parametrize(("taps", "stride"), [(7, 4), (4, 4), (5, 2), (9, 3), (6, 2)])
def test_transposed_convolution(taps: int, stride: int) -> None:
    plain = convolution((6, 4), taps, stride, transposed=True)
    folded = fold(plain, 64, (64,))
    assert Counter(node.op_type for node in folded.graph.node)["ConvTranspose"] == 0
    x = np.random.default_rng(0).normal(size=(2, 6, 1, 64)).astype(np.float32)
    np.testing.assert_allclose(run(folded, x), run(plain, x), atol=1e-5)


def test_stays_as_it_is() -> None:
    for plain in (convolution((3, 16), 7, 1), convolution((3, 4), 7, 4)):
        assert list(fold(plain, 64, (64,)).graph.node) == list(plain.graph.node)
    plain = convolution((3, 5), 7, 1)
    assert list(fold(plain, 64, (64, 30)).graph.node) == list(plain.graph.node)  # at a shorter length it could not
    plain = convolution((3, 5), 7, 1, samples=66)
    assert list(fold(plain, 66, (66, 64)).graph.node) == list(plain.graph.node)


class Net:
    """A U-shaped network with made-up weights, whose levels have any length."""

    def __init__(self, seed: int, samples: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.sizes = {"x": (3, samples)}
        self.samples = samples

    def add(self, kind: str, inputs: list[str], size: tuple[int, int], **attributes: object) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        self.sizes[name] = size
        return name

    def layer(
        self, source: str, channels: int, taps: int, stride: int = 1, samples: int = 0, *, relu: bool = True
    ) -> str:
        """A convolution to a length that is rounded up; with `samples` a transposed one to that length."""
        inputs, length = self.sizes[source]
        long, short = (samples, length) if samples else (length, -(-length // stride))
        padding = max(taps - long + stride * (short - 1), 0)
        before = int(self.rng.integers(max(0, padding - taps + 1), min(padding, taps - 1) + 1))
        pads = [0, before, 0, padding - before]
        shape = (inputs, channels, 1, taps) if samples else (channels, inputs, 1, taps)
        names = [f"{part}{len(self.nodes)}" for part in "wb"]
        for name, size in zip(names, (shape, (channels,)), strict=True):
            values = self.rng.normal(size=size) / np.sqrt(inputs * taps)
            self.constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        made = self.add(
            "ConvTranspose" if samples else "Conv", [source, *names], (channels, long if samples else short),
            kernel_shape=[1, taps], strides=[1, stride], pads=pads,
        )  # fmt: skip
        return self.add("Relu", [made], self.sizes[made]) if relu else made

    def graph(self, last: str) -> onnx.ModelProto:
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", self.sizes[name][0], 1, self.samples])
            for name in ("x", last)
        ]
        graph = helper.make_graph(self.nodes, "net", ends[:1], ends[1:], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def u_shaped(seed: int, samples: int, strides: tuple[int, ...]) -> onnx.ModelProto:
    """Down and up again, with random kernels and padding; narrow where it is longest."""
    net, skips = Net(seed, samples), []
    value = net.layer("x", int(net.rng.integers(2, 9)), int(net.rng.integers(1, 10)))
    for level, stride in enumerate(strides):
        value = net.layer(value, 6 << level, int(net.rng.integers(3, 10)))
        skips.append(value)
        value = net.layer(value, 6 << level, int(net.rng.integers(stride, 10)), stride)
    for skip, stride in reversed([*zip(skips, strides, strict=True)]):
        channels, length = net.sizes[skip]
        value = net.layer(value, channels, int(net.rng.integers(stride, 10)), stride, length)
        value = net.add("Concat", [skip, value], (2 * channels, length), axis=1)
        value = net.layer(value, channels, int(net.rng.integers(2, 10)))
    return net.graph(net.layer(value, 3, 1, relu=False))


def large_at_the_ends(samples: int) -> Array:
    x = np.random.default_rng(samples).normal(size=(6, 3, 1, samples)).astype(np.float32)
    x[1, ..., :3] *= 1000
    x[2, ..., -3:] *= 1000
    x[3, ..., :-1] = 0
    x[4, ..., 1:] = 0
    x[5] = 0
    return x


@pytest.mark.parametrize("strides", [(4, 4), (2, 4), (4, 2), (3, 5), (5,), (4,)])
@pytest.mark.parametrize("samples", [61, 62, 63, 64, 125, 301])
def test_uneven_lengths(samples: int, strides: tuple[int, ...]) -> None:
    masks = 0
    for seed in range(3):
        plain = u_shaped(seed + samples, samples, strides)
        folded = fold(plain, samples, (samples,))
        onnx.checker.check_model(folded, full_check=True)
        count = Counter(node.op_type for node in folded.graph.node)
        assert count["ConvTranspose"] == 0
        masks += count["Mul"]
        x = large_at_the_ends(samples)
        expected = run(plain, x)
        assert (expected.std((1, 2, 3)) > 0.01).all()
        scale = np.abs(expected).max((1, 2, 3), keepdims=True)
        np.testing.assert_allclose(run(folded, x) / scale, expected / scale, rtol=0, atol=2e-6)
        np.testing.assert_array_equal(run(folded, x[2:3]), run(folded, x)[2:3])
    assert masks == 0 if samples % 4 == 0 else masks > 0 or strides[0] != 4


@pytest.mark.parametrize("samples", [61, 62, 63])
def test_only_masks_keep_what_is_behind_the_end_out(samples: int) -> None:
    plain = u_shaped(1, samples, (4,))
    folded = fold(plain, samples, (samples,))
    for node in folded.graph.node:
        if node.op_type == "Mul":
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output, node.name))
    x = large_at_the_ends(samples)[:3]
    wrong = np.abs(run(folded, x) - run(plain, x)).max((0, 1, 2)) > 1e-4
    assert wrong[-3:].any() and not wrong[:-30].any()


def test_a_value_is_masked_once() -> None:
    """However many read it; 1x1 convolutions and those that only look back need none."""
    for taps, masks in ((7, 1), (1, 0)):
        net = Net(0, 63)
        value = net.layer("x", 8, 5)
        parts = [net.layer(value, 8, taps) for _ in range(3)]
        plain = net.graph(net.add("Sum", parts, (8, 63)))
        folded = fold(plain, 63, (63,))
        assert Counter(node.op_type for node in folded.graph.node)["Mul"] == masks
        x = large_at_the_ends(63)
        np.testing.assert_allclose(run(folded, x), run(plain, x), rtol=1e-5, atol=1e-4)


def test_mask_does_not_depend_on_the_input() -> None:
    plain = u_shaped(0, 63, (4,))
    x = np.ones((2, 3, 1, 63), np.float32)
    x[0, 0, 0, 0] = np.inf
    x[1, 0, 0, 0] = np.nan
    found, expected = (run(graph, x)[..., -15:] for graph in (fold(plain, 63, (63,)), plain))
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("ends", [(0, 0), (1, 1), (2, 2)])
def test_masks_in_int8(ends: tuple[int, int]) -> None:
    """A mask between quantized layers is a constant of theirs; it costs no more error than none."""
    samples = 125
    plain = u_shaped(2, samples, (4, 4))
    x = np.random.default_rng(0).normal(size=(64, 3, 1, samples)).astype(np.float32)
    folded = fold(plain, samples, (samples,))
    made = quantize(folded, calibrate(folded, [x], "minmax"), Ends(*ends))
    onnx.checker.check_model(made, full_check=True)
    constant = [node.input[0] for node in made.graph.node if node.op_type == "Mul" and "/constant" in node.input[1]]
    assert len(constant) == {0: 3, 1: 2, 2: 0}[ends[0]]
    assert all(name.endswith("/dequantized") for name in constant)
    taken = {name for node in made.graph.node for name in node.input} | {made.graph.output[0].name}
    assert all(taken & set(node.output) for node in made.graph.node)
    expected, found = run(plain, x), run(made, x)
    error = np.sqrt(np.mean((found - expected) ** 2, (0, 1, 2))) / expected.std()
    assert error[-8:].max() < 2 * error[:-8].max() < 0.2


@pytest.mark.parametrize(("stride", "blocks"), [(4, (4, 1)), (2, (4, 2)), (1, (4, 4))])
def test_polyphase_by_hand(stride: int, blocks: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    layer, x = rng.normal(size=(2, 3, 7)).astype(np.float32), rng.normal(size=(3, 32)).astype(np.float32)
    before, (n, m) = 3, blocks
    padded = np.pad(x, ((0, 0), (before, 7)))
    expected = np.stack(
        [np.tensordot(layer, padded[:, k * stride : k * stride + 7], ((1, 2), (0, 1))) for k in range(32 // stride)]
    )
    weights, (low, high) = polyphase(layer, stride, before, blocks)
    folded = np.pad(x.T.reshape(32 // n, n * 3).T, ((0, 0), (low, high)))
    found = np.stack(
        [
            np.tensordot(weights, folded[:, k : k + weights.shape[2]], ((1, 2), (0, 1)))
            for k in range(folded.shape[1] - weights.shape[2] + 1)
        ]
    )
    np.testing.assert_allclose(found.reshape(-1, 2), expected, atol=1e-5)
    assert len(found) == 32 // n
    assert weights.shape[:2] == (m * 2, n * 3)


@pytest.mark.parametrize("samples", [256, 512, WINDOW])
def test_whole_network(source: Path, samples: int) -> None:
    model = manifest()
    clean = to_clean_onnx(source, model)
    folded = free_lengths(fold_narrow(clean, model), model)
    plain = free_lengths(clean, model)
    windows = waveforms(5, samples)
    np.testing.assert_allclose(run(folded, windows), run(plain, windows), atol=1e-5)
    assert len(folded.graph.node) > len(plain.graph.node)
