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
    for plain in (convolution((3, 16), 7, 1), convolution((3, 4), 7, 4), convolution((3, 5), 7, 1, samples=66)):
        samples = plain.graph.input[0].type.tensor_type.shape.dim[3].dim_value
        assert list(fold(plain, samples, (samples,)).graph.node) == list(plain.graph.node)
    plain = convolution((3, 5), 7, 1)
    assert list(fold(plain, 64, (64, 30)).graph.node) == list(plain.graph.node)  # at a shorter length it could not


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
