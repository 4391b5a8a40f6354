"""Score detectors of events: how many labelled events they find, against how often noise alarms them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.manifest import DETECTION
from seisserve.windows import Curve
from seisserve_training.datasets import LabelledTrace
from seisserve_training.figures import Figure
from seisserve_training.scores import plateau, poisson_interval

__all__ = ["RATES_PER_HOUR", "Alarms", "alarms", "best_threshold", "detection_curves", "f1_at", "figures"]

RATES_PER_HOUR = (1.0, 10.0)  # false alarms at which detectors are compared
LEVELS = 400  # thresholds that a detector is read at: quantiles of its own values
BEFORE_S, ALONE_S, TAIL = 1.0, 10.0, 1.4  # what of a trace is the event: see `alarms`
MERGE_S = 2.0  # alarms closer than that are one


class Alarms(NamedTuple):
    """A detector on labelled traces, at every threshold that makes a difference.

    thresholds: [T], rising. highest: its highest value inside each event, [events]; sources: of the events. counts:
    separate alarms on each noise trace, [noise traces, T]; hours: length of each noise trace.
    """

    thresholds: NDArray[np.float64]
    highest: NDArray[np.float64]
    sources: tuple[str, ...]
    counts: NDArray[np.int64]
    hours: NDArray[np.float64]


def detection_curves(made: Sequence[Curve]) -> list[NDArray[np.float32]]:
    """The probability of an event at every sample, trace by trace, from the curves of a network."""
    return [
        curve.values[begin:end, curve.labels.index(DETECTION)]
        for curve in made
        for begin, end in zip(curve.bounds[:-1], curve.bounds[1:], strict=True)
    ]


def alarms(traces: Sequence[LabelledTrace], values: Sequence[NDArray[np.float32]], rate_hz: float) -> Alarms:
    """What a detector says, whose curve over each trace is in `values` (any scale: more means an event).

    An event is found if the curve reaches the threshold anywhere from 1 s before P to 1.4 times the S-P time after S,
    the span that Mousavi et al. (2020) train on, or within 10 s of the one onset that has a label. Alarms on noise
    traces are false; those closer than 2 s are one. Beside an event in its own trace nothing counts: there are
    aftershocks that nobody labelled.
    """
    highest, sources, noise = [], [], []
    for trace, curve in zip(traces, values, strict=True):
        if trace.row.noise:
            noise.append(curve)
            continue
        begin, end = _span(trace, rate_hz)
        highest.append(float(curve[begin:end].max()))
        sources.append(trace.row.source)
    everything = np.concatenate([highest, [float(curve.max()) for curve in noise]])
    thresholds = np.unique(np.quantile(everything, np.linspace(0, 1, LEVELS))) if len(everything) else np.ones(1)
    counts = [[_stretches(curve, threshold, MERGE_S * rate_hz) for threshold in thresholds] for curve in noise]
    return Alarms(
        thresholds,
        np.array(highest),
        tuple(sources),
        np.array(counts, np.int64).reshape(len(noise), len(thresholds)),
        np.array([len(curve) for curve in noise]) / rate_hz / 3600,
    )


def _span(trace: LabelledTrace, rate_hz: float) -> tuple[int, int]:
    """First sample of the event, and the one after its last."""
    p, s = trace.p / rate_hz, trace.s / rate_hz
    if np.isnan(s):
        begin, end = p - BEFORE_S, p + ALONE_S
    elif np.isnan(p):
        begin, end = s - ALONE_S, s + ALONE_S
    else:
        begin, end = p - BEFORE_S, s + TAIL * (s - p) + BEFORE_S
    samples = trace.waveform.shape[1]
    first = min(max(round(begin * rate_hz), 0), samples - 1)
    return first, max(min(round(end * rate_hz), samples), first + 1)


def _stretches(curve: NDArray[np.float32], threshold: float, merge: float) -> int:
    """How often the curve reaches the threshold anew."""
    above = np.flatnonzero(curve >= threshold)
    return int(np.count_nonzero(np.diff(above) > merge)) + 1 if len(above) else 0


def best_threshold(found: Alarms, candidates: Sequence[float]) -> float:
    """The candidate with the best F1 on these traces (of dev, never of test); false alarms are those on noise."""
    return float(candidates[plateau([f1_at(found, threshold) for threshold in candidates])])


def f1_at(found: Alarms, threshold: float) -> float:
    """F1 of the events at a threshold; false alarms are those on noise."""
    right = int((found.highest >= threshold).sum())
    return _f1(right, len(found.highest), _false_at(found, threshold))


def _false_at(found: Alarms, threshold: float) -> int:
    """False alarms at any threshold: those of the next one that is kept, above the last there are none."""
    place = int(np.searchsorted(found.thresholds, threshold))
    return int(found.counts[:, place].sum()) if place < len(found.thresholds) else 0


def _f1(right: float, events: int, false: float) -> float:
    return 2 * right / (right + false + events) if events else 0.0


def figures(
    detectors: Mapping[str, Alarms],
    own: Mapping[str, float],
    compared: Mapping[str, Sequence[str]] | None = None,
    resamples: int = 1000,
) -> list[Figure]:
    """The figures of detectors (by name) on the same traces.

    own: the threshold of each. compared: for a baseline the networks at whose false alarms an hour its F1 is given too.

    Of each source, of `all` events and of the `mean of sources`: recall and F1 at each detector's own threshold, and
    at equal false alarms per hour of noise (1 and 10), where the threshold is the lowest that alarms no more often.
    For the F1 of a source the false alarms are shared out over the sources by their events. Intervals are 95 %,
    bootstrap over traces of events and of noise; those of false alarms per hour are Poisson's.
    """
    made: list[Figure] = []
    for name, found in detectors.items():
        hours, false = float(found.hours.sum()), _false_at(found, own[name])
        if hours:
            low, high = poisson_interval(false)
            noise = len(found.hours)
            interval = (low / hours, high / hours)
            made.append(Figure("all", name, "false alarms", false, (low, high), noise, f"in {hours:.2f} h"))
            made.append(Figure("all", name, "false alarms per hour", false / hours, interval, noise, "1/h"))
        made += _at(name, found, "at its threshold", None, own[name], resamples)
        if not hours:
            continue
        for rate in RATES_PER_HOUR:
            made += _at(name, found, f"at {rate:g} false alarms per hour", rate, own[name], resamples)
        for other in (compared or {}).get(name, ()):
            rate = _false_at(detectors[other], own[other]) / hours
            made += _at(name, found, f"at the false alarms per hour of {other}", rate, own[name], resamples)
    return made


def _at(name: str, found: Alarms, where: str, rate: float | None, own: float, resamples: int) -> list[Figure]:
    """Recall and F1 of all events, of each source and of the mean of the sources, with their intervals.

    rate: false alarms per hour that are allowed; None for the detector's own threshold.
    """
    rng = np.random.default_rng(0)
    events, noise = len(found.highest), len(found.hours)
    groups = {source: np.array([one == source for one in found.sources]) for source in sorted(set(found.sources))}
    values = {"all": np.ones(events, bool), **groups}

    def measure(chosen: NDArray[np.int64], quiet: NDArray[np.int64]) -> dict[str, tuple[float, float]]:
        threshold, false = (own, _false_at(found._replace(counts=found.counts[quiet]), own))
        if rate is not None:
            threshold, false = _allowed(found, quiet, rate)
        seen = found.highest[chosen] >= threshold
        pairs = {}
        for source, member in values.items():
            here = member[chosen]
            count, right = int(here.sum()), int((seen & here).sum())
            share = false * count / max(len(chosen), 1)
            pairs[source] = (right / count, _f1(right, count, share)) if count else (np.nan, np.nan)
        means = np.nanmean([pairs[source] for source in groups], axis=0)
        return {**pairs, "mean of sources": (float(means[0]), float(means[1]))}

    whole = measure(np.arange(events), np.arange(noise))
    draws = [measure(rng.integers(events, size=events), rng.integers(noise, size=noise)) for _ in range(resamples)]
    made = []
    for source, value in whole.items():
        count = int(values[source].sum()) if source in values else events
        for column, quantity in enumerate(("recall", "F1")):
            interval = None
            if draws:
                low, high = np.nanpercentile([draw[source][column] for draw in draws], [2.5, 97.5])
                interval = (float(low), float(high))
            made.append(Figure(source, name, f"{quantity} {where}", value[column], interval, count, ""))
    return made


def _allowed(found: Alarms, quiet: NDArray[np.int64], rate: float) -> tuple[float, int]:
    """The lowest threshold at which, and above which, these noise traces alarm at most `rate` times an hour, and how
    often they do."""
    false = found.counts[quiet].sum(axis=0)
    from_above = np.maximum.accumulate(false[::-1])[::-1]  # at a lower threshold two alarms may have grown into one
    fits = np.flatnonzero(from_above <= rate * found.hours[quiet].sum() + 1e-9)
    if not len(fits):
        return float("inf"), 0
    return float(found.thresholds[fits[0]]), int(false[fits[0]])
