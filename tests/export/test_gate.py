"""The gate finds what is wrong with an artifact, and lets a good one pass."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from export.small import WINDOW, Array, Exported, manifest, waveforms
from msgspec.structs import replace
from onnx import helper, numpy_helper

from seisserve.bundle import digest
from seisserve.errors import BundleError
from seisserve.manifest import Label
from seisserve.runtime import OnnxRuntime, TensorFlowRuntime
from seisserve.transport import FakeTransport
from seisserve_export.gate import Bounds, Labelled, Report, compare, require, speeds


def shift_output(graph: onnx.ModelProto) -> None:
    """Every output one sample later."""
    last = graph.graph.node[-1]
    last.output[0] = "early"
    for name, value in (("zero", 0), ("last", -1), ("end", 2**31), ("axis", 1)):
        graph.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    graph.graph.node.extend(
        [
            helper.make_node("Slice", ["early", "last", "end", "axis"], ["head"]),
            helper.make_node("Slice", ["early", "zero", "last", "axis"], ["tail"]),
            helper.make_node("Concat", ["head", "tail"], ["probability"], axis=1),
        ]
    )


def change_weight(graph: onnx.ModelProto) -> None:
    """One number of the first convolution."""
    first = next(node for node in graph.graph.node if node.op_type == "Conv")
    kernel = next(item for item in graph.graph.initializer if item.name == first.input[1])
    values = numpy_helper.to_array(kernel).copy()
    values.flat[3] += 0.05
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))


def fix_length(graph: onnx.ModelProto) -> None:
    """Takes full windows only."""
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = WINDOW


def sabotaged(exported: Exported, change: object, folder: Path) -> OnnxRuntime:
    graph = onnx.load(exported.bundle.folder / "model.onnx")
    change(graph)  # type: ignore[operator]
    onnx.save(graph, folder / "model.onnx")
    model = exported.bundle.manifest
    artifact = replace(model.artifacts["onnx"], sha256=digest(folder / "model.onnx")[0])
    return OnnxRuntime(
        exported.bundle._replace(folder=folder, manifest=replace(model, artifacts={"onnx": artifact})), 1
    )


def test_good_artifact_passes(exported: Exported) -> None:
    report = exported.report
    assert report.failures == ()
    assert report.windows == 14  # 5 golden, 9 given
    assert report.lengths == (256, 512, WINDOW)
    assert 0 < report.max_abs < 1e-5
    assert report.picks > 50
    assert report.picks_matched == 1
    assert report.residual_p95_samples == 0
    assert sum(report.histogram) == report.picks
    assert report.windows_per_second > 0
    assert report.reference_windows_per_second > 0
    artifact = exported.bundle.manifest.artifacts["onnx"]
    assert artifact.parity == report.parity
    assert artifact.size_bytes == report.size_bytes
    assert artifact.windows_per_second == report.windows_per_second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shift_output, "largest difference"),
        (change_weight, "largest difference"),
        (fix_length, "256 samples cannot be"),
    ],
)
def test_sabotage_is_found_and_deleted(exported: Exported, change: object, message: str, tmp_path: Path) -> None:
    artifact = sabotaged(exported, change, tmp_path)
    report = compare(TensorFlowRuntime(exported.bundle), artifact, exported.bundle.manifest, waveforms(5), Bounds())
    assert any(message in failure for failure in report.failures)
    assert message in report.text()
    path = tmp_path / "model.onnx"
    with pytest.raises(BundleError, match=f"model.onnx is not as good as its SavedModel: .*{message}"):
        require(report, path)
    assert not path.exists()


def test_shift_is_seen_in_the_picks(exported: Exported, tmp_path: Path) -> None:
    artifact = sabotaged(exported, shift_output, tmp_path)
    reference, model = TensorFlowRuntime(exported.bundle), exported.bundle.manifest
    report = compare(reference, artifact, model, waveforms(5), Bounds(max_abs=1, max_relative=1, picks_matched=0))
    assert report.residual_median_samples == 1
    assert report.residual_p95_samples == 1
    assert [failure for failure in report.failures if "residuals" in failure] == list(report.failures)


def gaussians(windows: Array, *peaks: tuple[float, float]) -> Array:
    """Curves N, P, S with peaks of P at (sample, height) in every window."""
    sample = np.arange(windows.shape[1])
    p = sum(height * np.exp(-(((sample - centre) / 20) ** 2) / 2) for centre, height in peaks)
    curves = np.stack([1 - p, p, 0 * p], axis=-1)
    return np.repeat(curves[None], len(windows), axis=0).astype(np.float32)


def gate(*found: tuple[float, float], **bounds: float) -> Report:
    """Two peaks against others, in one window."""
    reference = FakeTransport(lambda x: gaussians(x, (300.0, 0.9), (700.0, 0.8)))
    artifact = FakeTransport(lambda x: gaussians(x, *found))
    wide = Bounds(**{"max_abs": 1.0, "max_relative": 1.0, "picks_matched": 1.0, "residual_p95_samples": 5.0, **bounds})
    return compare(reference, artifact, manifest(fragments=()), np.ones((1, WINDOW, 3), np.float32), wide)


def test_residuals_of_picks() -> None:
    report = gate((300.0, 0.9), (703.0, 0.8))
    assert report.failures == ()
    assert (report.picks, report.picks_matched) == (2, 1.0)
    np.testing.assert_allclose(report.residual_max_samples, 3, atol=0.02)
    np.testing.assert_allclose(report.residual_median_samples, 1.5, atol=0.02)
    assert report.histogram == (1, 0, 0, 0, 1, 0)


def test_lost_pick() -> None:
    assert gate((300.0, 0.9)).picks_matched == 0.5
    assert any("picks matched: 0.5000" in failure for failure in gate((300.0, 0.9)).failures)
    assert not gate((300.0, 0.9), picks_matched=0.5).failures


def test_pick_too_many_counts_as_well() -> None:
    assert gate((300.0, 0.9), (700.0, 0.8), (900.0, 0.8)).picks_matched == pytest.approx(2 / 3)


def test_pick_too_far_away_does_not_match() -> None:
    assert gate((300.0, 0.9), (715.0, 0.8)).picks_matched == 0.5


def test_one_value_for_a_window_is_picked_as_the_pipeline_does() -> None:
    """Picks come from windows cut at the hop out of longer ones; one that is late is found out."""
    whole = manifest(fragments=())
    output = replace(whole.output, shape=(-1, 3))
    model = replace(whole, outputs=(output,), hop_samples=4)

    def single(late: int) -> FakeTransport:
        def values(x: Array) -> Array:
            middle = WINDOW // 2 - late
            p = 0.9 * np.maximum(x[:, middle, 0], 0) / np.maximum(x.max(axis=(1, 2)), 1e-9)
            return np.stack([1 - p, p, 0 * p], axis=-1).astype(np.float32)

        return FakeTransport(values)

    sample = np.arange(4 * WINDOW)
    stretches = np.zeros((2, len(sample), 3), np.float32)
    for n, onset in enumerate((1500, 2204)):
        stretches[n, :, 0] = np.exp(-(((sample - onset) / 60) ** 2) / 2)
    known = Labelled(stretches, np.array([[1500.0], [2204.0]]), ("P",))
    bounds = Bounds(max_abs=1, max_relative=np.inf, residual_p95_samples=2, f1_fall=0.1)

    def report(late: int) -> Report:
        golden = np.zeros((1, WINDOW, 3), np.float32)
        return compare(single(0), single(late), model, golden, bounds, labelled=known, time_it=False)

    same = report(0)
    assert same.failures == ()
    assert same.f1["P 0.1 s"] == (1.0, 1.0)
    assert report(8).residual_median_samples == pytest.approx(8, abs=0.2)
    assert any("95 % of the residuals" in failure for failure in report(8).failures)
    assert report(20).f1["P 0.1 s"] == (1.0, 0.0)


def test_detections_with_a_long_tail_match_themselves() -> None:
    """The tail lies above half of the threshold, where a detection ends, and below half of the raised one."""
    plain = manifest(fragments=())
    model = replace(
        plain, task="detection", labels={"detection": Label(threshold=0.4)},
        outputs=(replace(plain.output, shape=(-1, WINDOW, 1), labels=("detection",)),),
    )  # fmt: skip

    def curve(length: int, tail: int) -> FakeTransport:
        def values(x: Array) -> Array:
            y = np.zeros((len(x), WINDOW, 1), np.float32)
            y[:, 200 : 200 + length + tail], y[:, 200 : 200 + length] = 0.22, 0.9
            return y

        return FakeTransport(values)

    def share(length: int, tail: int) -> float:
        bounds = Bounds(max_abs=1, max_relative=1, margin=0.1)
        windows = np.ones((1, WINDOW, 3), np.float32)
        return compare(curve(100, 600), curve(length, tail), model, windows, bounds, time_it=False).detections_matched

    assert share(100, 600) == share(100, 300) == share(150, 0) == 1
    assert share(250, 0) == share(0, 0) == 0


def run_fake(wrong: object) -> Report:
    reference = FakeTransport(lambda x: gaussians(x, (300.0, 0.9)))
    artifact = FakeTransport(lambda x: wrong(gaussians(x, (300.0, 0.9))))  # type: ignore[operator]
    windows = np.ones((3, WINDOW, 3), np.float32)
    return compare(reference, artifact, manifest(fragments=()), windows, Bounds())


def test_nan_fails() -> None:
    assert any("nan" in failure for failure in run_fake(lambda y: y * np.float32("nan")).failures)


def test_other_shape_or_type_fails() -> None:
    assert any("outputs are" in failure for failure in run_fake(lambda y: y[:, 1:]).failures)
    assert any("float64" in failure for failure in run_fake(lambda y: y.astype(np.float64)).failures)


def test_task_without_picks() -> None:
    plain = manifest(fragments=())
    output = replace(plain.output, labels=("Z", "N", "E"))
    model = replace(plain, task="denoising", labels={}, outputs=(output,))
    same = FakeTransport(lambda x: x)
    report = compare(same, same, model, waveforms(3), Bounds())
    assert report.picks == -1
    assert report.parity == {"windows": 3.0, "max_abs": 0.0, "max_relative": 0.0}
    assert "picks" not in report.text()


def test_windows_that_stay_as_they_are_do_not_hide_the_others() -> None:
    """As of a recovery: one window in 40 is changed, and 5 % wrong."""
    plain = manifest(fragments=())
    model = replace(plain, task="recovery", labels={}, outputs=(replace(plain.output, labels=("Z", "N", "E")),))
    windows = waveforms(40)

    def double(factor: float) -> FakeTransport:
        return FakeTransport(lambda x: np.where(x.max(axis=(1, 2), keepdims=True) == windows[7].max(), factor * x, x))

    report = compare(double(2), double(2.1), model, windows, Bounds(max_relative=1), time_it=False)
    assert report.rms_share == pytest.approx(0.05)
    assert [failure.split(":")[0] for failure in report.failures] == [
        "change of the output's power, dB", "difference as a share of the output",
    ]  # fmt: skip


def test_report_for_people() -> None:
    text = gate((300.0, 0.9), (703.0, 0.8)).text()
    assert "picks                  2, matched 100.00%" in text
    assert "     2 to 5    samples       1 ####" in text
    assert "FAILED" not in text


def test_speed_is_of_each() -> None:
    def slow(x: Array) -> Array:
        for _ in range(20):
            np.sort(x, axis=None)
        return x

    fast = FakeTransport(lambda x: np.sort(x, axis=None)[: len(x)])
    first, second = speeds([FakeTransport(slow), fast], manifest(), waveforms(4))
    assert second > 2 * first
