"""Runtimes: transports that run an artifact of a bundle in this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seisserve.bundle import Bundle, check_digest, golden
from seisserve.errors import BundleError, UsageError
from seisserve.extras import need
from seisserve.manifest import Manifest
from seisserve.transport import Arrays, Transport

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["OnnxRuntime", "TensorFlowRuntime", "golden_error", "installed", "load", "onnxruntime_errors", "processors"]


class OnnxRuntime:
    """An ONNX file on onnxruntime: each call on the thread that makes it, `lanes` calls at once.

    Calls side by side are faster than one call with many threads, and a window's result then does not depend on how
    many others are computed with it or beside it.
    """

    def __init__(self, bundle: Bundle, lanes: int) -> None:
        artifact, path = bundle.artifact("onnx")
        check_digest(artifact, path)
        ort = need("onnxruntime", "edge")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: InferenceSession = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except onnxruntime_errors() as error:
            raise BundleError(f"{path}: onnxruntime cannot load it: {error}") from error
        self.lanes = lanes
        self._outputs = {output.name: bundle.manifest.onnx_output(output.name) for output in bundle.manifest.outputs}
        missing = set(self._outputs.values()) - {output.name for output in self._session.get_outputs()}
        if missing:
            raise BundleError(f"{path} has no output {', '.join(sorted(missing))}, which the manifest lists")
        self._free = threading.BoundedSemaphore(lanes)

    def predict(self, model: Manifest, inputs: Arrays) -> Arrays:
        """Outputs by name; waits while all lanes are taken."""
        with self._free:
            found = self._session.run(list(self._outputs.values()), dict(inputs))
        return dict(zip(self._outputs, found, strict=True))


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Everything that onnxruntime raises: its exceptions have no common base of their own."""
    state = need("onnxruntime", "edge").capi.onnxruntime_pybind11_state
    return tuple(item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception))


class TensorFlowRuntime:
    """A SavedModel on TensorFlow, which brings its own threads. Windows shorter than `window_samples` go through the
    signature `fragment`."""

    def __init__(self, bundle: Bundle, lanes: int = 1) -> None:
        artifact, path = bundle.artifact("saved_model")
        check_digest(artifact, path)
        tf = need("tensorflow", "tensorflow")
        self.lanes = 1
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


RUNTIMES: dict[str, type[OnnxRuntime] | type[TensorFlowRuntime]] = {
    "onnxruntime": OnnxRuntime,
    "tensorflow": TensorFlowRuntime,
}


def load(bundle: Bundle, runtime: str = "onnxruntime", lanes: int | None = None) -> Transport:
    """The bundle's network, ready to run and proven: it has the manifest's digest and gives the golden outputs.

    lanes: calls at once, by default one for each processor. Raises BundleError, UsageError.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"runtime is {runtime!r}; it must be one of {', '.join(RUNTIMES)}")
    loaded = RUNTIMES[runtime](bundle, lanes or processors())
    error = golden_error(bundle, loaded)
    if not error <= bundle.manifest.golden_tolerance:
        raise BundleError(
            f"{bundle.folder}: golden outputs differ by {error:.2g}, tolerance {bundle.manifest.golden_tolerance:.2g}"
        )
    return loaded


def golden_error(bundle: Bundle, runtime: Transport) -> float:
    """The largest difference from the golden outputs; of waveforms, as a share of the window's largest amplitude."""
    inputs, expected = golden(bundle.folder)
    wanted = bundle.manifest.input.shape[1:]
    if inputs.dtype != np.float32 or inputs.shape[1:] != wanted or not len(inputs):
        raise BundleError(f"{bundle.folder}: golden windows are {inputs.dtype} {inputs.shape}, expected [n, *{wanted}]")
    outputs = runtime.predict(bundle.manifest, {bundle.manifest.input.name: inputs})[bundle.manifest.output.name]
    if outputs.shape != expected.shape:
        raise BundleError(f"{bundle.folder}: golden outputs have shape {outputs.shape}, expected {expected.shape}")
    difference = np.abs(outputs - expected)
    if bundle.manifest.gives_waveforms:
        largest = np.abs(inputs).max(axis=(1, 2), keepdims=True)
        difference /= np.where(largest > 0, largest, 1)
    return float(difference.max())


def installed(runtime: str) -> bool:
    """Whether the package that a runtime needs is there."""
    return find_spec(runtime) is not None


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
