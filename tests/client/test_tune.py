"""Tuning: never slower than the default, kept for exactly what was measured, and honoured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from client.small_bundles import add_int8, repository
from client.waveforms import fake, manifest, record
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from seisserve import Client, UsageError, bundle, tuned
from seisserve import runtime as runtimes
from seisserve import tune as tuning
from seisserve.commands.tune import tune as command
from seisserve.runtimes.setup import Setup, processors
from seisserve.windows import BATCH_SAMPLES

DEFAULT = Setup(lanes=2)
SETUPS = [DEFAULT, *(Setup(lanes=lanes, batch_samples=samples) for lanes in (1, 2) for samples in (1000, 2000, 4000))]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of a user who has not tuned anything, on a machine where onnxruntime alone is installed."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.setattr(runtimes, "installed", lambda name: name == "onnxruntime")
    return repository(tmp_path / "models")


def runs(rates: dict[Setup, float], noise: float = 0.0, seed: int = 0) -> Any:
    """Runs of setups that have these rates, and what disturbs them."""
    rng = np.random.default_rng(seed)
    return lambda setup, run_s: rates[setup] * float(np.exp(rng.normal(0, noise)))


@given(rates=st.lists(st.floats(1, 1e4), min_size=len(SETUPS), max_size=len(SETUPS)), seed=st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_without_noise_the_fastest_is_chosen_and_with_it_none_that_is_slower(rates: list[float], seed: int) -> None:
    true = dict(zip(SETUPS, rates, strict=True))
    exact = tuning.choose(SETUPS, 1.0, runs(true))
    assert true[exact.best] == max(rates)
    noisy = tuning.choose(SETUPS, 1.0, runs(true, 0.2, seed))
    assert true[noisy.best] >= true[DEFAULT] * 0.98


def test_the_default_stays_where_nothing_is_faster() -> None:
    chosen = [tuning.choose(SETUPS, 1.0, runs(dict.fromkeys(SETUPS, 100.0), 0.3, seed)).best for seed in range(300)]
    assert sum(best != DEFAULT for best in chosen) <= 3  # by chance, and then it is as fast


def test_what_is_faster_by_less_than_the_spread_is_not_chosen() -> None:
    true = {**dict.fromkeys(SETUPS, 50.0), DEFAULT: 100.0, SETUPS[1]: 104.0}
    assert tuning.choose(SETUPS, 1.0, runs(true)).best == SETUPS[1]
    found = tuning.choose(SETUPS, 1.0, runs(true, 0.2))
    assert found.best == DEFAULT and found.spread > 0.04


def test_runs_take_turns_and_keep_to_the_time_that_is_given() -> None:
    asked: list[tuple[Setup, float]] = []

    def run(setup: Setup, run_s: float) -> float:
        asked.append((setup, run_s))
        return 1.0 if setup == DEFAULT else 2.0

    found = tuning.choose(SETUPS, 10.0, run)
    assert [setup for setup, _ in asked[: len(SETUPS)]] == SETUPS
    last = [setup for setup, _ in asked[-6:]]
    assert last == [DEFAULT, found.best] * 3
    assert 5 < sum(run_s for _, run_s in asked) <= 10
    assert [entrant.setup for entrant in found.entrants] == SETUPS


def test_one_setup_alone_is_the_default() -> None:
    assert tuning.choose([DEFAULT], 1.0, runs({DEFAULT: 5.0})).best == DEFAULT


def test_a_run_fills_its_time_with_calls_of_the_length_asked_for() -> None:
    calls: list[int] = []
    now = iter(range(1000))

    class Counting:
        lanes, batch_samples = 1, BATCH_SAMPLES

        def predict(self, model: Any, inputs: Any) -> Any:
            calls.append(len(inputs["waveform"]))
            return {}

    windows = np.zeros((3, 600, 3), np.float32)
    setup = Setup(lanes=1, batch_samples=4200)
    rate, used = tuning.measure(Counting(), setup, manifest(), windows, 5.0, lambda: float(next(now)), lambda: 0.0)
    assert set(calls) == {7} and len(calls) == 1 + 5  # one to warm up; the clock goes on by one with each look at it
    assert rate == pytest.approx(7 * 5 / 6)
    assert used == 0


def test_candidates_are_what_is_installed_and_here_the_default_first(root: Path) -> None:
    found = add_int8(root, "eqtransformer")
    setups = tuning.candidates(found)
    assert setups[0] == Setup(lanes=processors()) and len(setups) == len(set(setups))
    assert {setup.runtime for setup in setups} == {"onnxruntime"}
    assert {setup.precision for setup in setups} == {"float32"}
    assert {setup.precision for setup in tuning.candidates(found, ("float32", "int8"))} == {"float32", "int8"}
    assert {setup.batch_samples for setup in setups} == {*tuning.BATCHES, BATCH_SAMPLES}


def tuned_to(root: Path, setup: Setup, **changes: Any) -> bundle.Bundle:
    """A model with that choice kept for it."""
    found = bundle.find("eqtransformer", root)
    rates = [tuning.Entrant(DEFAULT, [100.0]), tuning.Entrant(setup, [200.0])]
    choice = tuning.choice(found, tuning.Found(rates, setup, 2.0, 0.0, {}), setup)
    tuned.write(replace(choice, **changes))
    return found


CHOICE = Setup("onnxruntime", 1, "float32", ("cpu",), 12_000)


def test_a_choice_is_kept_and_honoured(root: Path) -> None:
    found = tuned_to(root, CHOICE)
    assert tuned.setup_for(found) == CHOICE
    with Client(repository=root) as client:
        transport = client.model("eqtransformer").transport
        assert (transport.lanes, transport.batch_samples) == (1, 12_000)
        picks = client.pick(record(), model="eqtransformer")
    with Client(repository=root, tuned=False) as client:
        assert client.model("eqtransformer").transport.batch_samples == BATCH_SAMPLES
        assert repr(list(client.pick(record(), model="eqtransformer"))) == repr(list(picks)) != "[]"
    with Client(repository=root, threads=3) as client:
        transport = client.model("eqtransformer").transport
        assert (transport.lanes, transport.batch_samples) == (3, BATCH_SAMPLES)


def test_a_server_honours_it_unless_told_otherwise(root: Path) -> None:
    repository = pytest.importorskip("seisserve_serving.repository")
    tuned_to(root, CHOICE)
    for options, expected in (
        ({"use_tuned": True}, (1, 12_000)),
        ({}, (processors(), BATCH_SAMPLES)),
        ({"use_tuned": True, "threads": 2}, (2, BATCH_SAMPLES)),
    ):
        transport = repository.load(root, **options).get("eqtransformer").transport
        assert (transport.lanes, transport.batch_samples) == expected


@pytest.mark.parametrize(
    "change",
    [{"model": "x"}, {"sha256": "0"}, {"processor": "another"}, {"processors": 99}, {"seisserve": "0"},
     {"runtime": "x"}, {"runtime": "openvino"}],
    ids=str,
)  # fmt: skip
def test_a_choice_for_anything_else_is_stale(root: Path, change: dict[str, Any]) -> None:
    assert tuned.setup_for(tuned_to(root, CHOICE, **change)) == Setup()


def test_a_new_choice_takes_the_place_of_the_old_one_and_of_no_other(root: Path) -> None:
    tuned_to(root, CHOICE, model="another")
    for samples in (1000, 2000):
        found = tuned_to(root, CHOICE._replace(batch_samples=samples))
    kept = json.loads(tuned.file().read_bytes())
    assert [(one["model"], one["batch_samples"]) for one in kept] == [("another", 12_000), ("eqtransformer", 2000)]
    assert tuned.setup_for(found).batch_samples == 2000
    assert [path.name for path in tuned.file().parent.iterdir()] == ["tuned.json"]


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(root: Path) -> None:
    found = tuned_to(root, CHOICE)
    tuned.file().write_text('[{"model": 3}]')
    with pytest.raises(UsageError, match=r"tuned\.json: not a file of `seisserve tune`.*delete it"):
        tuned.setup_for(found)
    assert tuned.setup_for(found, use_tuned=False) == Setup()


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CONFIG_HOME": "/etc/mine"}, "/etc/mine/seisserve/tuned.json"),
        ("linux", {"XDG_CONFIG_HOME": "not/absolute"}, "/home/me/.config/seisserve/tuned.json"),
        ("linux", {}, "/home/me/.config/seisserve/tuned.json"),
        ("darwin", {}, "/home/me/Library/Application Support/seisserve/tuned.json"),
        ("win32", {"APPDATA": "/roaming"}, "/roaming/seisserve/tuned.json"),
    ],
)
def test_the_file_is_where_the_platform_has_configuration(
    platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert tuned.file() == Path(expected)


def test_the_command_measures_shows_and_keeps(root: Path, tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    arguments = ["eqtransformer", "--repository", str(root), "--seconds", "1", "--plot", str(picture)]
    shown = CliRunner().invoke(command, arguments)
    assert shown.exit_code == 0, shown.output
    assert "onnxruntime  float32" in shown.output and "default" in shown.output and "int8" not in shown.output
    assert f"kept in {tuned.file()}" in shown.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert tuned.find(bundle.find("eqtransformer", root)) is not None


@pytest.mark.parametrize(("share", "arguments", "kept"), [
    (0.5, [], 2), (0.5, ["--busy"], 1), (0.99, [], 1), (0.99, ["--dry-run"], None),
])  # fmt: skip
def test_what_was_measured_beside_other_work_is_not_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch, share: float, arguments: list[str], kept: int | None
) -> None:
    entrants = [tuning.Entrant(DEFAULT, [100.0]), tuning.Entrant(CHOICE, [200.0])]
    found = tuning.Found(entrants, CHOICE, 2.0, 0.01, {"openvino": "the reason"}, share)
    monkeypatch.setattr(tuning, "tune", lambda *rest: found)
    shown = CliRunner().invoke(command, ["eqtransformer", "--repository", str(root), *arguments])
    assert shown.exit_code == 0, shown.output
    assert ("the default stays: other processes took 50%" in shown.output) == (kept == 2)
    assert "left out: openvino: the reason" in shown.output
    choice = tuned.find(bundle.find("eqtransformer", root))
    assert (choice.lanes if choice else None) == kept


def test_a_setup_that_cannot_run_is_left_out_with_the_reason(root: Path) -> None:
    found = add_int8(root, "eqtransformer")
    (found.folder / "model.int8.onnx").write_bytes(b"damaged")
    result = tuning.tune(found, 0.5, ("float32", "int8"))
    assert {entrant.setup.precision for entrant in result.entrants} == {"float32"}
    assert "sha256" in result.left_out[f"onnxruntime int8 with {processors()} threads"]
    assert 0 < result.share <= 1


def test_the_fake_transport_says_how_long_a_call_is() -> None:
    assert fake().batch_samples == BATCH_SAMPLES
