"""The study: it runs, goes on where it was, and its figures are what they are said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from seisserve.errors import UsageError
from seisserve.transport import FakeTransport
from seisserve_training import study, training
from seisserve_training.config import Config
from seisserve_training.datasets import LabelledTrace
from seisserve_training.synthetic import write_dataset

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "made", 40, seed=1, dev_share=0.4, test_share=0.0, noise_share=0.3)
    return folder


@pytest.fixture(scope="module")
def dev(folder: Path) -> list[LabelledTrace]:
    return [trace for trace in training.load(study.study_config(folder / "made", True), Path())
            if trace.row.split == "dev"]  # fmt: skip


def quiet(config: Config) -> FakeTransport:
    """A picker that never picks."""
    return FakeTransport(lambda waveform: np.tile(np.float32([1, 0, 0]), (*waveform.shape[:2], 1)))


def test_a_picker_that_never_picks_scores_nothing(folder: Path, dev: list[LabelledTrace]) -> None:
    config = study.study_config(folder / "made", True)
    manifest = training.contract(config)
    for take in study.TAKEN.values():
        figures = list(take(dev, manifest, quiet(config), config))
        assert figures
        assert all(value == 0 for *_, value in figures)


def test_a_study_goes_on_where_it_was_stopped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "VARIANTS", {name: study.VARIANTS[name] for name in ("all", "no channel dropout")})
    monkeypatch.setattr(study, "TAKEN", {"f1 on components": study.on_components})
    first = study.augmentation(tmp_path / "one", tmp_path / "runs", folder / "made", 1, quick=True).read_text()
    monkeypatch.setattr(training, "train", None)  # would fail if anything were trained again
    second = study.augmentation(tmp_path / "two", tmp_path / "runs", folder / "made", 1, quick=True).read_text()
    assert first == second
    assert "0.476 / 0.036" in first
    assert (tmp_path / "two" / "augmentation_components.png").stat().st_size > 1000
    rows = (tmp_path / "two" / "augmentation.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * len(study.COMPONENTS) * 2
    with pytest.raises(UsageError, match="another configuration"):
        study.augmentation(tmp_path / "two", tmp_path / "runs", folder / "made", 1, quick=False)


def test_sets_without_dev_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "made", 10, seed=1, dev_share=0.0, test_share=0.0)
    with pytest.raises(UsageError, match="'dev'"):
        study.augmentation(tmp_path, tmp_path / "runs", tmp_path / "made", 1, quick=True)


def test_the_interval_is_students() -> None:
    mean, half = study.mean_and_interval([0.4, 0.5, 0.6])
    assert mean == pytest.approx(0.5)
    assert half == pytest.approx(4.3027 * 0.1 / np.sqrt(3), rel=1e-3)
    assert np.isnan(study.mean_and_interval([0.5])[1])


def test_added_noise_has_the_level_that_is_said(dev: list[LabelledTrace]) -> None:
    event = next(trace for trace in dev if np.isfinite(trace.p) and trace.p + 100 < trace.waveform.shape[1])
    noise = next(trace for trace in dev if trace.row.noise)
    added = study._with_noise(event, noise, 10.0, 100.0).waveform - event.waveform
    after = event.waveform[:, int(event.p) : int(event.p) + 100]
    assert 20 * np.log10(after.std(axis=1).mean() / added.std(axis=1).mean()) == pytest.approx(10, abs=0.3)
