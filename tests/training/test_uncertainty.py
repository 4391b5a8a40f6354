"""Uncertainty: dropout's spread is reproducible and where it should be; calibration is monotone, and helps."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from seisserve.manifest import Label, Manifest, Output, Tensor  # noqa: E402
from seisserve.segments import Segment  # noqa: E402
from seisserve.windows import Curve  # noqa: E402
from seisserve_training.bundles import choose_labels  # noqa: E402
from seisserve_training.datasets import LabelledTrace, Row  # noqa: E402
from seisserve_training.evaluation import START_INDEX, judged  # noqa: E402
from seisserve_training.models.basicphaseae import basicphaseae  # noqa: E402
from seisserve_training.models.gpd import gpd  # noqa: E402
from seisserve_training.uncertainty import calibrate, expected_calibration_error, monte_carlo  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own
PICKS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=300)
RATE = 100.0


def worth(knots: tuple[tuple[float, float], ...], probability: NDArray[np.float64]) -> NDArray[np.float64]:
    label = Label(threshold=0.5, calibration=knots)
    return np.array([label.calibrated(value) for value in probability.tolist()])


def overconfident(n: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Picks whose probability p is worth p squared."""
    rng = np.random.default_rng(seed)
    probability = rng.uniform(0.15, 1, n)
    return probability, rng.random(n) < probability**2


@settings(deadline=None, max_examples=40)
@given(PICKS)
def test_calibration_is_monotone_and_no_worse_on_what_it_was_fitted_on(picks: list[tuple[float, bool]]) -> None:
    probability, right = np.array(picks, float).reshape(-1, 2).T
    fit = calibrate(probability, right)
    assert np.all(np.diff(worth(fit.knots, np.linspace(0, 1, 501))) >= 0)
    before = expected_calibration_error(probability, right)
    assert fit.error_before == before
    assert expected_calibration_error(worth(fit.knots, probability), right) <= before
    assert len(picks) >= 50 or not fit.knots


@settings(deadline=None)
@given(st.floats(0, 1))
def test_no_calibration_changes_nothing(probability: float) -> None:
    assert Label(threshold=0.5).calibrated(probability) == probability


def test_overconfidence_is_found_and_taken_off_unseen_picks_too() -> None:
    fit = calibrate(*overconfident(1000))
    assert fit.picks == 1000
    assert fit.error_before > 0.12
    assert fit.error_after < 0.05
    probability, right = overconfident(5000, seed=1)
    assert expected_calibration_error(worth(fit.knots, probability), right) < 0.05
    np.testing.assert_allclose(worth(fit.knots, np.array([0.3, 0.5, 0.7, 0.9])), [0.09, 0.25, 0.49, 0.81], atol=0.12)


def test_nothing_is_certain() -> None:
    probability = np.linspace(0.2, 0.9, 200)
    knots = calibrate(probability, probability > 0.5).knots
    assert 0 < knots[0][1] < 0.01 and 0.99 < knots[-1][1] < 1


def test_calibration_error_is_the_gap_in_each_bin() -> None:
    assert expected_calibration_error([0.95, 0.95, 0.95, 0.95], [1, 1, 1, 0]) == pytest.approx(0.2)
    assert expected_calibration_error([0.25, 0.95], [1, 0]) == pytest.approx((0.75 + 0.95) / 2)
    assert expected_calibration_error([1.0, 0.0], [1, 0]) == 0
    assert expected_calibration_error([], []) == 0


def trace(number: int, p: float, *, noise: bool = False) -> LabelledTrace:
    row = Row(Path(), str(number), "dev", "made", "", "manual", noise, p, np.nan, RATE, "ZNE", "ZNE")
    return LabelledTrace(row, np.zeros((3, 1000), np.float32), (True,) * 3, p, np.nan)


def curve_of(peaks: list[list[tuple[int, float]]]) -> Curve:
    """Triangles of these places and heights on P, a trace each."""
    values = np.zeros((len(peaks), 1000, 3), np.float32)
    for row, places in zip(values, peaks, strict=True):
        for place, height in places:
            row[:, 1] = np.maximum(row[:, 1], height * np.maximum(0, 1 - np.abs(np.arange(1000) - place) / 15))
    segments = [
        Segment(str(k), START_INDEX, 0, RATE, np.zeros((3, 1000), np.float32), (True,) * 3) for k in range(len(peaks))
    ]
    return Curve(segments, np.arange(len(peaks) + 1) * 1000, values.reshape(-1, 3), ("N", "P", "S"))


def picker() -> Manifest:
    return Manifest(
        name="made", task="picking", summary="", licence="", citation="", sampling_rate_hz=RATE, components="ZNE",
        window_samples=1000, hop_samples=500, input=Tensor(name="waveform", shape=(-1, 1000, 3)),
        outputs=(Output(name="probability", shape=(-1, 1000, 3), labels=("N", "P", "S")),),
        labels={"P": Label(threshold=0.3)},
    )  # fmt: skip


def test_picks_are_judged_by_the_nearest_to_the_label() -> None:
    traces = [trace(0, 500), trace(1, 500), trace(2, np.nan), trace(3, np.nan, noise=True)]
    made = [curve_of([[(500, 0.9), (560, 0.5)], [(700, 0.8)], [(300, 0.7)], [(400, 0.6)]])]
    verdicts = judged(traces, made, picker(), 0.5)["P"]
    assert [(round(height, 3), right) for height, right in verdicts] == [
        (0.9, True), (0.5, False), (0.8, False), (0.6, False)
    ]  # fmt: skip


def test_the_bundle_gets_the_calibration_of_dev_and_its_thresholds_stay_on_the_raw_curve() -> None:
    probability, right = overconfident(400)
    traces = [trace(k, 500) for k in range(400)]
    made = [
        curve_of([[(500 if hit else 800, height)] for height, hit in zip(probability.tolist(), right, strict=True)])
    ]
    given = choose_labels(traces, made, picker(), (), {"P": 0.45, "detection": 0.5})
    assert {name: (label.threshold, label.chosen_on[:5]) for name, label in given.items()} == {"P": (0.45, "given")}
    label = choose_labels(traces, made, picker(), (), {})["P"]
    assert label.calibration
    raw = [height for height, _ in judged(traces, made, picker().with_options({"P": label.threshold}), 0.5)["P"]]
    calibrated = msgspec.structs.replace(picker(), labels={"P": label})
    stated = [height for height, _ in judged(traces, made, calibrated, 0.5)["P"]]
    assert len(stated) == len(raw) == np.sum(probability >= label.threshold)
    np.testing.assert_allclose(stated, worth(label.calibration, np.array(raw)))
    assert np.mean(stated) < np.mean(raw) - 0.05


def windows(n: int, samples: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(n, samples, 3)).astype(np.float32)


@pytest.mark.parametrize(("build", "samples"), [(basicphaseae, 600), (gpd, 400)])
def test_the_spread_is_reproducible_and_about_what_is_served(build: type, samples: int) -> None:
    keras.utils.set_random_seed(0)
    model = build(filters=4, dropout=0.2)
    served = np.asarray(model(windows(6, samples), training=False))
    before = [weight.copy() for weight in model.get_weights()]
    one, same, other = (monte_carlo(model, windows(6, samples), 30, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.mean, same.mean)
    np.testing.assert_array_equal(one.deviation, same.deviation)
    assert not np.array_equal(one.mean, other.mean)
    assert one.mean.shape == one.deviation.shape == served.shape
    assert one.deviation.max() > 0
    np.testing.assert_allclose(one.mean, served, atol=0.2)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_more_dropout_spreads_more() -> None:
    spreads = []
    for dropout in (0.05, 0.4):
        keras.utils.set_random_seed(0)
        spreads.append(monte_carlo(gpd(filters=4, dropout=dropout), windows(4, 400), 30).deviation.mean())
    assert spreads[1] > 1.5 * spreads[0]


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ValueError, match=r"network\.dropout"):
        monte_carlo(gpd(filters=4), windows(1, 400))
    with pytest.raises(ValueError, match="passes is 1"):
        monte_carlo(gpd(filters=4, dropout=0.1), windows(1, 400), passes=1)


@pytest.mark.parametrize("knots", [((0.5, 0.2), (0.4, 0.3)), ((0.4, 0.2), (0.4, 0.3)), ((0.4, 0.3), (0.5, 0.2))])
def test_calibrations_that_fall_are_refused(knots: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match="heights must rise"):
        Label(threshold=0.5, calibration=knots)
