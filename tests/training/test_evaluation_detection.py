"""Detectors: counts by hand, no matter on which scale they speak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seisserve_training.datasets import LabelledTrace, Row
from seisserve_training.evaluation_detection import Alarms, alarms, best_threshold, figures
from seisserve_training.figures import Figure

RATE = 100.0


def trace(source: str, p: float = np.nan, s: float = np.nan) -> LabelledTrace:
    noise = bool(np.isnan(p) and np.isnan(s))
    row = Row(Path("x"), "t", "dev", source, "-", "manual", noise, p, s, RATE, "ZNE", "ZNE")
    return LabelledTrace(row, np.zeros((3, 36_000), np.float32), (True,) * 3, p, s)


def curve(*bumps: tuple[int, float]) -> np.ndarray:
    values = np.zeros(36_000, np.float32)
    for begin, height in bumps:
        values[begin : begin + 100] = height
    return values


def observed(power: float = 1.0) -> Alarms:
    """Ten events of each of two sources, found with heights from 0.5 to 0.95 and from 0.05 to 0.5; an hour of noise
    (ten traces) with alarms of 0.3 and 0.1, two of the latter so close that they are one."""
    traces = [trace("a", 1000, 1500)] * 10 + [trace("b", 2000)] * 10 + [trace("n")] * 10
    values = [curve((1200, 0.5 + 0.05 * k)) for k in range(10)] + [curve((2100, 0.05 + 0.05 * k)) for k in range(10)]
    values += [curve((500, 0.3)), curve((500, 0.1), (650, 0.1), (9000, 0.1)), *(curve() for _ in range(8))]
    return alarms(traces, [value**power for value in values], RATE)


def value(made: list[Figure], source: str, quantity: str) -> float:
    (found,) = [one for one in made if (one.source, one.quantity) == (source, quantity)]
    assert found.interval is None or found.interval[0] <= found.interval[1]
    return found.value


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_counts_by_hand(power: float) -> None:
    made = figures({"d": observed(power)}, {"d": 0.2**power - 1e-9}, resamples=50)
    assert value(made, "all", "false alarms") == 1
    assert value(made, "all", "false alarms per hour") == pytest.approx(1.0)
    assert value(made, "a", "recall at its threshold") == 1
    assert value(made, "b", "recall at its threshold") == 0.7
    assert value(made, "all", "recall at its threshold") == 0.85
    assert value(made, "mean of sources", "recall at its threshold") == pytest.approx(0.85)
    assert value(made, "all", "F1 at its threshold") == pytest.approx(2 * 17 / (17 + 20 + 1))
    # One an hour allows the alarm of 0.3 and no other: the threshold goes down to just above 0.1.
    assert value(made, "b", "recall at 1 false alarms per hour") == pytest.approx(0.8)
    assert value(made, "b", "recall at 10 false alarms per hour") == 1


def test_baselines_are_read_at_the_false_alarms_of_the_network() -> None:
    made = figures({"net": observed(), "old": observed(2.0)}, {"net": 0.2, "old": 0.9}, {"old": ["net"]}, resamples=0)
    old = [one for one in made if one.method == "old"]
    assert value(old, "all", "F1 at the false alarms per hour of net") == pytest.approx(2 * 18 / (18 + 20 + 1))


def test_no_noise_no_false_alarms() -> None:
    traces = [trace("a", 1000, 1500), trace("a", s=3000)]
    found = alarms(traces, [curve((1100, 0.9)), curve((2950, 0.4))], RATE)
    made = figures({"d": found}, {"d": 0.5}, resamples=10)
    assert value(made, "all", "recall at its threshold") == 0.5
    assert not any("per hour" in one.quantity for one in made)


def test_what_lies_beside_the_event_does_not_find_it() -> None:
    found = alarms([trace("a", 1000, 1500)], [curve((20_000, 0.9))], RATE)
    assert found.highest.tolist() == [0.0]


def test_the_best_threshold_is_between_noise_and_events() -> None:
    traces = [trace("a", 1000, 1500)] * 5 + [trace("n")] * 5
    found = alarms(traces, [curve((1100, 0.8))] * 5 + [curve((1100, 0.4))] * 5, RATE)
    assert 0.4 < best_threshold(found, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]) <= 0.8
