"""Scores against counts by hand."""

from __future__ import annotations

import math

from seisserve_training.scores import TraceResult, plateau, score


def test_counts_by_hand() -> None:
    results = [
        TraceResult(10.0, (10.05, 25.0)),  # right, and a false one
        TraceResult(10.0, (10.3,)),  # right at 0.5 s only
        TraceResult(10.0, ()),  # missed
    ]
    wide, narrow = score(results, 0.5), score(results, 0.1)
    assert wide.labels == narrow.labels == 3
    assert (wide.precision, wide.recall) == (2 / 3, 2 / 3)
    assert (narrow.precision, narrow.recall) == (1 / 3, 1 / 3)
    assert math.isclose(wide.f1, 2 / 3)
    assert wide.f1_interval[0] <= wide.f1 <= wide.f1_interval[1]
    assert math.isclose(wide.bias_s, 0.175)
    assert math.isclose(wide.mae_s, 0.175)


def test_perfect_picks() -> None:
    found = score([TraceResult(float(k), (float(k),)) for k in range(20)], 0.1)
    assert (found.precision, found.recall, found.f1, found.f1_interval) == (1, 1, 1, (1, 1))
    assert (found.bias_s, found.mae_s, found.std_s) == (0, 0, 0)


def test_nothing_picked() -> None:
    found = score([TraceResult(1.0, ())] * 5, 0.5)
    assert (found.precision, found.recall, found.f1) == (0, 0, 0)
    assert math.isnan(found.bias_s)


def test_nothing_labelled() -> None:
    assert score([], 0.5).labels == 0


def test_the_interval_narrows_with_more_traces() -> None:
    few = [TraceResult(0.0, (0.0,)), TraceResult(0.0, ())] * 5
    low, high = score(few, 0.5).f1_interval
    lower, higher = score(few * 20, 0.5).f1_interval
    assert higher - lower < high - low


def test_of_thresholds_that_are_as_good_the_middle_is_chosen() -> None:
    f1 = [0.80, 0.86, 0.886, 0.888, 0.890, 0.888, 0.886, 0.87, 0.80]
    assert plateau(f1) == 4  # the means of 3 to 5 with their neighbours are 0.888 to 0.8887; those beside them 0.8813
    assert plateau([0.5] * 7) == 3
    assert plateau([0.9, 0.9, 0.5, 0.5]) == 0
    assert plateau([0.2, 0.3, 0.9, 0.3, 0.85, 0.86, 0.7]) == 5  # the single best is luck
    assert plateau([0.7]) == 0
