"""Phase picking: the probability of noise, P and S at every sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from seisserve.manifest import Manifest
from seisserve.transport import Transport
from seisserve_training.datasets import LabelledTrace
from seisserve_training.evaluation import curves, evaluate
from seisserve_training.examples import Examples
from seisserve_training.labels import target
from seisserve_training.tasks.task import Pair, Task

__all__ = ["PHASE_PICKING", "cross_entropy", "phase_scores"]


def pair(examples: Examples, rng: np.random.Generator) -> Pair:
    """float32 [samples, components] and [samples, 4]: N, P, S, and where the labels are sure."""
    example, config = examples.labelled_window(rng), examples.config
    return example.waveform, target(example, config.label_sigma_s * examples.rate, config.label_shape)


def cross_entropy(probability: Any, target: Any) -> Any:
    """Over the samples whose labels are sure. target [n, samples, classes + 1]."""
    sure = target[..., -1]
    entropy = -tf.reduce_sum(target[..., :-1] * tf.math.log(probability + 1e-7), axis=-1)
    return tf.reduce_sum(entropy * sure) / (tf.reduce_sum(sure) + 1.0)


def phase_scores(
    dev: Sequence[LabelledTrace], manifest: Manifest, transport: Transport, incomplete: Sequence[str]
) -> dict[str, float]:
    """F1 of P and S at 0.5 s."""
    found = evaluate(dev, curves(dev, manifest, transport), manifest, (0.5,), incomplete, resamples=0)
    return {f"{phase}_f1": found.scores["all", phase, 0.5].f1 for phase in ("P", "S")}


def mix(target: Any, p: Any, s: Any, share: float) -> Any:
    """Labels and a teacher's curves; where the labels are not sure, the teacher's alone. target [n, samples, 4]."""
    sure = target[..., 3:]
    taught = tf.stack([tf.maximum(1 - p - s, 0), p, s], axis=-1)  # of a teacher whose labels are independent
    weight = share * sure + (1 - sure)
    return tf.concat([(1 - weight) * target[..., :3] + weight * taught, tf.ones_like(sure)], axis=-1)


PHASE_PICKING = Task(pair, cross_entropy, phase_scores, mix)
