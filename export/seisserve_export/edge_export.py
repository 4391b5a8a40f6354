"""The edge folder: all that it takes to pick with a model where there is no seisserve."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from pathlib import Path

import msgspec
import numpy as np

from seisserve import manifest as manifests
from seisserve import pipeline
from seisserve.bundle import Bundle, digest, golden
from seisserve.errors import BundleError, UsageError
from seisserve.extras import need
from seisserve.manifest import Manifest
from seisserve.runtime import golden_tolerance, load, onnxruntime_errors
from seisserve.runtimes.setup import checked_precision
from seisserve.tables import Picks
from seisserve.traces import from_arrays
from seisserve_export.bundles import replacing

__all__ = ["export_edge"]

SOURCES = Path(__file__).parent / "edge"
COPIED = ("picker.py", "cpp/CMakeLists.txt", "cpp/main.cpp")
# The record that the golden windows make one after the other, as the self tests of picker.py and main.cpp have it.
GOLDEN_STATION, GOLDEN_START_S = "XX.GOLD..HH", 1_704_067_200.0


def export_edge(bundle: Bundle, destination: Path, *, precision: str = "float32", replace: bool = False) -> None:
    """Write a folder with the model in two formats, its contract, golden windows, and pickers in Python and C++.

    precision: which of the bundle's artifacts (`best`: the fastest). Raises UsageError for a model that does not pick,
    or a destination that is there already; BundleError for a bundle that has no such artifact or does not prove itself.
    """
    _check(bundle.manifest)
    artifact, path = bundle.artifact("onnx", checked_precision(precision))
    bundle = bundle.at("onnx", precision)
    # The golden outputs are the SavedModel's: the self test has to allow what the gate allowed.
    model = msgspec.structs.replace(bundle.manifest, golden_tolerance=golden_tolerance(bundle.manifest, artifact))
    with replacing(destination, replace) as folder:
        shutil.copyfile(path, folder / "model.onnx")
        _to_ort(folder / "model.onnx")
        artifact = msgspec.structs.replace(artifact, file="model.onnx")
        manifests.write(folder, msgspec.structs.replace(model, artifacts={"onnx": artifact}))
        (folder / "VERSION").write_text(f"{bundle.version}\n")
        _golden(bundle, artifact.precision, folder)
        for name in COPIED:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(SOURCES / name, folder / name)
        (folder / "README.md").write_text(_readme(bundle, artifact.precision, folder), encoding="utf-8")
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        sums = [f"{digest(file)[0]}  {file.relative_to(folder).as_posix()}\n" for file in files]
        (folder / "SHA256SUMS").write_text("".join(sums))


def _check(model: Manifest) -> None:
    if model.gives_waveforms:
        raise UsageError(
            f"model {model.name!r} is for {model.task}: it gives waveforms; the edge folder is for models that pick"
        )
    if not model.phases:
        raise UsageError(f"model {model.name!r} has no phases to pick, only {', '.join(model.labels) or 'no labels'}")


def _to_ort(path: Path) -> None:
    """Beside an ONNX file the same in onnxruntime's own format, and the list of operators for a minimal build."""
    need("onnxruntime", "edge")
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    made, operators = path.with_suffix(".ort"), path.with_suffix(".required_operators.config")
    log = logging.getLogger("ort_format_model.utils")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        # The converter tells of each step, and leaves the file open that it reads the operators from.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            convert_onnx_models_to_ort(path, optimization_styles=[OptimizationStyle.Fixed])
    except onnxruntime_errors() as error:
        raise BundleError(f"{path}: onnxruntime cannot convert it to its own format: {error}") from error
    finally:
        log.setLevel(level)
    if not made.is_file():
        raise BundleError(f"{path}: onnxruntime's converter wrote no {made.name}")
    lines = operators.read_text().splitlines(keepends=True)
    operators.write_text("".join(line for line in lines if not line.startswith("#")))  # where it was made, and when


def _golden(bundle: Bundle, precision: str, folder: Path) -> None:
    """Golden windows and outputs as bare little-endian float32, and the picks of the record that the windows make."""
    windows, outputs = golden(bundle.folder)
    (folder / "golden_input.bin").write_bytes(windows.astype("<f4").tobytes())
    (folder / "golden_output.bin").write_bytes(outputs.astype("<f4").tobytes())
    model = bundle.manifest
    record = from_arrays(
        np.concatenate(list(windows)).T,
        sampling_rate_hz=model.sampling_rate_hz,
        start=GOLDEN_START_S,
        station=GOLDEN_STATION,
        components=model.components,
    )
    found = pipeline.pick(record, model, load(bundle, lanes=1, precision=precision)).picks
    picks = Picks(found, model.name, bundle.version, pipeline.provenance(model))
    picks.write(folder / "golden_picks.csv")


def _readme(bundle: Bundle, precision: str, folder: Path) -> str:
    model = bundle.manifest
    sizes = {name: f"{(folder / name).stat().st_size / 1e6:.1f} MB" for name in ("model.onnx", "model.ort")}
    rate, phases = f"{model.sampling_rate_hz:g}", ", ".join(model.phases)
    order = ", ".join(model.components)
    return f"""# {model.name} {bundle.version}, for the edge

{model.summary}. Licence: {model.licence}. Cite: {model.citation}.

The network is in {precision}. It takes {order} at {rate} Hz, raw counts, and picks {phases}. Nothing is resampled here:
other rates are refused.

    pip install numpy onnxruntime
    python picker.py --selftest
    python picker.py --stdin --rate {rate} --start 2024-05-01T00:00:00Z --station NET.STA.LOC.BI < samples > picks.csv

Standard input: little-endian float32, one sample of each of {order} after the other. In Python: `Picker.push` takes
packets of any size, `Picker.flush` ends the record; picker.py says how.

In C++, with onnxruntime's headers and library and nlohmann_json 3.10 or newer:

    cmake -S cpp -B build -DCMAKE_BUILD_TYPE=Release
    cmake --build build
    build/picker . --selftest
    build/picker . --stdin --rate {rate} --start 2024-05-01T00:00:00Z --station NET.STA.LOC.BI < samples > picks.csv

| file | what it is |
| --- | --- |
| picker.py | the picker: one file, Python 3.11 or newer, numpy, onnxruntime |
| cpp/ | the same in C++17 |
| model.onnx | the network, {sizes["model.onnx"]}; the one that gives exactly the server's picks |
| model.ort | the same for a minimal onnxruntime, {sizes["model.ort"]}; `--file model.ort` |
| model.required_operators.config | the operators that a minimal build of onnxruntime must have |
| manifest.json, VERSION | window, hop, thresholds and all else that the picker reads |
| golden_* | windows, outputs and picks for the self test; not needed otherwise |
| SHA256SUMS | of all of these: `sha256sum -c SHA256SUMS` |
"""
