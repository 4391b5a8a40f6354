"""The commands make what they say, and fail with one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from export.small import Exported, waveforms
from export.test_import_phasenet import made_up_variables, write_checkpoint, write_h5

from seisserve.bundle import golden, read
from seisserve.errors import BundleError, SeisserveError, UsageError
from seisserve.runtime import load
from seisserve_export import commands


def invoke(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(getattr(commands, command), [str(item) for item in arguments])


def test_export(tiny: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "windows.npz", input=waveforms(4))
    folder = tmp_path / "models" / "tiny" / "1"
    result = invoke("export", tiny, "-o", folder, "--windows", tmp_path / "windows.npz")
    assert result.exit_code == 0, result.exception
    assert "windows                9 (of 256, 512, 1024 samples)" in result.output
    assert "largest difference" in result.output
    load(read(folder))
    again = invoke("export", tiny, "-o", folder)
    assert isinstance(again.exception, UsageError)
    assert "--force" in str(again.exception)
    assert invoke("export", tiny, "-o", folder, "--force").exit_code == 0


def test_export_of_what_is_no_bundle(tmp_path: Path) -> None:
    result = invoke("export", tmp_path, "-o", tmp_path / "1")
    assert isinstance(result.exception, BundleError)
    assert "has no manifest.json" in str(result.exception)
    assert invoke("export", tmp_path / "nowhere", "-o", tmp_path / "1").exit_code == 2


@pytest.mark.parametrize("kind", ["phasenet-tf1", "phasenet-keras"])
def test_import(kind: str, tmp_path: Path) -> None:
    variables = made_up_variables()
    weights = (
        write_checkpoint(tmp_path / "tf1", variables)
        if kind == "phasenet-tf1"
        else write_h5(tmp_path / "phasenet.h5", variables)
    )
    folder = tmp_path / "phasenet_original" / "1"
    result = invoke("import_weights", kind, weights, "-o", folder)
    assert result.exit_code == 0, result.exception
    bundle = read(folder)
    model = bundle.manifest
    assert (model.name, model.window_samples, model.hop_samples, model.components) == (
        "phasenet_original", 3000, 1500, "ZNE"
    )  # fmt: skip
    assert model.output.labels == ("N", "P", "S")
    assert {name: label.threshold for name, label in model.labels.items()} == {"P": 0.3, "S": 0.3}
    assert (model.edge_samples, model.licence, model.fragment_windows) == (100, "MIT", ())
    transport = load(bundle)
    windows, _ = golden(folder)
    alone = [transport.predict(model, {"waveform": window[None]})["probability"][0] for window in windows]
    np.testing.assert_array_equal(alone, transport.predict(model, {"waveform": windows})["probability"])


def test_import_of_what_is_no_phasenet(tmp_path: Path) -> None:
    for kind in ("phasenet-tf1", "phasenet-keras"):
        result = invoke("import_weights", kind, tmp_path, "-o", tmp_path / "1")
        assert isinstance(result.exception, UsageError)
        assert "\n" not in str(result.exception)
    assert invoke("import_weights", "other", tmp_path, "-o", tmp_path / "1").exit_code == 2


def test_card(exported: Exported) -> None:
    path = exported.bundle.folder / "CARD.md"
    before = path.read_bytes()
    path.write_text("old")
    result = invoke("card", exported.bundle.folder)
    assert result.output == f"{path}\n"
    assert path.read_bytes() == before


def test_card_of_what_is_no_bundle(tmp_path: Path) -> None:
    assert isinstance(invoke("card", tmp_path).exception, SeisserveError)


@pytest.mark.parametrize("module", ["artifacts", "bundles", "card", "commands", "convert", "fold", "gate", "quantize"])
def test_modules_import_nothing_heavy(module: str) -> None:
    code = f"import sys, seisserve_export.{module}; print({{'tensorflow', 'onnx', 'onnxruntime'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
