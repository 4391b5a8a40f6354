"""Pickers without a network: they find what they should, at any amplitude, and own up to what they cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seisserve_training.baselines.picking import PICKERS, ArAic, Baseline, StaLta, TemplateMatching, template_rows
from seisserve_training.datasets import LabelledTrace, Row

RATE = 100.0


def row(split: str = "dev", station: str = "XX.A", p: float = 1500.0, noise: bool = False) -> Row:
    return Row(
        Path("x"), f"{split}{station}", split, "made", "-", "manual", noise, p, p + 400, RATE, "ZNE", "ZNE", station
    )


def event(
    seed: int, split: str = "dev", p: int = 1500, gain: float = 1.0, live: tuple[bool, ...] = (True,) * 3
) -> LabelledTrace:
    """A minute of noise with a P on the vertical and, 4 s later, an S on the horizontals; the same event whatever the
    seed of the noise. The noise before decides nothing: it is 20 times smaller."""
    source = np.random.default_rng(99)
    waveform = np.random.default_rng(seed).normal(size=(3, 6000)) * 0.05
    decay = np.exp(-np.arange(800) / 150)
    waveform[:, p : p + 800] += source.normal(size=(3, 800)) * decay * np.array([[1.0], [0.3], [0.3]])
    waveform[:, p + 400 : p + 1200] += source.normal(size=(3, 800)) * decay * np.array([[0.6], [2.0], [2.0]])
    waveform[~np.array(live)] = 0
    return LabelledTrace(row(split, p=p), np.asarray(waveform * gain, np.float32), live, float(p), float(p + 400))


def picks(baseline: Baseline, trace: LabelledTrace, threshold: float) -> dict[str, list[float]]:
    seen = baseline.look(trace)
    return {phase: [pick.time_s for pick in baseline.read(seen, phase, threshold)] for phase in baseline.phases}


def made(name: str) -> Baseline:
    return PICKERS[name](RATE, [event(1, "train", p=2000)])


@pytest.mark.parametrize("name", PICKERS)
@pytest.mark.parametrize("p", [300, 1500, 4000])
def test_a_clear_event_is_picked(name: str, p: int) -> None:
    found = picks(made(name), event(5, p=p), 0.5 if name == "template-matching" else 4.0)
    assert min(abs(time - p / RATE) for time in found["P"]) < 0.3
    if "S" in found:
        assert min(abs(time - p / RATE - 4) for time in found["S"]) < 0.5


@pytest.mark.parametrize("name", PICKERS)
@pytest.mark.parametrize("gain", [1e-14, 1e9])
def test_amplitude_does_not_matter(name: str, gain: float) -> None:
    baseline, threshold = made(name), 0.5 if name == "template-matching" else 4.0
    plain, scaled = (picks(baseline, event(5, gain=g), threshold) for g in (1.0, gain))
    assert plain["P"]
    for phase, times in plain.items():
        np.testing.assert_allclose(scaled[phase], times, atol=0.011)


@pytest.mark.parametrize("name", PICKERS)
@pytest.mark.parametrize("live", [(True, False, False), (False, True, True), (False, False, False)])
def test_dead_components_are_no_trouble(name: str, live: tuple[bool, ...]) -> None:
    found = picks(made(name), event(5, live=live), 0.3)
    if not any(live):
        assert not any(found.values())


def test_ar_aic_needs_a_vertical_and_horizontals() -> None:
    assert picks(ArAic(RATE), event(5, live=(False, True, True)), 0) == {"P": [], "S": []}
    only = picks(ArAic(RATE), event(5, live=(True, False, False)), 0)
    assert only["P"]
    assert not only["S"]


def test_a_higher_threshold_picks_no_more() -> None:
    for name in ("sta-lta", "template-matching"):
        baseline = made(name)
        counts = [len(picks(baseline, event(7), threshold)["P"]) for threshold in baseline.candidates]
        assert counts == sorted(counts, reverse=True)
        assert list(baseline.candidates) == sorted(baseline.candidates)


def test_sta_lta_is_calm_in_steady_noise() -> None:
    noise = np.random.default_rng(3).normal(size=(3, 6000)).astype(np.float32)
    quiet = LabelledTrace(row(noise=True), noise, (True,) * 3, np.nan, np.nan)
    assert StaLta(RATE).look(quiet).curve.max() < 4


def test_templates_are_of_the_training_split_and_of_the_station() -> None:
    with pytest.raises(ValueError, match="'dev'"):
        TemplateMatching(RATE, [event(1, "dev")])
    elsewhere = event(5)._replace(row=row(station="XX.B"))
    assert picks(made("template-matching"), elsewhere, 0.2) == {"P": [], "S": []}


def test_a_template_without_s_gives_none() -> None:
    template = event(1, "train")._replace(s=np.nan)
    found = picks(TemplateMatching(RATE, [template]), event(5), 0.5)
    assert found["P"]
    assert not found["S"]


def test_template_rows_are_few_and_never_of_dev_or_test() -> None:
    rows = [row(split, station)._replace(name=f"{number}") for number in range(60)
            for split in ("train", "dev", "test") for station in ("XX.A", "XX.B", "")]  # fmt: skip
    chosen = template_rows(rows, {"XX.A", ""})
    assert {(one.split, one.station) for one in chosen} == {("train", "XX.A")}
    assert len(chosen) == 20
