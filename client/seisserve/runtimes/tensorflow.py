"""SavedModels on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from seisserve.bundle import Bundle, check_digest
from seisserve.extras import need
from seisserve.manifest import Manifest
from seisserve.transport import Arrays
from seisserve.windows import BATCH_SAMPLES

__all__ = ["TensorFlowRuntime"]


class TensorFlowRuntime:
    """A SavedModel on TensorFlow, which brings its own threads: one call at a time, whatever `lanes` says. Windows
    shorter than `window_samples` go through the signature `fragment`."""

    format = "saved_model"

    def __init__(
        self,
        bundle: Bundle,
        lanes: int = 1,
        precision: str = "float32",
        batch_samples: int = BATCH_SAMPLES,
    ) -> None:
        artifact, path = bundle.artifact(self.format, precision)
        check_digest(artifact, path)
        tf = need("tensorflow", "tensorflow")
        self.lanes, self.batch_samples = 1, batch_samples
        self._model = tf.saved_model.load(str(path))
        self._constant = tf.constant

    def predict(self, model: Manifest, inputs: Arrays) -> Arrays:
        """Outputs by name."""
        whole = inputs[model.input.name].shape[1] == model.window_samples
        signature = self._model.signatures["serving_default" if whole else "fragment"]
        outputs: Mapping[str, Callable[[], NDArray[np.float32]]] = signature(
            **{name: self._constant(value) for name, value in inputs.items()}
        )
        return {name: np.asarray(value) for name, value in outputs.items()}
