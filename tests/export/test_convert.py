"""The ONNX file gives what the SavedModel gives, for every batch and length, and no node is one that cannot run."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tensorflow as tf
from export.small import WINDOW, Array, Exported, both_signatures, manifest, waveforms
from msgspec.structs import replace
from onnx import helper

from seisserve.errors import BundleError
from seisserve_export.bundles import export_bundle, save_bundle
from seisserve_export.convert import check_operators, convert

TOLERANCE = 1e-5  # of a probability
Run = Callable[[Array], Array]


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def run(exported: Exported) -> Run:
    loaded = session(exported.bundle.folder / "model.onnx")
    return lambda windows: np.asarray(loaded.run(None, {"waveform": windows})[0])


@pytest.fixture(scope="module")
def reference(exported: Exported) -> Run:
    model = tf.saved_model.load(str(exported.bundle.folder))

    def call(windows: Array) -> Array:
        signature = model.signatures["serving_default" if windows.shape[1] == WINDOW else "fragment"]
        return np.asarray(signature(waveform=tf.constant(windows))["probability"])

    return call


@pytest.mark.parametrize("samples", [256, 512, 768, WINDOW])
@pytest.mark.parametrize("n", [1, 7, 32])
def test_onnx_gives_what_the_saved_model_gives(run: Run, reference: Run, n: int, samples: int) -> None:
    windows = waveforms(n, samples)
    expected, found = reference(windows), run(windows)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape) == (np.float32, (n, samples, 3))
    assert expected.std(axis=(0, 1)).min() > 0.01  # else anything would agree
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("scale", [1e-14, 1e-7, 1e9])
def test_amplitude_does_not_matter(run: Run, scale: float) -> None:
    windows = waveforms(1)
    windows /= np.abs(windows).max()
    np.testing.assert_allclose(run(windows * np.float32(scale)), run(windows), rtol=0, atol=2e-5)


def test_zeros_and_constants_are_the_same_and_finite(run: Run) -> None:
    found = run(np.stack([np.full((WINDOW, 3), value, np.float32) for value in (0, 4.0, -16777216.0)]))
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, found[[0, 0, 0]])


@pytest.mark.parametrize("samples", [256, WINDOW])
def test_a_window_does_not_depend_on_the_others(run: Run, samples: int) -> None:
    windows = waveforms(64, samples)
    alone = np.concatenate([run(window[None]) for window in windows])
    for n in [*range(2, 34), 48, 63, 64]:
        np.testing.assert_array_equal(run(windows[:n]), alone[:n], err_msg=f"{n} windows")
    order = np.random.default_rng(0).permutation(64)
    np.testing.assert_array_equal(run(windows[order]), alone[order])


def test_calls_side_by_side_on_one_session_are_the_same(run: Run) -> None:
    windows = waveforms(16)
    expected = run(windows)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(run, [windows] * 16):
            np.testing.assert_array_equal(found, expected)


def test_graph_is_clean(exported: Exported) -> None:
    graph = onnx.load(exported.bundle.folder / "model.onnx")
    count = Counter(node.op_type for node in graph.graph.node)
    assert count["Transpose"] == 2 + 2 * 5  # of the input and of the output, and views that fold and unfold
    assert (count["Concat"], count["ConvTranspose"]) == (4, 0)  # folded, a transposed convolution is an ordinary one
    assert count["Conv"] == 15 + 4
    assert not count.keys() & {"BatchNormalization", "Slice", "Pad", "Gather", "Split", "Softmax"}
    assert [(item.domain, item.version) for item in graph.opset_import] == [("", 18)]
    shapes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    ]
    assert shapes == [["batch", "samples", 3], ["batch", "samples", 3]]


def test_length_stays_fixed_without_fragment_windows(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, manifest(fragments=()), tmp_path / "model.onnx")
    assert session(tmp_path / "model.onnx").get_inputs()[0].shape == ["batch", WINDOW, 3]


def test_other_names_than_the_manifest_says(tiny: Path, tmp_path: Path) -> None:
    model = manifest()
    with pytest.raises(BundleError, match=r"takes \['waveform'\], not wave alone"):
        convert(tiny, replace(model, input=replace(model.input, name="wave")), tmp_path / "model.onnx")
    with pytest.raises(BundleError, match=r"gives \['probability'\], the manifest has \['picks'\]"):
        convert(tiny, replace(model, outputs=(replace(model.output, name="picks"),)), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_network_that_needs_its_length(tmp_path: Path) -> None:
    """What is converted has the length of a window; the gate finds that it takes no other."""
    weights = tf.Variable(np.random.default_rng(0).normal(size=(1, 512, 3)).astype(np.float32))

    def call(waveform: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(weights[:, : tf.shape(waveform)[1]] + 0 * waveform)

    module = both_signatures(call, 512, weights)
    save_bundle(module, manifest(window=512, fragments=(256,)), tmp_path / "1")
    with pytest.raises(BundleError, match="windows of 256 samples cannot be run"):
        export_bundle(tmp_path / "1", tmp_path / "2")


def test_operator_that_onnx_does_not_have(tmp_path: Path) -> None:
    module = both_signatures(tf.math.lgamma, 512)
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.serve})
    with pytest.raises(BundleError, match="Lgamma"):
        convert(tmp_path, manifest(window=512, fragments=()), tmp_path / "model.onnx")


def test_folder_without_a_saved_model(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="tf2onnx cannot convert it"):
        convert(tmp_path, manifest(), tmp_path / "model.onnx")


def graph_of(*nodes: onnx.NodeProto, shape: tuple[int, ...] = (1,)) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    body = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("other", 1)])


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Relu", ["x"], ["y"], "first", domain="other"), "'first' .Relu. is of the domain 'other'"),
        (helper.make_node("Lgamma", ["x"], ["y"], "second"), "'second' .Lgamma. is no ONNX operator"),
        (helper.make_node("BitShift", ["x", "x"], ["y"], "third", direction="LEFT"), "cannot run: .*third"),
        (helper.make_node("Relu", ["z"], ["y"], "fourth"), "cannot run: .*fourth"),
    ],
)
def test_node_at_fault_is_named(node: onnx.NodeProto, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        check_operators(graph_of(node))


def test_control_flow_is_refused() -> None:
    truth = helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, (1,))
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "branch", [], [truth])
    node = helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch, else_branch=branch)
    with pytest.raises(BundleError, match=r"'choice' \(If\) is control flow"):
        check_operators(graph_of(node))
