"""What the training loop, the bundle and the command line have to know of a network: one entry a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import keras

from seisserve.manifest import Output
from seisserve_training.config import Network
from seisserve_training.tasks.task import Task

__all__ = ["Architecture", "Serving"]


class Serving(NamedTuple):
    """How the network's bundle is read; the fields are those of the manifest.

    thresholds: the labels whose picks or detections are read off the curves, with the threshold to begin with.
    """

    window_samples: int
    hop_samples: int
    outputs: tuple[Output, ...]
    thresholds: dict[str, float]
    fragment_windows: tuple[int, ...] = ()
    blinding_samples: int = 0
    edge_samples: int = 100
    minimum_pick_distance_s: float = 0.5
    stacking: Literal["mean", "max"] = "mean"


class Architecture(NamedTuple):
    """A network of the zoo.

    build: the Keras model for a configuration's `network` and a number of components, with fresh weights; its input is
    `waveform` [n, samples, components] in raw counts. serve: how its bundle is read. learn: its examples, loss, scores.
    published: copies the weights of a published file into the built model, where that can be done.
    """

    task: Literal["picking", "detection", "denoising", "recovery"]
    citation: str
    build: Callable[[Network, int], keras.Model]
    serve: Callable[[Network, int], Serving]
    learn: Task
    published: Callable[[keras.Model, Path], None] | None = None
