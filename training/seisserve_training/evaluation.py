"""Run a picker over labelled traces, with the very functions that serve it, and score what it says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from seisserve.manifest import Manifest, Metric
from seisserve.picks import Pick, extract
from seisserve.pipeline import predict
from seisserve.segments import Segment
from seisserve.transport import Transport
from seisserve.windows import Curve, cut, stack
from seisserve_training.datasets import LabelledTrace
from seisserve_training.scores import Score, TraceResult, score

__all__ = ["PHASES", "Evaluation", "curves", "evaluate", "metrics", "residuals", "summarise"]

PHASES = ("P", "S")
AROUND_LABELS_S = 2.0  # of an incompletely labelled trace, picks count only that close to its labels
TRACES_AT_ONCE = 200
START_INDEX = 10_000_000_000  # traces are served as if recorded then: any time will do


class Evaluation(NamedTuple):
    """Scores by (source, phase, tolerance in seconds); source `all` for all. False picks per hour on noise by phase."""

    scores: dict[tuple[str, str, float], Score]
    noise_hours: float
    false_picks_per_hour: dict[str, float]


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
    """Scores of the picks that `model` (its thresholds) reads off the curves of the traces.

    A phase is scored on the traces that have its label. Every pick of that phase in the trace counts, but for label
    qualities in `incomplete`, whose traces hold arrivals that nobody labelled: there only picks within 2 s of the
    span of the labels do. Noise traces give the false picks per hour.
    """
    picks = _picks_by_trace(made, model)
    results: dict[tuple[str, str], list[TraceResult]] = defaultdict(list)
    false, noise_samples = dict.fromkeys(model.labels, 0), 0
    for trace, found in zip(traces, picks, strict=True):
        if trace.row.noise:
            noise_samples += trace.waveform.shape[1]
            for pick in found:
                false[pick.phase] += 1
            continue
        onsets = {phase: getattr(trace, phase.lower()) / model.sampling_rate_hz for phase in PHASES}
        known = [onset for onset in onsets.values() if np.isfinite(onset)]
        margin = AROUND_LABELS_S if trace.row.quality in incomplete else np.inf
        for phase in PHASES:
            if np.isfinite(onsets[phase]):
                times = [_seconds(pick, model) for pick in found if pick.phase == phase]
                counted = tuple(time for time in times if min(known) - margin <= time <= max(known) + margin)
                for source in ("all", trace.row.source):
                    results[source, phase].append(TraceResult(onsets[phase], counted))
    hours = noise_samples / model.sampling_rate_hz / 3600
    scores = {
        (source, phase, tolerance): score(found, tolerance, resamples)
        for (source, phase), found in sorted(results.items())
        for tolerance in tolerances_s
    }
    return Evaluation(scores, hours, {phase: count / hours if hours else 0.0 for phase, count in false.items()})


def residuals(
    traces: Sequence[LabelledTrace], made: Sequence[Curve], model: Manifest, tolerance_s: float
) -> dict[str, list[float]]:
    """|pick - label| over the pick's stated uncertainty, by phase, of the picks that match a label."""
    ratios: dict[str, list[float]] = {label: [] for label in model.labels}
    for trace, found in zip(traces, _picks_by_trace(made, model), strict=True):
        for pick in found:
            onset = getattr(trace, pick.phase.lower()) / model.sampling_rate_hz
            if abs(_seconds(pick, model) - onset) <= tolerance_s:
                ratios[pick.phase].append(abs(_seconds(pick, model) - onset) / pick.uncertainty_s)
    return ratios


def _picks_by_trace(made: Sequence[Curve], model: Manifest) -> list[list[Pick]]:
    picks: list[list[Pick]] = []
    for curve in made:
        chunk: list[list[Pick]] = [[] for _ in curve.segments]
        for pick in extract(curve, model):
            chunk[int(pick.trace_id)].append(pick)
        picks.extend(chunk)
    return picks


def _seconds(pick: Pick, model: Manifest) -> float:
    return pick.time_ns / 1e9 - START_INDEX / model.sampling_rate_hz


def metrics(found: Evaluation, data_set: str, split: str) -> tuple[Metric, ...]:
    """The scores as a manifest keeps them."""
    return tuple(
        Metric(
            data_set=data_set, split=split, source=source, phase=phase, tolerance_s=tolerance, labels=s.labels,
            precision=round(s.precision, 4), recall=round(s.recall, 4), f1=round(s.f1, 4),
            f1_interval=(round(s.f1_interval[0], 4), round(s.f1_interval[1], 4)),
            residual_bias_s=_number(s.bias_s), residual_mae_s=_number(s.mae_s), residual_std_s=_number(s.std_s),
        )
        for (source, phase, tolerance), s in found.scores.items()
    )  # fmt: skip


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)


def summarise(evaluations: Mapping[str, Evaluation]) -> str:
    """A Markdown table of several pickers side by side (name: evaluation), a row for each source and phase."""
    names = list(evaluations)
    keys = sorted({key for one in evaluations.values() for key in one.scores}, key=lambda key: (key[0] != "all", key))
    lines = [
        "| source | phase | within | labels | " + " | ".join(f"{name}: P / R / F1 [95 %]" for name in names) + " |",
        "| --- | --- | --- | --- | " + " | ".join("---" for _ in names) + " |",
    ]
    for source, phase, tolerance in keys:
        cells = []
        for one in evaluations.values():
            s = one.scores[source, phase, tolerance]
            low, high = s.f1_interval
            cells.append(f"{s.precision:.3f} / {s.recall:.3f} / **{s.f1:.3f}** [{low:.3f}, {high:.3f}]")
        labels = next(iter(evaluations.values())).scores[source, phase, tolerance].labels
        lines.append(f"| {source} | {phase} | {tolerance:g} s | {labels} | " + " | ".join(cells) + " |")
    lines += ["", "| residual (matched within 0.5 s) | phase | " + " | ".join(names) + " |"]
    lines.append("| --- | --- | " + " | ".join("---" for _ in names) + " |")
    for source, phase, tolerance in keys:
        if tolerance == 0.5:
            cells = []
            for one in evaluations.values():
                s = one.scores[source, phase, tolerance]
                cells.append(f"bias {s.bias_s:+.3f}, MAE {s.mae_s:.3f}, std {s.std_s:.3f} s")
            lines.append(f"| {source} | {phase} | " + " | ".join(cells) + " |")
    hours = next(iter(evaluations.values())).noise_hours
    lines += ["", f"False picks per hour on noise ({hours:.2f} h):", ""]
    for name, one in evaluations.items():
        rates = ", ".join(f"{phase} {rate:.2f}" for phase, rate in one.false_picks_per_hour.items())
        lines.append(f"- {name}: {rates}")
    return "\n".join(lines) + "\n"
