"""The seam between the training loop and what is learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.manifest import Manifest
from seisserve.transport import Transport
from seisserve_training.datasets import LabelledTrace
from seisserve_training.examples import Examples

__all__ = ["Pair", "Task"]

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


class Task(NamedTuple):
    """What a network learns.

    pair: one training window and its target, from the pool of traces and a random generator; shapes are always the
    same. loss: scalar tensor from the model's output and a batch of targets. scores: named figures on the dev traces,
    of a network behind a transport; their mean decides which epoch is kept (higher is better). mix: what is learnt of a
    batch of targets, a teacher's curves of P and S [n, samples] and their share, where phases are learnt.
    """

    pair: Callable[[Examples, np.random.Generator], Pair]
    loss: Callable[[Any, Any], Any]
    scores: Callable[[Sequence[LabelledTrace], Manifest, Transport, Sequence[str]], dict[str, float]]
    mix: Callable[[Any, Any, Any, float], Any] | None = None
