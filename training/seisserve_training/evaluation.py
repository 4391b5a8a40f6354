"""Run pickers over labelled traces, networks with the very functions that serve them, and score what they say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from seisserve.manifest import Manifest, Metric
from seisserve.picks import Pick, extract
from seisserve.pipeline import predict
from seisserve.segments import Segment
from seisserve.transport import Transport
from seisserve.windows import Curve, cut, stack
from seisserve_training.datasets import LabelledTrace
from seisserve_training.scores import Score, TraceResult, plateau, poisson_interval, score

__all__ = [
    "PHASES", "Arrival", "Evaluation", "arrivals", "best_thresholds", "curves", "evaluate", "judged", "metrics",
    "residuals", "score_arrivals", "summarise",
]  # fmt: skip

PHASES = ("P", "S")
AROUND_LABELS_S = 2.0  # of an incompletely labelled trace, picks count only that close to its labels
WITHIN_S = 0.5  # how close a pick must be to count where thresholds are chosen
TRACES_AT_ONCE = 200
START_INDEX = 10_000_000_000  # traces are served as if recorded then: any time will do


class Arrival(NamedTuple):
    """A pick on a trace, by whatever picker. time_s: seconds after the trace's first sample."""

    phase: str
    time_s: float


class Evaluation(NamedTuple):
    """Scores by (source, phase, tolerance in seconds); source `all` for all. false_picks: on noise, by phase."""

    scores: dict[tuple[str, str, float], Score]
    noise_traces: int
    noise_hours: float
    false_picks: dict[str, int]

    @property
    def false_picks_per_hour(self) -> dict[str, float]:
        """Picks per hour of noise by phase; 0 where there is no noise."""
        hours = self.noise_hours
        return {phase: count / hours if hours else 0.0 for phase, count in self.false_picks.items()}


def curves(traces: Iterable[LabelledTrace], model: Manifest, transport: Transport) -> list[Curve]:
    """One curve over each chunk of traces; segment k of a curve is the k-th trace of its chunk."""
    pending: list[Segment] = []
    made: list[Curve] = []
    for trace in traces:
        pending.append(Segment("", START_INDEX, 0, model.sampling_rate_hz, trace.waveform, trace.live))
        if len(pending) == TRACES_AT_ONCE:
            made.append(_curve(pending, model, transport))
            pending = []
    return made + ([_curve(pending, model, transport)] if pending else [])


def _curve(segments: list[Segment], model: Manifest, transport: Transport) -> Curve:
    numbered = [segment._replace(trace_id=str(number)) for number, segment in enumerate(segments)]
    windows = cut(numbered, model)
    return stack(windows, predict(windows, model, transport), model)


def evaluate(
    traces: Sequence[LabelledTrace],
    made: Sequence[Curve],
    model: Manifest,
    tolerances_s: Sequence[float] = (0.1, 0.5),
    incomplete: Sequence[str] = (),
    resamples: int = 1000,
) -> Evaluation:
    """Scores of the picks that `model` (its thresholds) reads off the curves of the traces: see `score_arrivals`."""
    phases, rate = list(model.phases), model.sampling_rate_hz
    return score_arrivals(traces, arrivals(made, model), phases, rate, tolerances_s, incomplete, resamples)


def score_arrivals(
    traces: Sequence[LabelledTrace],
    found: Sequence[Sequence[Arrival]],
    phases: Sequence[str],
    rate_hz: float,
    tolerances_s: Sequence[float] = (0.1, 0.5),
    incomplete: Sequence[str] = (),
    resamples: int = 1000,
) -> Evaluation:
    """Scores of the arrivals found on each trace (of `rate_hz`) by something that picks `phases`.

    A phase is scored on the traces that have its label. Every pick of that phase in the trace counts, but for label
    qualities in `incomplete`, whose traces hold arrivals that nobody labelled: there only picks within 2 s of the
    span of the labels do. Noise traces give the false picks.
    """
    results: dict[tuple[str, str], list[TraceResult]] = defaultdict(list)
    false, noise = dict.fromkeys(phases, 0), [trace.waveform.shape[1] for trace in traces if trace.row.noise]
    for trace, picks in zip(traces, found, strict=True):
        if trace.row.noise:
            for pick in picks:
                false[pick.phase] += 1
            continue
        onsets = {phase: _onset(trace, phase, rate_hz) for phase in PHASES}
        known = [onset for onset in onsets.values() if np.isfinite(onset)]
        margin = AROUND_LABELS_S if trace.row.quality in incomplete else np.inf
        for phase in phases:
            if np.isfinite(onsets[phase]):
                times = [pick.time_s for pick in picks if pick.phase == phase]
                counted = tuple(time for time in times if min(known) - margin <= time <= max(known) + margin)
                for source in ("all", trace.row.source):
                    results[source, phase].append(TraceResult(onsets[phase], counted))
    scores = {
        (source, phase, tolerance): score(found, tolerance, resamples)
        for (source, phase), found in sorted(results.items())
        for tolerance in tolerances_s
    }
    return Evaluation(scores, len(noise), sum(noise) / rate_hz / 3600, false)


def best_thresholds(
    evaluate_at: Callable[[float], Evaluation], candidates: Sequence[float], phases: Sequence[str]
) -> dict[str, float]:
    """For each phase the middle of the candidates with the best F1 at 0.5 s (`plateau`), where picks on noise traces
    count as false picks too.

    evaluate_at: what is found at a threshold; of the dev split, never of test. Phases without a label there are left
    out of the answer.
    """
    f1: dict[str, list[float]] = {phase: [] for phase in phases}
    for threshold in candidates:
        found = evaluate_at(threshold)
        for phase, values in f1.items():
            score = found.scores.get(("all", phase, WITHIN_S))
            if score is None:
                continue
            right = score.recall * score.labels
            picked = right / max(score.precision, 1e-9) + found.false_picks[phase]
            values.append(2 * right / (picked + score.labels))
    return {phase: float(candidates[plateau(values)]) for phase, values in f1.items() if values}


def residuals(
    traces: Sequence[LabelledTrace], made: Sequence[Curve], model: Manifest, tolerance_s: float
) -> dict[str, list[float]]:
    """|pick - label| over the pick's stated uncertainty, by phase, of the picks that match a label."""
    ratios: dict[str, list[float]] = {phase: [] for phase in model.phases}
    for trace, found in zip(traces, _picks_by_trace(made, model), strict=True):
        for pick in found:
            away = abs(_seconds(pick, model) - _onset(trace, pick.phase, model.sampling_rate_hz))
            if away <= tolerance_s:
                ratios[pick.phase].append(away / pick.uncertainty_s)
    return ratios


def judged(
    traces: Sequence[LabelledTrace],
    made: Sequence[Curve],
    model: Manifest,
    tolerance_s: float,
    incomplete: Sequence[str] = (),
) -> dict[str, list[tuple[float, bool]]]:
    """Probability of each pick, and whether it is right, by phase; the picks that count are those of `score_arrivals`.

    Right is the nearest pick to a label, if it lies within the tolerance. On noise every pick is wrong.
    """
    verdicts: dict[str, list[tuple[float, bool]]] = {phase: [] for phase in model.phases}
    for trace, found in zip(traces, _picks_by_trace(made, model), strict=True):
        onsets = {phase: _onset(trace, phase, model.sampling_rate_hz) for phase in PHASES}
        known = [onset for onset in onsets.values() if np.isfinite(onset)]
        margin = AROUND_LABELS_S if trace.row.quality in incomplete else np.inf
        for phase, verdict in verdicts.items():
            picks = [pick for pick in found if pick.phase == phase]
            if trace.row.noise:
                verdict += [(pick.probability, False) for pick in picks]
            elif np.isfinite(onsets[phase]):
                away = [abs(_seconds(pick, model) - onsets[phase]) for pick in picks]
                verdict += [
                    (pick.probability, distance == min(away) and distance <= tolerance_s)
                    for pick, distance in zip(picks, away, strict=True)
                    if min(known) - margin <= _seconds(pick, model) <= max(known) + margin
                ]
    return verdicts


def arrivals(made: Sequence[Curve], model: Manifest) -> list[list[Arrival]]:
    """The arrivals that `model` (its thresholds) reads off the curves, trace by trace."""
    return [[Arrival(pick.phase, _seconds(pick, model)) for pick in one] for one in _picks_by_trace(made, model)]


def _picks_by_trace(made: Sequence[Curve], model: Manifest) -> list[list[Pick]]:
    picks: list[list[Pick]] = []
    for curve in made:
        chunk: list[list[Pick]] = [[] for _ in curve.segments]
        for pick in extract(curve, model):
            chunk[int(pick.trace_id)].append(pick)
        picks.extend(chunk)
    return picks


def _onset(trace: LabelledTrace, phase: str, rate_hz: float) -> float:
    return (trace.p if phase == "P" else trace.s) / rate_hz


def _seconds(pick: Pick, model: Manifest) -> float:
    return pick.time_ns / 1e9 - START_INDEX / model.sampling_rate_hz


def metrics(found: Evaluation, data_set: str, split: str, method: str = "") -> tuple[Metric, ...]:
    """The scores as a manifest keeps them. method: whose they are, empty for the bundle's own network."""
    return tuple(
        Metric(
            data_set=data_set, split=split, method=method, source=source, phase=phase, tolerance_s=tolerance,
            labels=s.labels, precision=round(s.precision, 4), recall=round(s.recall, 4), f1=round(s.f1, 4),
            f1_interval=(round(s.f1_interval[0], 4), round(s.f1_interval[1], 4)),
            residual_bias_s=_number(s.bias_s), residual_mae_s=_number(s.mae_s), residual_std_s=_number(s.std_s),
        )
        for (source, phase, tolerance), s in found.scores.items()
    )  # fmt: skip


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)


def summarise(evaluations: Mapping[str, Evaluation]) -> str:
    """A Markdown table of several pickers side by side (name: evaluation), a row for each source and phase.

    A picker that does not pick a phase has a dash there.
    """
    names = list(evaluations)
    keys = sorted({key for one in evaluations.values() for key in one.scores}, key=lambda key: (key[0] != "all", key))
    lines = [
        "| source | phase | within | labels | " + " | ".join(f"{name}: P / R / F1 [95 %]" for name in names) + " |",
        "| --- | --- | --- | --- | " + " | ".join("---" for _ in names) + " |",
    ]
    for key in keys:
        source, phase, tolerance = key
        labels = next(one.scores[key].labels for one in evaluations.values() if key in one.scores)
        cells = [_rates(one.scores.get(key)) for one in evaluations.values()]
        lines.append(f"| {source} | {phase} | {tolerance:g} s | {labels} | " + " | ".join(cells) + " |")
    lines += ["", f"| residual (matched within {WITHIN_S:g} s) | phase | " + " | ".join(names) + " |"]
    lines.append("| --- | --- | " + " | ".join("---" for _ in names) + " |")
    for key in keys:
        source, phase, tolerance = key
        if tolerance == WITHIN_S:
            cells = [_residuals(one.scores.get(key)) for one in evaluations.values()]
            lines.append(f"| {source} | {phase} | " + " | ".join(cells) + " |")
    hours = next(iter(evaluations.values())).noise_hours
    lines += ["", f"False picks on {hours:.2f} h of noise, and per hour with the 95 % interval (Poisson):", ""]
    for name, one in evaluations.items():
        lines.append(f"- {name}: {', '.join(_false(one, phase) for phase in one.false_picks)}")
    return "\n".join(lines) + "\n"


def _rates(s: Score | None) -> str:
    if s is None:
        return "-"
    low, high = s.f1_interval
    return f"{s.precision:.3f} / {s.recall:.3f} / **{s.f1:.3f}** [{low:.3f}, {high:.3f}]"


def _residuals(s: Score | None) -> str:
    if s is None or np.isnan(s.bias_s):
        return "-"
    return f"bias {s.bias_s:+.3f}, MAE {s.mae_s:.3f}, std {s.std_s:.3f} s"


def _false(one: Evaluation, phase: str) -> str:
    count = one.false_picks[phase]
    if not one.noise_hours:
        return f"{phase} {count}"
    low, high = (edge / one.noise_hours for edge in poisson_interval(count))
    return f"{phase} {count}: {count / one.noise_hours:.2f} [{low:.2f}, {high:.2f}] an hour"
