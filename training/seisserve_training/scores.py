"""How good picks are: precision, recall, F1 and residuals against labels, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

__all__ = ["Score", "TraceResult", "plateau", "poisson_interval", "score"]

AS_GOOD = 0.005  # of F1; the gate allows an artifact as much


class TraceResult(NamedTuple):
    """One phase of one trace. label_s: the labelled onset; picks_s: picks that count, by time, seconds."""

    label_s: float
    picks_s: tuple[float, ...]


class Score(NamedTuple):
    """Precision, recall and F1 of n labels, the 95 % interval of F1, and bias, MAE and std of matched picks (s)."""

    labels: int
    precision: float
    recall: float
    f1: float
    f1_interval: tuple[float, float]
    bias_s: float
    mae_s: float
    std_s: float


def score(results: Sequence[TraceResult], tolerance_s: float, resamples: int = 1000, seed: int = 0) -> Score:
    """The score of one phase. A label is matched by the nearest pick if that lies within the tolerance; every other
    pick is false. The interval comes from drawing the traces anew `resamples` times."""
    counts = np.array([_counts(result, tolerance_s) for result in results], float).reshape(-1, 3)
    residuals = np.array([r for r in (_residual(result) for result in results) if abs(r) <= tolerance_s])
    precision, recall, f1 = _rates(counts.sum(axis=0))
    rng = np.random.default_rng(seed)
    draws = [_rates(counts[rng.integers(len(counts), size=len(counts))].sum(axis=0))[2] for _ in range(resamples)]
    low, high = np.percentile(draws, [2.5, 97.5]) if len(counts) and resamples else (float("nan"), float("nan"))
    some = residuals if len(residuals) else np.array([np.nan])
    return Score(
        int(counts.sum(axis=0)[:1].sum() + counts.sum(axis=0)[2:].sum()),
        precision, recall, f1, (float(low), float(high)),
        float(some.mean()), float(np.abs(some).mean()), float(some.std()),
    )  # fmt: skip


def _residual(result: TraceResult) -> float:
    """Nearest pick minus label, infinite without one."""
    return min((pick - result.label_s for pick in result.picks_s), key=abs, default=float("inf"))


def _counts(result: TraceResult, tolerance_s: float) -> tuple[int, int, int]:
    """Right picks, false picks, missed labels."""
    matched = int(abs(_residual(result)) <= tolerance_s)
    return matched, len(result.picks_s) - matched, 1 - matched


def _rates(counts: NDArray[np.float64]) -> tuple[float, float, float]:
    right, false, missed = (float(count) for count in counts)
    precision = right / (right + false) if right + false else 0.0
    recall = right / (right + missed) if right + missed else 0.0
    return precision, recall, 2 * right / (2 * right + false + missed) if right + false + missed else 0.0


def plateau(values: Sequence[float]) -> int:
    """The middle of where F1 is as good as anywhere: within 0.005 of the highest, both the means of three neighbours.

    values: by rising thresholds. A single best value is luck on little data. Of thresholds that the data cannot tell
    apart high ones miss arrivals on records from elsewhere, where networks are less sure of them, and low ones give
    false picks where there is more noise than on dev.
    """
    padded = np.pad(np.array(values), 1, mode="edge")
    means = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    as_good = np.flatnonzero(means >= means.max() - AS_GOOD)
    return int(as_good[len(as_good) // 2])


def poisson_interval(count: int) -> tuple[float, float]:
    """The exact 95 % interval of the expected count of rare, independent things that were seen `count` times."""
    low = float(chi2.ppf(0.025, 2 * count) / 2) if count else 0.0
    return low, float(chi2.ppf(0.975, 2 * count + 2) / 2)
