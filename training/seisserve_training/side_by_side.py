"""Networks and baselines of one task on the same traces: a table of all, and what each network's manifest keeps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from tqdm import tqdm

from seisserve import manifest as manifests
from seisserve.errors import UsageError
from seisserve.manifest import DETECTION, Manifest, Metric
from seisserve.transport import Transport
from seisserve_training.baselines.picking import PICKERS, Baseline, Seen, template_rows
from seisserve_training.datasets import Dataset, LabelledTrace, Row
from seisserve_training.evaluation import (
    Arrival,
    Evaluation,
    best_thresholds,
    curves,
    evaluate,
    metrics,
    score_arrivals,
    summarise,
)  # fmt: skip
from seisserve_training.evaluation_detection import Alarms, alarms, best_threshold, detection_curves, figures
from seisserve_training.evaluation_waveforms import evaluate_denoising, evaluate_recovery
from seisserve_training.figures import Figure
from seisserve_training.scores import poisson_interval

__all__ = ["Data", "Network", "Scored", "detection", "kept", "picking", "waveforms"]

RATE_HZ, COMPONENTS = 100.0, "ZNE"  # of baselines among themselves; beside networks they are given what the first is


class Network(NamedTuple):
    """A network to score. model: its manifest, with the thresholds to use."""

    name: str
    model: Manifest
    transport: Transport

    @property
    def published(self) -> bool:
        """Whether it comes from elsewhere: its figures are kept beside those of networks that were trained here."""
        return self.model.training is None


class Data:
    """The traces to score, each read once for every sampling rate and set of components.

    rows: all rows of the data set, of which those in `chosen` are scored. Baselines take their templates from its
    training split and their thresholds from its dev split.
    """

    def __init__(self, rows: Sequence[Row], chosen: Sequence[Row]) -> None:
        self.chosen, self._rows = list(chosen), list(rows)
        self._read: dict[tuple[float, str], dict[tuple[Path, str], LabelledTrace]] = {}

    def traces(self, rate_hz: float, components: str, rows: Sequence[Row] | None = None) -> list[LabelledTrace]:
        """The chosen traces, or those of other rows."""
        wanted = self.chosen if rows is None else rows
        dataset, done = Dataset([], rate_hz, components), self._read.setdefault((rate_hz, components), {})
        missing = [row for row in wanted if (row.file, row.name) not in done]
        for row in tqdm(missing, desc="reading", disable=None, leave=False):
            done[row.file, row.name] = dataset.load(row)
        return [done[row.file, row.name] for row in wanted]

    @cached_property
    def dev(self) -> list[Row]:
        """The whole dev split. Raises UsageError if there is none."""
        found = [row for row in self._rows if row.split == "dev"]
        if not found:
            raise UsageError("the data set has no dev split; thresholds of baselines are chosen on it, so name none")
        return found

    @cached_property
    def templates(self) -> list[Row]:
        """Training rows of the stations that are scored or that thresholds are chosen on."""
        return template_rows(self._rows, {row.station for row in [*self.chosen, *self.dev]})


class Scored(NamedTuple):
    """text: the table, Markdown. metrics, figures: for each network its own, and those that its manifest keeps beside
    them, with their method. rates: false picks per hour of each network."""

    text: str
    metrics: dict[str, tuple[Metric, ...]]
    figures: dict[str, tuple[Figure, ...]]
    rates: dict[str, dict[str, float]]


def picking(
    networks: Sequence[Network], baselines: Sequence[str], data: Data, incomplete: Sequence[str], where: tuple[str, str]
) -> Scored:
    """Picks against labels. where: name of the data set, split."""
    found: dict[str, Evaluation] = {}
    for network in networks:
        traces = _traces(network, data)
        made = curves(traces, network.model, network.transport)
        found[network.name] = evaluate(traces, made, network.model, incomplete=incomplete)
    rate_hz, notes = _rate(networks), []
    for name in baselines:
        baseline = _baseline(name, rate_hz, data)
        found[name], thresholds = _baseline_picks(name, baseline, data, incomplete)
        notes.append(f"{name} {', '.join(f'{phase} {value:g}' for phase, value in thresholds.items()) or 'none'}")
    own: dict[str, tuple[Metric, ...]] = {}
    aside: dict[str, tuple[Figure, ...]] = {}
    for network in networks:
        names = _shown_with(network, networks, baselines)
        own[network.name] = tuple(
            metric
            for name in names
            for metric in metrics(found[name], *where, method="" if name == network.name else name)
        )
        aside[network.name] = tuple(figure for name in names for figure in _false_picks(name, found[name]))
    text = summarise(found) + (f"\nThresholds of the baselines, chosen on dev: {'; '.join(notes)}.\n" if notes else "")
    return Scored(text, own, aside, {network.name: found[network.name].false_picks_per_hour for network in networks})


def detection(networks: Sequence[Network], baselines: Sequence[str], data: Data) -> Scored:
    """Events found against false alarms."""
    found: dict[str, Alarms] = {}
    own: dict[str, float] = {}
    for network in networks:
        traces, model = _traces(network, data), network.model
        made = detection_curves(curves(traces, model, network.transport))
        found[network.name] = alarms(traces, made, model.sampling_rate_hz)
        own[network.name] = model.labels[DETECTION].threshold
    rate_hz = _rate(networks)
    for name in baselines:
        baseline = _baseline(name, rate_hz, data)
        found[name], own[name] = _baseline_alarms(name, baseline, data)
    names = [network.name for network in networks]
    made_figures = figures(found, own, dict.fromkeys(baselines, names))
    aside = {}
    for network in networks:
        methods = _shown_with(network, networks, baselines)
        elsewhere = tuple(f"of {name}" for name in names if name != network.name)
        aside[network.name] = tuple(
            figure for figure in made_figures if figure.method in methods and not figure.quantity.endswith(elsewhere)
        )
    return Scored(figure_table(made_figures), {}, aside, {})


def waveforms(task: str, networks: Sequence[Network], data: Data, picker: tuple[Manifest, Transport]) -> Scored:
    """Restored waveforms against clean ones; the classical methods are always beside them.

    Raises UsageError if there is nothing clean among the traces.
    """
    aside: dict[str, tuple[Figure, ...]] = {}
    for network in networks:
        traces, model = _traces(network, data), replace(network.model, name=network.name)
        if task == "denoising":
            made = evaluate_denoising(traces, model, network.transport, picker)
        else:
            made = evaluate_recovery(traces, model, network.transport)
        aside[network.name] = tuple(figure for figure in made if figure.n)
        if not aside[network.name]:
            raise UsageError(f"{task} is scored on clean events with noise added; these traces hold none, or no noise")
    together = list(dict.fromkeys(figure for made in aside.values() for figure in made))
    if len(together) == len({(figure.source, figure.method, figure.quantity) for figure in together}):
        text = figure_table(together)
    else:  # windows of other lengths are other traces, for the classical methods too
        text = "\n".join(f"{name}:\n\n{figure_table(made)}" for name, made in aside.items())
    return Scored(text, {}, aside, {})


def kept(scored: Scored, network: Network, where: tuple[str, str], before: Manifest) -> Manifest:
    """The manifest with these figures in place of those of the same data set, split and quantity."""
    new = tuple(
        manifests.Figure(
            data_set=where[0],
            split=where[1],
            **{**figure._asdict(), "method": "" if figure.method == network.name else figure.method},
        )
        for figure in scored.figures[network.name]
        if np.isfinite(figure.value)
    )
    quantities = {figure.quantity for figure in new}
    old = tuple(f for f in before.figures if (f.data_set, f.split) != where or f.quantity not in quantities)
    changed = replace(before, figures=old + new)
    if network.name in scored.metrics:
        others = tuple(metric for metric in before.metrics if (metric.data_set, metric.split) != where)
        changed = replace(changed, metrics=others + scored.metrics[network.name])
    if network.name in scored.rates:
        changed = replace(changed, false_picks_per_hour=scored.rates[network.name])
    return changed


def figure_table(made: Sequence[Figure]) -> str:
    """A Markdown table: a row for each source and quantity, a column for each method."""
    methods = list(dict.fromkeys(figure.method for figure in made))
    cells = {(figure.source, figure.quantity, figure.method): figure for figure in made}
    rows = sorted(dict.fromkeys((figure.source, figure.quantity) for figure in made), key=lambda row: row[0] != "all")
    lines = ["| source | quantity | n | " + " | ".join(methods) + " |", "| --- | --- | --- |" + " --- |" * len(methods)]
    for row in rows:
        here = [cells.get((*row, method)) for method in methods]
        count = next(figure.n for figure in here if figure)
        lines.append(f"| {row[0]} | {row[1]} | {count} | " + " | ".join(_cell(figure) for figure in here) + " |")
    return "\n".join(lines) + "\n"


def _cell(figure: Figure | None) -> str:
    if figure is None or np.isnan(figure.value):
        return "-"
    between = f" [{figure.interval[0]:.4g}, {figure.interval[1]:.4g}]" if figure.interval else ""
    return f"{figure.value:.4g}{between} {figure.unit}".rstrip()


def _traces(network: Network, data: Data) -> list[LabelledTrace]:
    return data.traces(network.model.sampling_rate_hz, network.model.components)


def _shown_with(network: Network, networks: Sequence[Network], baselines: Sequence[str]) -> list[str]:
    """The network itself, the baselines, and published networks."""
    return [network.name, *baselines, *(one.name for one in networks if one.published and one is not network)]


def _rate(networks: Sequence[Network]) -> float:
    """Of the traces that the baselines get: read once for both, where it can be."""
    return networks[0].model.sampling_rate_hz if networks else RATE_HZ


def _baseline(name: str, rate_hz: float, data: Data) -> Baseline:
    needs_templates = name == "template-matching"
    return PICKERS[name](rate_hz, data.traces(rate_hz, COMPONENTS, data.templates) if needs_templates else [])


def _baseline_picks(
    name: str, baseline: Baseline, data: Data, incomplete: Sequence[str]
) -> tuple[Evaluation, dict[str, float]]:
    """Its scores, and the thresholds that did best on dev."""
    phases, rate_hz = baseline.phases, baseline.rate_hz

    def at(rows: Sequence[Row], thresholds: dict[str, float], resamples: int) -> Evaluation:
        traces = data.traces(rate_hz, COMPONENTS, rows)
        found = [_read(baseline, seen[row.file, row.name], thresholds) for row in rows]
        tolerances = (0.1, 0.5) if resamples else (0.5,)
        return score_arrivals(traces, found, phases, rate_hz, tolerances, incomplete, resamples)

    seen = _look(name, baseline, data)
    thresholds = dict.fromkeys(phases, 0.0)  # of those that have none
    if baseline.candidates:
        thresholds = best_thresholds(
            lambda value: at(data.dev, dict.fromkeys(phases, value), 0), baseline.candidates, phases
        )
    return at(data.chosen, thresholds, 1000), thresholds if baseline.candidates else {}


def _read(baseline: Baseline, seen: Seen, thresholds: dict[str, float]) -> list[Arrival]:
    return [pick for phase, value in thresholds.items() for pick in baseline.read(seen, phase, value)]


def _baseline_alarms(name: str, baseline: Baseline, data: Data) -> tuple[Alarms, float]:
    """What its characteristic function says of the traces, and the threshold that does best on dev."""
    seen, rate_hz = _look(name, baseline, data), baseline.rate_hz

    def of(rows: Sequence[Row]) -> Alarms:
        traces = data.traces(rate_hz, COMPONENTS, rows)
        return alarms(traces, [seen[row.file, row.name].curve for row in rows], rate_hz)

    return of(data.chosen), best_threshold(of(data.dev), baseline.candidates)


def _look(name: str, baseline: Baseline, data: Data) -> dict[tuple[Path, str], Seen]:
    """What it sees in each trace that is scored, and in those of dev where it has a threshold to choose."""
    rows = {(row.file, row.name): row for row in [*data.chosen, *(data.dev if baseline.candidates else [])]}
    traces = data.traces(baseline.rate_hz, COMPONENTS, list(rows.values()))
    return dict(zip(rows, map(baseline.look, tqdm(traces, desc=name, disable=None, leave=False)), strict=True))


def _false_picks(name: str, found: Evaluation) -> list[Figure]:
    """Counts and rates of picks on noise."""
    hours, noise, made = found.noise_hours, found.noise_traces, []
    for phase, count in found.false_picks.items() if hours else ():
        low, high = poisson_interval(count)
        rate = (low / hours, high / hours)
        made.append(Figure("all", name, f"false {phase} picks", count, (low, high), noise, f"in {hours:.2f} h"))
        made.append(Figure("all", name, f"false {phase} picks per hour", count / hours, rate, noise, "1/h"))
    return made
