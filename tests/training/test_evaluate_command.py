"""`seisserve evaluate`: networks and baselines side by side, and what goes into the manifests."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from seisserve import bundle, manifest
from seisserve.errors import UsageError
from seisserve.pipeline import provenance
from seisserve_training.datasets import Dataset as Reader
from seisserve_training.datasets import LabelledTrace
from seisserve_training.evaluate_command import BASELINES, evaluate
from seisserve_training.synthetic import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "made"
    write_dataset(folder, 60, seed=5)
    return folder


@pytest.fixture
def phasenet(tmp_path: Path) -> Path:
    """A copy of the shipped model, to write into."""
    return Path(shutil.copytree(bundle.find("phasenet").folder, tmp_path / "repository" / "phasenet" / "1"))


def run(*words: object) -> str:
    result = CliRunner().invoke(evaluate, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: object) -> str:
    with pytest.raises((UsageError, click.UsageError)) as error:
        evaluate.main([str(word) for word in words], standalone_mode=False)
    return str(error.value)


def splits(dataset: Path) -> set[str]:
    with (dataset / "metadata.csv").open() as lines:
        return {row.get("source_dataset") or dataset.name for row in csv.DictReader(lines)}


def test_side_by_side_in_one_table(dataset: Path, tmp_path: Path) -> None:
    text = run("phasenet", "sta-lta", "ar-aic", "template-matching", dataset, "-o", tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text() + "\n" == text
    (head,) = [line for line in text.splitlines() if line.startswith("| source")]
    assert [cell.split(":")[0].strip() for cell in head.split("|")[5:-1]] == [
        "phasenet",
        "sta-lta",
        "ar-aic",
        "template-matching",
    ]
    assert "an hour" in text
    assert "chosen on dev: sta-lta P" in text
    for line in text.splitlines():
        if line.startswith("| all | S"):
            assert line.split("|")[6].strip() in ("-", "")  # STA/LTA knows no S


def test_each_trace_is_read_once_for_models_of_one_rate(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = Reader.load

    def counting(self: Reader, row: object) -> LabelledTrace:
        loaded.append(row.name)  # type: ignore[attr-defined]
        return load(self, row)  # type: ignore[arg-type]

    monkeypatch.setattr(Reader, "load", counting)
    run("phasenet", "onset", "sta-lta", dataset)
    assert len(loaded) == len(set(loaded)) > 0


def test_thresholds_of_baselines_are_chosen_on_dev_whatever_is_scored(dataset: Path) -> None:
    chosen = {run("sta-lta", dataset, "--split", split).rsplit("chosen on dev", 1)[1] for split in ("dev", "train")}
    assert len(chosen) == 1


def test_write_keeps_own_figures_and_those_of_baselines(dataset: Path, phasenet: Path) -> None:
    before = manifest.read(phasenet)
    run(phasenet, "sta-lta", dataset, "--write")
    after = manifest.read(phasenet)
    mine = [one for one in after.metrics if one.data_set == "made"]
    assert {one.method for one in mine} == {"", "sta-lta"}
    assert {one.phase for one in mine if one.method} == {"P"}
    assert {one.method for one in after.figures if one.data_set == "made"} == {"", "sta-lta"}
    assert [one for one in after.metrics if one.data_set != "made"] == list(before.metrics)
    assert provenance(after) == provenance(before)
    run(phasenet, "ar-aic", dataset, "--write")
    again = manifest.read(phasenet)
    assert {one.method for one in again.metrics if one.data_set == "made"} == {"", "ar-aic"}


def test_detection_of_baselines(dataset: Path) -> None:
    text = run("--task", "detection", "sta-lta", "template-matching", dataset)
    assert "recall at 1 false alarms per hour" in text
    assert "mean of sources" in text


def test_a_source_can_be_left_out(dataset: Path) -> None:
    (source,) = splits(dataset)
    assert "has no traces" in refused("sta-lta", dataset, "--exclude-source", source)
    assert "has no traces" in refused("sta-lta", dataset, "--source", "another")


def test_what_does_not_go_together_is_refused(dataset: Path) -> None:
    assert "several: phasenet (picking), wiener (denoising)" in refused("phasenet", "wiener", dataset)
    assert "phasenet cannot do it" in refused("phasenet", "sta-lta", dataset, "--task", "detection")
    assert "beside a network" in refused("wiener", dataset)
    assert "--write" in refused("phasenet", dataset, "--write", "--threshold", "0.5")
    assert "nothing_like_it" in refused("nothing_like_it", dataset)


def test_help_names_every_baseline() -> None:
    text = CliRunner().invoke(evaluate, ["--help"]).output
    for name in BASELINES:
        assert name in text
