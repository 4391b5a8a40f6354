"""Detection and phase picking at once: at every sample, whether an earthquake is there, and P and S, each by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from seisserve.manifest import DETECTION
from seisserve_training.examples import Examples
from seisserve_training.labels import detection_box, target
from seisserve_training.tasks.phases import phase_scores
from seisserve_training.tasks.task import Pair, Task

__all__ = ["DETECTION_AND_PHASES", "DETECTION_LABELS"]

DETECTION_LABELS = (DETECTION, "P", "S")
WEIGHTS = (0.05, 0.40, 0.55)  # of their losses: Mousavi et al. (2020), doi:10.1038/s41467-020-17591-w


def pair(examples: Examples, rng: np.random.Generator) -> Pair:
    """float32 [samples, components] and [samples, 6]: detection, P, S, and for each where it is sure."""
    example, config = examples.labelled_window(rng), examples.config
    phases = target(example, config.label_sigma_s * examples.rate, config.label_shape)
    inside, sure = detection_box(example, examples.rate)
    p, s, sure_phases = phases[:, 1], phases[:, 2], phases[:, 3]
    return example.waveform, np.stack([inside, p, s, sure.astype(np.float32), sure_phases, sure_phases], axis=1)


def cross_entropies(probability: Any, target: Any) -> Any:
    """The weighted sum of the three labels' binary cross entropies, each over its sure samples.

    probability [n, samples, 3]; target [n, samples, 6].
    """
    wanted, sure = target[..., :3], target[..., 3:]
    entropy = -(wanted * tf.math.log(probability + 1e-7) + (1 - wanted) * tf.math.log(1 - probability + 1e-7))
    mean = tf.reduce_sum(entropy * sure, axis=(0, 1)) / (tf.reduce_sum(sure, axis=(0, 1)) + 1.0)
    return tf.reduce_sum(mean * tf.constant(WEIGHTS))


def mix(target: Any, p: Any, s: Any, share: float) -> Any:
    """Labels and a teacher's curves; where the labels are not sure, the teacher's alone. Detection stays as labelled.
    target [n, samples, 6]."""
    sure = target[..., 4:]
    weight = share * sure + (1 - sure)
    phases = (1 - weight) * target[..., 1:3] + weight * tf.stack([p, s], axis=-1)
    return tf.concat([target[..., :1], phases, target[..., 3:4], tf.ones_like(sure)], axis=-1)


DETECTION_AND_PHASES = Task(pair, cross_entropies, phase_scores, mix)
