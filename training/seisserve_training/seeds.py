"""The same training from several seeds: how much is luck, and which is best on dev."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import msgspec
import numpy as np

from seisserve_training.config import Config
from seisserve_training.datasets import LabelledTrace
from seisserve_training.training import train

__all__ = ["best_scores", "spread", "train_seeds"]


def train_seeds(
    config: Config, folder: Path, traces: Sequence[LabelledTrace], root: Path = Path()
) -> tuple[keras.Model, Config]:
    """Train from each of `schedule.seeds`, in folders seed_1, ...; the network that is best on dev, and its
    configuration. `folder` gets seeds.md, a table of the dev scores."""
    found: dict[int, dict[str, float]] = {}
    models: dict[int, tuple[keras.Model, Config]] = {}
    for seed in config.schedule.seeds:
        one = msgspec.structs.replace(config, schedule=msgspec.structs.replace(config.schedule, seed=seed, seeds=()))
        place = folder / f"seed_{seed}"
        place.mkdir(parents=True, exist_ok=True)
        models[seed] = train(one, place, traces, root), one
        found[seed] = best_scores(place)
    (folder / "seeds.md").write_text(spread(found))
    return models[max(found, key=lambda seed: (_mean(found[seed]), -config.schedule.seeds.index(seed)))]


def best_scores(folder: Path) -> dict[str, float]:
    """The dev scores of a run's best epoch, from its history.csv; none without a dev split."""
    with (folder / "history.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    scores = [
        {key: value for key, value in row.items() if key not in ("epoch", "loss", "learning_rate")} for row in rows
    ]
    return max(scores, key=_mean)


def spread(found: Mapping[int, Mapping[str, float]]) -> str:
    """Markdown: dev scores of each seed (a row each), their mean and standard deviation."""
    names = list(next(iter(found.values())))
    lines = ["| seed | " + " | ".join([*names, "mean"]) + " |", "| --- |" + " --- |" * (len(names) + 1)]
    table = np.array([[*scores.values(), _mean(scores)] for scores in found.values()])
    rows = [(str(seed), values) for seed, values in zip(found, table, strict=True)]
    rows.append(("mean", table.mean(axis=0)))
    if len(table) > 1:
        rows.append(("standard deviation", table.std(axis=0, ddof=1)))
    lines += [f"| {name} | " + " | ".join(f"{value:.4f}" for value in values) + " |" for name, values in rows]
    return "\n".join(lines) + "\n"


def _mean(scores: Mapping[str, float]) -> float:
    return float(np.mean(list(scores.values()))) if scores else 0.0
