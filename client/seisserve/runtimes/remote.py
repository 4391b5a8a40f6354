"""Models on a TensorFlow Serving elsewhere."""

from __future__ import annotations

import logging

from seisserve.bundle import Bundle
from seisserve.errors import ServerError
from seisserve.manifest import Manifest
from seisserve.remote import GrpcTransport, Remote
from seisserve.runtimes.setup import Backend
from seisserve.transport import Arrays

__all__ = ["RemoteRuntime"]

log = logging.getLogger(__name__)


class RemoteRuntime:
    """The version of a model that a backend has under the same name and number. What it sends back is taken for what it
    says; `runtime.load` compares the golden outputs once."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._model = GrpcTransport(Remote(*backend), bundle.version)
        self.lanes, self.batch_samples = self._model.lanes, self._model.batch_samples

    def predict(self, model: Manifest, inputs: Arrays) -> Arrays:
        """Outputs by name. Raises ServerError if the backend does not answer; where it is, the log alone says."""
        try:
            outputs = self._model.predict(model, inputs)
        except ServerError as error:
            log.warning("backend of %s version %d: %s", model.name, self._model.version, error)
            raise ServerError(
                f"what computes {model.name} for this server does not answer; its log says why"
            ) from error
        missing = {output.name for output in model.outputs} - set(outputs)
        if missing:
            raise ServerError(
                f"what computes {model.name} for this server gives no output {', '.join(sorted(missing))}"
            )
        return outputs
