"""Which phase has its onset near the middle of a short window, and when: what DeepPhasePick's three networks learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from seisserve_training.augment import Example
from seisserve_training.examples import Examples
from seisserve_training.labels import PHASES
from seisserve_training.tasks.phases import phase_scores
from seisserve_training.tasks.task import Pair, Task

__all__ = ["ONSETS", "REACH", "STRIDE", "onset_target"]

STRIDE = 2  # samples from one step of the onset networks to the next
REACH = 0.25  # of the window's length to either side of its middle: onsets in there give the window its class
DOUBT = 0.08  # of the window's length beyond that: neither class is wrong
WITH_ONSET = 0.5  # of the windows; more than that, and quiet windows are taken for onsets
DRAWS = 12  # at most, until a window is of the kind that was asked for


def pair(examples: Examples, rng: np.random.Generator) -> Pair:
    """float32 [samples, components] and [5], see onset_target. Every second window is of class P or S."""
    wanted = rng.random() < WITH_ONSET
    for _ in range(DRAWS):
        example = examples.labelled_window(rng)
        target = onset_target(example)
        if wanted == (target[1] + target[2] > 0):
            break
    return example.waveform, target


def onset_target(example: Example) -> NDArray[np.float32]:
    """float32 [5]: class N, P, S (none where labels are not sure), and the onsets of P and S in samples, -1 for none.

    The onset nearest the middle of the window gives it its class: windows overlap, so of two onsets each is the nearest
    in a window of its own. Only onsets near the middle are learnt.
    """
    samples = len(example.waveform)
    target = np.array([0, 0, 0, -1, -1], np.float32)
    distances = np.full(2, np.inf)
    for number, onsets in enumerate((example.p, example.s)):
        nearest = min(onsets, key=lambda onset: abs(onset - samples / 2), default=np.inf)
        distances[number] = abs(nearest - samples / 2)
        if distances[number] <= (REACH + DOUBT) * samples and example.sure[int(nearest)]:
            target[3 + number] = nearest
    number = int(np.argmin(distances))
    middle = slice(int((0.5 - REACH) * samples), int((0.5 + REACH) * samples) + 1)
    if distances[number] <= REACH * samples:
        target[1 + number] = target[3 + number] >= 0
    elif distances[number] > (REACH + DOUBT) * samples:
        target[0] = example.sure[middle].all()
    return target


def onset_loss(output: Any, target: Any) -> Any:
    """Cross-entropy of the classes, and of the steps of P and S in the windows that hold their onset.

    output: [n, steps, 5] of a network that is being trained: the classes at every step, and the probabilities that the
    onset of P and S has passed. target: [n, 5], see onset_target.
    """
    classes, passed = output[:, 0, : len(PHASES)], output[:, :, len(PHASES) :]
    one, onset = target[:, : len(PHASES)], target[:, None, len(PHASES) :]
    entropy = -tf.reduce_sum(one * tf.math.log(classes + 1e-7), axis=1)
    asked = tf.reduce_sum(one, axis=1)
    time = STRIDE * tf.range(tf.shape(passed)[1], dtype=tf.float32) + 0.5 * (STRIDE - 1)
    step = tf.cast(time[None, :, None] >= onset, tf.float32)
    step_entropy = -(step * tf.math.log(passed + 1e-7) + (1 - step) * tf.math.log(1 - passed + 1e-7))
    known = tf.cast(onset >= 0, tf.float32)[:, 0]
    step_entropy = tf.reduce_mean(step_entropy, axis=1)
    return _mean(entropy, asked) + _mean(step_entropy, known)


def _mean(values: Any, weights: Any) -> Any:
    return tf.reduce_sum(values * weights) / (tf.reduce_sum(weights) + 1.0)


ONSETS = Task(pair, onset_loss, phase_scores)
