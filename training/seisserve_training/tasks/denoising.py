"""Denoising: what an event would look like without the noise. Noise alone becomes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from seisserve.manifest import Manifest
from seisserve.transport import Transport
from seisserve_training import augment
from seisserve_training.datasets import LabelledTrace
from seisserve_training.evaluation_waveforms import denoising_scores
from seisserve_training.examples import Examples
from seisserve_training.tasks.task import Pair, Task

__all__ = ["DENOISING"]

SNR_DB = (-12.0, 20.0)
FLOOR = 1e-3  # of the noisy waveform's energy: an error below that is no error


def pair(examples: Examples, rng: np.random.Generator) -> Pair:
    """The noisy and the clean waveform, float32 [samples, components] each.

    A clean event with recorded noise at a random ratio, or noise alone. Both are scaled so that the noisy one has
    deviation one on each component.
    """
    switch = examples.config.augmentation
    noise = examples.noise_window(rng)
    alone = rng.random() < switch.noise_windows
    if rng.random() < (switch.false_positive_noise_on_noise if alone else switch.false_positive_noise):
        noise = augment.false_positive_noise(noise, rng, examples.rate)
    if alone:
        clean = np.zeros_like(noise.waveform)
    else:
        event = examples.clean_window(rng)
        if rng.random() < switch.stack_events:
            event = augment.stack_event(event, examples.clean_window(rng), rng, examples.rate)
        clean = event.waveform
    noisy, clean = augment.mix(clean, noise.waveform, rng.uniform(*SNR_DB))
    if rng.random() < switch.channel_dropout:
        dropped = augment.channel_dropout(noise._replace(waveform=noisy), rng).waveform
        noisy, clean = dropped, np.where(dropped.any(axis=0), clean, np.float32(0))
    deviation = noisy.std(axis=0, dtype=np.float64)
    scale = np.where(deviation > 0, deviation, 1)
    return np.asarray(noisy / scale, np.float32), np.asarray(clean / scale, np.float32)


def error_db(waveform: Any, target: Any) -> Any:
    """Energy of the error of each component, in dB, with a floor. Both [n, samples, components].

    The gain in signal-to-noise ratio, which is what denoising is for, but for a constant. The published network learnt
    the mask itself (cross-entropy); this looks at what comes out, so every kind of network can learn it.
    """
    error = tf.reduce_mean(tf.square(waveform - target), axis=1)
    return tf.reduce_mean(tf.math.log(error + FLOOR)) * float(10 / np.log(10))


def scores(
    dev: Sequence[LabelledTrace], manifest: Manifest, transport: Transport, incomplete: Sequence[str]
) -> dict[str, float]:
    """Gain in signal-to-noise ratio (dB), and correlation with the clean waveform."""
    return denoising_scores(dev, manifest, transport)


DENOISING = Task(pair, error_db, scores)
