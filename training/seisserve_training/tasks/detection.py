"""Event detection: the probability that an earthquake's signal is passing, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from seisserve.manifest import DETECTION as LABEL
from seisserve.manifest import Manifest
from seisserve.transport import Transport
from seisserve_training.datasets import LabelledTrace
from seisserve_training.evaluation import curves
from seisserve_training.evaluation_detection import alarms, detection_curves, f1_at
from seisserve_training.examples import Examples
from seisserve_training.labels import detection_box
from seisserve_training.tasks.task import Pair, Task

__all__ = ["DETECTION", "STRIDE", "detection_loss", "detection_scores"]

STRIDE = 50  # samples of a frame


def pair(examples: Examples, rng: np.random.Generator) -> Pair:
    """float32 [samples, components] and [samples / STRIDE, 2]: 1 inside an event, and where the labels are sure.

    A frame is what most of it is, and as sure as its least sure sample.
    """
    example = examples.labelled_window(rng)
    box, sure = detection_box(example, examples.rate)
    frames = [box.reshape(-1, STRIDE).mean(axis=1) > 0.5, sure.reshape(-1, STRIDE).all(axis=1)]
    return example.waveform, np.stack(frames, axis=1).astype(np.float32)


def detection_loss(probability: Any, target: Any) -> Any:
    """Binary cross-entropy over the frames whose labels are sure. Both [n, frames, ...], see pair."""
    inside, sure = target[..., 0], target[..., 1]
    inside_said = probability[..., 0]
    entropy = -(inside * tf.math.log(inside_said + 1e-7) + (1 - inside) * tf.math.log(1 - inside_said + 1e-7))
    return tf.reduce_sum(entropy * sure) / (tf.reduce_sum(sure) + 1.0)


def detection_scores(
    dev: Sequence[LabelledTrace], manifest: Manifest, transport: Transport, incomplete: Sequence[str]
) -> dict[str, float]:
    """F1 of events at the manifest's threshold: see `evaluation_detection.alarms`, which does not need `incomplete`."""
    found = alarms(dev, detection_curves(curves(dev, manifest, transport)), manifest.sampling_rate_hz)
    return {"detection_f1": f1_at(found, manifest.labels[LABEL].threshold)}


DETECTION = Task(pair, detection_loss, detection_scores)
