"""The seam: whatever turns windows into outputs, here or on a server, has one method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from seisserve.manifest import Manifest
from seisserve.windows import BATCH_SAMPLES

__all__ = ["Arrays", "FakeTransport", "Transport"]

Arrays = Mapping[str, NDArray[np.float32]]


class Transport(Protocol):
    """Anything that can run a model. `lanes`: how many calls may usefully be under way at once; `batch_samples`: about
    how long a call should be, all its windows together."""

    @property
    def lanes(self) -> int: ...

    @property
    def batch_samples(self) -> int: ...

    def predict(self, model: Manifest, inputs: Arrays) -> Arrays:
        """Outputs of the model, by name, for its inputs, by name; the first axis is the batch in both."""
        ...


class FakeTransport:
    """A transport whose network is a function of yours: for tests, of this project and of what is built on it."""

    def __init__(self, function: Callable[[NDArray[np.float32]], NDArray[np.float32]], lanes: int = 1) -> None:
        self.function, self.lanes, self.batch_samples = function, lanes, BATCH_SAMPLES

    def predict(self, model: Manifest, inputs: Arrays) -> Arrays:
        """The function's answer to the model's one input, as the model's first output."""
        return {model.output.name: self.function(inputs[model.input.name])}
