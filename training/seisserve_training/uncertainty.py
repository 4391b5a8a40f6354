"""How sure a picker is: the spread of its curves under dropout, and what its probabilities are worth.

Monte Carlo dropout: Gal and Ghahramani (2016), ICML 48. Isotonic calibration: Zadrozny and Elkan (2002), KDD.
Expected calibration error: Naeini, Cooper and Hauskrecht (2015), AAAI.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from seisserve.manifest import Label
from seisserve.windows import batch_size

__all__ = ["Calibration", "Spread", "calibrate", "expected_calibration_error", "monte_carlo"]

FEWEST_PICKS = 50  # fewer say nothing about how often a picker is right
FOLDS = 5


class Spread(NamedTuple):
    """Mean and standard deviation over the passes, each of the shape of the network's output."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]


class Calibration(NamedTuple):
    """What a peak probability is worth.

    knots: (peak probability, share of such picks that are right), both rising, straight lines between; none leaves the
    probability as it is. picks: that they were fitted on. error_before, error_after: expected calibration error; the
    second of picks that had no part in the fit (fitted on four fifths, measured on the rest, in turn).
    """

    knots: tuple[tuple[float, float], ...]
    picks: int
    error_before: float
    error_after: float


def monte_carlo(model: keras.Model, windows: NDArray[np.float32], passes: int = 20, seed: int = 0) -> Spread:
    """The spread of what a network says while its dropout stays on; all else runs as when it is served.

    windows: [n, samples, components]. The same seed gives the same spread. Raises ValueError for a network without
    dropout, or for fewer than two passes.
    """
    if passes < 2:
        raise ValueError(f"passes is {passes}; a spread needs 2 or more")
    call = tf.function(_with_dropout(model, seed), reduce_retracing=True)
    size = batch_size(windows.shape[1])
    parts: list[Spread] = []
    for first in range(0, len(windows), size):
        batch = tf.constant(windows[first : first + size])
        total: Any = 0.0
        squares: Any = 0.0
        for number in range(1, passes + 1):  # Welford: a small spread about a large mean is kept
            away = np.asarray(call(batch), np.float64) - total
            total = total + away / number
            squares = squares + away * away * (1 - 1 / number)
        parts.append(Spread(total, np.sqrt(squares / (passes - 1))))
    mean, deviation = (np.concatenate(values).astype(np.float32) for values in zip(*parts, strict=True))
    return Spread(mean, deviation)


def _with_dropout(model: keras.Model, seed: int) -> keras.Model:
    """A copy with the same weights whose dropout never switches off."""
    count = 0

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        nonlocal count
        config = layer.get_config()
        if not isinstance(layer, keras.layers.Dropout):
            return type(layer).from_config(config)
        count += layer.rate > 0
        return _AlwaysOn(type(layer).from_config({**config, "seed": seed + count}), name=layer.name)

    twin = keras.models.clone_model(model, clone_function=copy)
    if not count:
        raise ValueError(f"{model.name} has no dropout: set network.dropout in its configuration and train it so")
    twin.set_weights(model.get_weights())
    return twin


class _AlwaysOn(keras.layers.Layer):
    def __init__(self, dropout: keras.layers.Dropout, name: str) -> None:
        super().__init__(name=name)
        self.dropout = dropout

    def call(self, x: Any) -> Any:
        return self.dropout(x, training=True)


def calibrate(probability: ArrayLike, right: ArrayLike) -> Calibration:
    """Fit what peak probabilities are worth to picks that were judged.

    probability: [picks] 0 to 1; right: [picks], whether each was. Isotonic regression: of all maps that never fall,
    the one nearest to what was seen. It says neither never nor always, since n picks cannot show either. There are no
    knots from fewer than 50 picks, nor where they would not make the error smaller on these very picks.
    """
    raw, hit = np.asarray(probability, np.float64), np.asarray(right, np.float64)
    before = expected_calibration_error(raw, hit)
    knots = _isotonic(raw, hit) if len(raw) >= FEWEST_PICKS else ()
    if not knots or expected_calibration_error(_worth(raw, knots), hit) >= before:
        return Calibration((), len(raw), before, before)
    fold = np.random.default_rng(0).permutation(len(raw)) % FOLDS
    unseen = np.empty_like(raw)
    for part in range(FOLDS):
        unseen[fold == part] = _worth(raw[fold == part], _isotonic(raw[fold != part], hit[fold != part]))
    return Calibration(knots, len(raw), before, expected_calibration_error(unseen, hit))


def expected_calibration_error(probability: ArrayLike, right: ArrayLike, bins: int = 10) -> float:
    """Mean over all picks of |mean probability - share that is right| in their bin of probability; 0 without picks."""
    stated, hit = np.asarray(probability, np.float64), np.asarray(right, np.float64)
    if not len(stated):
        return 0.0
    number = np.minimum((stated * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(number, stated - hit)).sum() / len(stated))


def _isotonic(raw: NDArray[np.float64], hit: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    """Two knots for each level of the fit, at its lowest and highest probability."""
    places, which, weight = np.unique(np.round(raw, 4), return_inverse=True, return_counts=True)
    fit = isotonic_regression(np.bincount(which, hit) / weight, weights=weight)
    least = 1 / (len(raw) + 2)  # rule of succession
    level = np.round(np.clip(fit.x, least, 1 - least), 4)
    ends = np.unique(np.concatenate([fit.blocks[:-1], fit.blocks[1:] - 1]))
    return tuple((float(places[end]), float(level[end])) for end in ends)


def _worth(raw: NDArray[np.float64], knots: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    label = Label(threshold=0.5, calibration=knots)
    return np.array([label.calibrated(value) for value in raw.tolist()])
