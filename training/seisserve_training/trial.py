"""A run in miniature: load the data, build the network, take one step, score a few traces, and say what there is."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from seisserve_training.config import Config
from seisserve_training.datasets import Dataset, LabelledTrace, of_split, rows_of
from seisserve_training.examples import Examples
from seisserve_training.models import ARCHITECTURES
from seisserve_training.training import train

__all__ = ["trial"]

DEV_TRACES = 8


def trial(config: Config, traces: Sequence[LabelledTrace], root: Path = Path()) -> str:
    """Take one step of `seisserve train` in a folder that is thrown away; returns what was found, in lines of text.

    Raises whatever the whole run would raise at its start.
    """
    learnt, dev = of_split(traces, "train"), of_split(traces, "dev")
    few = [dev[number] for number in range(min(DEV_TRACES, len(dev)))]
    pool: Sequence[LabelledTrace] = [*learnt, *few]
    if isinstance(traces, Dataset):
        rows = rows_of(learnt) + [trace.row for trace in few]
        pool = Dataset(rows, traces.sampling_rate_hz, traces.components)
    one = msgspec.structs.replace(config.schedule, epochs=1, steps_per_epoch=1, seeds=(), tensorboard=False)
    with tempfile.TemporaryDirectory() as folder:
        model = train(msgspec.structs.replace(config, schedule=one), Path(folder), pool, root)
    examples = Examples(learnt, config)
    window, target = ARCHITECTURES[config.network.kind].learn.pair(examples, examples.generator(0))
    trained = sum(int(np.prod(weight.shape)) for weight in model.trainable_variables)
    lines = [f"{config.name}: {config.network.kind}, {model.count_params():,} weights, {trained:,} of them trained"]
    for split, found in (("train", learnt), ("dev", dev)):
        rows = rows_of(found)
        noise = sum(row.noise for row in rows)
        lines.append(f"{split}: {len(rows):,} traces, {len(rows) - noise:,} with events, {noise:,} of noise")
    where = "read when wanted" if isinstance(traces, Dataset) else "in memory"
    lines.append(f"waveforms: {where}; {config.data.synthetic_events:,} synthetic events")
    lines.append(f"windows: {tuple(window.shape)}, targets {tuple(target.shape)}, {config.schedule.batch_size} a step")
    steps = config.schedule.epochs * config.schedule.steps_per_epoch
    lines.append(f"one step was taken; the run has {steps:,} for each of {len(config.schedule.seeds) or 1} seed(s)")
    return "\n".join(lines)
