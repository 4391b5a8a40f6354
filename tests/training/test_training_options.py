"""Schedules, several seeds, TensorBoard, dry runs, waveforms on demand and the kinds of window shifts."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

tf = pytest.importorskip("tensorflow")

from seisserve.errors import UsageError  # noqa: E402
from seisserve_training import training  # noqa: E402
from seisserve_training.commands import train  # noqa: E402
from seisserve_training.config import Augmentation, Config, Data, Network, Schedule  # noqa: E402
from seisserve_training.datasets import Dataset, LabelledTrace, Row, of_split  # noqa: E402
from seisserve_training.examples import Examples, balance  # noqa: E402
from seisserve_training.seeds import best_scores, spread  # noqa: E402
from seisserve_training.synthetic import write_dataset  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own

CONFIG = """
name = "tiny"
[data]
paths = ["made"]
[network]
window_samples = 1024
filters = 2
[schedule]
epochs = 1
steps_per_epoch = 2
batch_size = 2
seeds = [4, 7]
tensorboard = true
"""


def with_schedule(**schedule: object) -> Config:
    return Config(
        name="x", data=Data(paths=("made",)), schedule=Schedule(**{"epochs": 10, "steps_per_epoch": 100, **schedule})
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "made", 30, seed=5)
    (folder / "tiny.toml").write_text(CONFIG)
    return folder


def test_rates_fall_as_the_schedule_says() -> None:
    def rates(**schedule: object) -> np.ndarray:
        config = with_schedule(learning_rate=1.0, **schedule)
        return np.array([training.learning_rate(config, step) for step in range(1000)])

    np.testing.assert_array_equal(rates(decay="constant", warm_up_steps=0), 1.0)
    exponential = rates(decay="exponential", decay_to=0.1, warm_up_steps=0)
    np.testing.assert_allclose(exponential[1:] / exponential[:-1], 0.1 ** (1 / 1000))
    np.testing.assert_allclose(rates(decay="cosine", warm_up_steps=0)[500], 0.5)
    warmed = rates(decay="constant", warm_up_steps=100)
    np.testing.assert_allclose(warmed[:100], np.arange(1, 101) / 100)
    assert (warmed[100:] == 1).all()


def test_a_dry_run_says_what_there_is_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(train, [str(folder / "tiny.toml"), "-o", str(tmp_path / "run"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "train: 24 traces" in result.output
    assert "(1024, 3)" in result.output
    assert "2 seed" in result.output
    assert not (tmp_path / "run").exists()


def test_several_seeds_give_a_table_and_the_best_bundle(folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(train, [str(folder / "tiny.toml"), "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    scores = {seed: best_scores(tmp_path / f"seed_{seed}") for seed in (4, 7)}
    assert (tmp_path / "seeds.md").read_text() == spread(scores)
    best = max(scores, key=lambda seed: (np.mean(list(scores[seed].values())), -seed))
    manifest = msgspec.json.decode((tmp_path / "bundle" / "manifest.json").read_bytes())
    assert manifest["training"]["seed"] == best
    events = list((tmp_path / "seed_4" / "tensorboard").glob("events*"))
    tags = {value.tag for event in tf.compat.v1.train.summary_iterator(str(events[0])) for value in event.summary.value}
    assert tags == {"loss", "learning_rate", "dev/P_f1", "dev/S_f1"}
    with (tmp_path / "seed_4" / "history.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 1


def test_the_table_of_seeds_has_mean_and_spread() -> None:
    table = spread({1: {"P": 0.5, "S": 0.7}, 2: {"P": 0.7, "S": 0.9}})
    assert "| mean | 0.6000 | 0.8000 | 0.7000 |" in table
    assert "| standard deviation | 0.1414 | 0.1414 | 0.1414 |" in table


def pools(folder: Path, **data: object) -> Examples:
    config = Config(
        name="x", data=Data(paths=("made",), **data), network=Network(window_samples=1024), schedule=Schedule(seed=2)
    )
    return Examples(of_split(training.load(config, folder), "train"), config)


def test_waveforms_on_demand_give_the_same_windows(folder: Path) -> None:
    once, wanted, automatic = (pools(folder, in_memory=how) for how in (True, False, "auto"))
    assert isinstance(wanted.traces, Dataset)
    assert not isinstance(automatic.traces, Dataset)
    for number in range(20):
        one, two = (pool.labelled_window(pool.generator(number)) for pool in (once, wanted))
        np.testing.assert_array_equal(one.waveform, two.waveform)
        assert (one.p, one.s) == (two.p, two.s)


def test_large_sets_are_read_on_demand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "IN_MEMORY_BYTES", 1000)
    assert isinstance(pools(folder).traces, Dataset)


def places(folder: Path, **switch: object) -> set[tuple[float, ...]]:
    """Where P lies in many windows of one trace."""
    config = Config(
        name="x", data=Data(paths=("made",)), network=Network(window_samples=1024), augmentation=Augmentation(**switch)
    )
    traces = of_split(training.load(config, folder), "train")
    one: list[LabelledTrace] = [next(trace for trace in traces if np.isfinite(trace.p) and np.isfinite(trace.s))]
    examples = Examples(one, config)
    return {examples.event_window(examples.generator(number)).p for number in range(60)}


def test_shifts_are_ever_new_fixed_or_off(folder: Path) -> None:
    assert len(places(folder)) > 40
    assert len(places(folder, precomputed_shifts=3)) == 3
    (only,) = places(folder, shift=False)
    assert only == (round(1024 / 3),) or abs(only[0] - 1024 / 3) < 1


def test_balance_by_class_and_by_magnitude_or_snr() -> None:
    def row(p: float, s: float, magnitude: float = np.nan, snr: float = np.nan) -> Row:
        return Row(Path(), "", "train", "", "", "", False, p, s, 100, "ZNE", "ZNE", magnitude=magnitude, snr_db=snr)

    rows = [row(1, np.nan)] * 6 + [row(1, 2)] * 2
    weights = balance(rows, "class")
    assert weights[:6].sum() == pytest.approx(weights[6:].sum())
    assert balance(rows, "none").tolist() == [1] * 8
    rows = [row(1, 2, magnitude=1.0)] * 9 + [row(1, 2, magnitude=4.0)] + [row(1, 2, snr=5.0)] * 4
    weights = balance(rows, "magnitude")
    assert weights[:9].sum() == pytest.approx(weights[9])
    np.testing.assert_allclose(weights[10:], 1)
    assert balance(rows, "snr").tolist() == [1] * 14


def test_sources_are_left_out_of_train_and_dev(folder: Path) -> None:
    config = Config(name="x", data=Data(paths=("made",)))
    (source,) = {trace.row.source for trace in training.load(config, folder)}
    assert not training.load(msgspec.structs.replace(config, data=Data(paths=("made",), without=(source,))), folder)
    with pytest.raises(UsageError, match=r"data\.without: elsewhere is no source of made"):
        training.load(msgspec.structs.replace(config, data=Data(paths=("made",), without=("elsewhere",))), folder)


def test_thresholds_may_be_given() -> None:
    config = Config(name="x", data=Data(paths=("made",)), thresholds={"S": 0.45})
    labels = training.contract(config).labels
    assert (labels["P"].threshold, labels["S"].threshold) == (0.3, 0.45)
    with pytest.raises(UsageError, match="thresholds: 'phasenet' has no label Q; its labels are P, S"):
        training.contract(msgspec.structs.replace(config, thresholds={"Q": 0.5}))
