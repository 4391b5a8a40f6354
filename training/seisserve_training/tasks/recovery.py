"""Clip recovery: what a record would look like if the instrument's range had not ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from seisserve.manifest import Manifest
from seisserve.transport import Transport
from seisserve_training import augment
from seisserve_training.datasets import LabelledTrace
from seisserve_training.evaluation_waveforms import recovery_scores
from seisserve_training.examples import Examples
from seisserve_training.tasks.task import Pair, Task

__all__ = ["CLIP_RECOVERY"]

LEVELS = (0.05, 0.9)  # of the highest amplitude
SNR_DB = (15.0, 50.0)
UNCLIPPED = 0.1  # share of windows: what looks like a clipped sample must not be blown up
OFFSET = 0.05  # of the instrument's range


def pair(examples: Examples, rng: np.random.Generator) -> Pair:
    """A clipped waveform, and what it was, in units of the clip level: float32 [samples, components] each."""
    event = examples.clean_window(rng)
    waveform, _ = augment.mix(event.waveform, examples.noise_window(rng).waveform, rng.uniform(*SNR_DB))
    if rng.random() < examples.config.augmentation.channel_dropout:
        waveform = augment.channel_dropout(event._replace(waveform=waveform), rng).waveform
    if rng.random() < UNCLIPPED:
        clipped = waveform
    else:
        level = float(np.exp(rng.uniform(*np.log(LEVELS))))
        clipped = augment.clip(waveform, level, rng.uniform(-OFFSET, OFFSET))
    limit = np.abs(clipped).max(axis=0)
    limit = np.where(limit > 0, limit, 1)
    return np.asarray(clipped / limit, np.float32), np.asarray(waveform / limit, np.float32)


def relative_error(waveform: Any, target: Any) -> Any:
    """Mean square error of the clipped samples in units of the clip level, over what they exceed it by.

    Both [n, samples, components]. Samples that are not clipped come back as they were and count nothing. The division
    (of each component's sums, with a floor) keeps a few heavily clipped records from deciding everything.
    """
    error = tf.reduce_sum(tf.square(waveform - target), axis=1)
    excess = tf.reduce_sum(tf.square(tf.nn.relu(tf.abs(target) - 1)), axis=1)
    return tf.reduce_mean(tf.sqrt(error + 1e-4) / tf.sqrt(excess + 0.1))


def scores(
    dev: Sequence[LabelledTrace], manifest: Manifest, transport: Transport, incomplete: Sequence[str]
) -> dict[str, float]:
    """Minus the relative error of the clipped samples."""
    return recovery_scores(dev, manifest, transport)


CLIP_RECOVERY = Task(pair, relative_error, scores)
