"""Bundles are whole, hold together, and are replaced whole or not at all."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from export.small import WINDOW, Exported, manifest, softmax, softmax_manifest, waveforms
from msgspec.structs import replace

import seisserve_export.bundles as bundles
from seisserve import manifest as manifests
from seisserve.bundle import digest, golden, read
from seisserve.errors import BundleError, UsageError
from seisserve.runtime import load
from seisserve_export.bundles import export_bundle, golden_windows, read_windows, save_bundle
from seisserve_export.gate import Bounds


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported.bundle.folder, tmp_path / "1"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_bundle_is_complete(exported: Exported, source: Path) -> None:
    folder, model = exported.bundle.folder, exported.bundle.manifest
    assert {path.name for path in folder.iterdir()} == {
        "CARD.md", "fingerprint.pb", "golden.npz", "manifest.json", "model.onnx", "saved_model.pb", "variables"
    }  # fmt: skip
    assert not [path for path in folder.parent.iterdir() if path != folder]  # nothing left beside it
    assert {name: artifact.file for name, artifact in model.artifacts.items()} == {
        "saved_model": ".",
        "onnx": "model.onnx",
    }
    for artifact in model.artifacts.values():
        assert digest(folder / artifact.file) == (artifact.sha256, artifact.size_bytes)
        assert artifact.processor
    before = manifests.read(source)
    assert replace(model, artifacts={}) == replace(before, artifacts={})
    assert model.artifacts["onnx"].opset == 18


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorflow"])
def test_bundle_loads(exported: Exported, runtime: str) -> None:
    windows, expected = golden(exported.bundle.folder)
    transport = load(exported.bundle, runtime)
    found = transport.predict(exported.bundle.manifest, {"waveform": windows})["probability"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_tensorflow_gives_the_golden_outputs(exported: Exported) -> None:
    windows, expected = golden(exported.bundle.folder)
    signature = tf.saved_model.load(str(exported.bundle.folder)).signatures["serving_default"]
    found = signature(waveform=tf.constant(windows))["probability"].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("file", "runtime"), [("model.onnx", "onnxruntime"), ("saved_model.pb", "tensorflow")])
def test_tampering_is_found(copied: Path, file: str, runtime: str) -> None:
    content = bytearray((copied / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / file).write_bytes(content)
    with pytest.raises(BundleError, match="sha256 is"):
        load(read(copied), runtime)


def test_wrong_golden_is_found(copied: Path, tmp_path: Path) -> None:
    windows, expected = golden(copied)
    np.savez(copied / "golden.npz", input=windows, output=np.roll(expected, 1, axis=1))
    for runtime in ("onnxruntime", "tensorflow"):
        with pytest.raises(BundleError, match="golden outputs differ"):
            load(read(copied), runtime)
    with pytest.raises(BundleError, match="golden outputs differ"):
        export_bundle(copied, tmp_path / "2")


def test_source_that_does_not_hold_together(copied: Path, tmp_path: Path) -> None:
    variables = next((copied / "variables").glob("*.data*"))
    variables.write_bytes(variables.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(BundleError, match="not the one whose sha256"):
        export_bundle(copied, tmp_path / "2")
    (copied / "saved_model.pb").unlink()
    with pytest.raises(BundleError, match=r"no saved_model\.pb"):
        export_bundle(copied, tmp_path / "2")
    (copied / "golden.npz").unlink()
    with pytest.raises(BundleError, match=r"no golden\.npz"):
        export_bundle(copied, tmp_path / "2")
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_bundle_that_is_there_stays(tiny: Path, copied: Path) -> None:
    before = contents(copied)
    with pytest.raises(UsageError, match="is there already"):
        export_bundle(tiny, copied)
    with pytest.raises(BundleError, match="not as good"):
        export_bundle(tiny, copied, bounds=Bounds(picks_matched=1, max_abs=1e-12), replace=True)
    assert contents(copied) == before
    assert [path.name for path in copied.parent.iterdir()] == ["1"]


def test_failed_move_puts_the_old_bundle_back(tiny: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = contents(copied), Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".new." in self.name:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no"):
        export_bundle(tiny, copied, replace=True)
    assert contents(copied) == before
    assert [path.name for path in copied.parent.iterdir()] == ["1"]


def test_bundle_made_again_in_its_place_is_the_same(copied: Path, exported: Exported) -> None:
    (copied / "model.onnx").write_bytes(b"old")
    export_bundle(copied, copied, replace=True)
    load(read(copied))
    assert (copied / "model.onnx").read_bytes() == (exported.bundle.folder / "model.onnx").read_bytes()
    assert [path.name for path in copied.parent.iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (waveforms(2).astype(np.float64), "float64"),
        (waveforms(2)[:, 1:], "takes float32 .n, 1024, 3."),
        (waveforms(2)[:0], "takes float32"),
        (waveforms(2) * np.float32("nan"), "finite"),
    ],
)
def test_windows_that_do_not_fit(tiny: Path, windows: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        export_bundle(tiny, tmp_path / "2", windows=windows)
    assert not list(tmp_path.iterdir())


def test_golden_windows_cover_the_extremes() -> None:
    windows = golden_windows(manifest())
    assert (windows.shape, windows.dtype) == ((5, WINDOW, 3), np.float32)
    assert np.ptp(windows[2]) == 0
    np.testing.assert_allclose(np.abs(windows[3:]).max(axis=(1, 2)), [1e-14, 1e9], rtol=1e-6)
    np.testing.assert_array_equal(windows, golden_windows(manifest()))
    assert np.abs(windows[1, WINDOW // 2 :]).max() > 2 * np.abs(windows[1, : WINDOW // 3]).max()


def test_windows_from_a_file(tmp_path: Path) -> None:
    path, windows = tmp_path / "windows.npz", waveforms(2)
    np.savez(path, other=1, input=windows)
    np.testing.assert_array_equal(read_windows(path), windows)
    np.savez(path, windows)
    np.testing.assert_array_equal(read_windows(path), windows)
    path.write_bytes(b"no")
    with pytest.raises(UsageError, match=r"not an \.npz file"):
        read_windows(path)
    np.save(tmp_path / "windows.npy", windows)
    with pytest.raises(UsageError, match=r"not an \.npz file"):
        read_windows(tmp_path / "windows.npy")


def test_module_without_fragment_signature(tmp_path: Path) -> None:
    module = softmax()
    del module.fragment
    save_bundle(module, softmax_manifest(fragments=()), tmp_path / "1")
    assert set(read(tmp_path / "1").manifest.artifacts) == {"saved_model"}
    report = export_bundle(tmp_path / "1", tmp_path / "2")
    assert report.lengths == (WINDOW,)
    assert report.failures == ()


def test_all_public_names_are_there() -> None:
    assert all(hasattr(bundles, name) for name in bundles.__all__)
