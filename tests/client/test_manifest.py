"""Properties of the manifest: strict, and the same after a round trip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from client.waveforms import manifest

from seisserve.errors import BundleError, UsageError
from seisserve.manifest import Artifact, Metric, Source, Training, read, write


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    model = manifest(
        stacking="max",
        artifacts={"onnx": Artifact(file="model.onnx", format="onnx", sha256="0", size_bytes=1, parity={"max": 1e-6})},
        training=Training(
            sources=(Source(name="a", licence="b", traces=1),), config_sha256="0", seed=1, code_version="0"
        ),
        metrics=(
            Metric(
                data_set="a", split="test", source="all", phase="P", tolerance_s=0.5, labels=9, precision=0.9,
                recall=0.8, f1=0.85, f1_interval=(0.8, 0.9),
            ),
        ),
    )  # fmt: skip
    write(tmp_path, model)
    assert read(tmp_path) == model


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"hop_size": 1}, "hop_size"),
        ({"hop_samples": 0}, "hop_samples"),
        ({"hop_samples": "300"}, "hop_samples"),
        ({"hop_samples": 601}, "hop_samples"),
        ({"blinding_samples": 200}, "blinding_samples"),
        ({"blinding_samples": -1}, "blinding_samples"),
        ({"window_samples": 0}, "window_samples"),
        ({"fragment_windows": [600]}, "fragment_windows"),
        ({"fragment_windows": [0]}, "fragment_windows"),
        ({"sampling_rate_hz": 0}, "sampling_rate_hz"),
        ({"components": "ZNX"}, "components"),
        ({"components": "ZZ"}, "components"),
        ({"components": ""}, "components"),
        ({"stacking": "median"}, "stacking"),
        ({"task": "guessing"}, "task"),
        ({"name": "../up"}, "name"),
        ({"schema": 2}, "schema"),
        ({"outputs": []}, "outputs"),
        ({"labels": {"P": {"threshold": 1.5}}}, "threshold"),
        ({"labels": {"P": {"threshold": 0.5, "colour": 1}}}, "colour"),
        ({"labels": {"Pn": {"threshold": 0.5}}}, "Pn"),
        ({"minimum_pick_distance_s": -1}, "minimum_pick_distance_s"),
        ({"summary": None}, "summary"),
    ],
)
def test_unknown_keys_and_bad_values_are_refused_by_name(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    write(tmp_path, manifest())
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(BundleError, match=key) as caught:
        read(tmp_path)
    assert str(file) in str(caught.value)


def test_a_value_for_each_window_or_each_stride_fits_too() -> None:
    assert manifest(single=True).output.shape == (-1, 2)
    assert manifest(stride=4, fragment_windows=(100,)).output.shape == (-1, 150, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stride": 7}, "'probability' has stride 7; 600 samples"),
        ({"stride": 8}, r"'probability' has stride 8; 100 samples \(window_samples, fragment_windows\)"),
        ({"single": True, "hop_samples": 301}, r"hop_samples 301 .* at most 300 \(half the window\)"),
        ({"single": True, "blinding_samples": 1}, "nothing to blind"),
    ],
)
def test_strides_and_single_values_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        manifest(**fields)


@pytest.mark.parametrize("shape", [[-1, 599, 2], [-1, 600, 3], [600, 2], [-1, 3], [-1], [-1, 300, 2]])
def test_an_output_of_another_shape_than_its_windows_is_refused(shape: list[int], tmp_path: Path) -> None:
    write(tmp_path, manifest())
    file = tmp_path / "manifest.json"
    content = json.loads(file.read_text())
    content["outputs"][0]["shape"] = shape
    file.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="'probability' has shape"):
        read(tmp_path)


def test_a_detection_is_no_phase() -> None:
    model = manifest(labels=("detection", "P", "S"))
    assert list(model.labels) == ["detection", "P", "S"]
    assert list(model.phases) == ["P", "S"]


@pytest.mark.parametrize("key", ["name", "window_samples", "input", "outputs", "licence"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    write(tmp_path, manifest())
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != key}))
    with pytest.raises(BundleError, match=key):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_file_that_is_no_manifest_is_a_bundle_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read(tmp_path)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        read(tmp_path)


def test_options_replace_defaults_and_leave_the_manifest_as_it_was() -> None:
    model = manifest()
    changed = model.with_options({"P": 0.7}, hop_samples=150, stacking="max")
    assert (changed.labels["P"].threshold, changed.labels["S"].threshold) == (0.7, 0.3)
    assert (changed.hop_samples, changed.stacking) == (150, "max")
    assert model == manifest() == model.with_options()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": {"Pg": 0.5}}, "threshold for 'Pg': fake has P, S"),
        ({"thresholds": {"P": 0.0}}, "threshold for P is 0.0"),
        ({"thresholds": {"P": 1.1}}, "threshold for P is 1.1"),
        ({"thresholds": {"P": float("nan")}}, "threshold for P is nan"),
        ({"hop_samples": 0}, "hop_samples is 0; fake takes 1 to 500"),
        ({"hop_samples": 501}, "hop_samples is 501; fake takes 1 to 500"),
        ({"stacking": "median"}, "stacking is 'median'"),
    ],
)
def test_options_that_the_model_cannot_take_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        manifest(blinding_samples=50).with_options(**options)
