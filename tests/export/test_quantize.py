"""int8 is nearly as good as float32, does not depend on the batch, and is refused where it is not good."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from export.small import WINDOW, Array, Exported, manifest, waveforms
from msgspec.structs import replace

from seisserve import manifest as manifests
from seisserve.bundle import read
from seisserve.errors import BundleError, UsageError
from seisserve.runtime import golden_error, golden_tolerance, load
from seisserve.runtimes.openvino import computes_bfloat16
from seisserve_export import gate
from seisserve_export.artifacts import GraphRuntime, add_artifact, equalised, made_up_windows, read_labelled
from seisserve_export.convert import OPSET, fold_narrow, free_lengths, to_clean_onnx
from seisserve_export.gate import Bounds, Labelled
from seisserve_export.quantize import DENSE, Ends, calibrate, equalise, layers, quantize, search, store
from seisserve_export.quantize_command import quantize as command

WIDE = Bounds(
    max_abs=1, max_relative=1e9, margin=0.1, picks_matched=0.5, residual_median_samples=10, residual_p95_samples=10,
    f1_fall=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def clean(source: Path) -> onnx.ModelProto:
    return to_clean_onnx(source, manifest())


@pytest.fixture(scope="module")
def folded(clean: onnx.ModelProto) -> onnx.ModelProto:
    return free_lengths(fold_narrow(clean, manifest()), manifest())


@pytest.fixture(scope="module")
def windows() -> Array:
    return waveforms(24)


def run(graph: onnx.ModelProto, windows: Array) -> Array:
    return GraphRuntime(graph, manifest()).predict(manifest(), {"waveform": windows})["probability"]


def test_equalised_network_is_the_same(clean: onnx.ModelProto, folded: onnx.ModelProto, windows: Array) -> None:
    even = equalise(clean, [windows])
    weights = [{item.name: item.raw_data for item in graph.graph.initializer} for graph in (clean, even)]
    assert sum(weights[0][name] != weights[1][name] for name in weights[0]) > 20
    plain = equalised(clean, manifest(), windows)
    np.testing.assert_allclose(run(plain, windows), run(folded, windows), atol=2e-5)


def test_int8_is_near(clean: onnx.ModelProto, folded: onnx.ModelProto, windows: Array) -> None:
    """Random weights are hard: each level is 10 times as large as the one before."""
    expected, n = run(folded, windows), len(layers(folded))

    def apart(graph: onnx.ModelProto, ends: tuple[int, int]) -> float:
        made = quantize(graph, calibrate(graph, [windows]), Ends(*ends))
        onnx.checker.check_model(made, full_check=True)
        whole = [item for item in made.graph.initializer if item.data_type == onnx.TensorProto.INT8]
        assert len([item for item in whole if item.name.endswith("/int")]) == n - sum(ends)
        return float(np.sqrt(np.mean((run(made, windows) - expected) ** 2)))

    even = equalised(clean, manifest(), windows)
    assert 0.01 < apart(even, (0, 0)) < apart(folded, (0, 0)) / 2
    assert apart(even, (6, 4)) < 0.02
    assert apart(folded, (n, 0)) == 0


@pytest.mark.parametrize("samples", [256, WINDOW])
def test_a_window_does_not_depend_on_the_others(folded: onnx.ModelProto, samples: int) -> None:
    graph = quantize(folded, calibrate(folded, [waveforms(24)]), Ends(2, 1))
    some = waveforms(32, samples)
    alone = np.concatenate([run(graph, window[None]) for window in some])
    for n in (2, 3, 7, 16, 31, 32):
        np.testing.assert_array_equal(run(graph, some[:n]), alone[:n])


def test_ranges(folded: onnx.ModelProto, windows: Array) -> None:
    widest, cut, telling = (calibrate(folded, [windows], method) for method in ("minmax", "percentile", "entropy"))
    assert widest.keys() == cut.keys() == telling.keys()
    for name, (low, high) in widest.items():
        assert low <= cut[name][0] <= 0 <= cut[name][1] <= high
        assert low <= telling[name][0] <= 0 <= telling[name][1] <= high
    assert np.mean([cut[name][1] < widest[name][1] for name in widest]) > 0.5


def test_bits_of_activations_are_used(folded: onnx.ModelProto, windows: Array) -> None:
    """Behind a Relu the zero point is 0: all 256 levels are for what there is."""
    graph = quantize(folded, calibrate(folded, [windows]), Ends(1, 1))
    zeros = [
        int(onnx.numpy_helper.to_array(item))
        for item in graph.graph.initializer
        if item.name.endswith("/zero") and item.data_type == onnx.TensorProto.UINT8
    ]
    assert len(zeros) > 15
    assert set(zeros) == {0}


def test_search_goes_where_it_helps() -> None:
    asked = []

    def worth(ends: Ends) -> tuple[float, float]:
        asked.append(ends)
        return 1.0, 5.0 - ends.first - 0.5 * ends.last

    ends, tried = search(20, worth, (0.99, 1.0))
    assert ends == Ends(4, 1)
    assert [one for one, _ in tried] == asked
    assert search(20, lambda ends: (0.5, float(ends.last)), (0.99, 1.0))[0] == Ends(1, 1)  # nothing helps
    assert search(3, lambda ends: (1.0, 0.0), (0.99, 1.0))[0] == Ends(0, 0)
    best, tried = search(48, lambda ends: (1.0, 60.0 - sum(ends)), (0.99, 1.0))
    assert sum(best) == max(sum(one) for one, _ in tried) == 47  # three at a time, and one is left


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "weights8"])
def test_stored_weights(folded: onnx.ModelProto, windows: Array, precision: str) -> None:
    graph = store(folded, precision)  # type: ignore[arg-type]
    onnx.checker.check_model(graph, full_check=True)
    assert graph.ByteSize() < {"bfloat16": 0.6, "float16": 0.6, "weights8": 0.4}[precision] * folded.ByteSize()
    apart = np.abs(run(graph, windows) - run(folded, windows)).max()
    assert 0 < apart < {"bfloat16": 0.1, "float16": 0.01, "weights8": 0.2}[precision]


def test_dense_weights_have_a_scale_for_each_output(folded: onnx.ModelProto) -> None:
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=(64, 32)) * np.geomspace(1e-3, 1e3, 32)).astype(np.float32)
    make, tensor = onnx.helper, onnx.helper.make_tensor_value_info
    ends = [tensor(name, onnx.TensorProto.FLOAT, [None, n]) for name, n in (("waveform", 64), ("probability", 32))]
    node = make.make_node("MatMul", ["waveform", "weights"], ["probability"])
    held = [onnx.numpy_helper.from_array(weights, "weights")]
    plain = make.make_model(
        make.make_graph([node], "dense", ends[:1], ends[1:], held),
        ir_version=8,
        opset_imports=[make.make_opsetid("", OPSET)],
    )
    x = rng.normal(size=(8, 64)).astype(np.float32)
    expected, found = run(plain, x), run(store(plain, "weights8", ("MatMul",)), x)
    error = np.abs(found - expected).max(axis=0) / np.abs(expected).max(axis=0)
    assert 0 < error.max() < 0.03
    assert store(folded, "weights8", DENSE).graph.initializer == folded.graph.initializer  # it has convolutions only


def test_weights_beyond_float16(folded: onnx.ModelProto) -> None:
    graph = onnx.ModelProto()
    graph.CopyFrom(folded)
    item = next(item for item in graph.graph.initializer if np.prod(item.dims) > 2000)
    values = onnx.numpy_helper.to_array(item) * 1e8
    item.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), item.name))
    with pytest.raises(BundleError, match="do not fit into float16"):
        store(graph, "float16")


@pytest.fixture
def folder(exported: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported.bundle.folder, tmp_path / "small" / "1"))


def test_artifact_is_listed_and_loads(folder: Path) -> None:
    before = read(folder).manifest.artifacts
    made = add_artifact(folder, "int8", calibration=waveforms(24), ends=Ends(2, 2), bounds=WIDE)
    bundle = read(folder)
    artifact = bundle.manifest.artifacts["int8"]
    assert bundle.manifest.artifacts.keys() == {*before, "int8"}
    golden = golden_error(bundle, load(bundle, precision="int8"))
    parity = made.report.parity | {"golden": golden}
    assert (artifact.file, artifact.precision, artifact.parity) == ("model.int8.onnx", "int8", parity)
    assert golden_tolerance(bundle.manifest, artifact) == max(2 * golden, bundle.manifest.golden_tolerance)
    assert artifact.size_bytes < 0.5 * before["onnx"].size_bytes
    assert artifact.windows_per_second == made.windows_per_second
    assert artifact.edge_only == (made.windows_per_second < made.float32_per_second)
    assert "model.int8.onnx" in (folder / "CARD.md").read_text()
    assert "against float32 ONNX" in made.text()
    load(bundle, precision="int8")
    assert bundle.artifact("onnx")[0].precision == "float32"


def test_bfloat16_is_judged_as_openvino_computes_it(folder: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    if not computes_bfloat16():
        with pytest.raises(UsageError, match="this processor computes no bfloat16"):
            add_artifact(folder, "bfloat16", bounds=WIDE)
        return
    made = add_artifact(folder, "bfloat16", bounds=WIDE)
    bundle = read(folder)
    assert bundle.manifest.artifacts["bfloat16"].windows_per_second == made.windows_per_second
    assert bundle.artifact("onnx", "best")[0].precision == "float32"  # of onnxruntime, which gains nothing by it
    windows, one = waveforms(6), bundle.manifest
    exact, stored, computed = (
        transport.predict(one, {one.input.name: windows})[one.output.name]
        for transport in (
            load(bundle), load(bundle, precision="bfloat16"), load(bundle, "openvino", precision="bfloat16"),
        )
    )  # fmt: skip
    assert 0 < np.abs(stored - exact).max() < 0.1  # onnxruntime rounds the weights alone
    assert 0 < np.abs(computed - stored).max() <= 2 * made.report.max_abs
    single = load(bundle, "openvino", precision="bfloat16").predict(one, {one.input.name: windows[2:3]})
    np.testing.assert_array_equal(single[one.output.name], computed[2:3])  # whatever it is computed with


def test_a_fall_of_f1_is_compared_in_the_digits_that_are_shown(folder: Path) -> None:
    assert 0.7097 - 0.7047 > 0.005  # in binary
    known = Labelled(waveforms(2), np.full((2, 2), 10.0), ("P", "S"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "_f1", lambda *_: {"S 0.1 s": (0.7097, 0.7047)})
        report = add_artifact(folder, "weights8", labelled=known, bounds=replace(WIDE, f1_fall=0.005)).report
        assert not report.failures
        with pytest.raises(BundleError, match=r"fall of F1, S 0\.1 s: 0\.005, the bound is 0\.0049"):
            add_artifact(folder, "weights8", labelled=known, bounds=replace(WIDE, f1_fall=0.0049))


def test_what_breaks_a_bound_is_deleted(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    strict = Bounds(max_abs=1e-6)
    with pytest.raises(BundleError, match=r"model.int8.onnx is not as good as its SavedModel: largest difference"):
        add_artifact(folder, "int8", calibration=waveforms(24), ends=Ends(1, 1), bounds=strict)
    assert not (folder / "model.int8.onnx").exists()
    assert (folder / "manifest.json").read_bytes() == before
    add_artifact(folder, "weights8", bounds=WIDE)
    with pytest.raises(BundleError):
        add_artifact(folder, "weights8", bounds=strict)
    load(read(folder), precision="weights8")  # the earlier one is still there


def test_f1_is_compared(folder: Path) -> None:
    windows = waveforms(12)
    onsets = np.full((12, 2), np.nan)
    onsets[:6] = WINDOW // 3, WINDOW // 2
    known = Labelled(windows, onsets, ("P", "S"), np.arange(12) >= 8)
    made = add_artifact(folder, "weights8", labelled=known, bounds=WIDE)
    assert made.report.f1.keys() == {"P 0.1 s", "P 0.5 s", "S 0.1 s", "S 0.5 s"}
    assert {name for name in made.report.parity if name.startswith("f1_change")} == {
        f"f1_change {name}" for name in made.report.f1
    }
    assert manifests.read(folder).artifacts["weights8"].parity.items() > made.report.parity.items()


def test_made_up_windows_are_of_all_ratios() -> None:
    windows = made_up_windows(manifest())
    assert (windows.dtype, windows.shape) == (np.float32, (64, WINDOW, 3))
    assert np.isfinite(windows).all()
    peaks = np.abs(windows).max(axis=(1, 2)) / np.median(np.abs(windows), axis=(1, 2))
    assert peaks.max() > 2 * peaks.min()


def test_command(folder: Path, tmp_path: Path) -> None:
    def invoke(*arguments: object) -> object:
        return CliRunner().invoke(command, [str(folder), *map(str, arguments)]).exception

    path = tmp_path / "windows.npz"
    np.savez(path, input=waveforms(4, 300))
    assert "windows of 300 samples; small takes [256, 512, 1024]" in str(invoke("--calibration", path))
    np.savez(path, input=waveforms(4), onsets=np.zeros((3, 2)), phases=["P", "S"])
    with pytest.raises(UsageError, match=r"onsets are \[3, 2\]; expected \[4, 2\]"):
        read_labelled(path)
    assert isinstance(invoke("--precision", "weights8", "--float-ends", 1, 1), UsageError)
    assert "--study needs" in str(invoke("--study"))
