"""Make bundles: a SavedModel with its manifest and golden windows, and from that the full bundle with its ONNX file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy as np
from numpy.typing import NDArray

from seisserve import manifest as manifests
from seisserve.bundle import Bundle, digest, golden, read, saved_model, write_golden
from seisserve.errors import BundleError, UsageError
from seisserve.extras import need
from seisserve.manifest import Artifact, Label, Manifest, Output, Tensor
from seisserve.runtime import OnnxRuntime, load
from seisserve_export import card
from seisserve_export.convert import OPSET, convert
from seisserve_export.gate import Bounds, Report, compare, require

__all__ = ["PHASENET_ORIGINAL", "export_bundle", "golden_windows", "read_windows", "replacing", "save_bundle"]

SAVED_MODEL = ("saved_model.pb", "fingerprint.pb", "variables", "assets")

PHASENET_ORIGINAL = Manifest(
    name="phasenet_original",
    task="picking",
    summary="PhaseNet as its authors published it, trained on Northern California earthquakes (NCEDC)",
    licence="MIT",
    citation="Zhu and Beroza (2019), Geophysical Journal International 216, 261-273, doi:10.1093/gji/ggy423",
    sampling_rate_hz=100.0,
    components="ZNE",
    window_samples=3000,
    hop_samples=1500,
    edge_samples=100,
    input=Tensor(name="waveform", shape=(-1, 3000, 3)),
    outputs=(Output(name="probability", shape=(-1, 3000, 3), labels=("N", "P", "S")),),
    labels={phase: Label(threshold=0.3, chosen_on="default of the published PhaseNet") for phase in ("P", "S")},
)


def save_bundle(module: Any, model: Manifest, folder: Path) -> None:
    """Write a tf.Module as a bundle that holds its SavedModel only: what `export_bundle` starts from.

    module: its tf.function `serve` takes `waveform` [n, window_samples, components] to a dictionary of the outputs;
    `fragment`, needed if the manifest has fragment windows, does so for any of their lengths.
    """
    tf = need("tensorflow", "export")
    signatures = {"serving_default": module.serve}
    if model.fragment_windows:
        signatures["fragment"] = module.fragment
    tf.saved_model.save(module, str(folder), signatures=signatures)
    model = msgspec.structs.replace(model, artifacts={"saved_model": saved_model(folder)})
    windows = golden_windows(model)
    outputs = tf.saved_model.load(str(folder)).signatures["serving_default"](**{model.input.name: tf.constant(windows)})
    write_golden(folder, windows, outputs[model.output.name].numpy())
    manifests.write(folder, model)


def golden_windows(model: Manifest) -> NDArray[np.float32]:
    """Made-up windows, float32 [5, window_samples, components]: noise, an onset in noise, a constant, and the onset at
    the scales of 1e-14 and 1e9. The same for the same shape."""
    rng = np.random.default_rng(2019)
    samples, components = model.window_samples, len(model.components)
    noise = rng.normal(size=(samples, components))
    time_s = np.maximum(np.arange(samples) - 0.4 * samples, 0) / model.sampling_rate_hz
    wave = np.sin(2 * np.pi * 5 * time_s) * np.exp(-time_s / 3) * (time_s > 0)
    onset = noise + 20 * wave[:, None] * rng.uniform(0.5, 1, components)
    unit = onset / np.abs(onset).max()
    return np.stack([100 * noise, 100 * onset, np.full_like(noise, 7.3), 1e-14 * unit, 1e9 * unit]).astype(np.float32)


def export_bundle(
    source: Path,
    destination: Path,
    *,
    windows: NDArray[np.float32] | None = None,
    bounds: Bounds | None = None,
    replace: bool = False,
) -> Report:
    """Make the full bundle of a SavedModel: convert it, prove the conversion on its golden windows and on `windows`
    (float32 [n, window_samples, components]), and write the figures into manifest and card.

    source: a folder with saved_model.pb, variables/, manifest.json and golden.npz. Raises BundleError if these do not
    belong together or the conversion breaks a bound, UsageError if the destination is there already; then nothing has
    changed there.
    """
    given = read(source)
    model, tested = given.manifest, golden(source)[0]
    _check_windows(tested, model, f"{source / 'golden.npz'}")
    if windows is not None:
        _check_windows(windows, model, "windows")
        tested = np.concatenate([tested, windows])
    with replacing(destination, replace) as folder:
        for name in SAVED_MODEL:
            _copy(source / name, folder / name)
        shutil.copyfile(source / "golden.npz", folder / "golden.npz")
        reference = saved_model(folder)
        if model.artifacts.get("saved_model", reference).sha256 != reference.sha256:
            raise BundleError(f"{source}: the SavedModel is not the one whose sha256 its manifest states")
        path = folder / "model.onnx"
        convert(folder, model, path)
        artifact = _artifact(path, format="onnx", opset=OPSET)
        model = msgspec.structs.replace(model, artifacts={"saved_model": reference, "onnx": artifact})
        bundle = Bundle(folder, given.version, model)
        report = compare(
            load(bundle, "tensorflow"),
            OnnxRuntime(bundle, 1),
            model,
            tested,
            bounds or Bounds(),
            size_bytes=artifact.size_bytes,
            reference_size_bytes=reference.size_bytes,
        )
        require(report, path)
        _write(bundle, report)
    return report


def read_windows(path: Path) -> NDArray[np.float32]:
    """The array `input`, or the only one, of an .npz file. Raises UsageError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            name = "input" if "input" in arrays.files else arrays.files[0]
            return np.asarray(arrays[name])
    except (OSError, ValueError, TypeError, IndexError, BadZipFile) as error:  # TypeError: an .npy file
        raise UsageError(f"{path}: not an .npz file with windows ({error})") from error


def _write(bundle: Bundle, report: Report) -> None:
    """The manifest with the gate's figures, and the card."""
    reference, onnx = (bundle.manifest.artifacts[name] for name in ("saved_model", "onnx"))
    artifacts = {
        "saved_model": msgspec.structs.replace(
            reference, windows_per_second=report.reference_windows_per_second, processor=report.processor
        ),
        "onnx": msgspec.structs.replace(
            onnx, parity=report.parity, windows_per_second=report.windows_per_second, processor=report.processor
        ),
    }
    manifests.write(bundle.folder, msgspec.structs.replace(bundle.manifest, artifacts=artifacts))
    card.write(bundle.folder)


def _artifact(path: Path, **rest: Any) -> Artifact:
    sha256, size = digest(path)
    return Artifact(file=path.name, sha256=sha256, size_bytes=size, **rest)


def _check_windows(windows: NDArray[np.float32], model: Manifest, where: str) -> None:
    shape = ("n", model.window_samples, len(model.components))
    if windows.dtype != np.float32 or windows.ndim != 3 or windows.shape[1:] != shape[1:] or not len(windows):
        wanted = f"float32 [{', '.join(map(str, shape))}]"
        raise UsageError(f"{where}: {windows.dtype} {list(windows.shape)}; {model.name} takes {wanted}")
    if not np.isfinite(windows).all():
        raise UsageError(f"{where}: not all values are finite")


def _copy(source: Path, destination: Path) -> None:
    """A file, or a folder that holds anything."""
    if source.is_dir() and any(source.iterdir()):
        shutil.copytree(source, destination)
    elif source.is_file():
        shutil.copyfile(source, destination)


@contextmanager
def replacing(destination: Path, replace: bool) -> Iterator[Path]:
    """A new folder beside the destination that takes its place at the end; after an error nothing has changed."""
    if destination.exists() and not replace:
        raise UsageError(f"{destination} is there already; --force replaces it")
    beside = destination.absolute()
    made, old = (beside.with_name(f".{beside.name}.{kind}.{os.getpid()}") for kind in ("new", "old"))
    made.mkdir(parents=True)
    try:
        yield made
        if beside.exists():
            beside.rename(old)
        try:
            made.rename(beside)
        except OSError:
            if old.exists():
                old.rename(beside)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)
