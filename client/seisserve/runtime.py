"""Running models in this process: the runtimes by name, and models loaded and proven on them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import numpy as np

from seisserve.bundle import Bundle, golden
from seisserve.errors import BundleError, UsageError
from seisserve.manifest import Artifact, Manifest
from seisserve.runtimes.onnx import OnnxRuntime, onnxruntime_errors
from seisserve.runtimes.openvino import OpenVinoRuntime
from seisserve.runtimes.setup import DEVICE, Backend, Device, Setup, processors
from seisserve.runtimes.tensorflow import TensorFlowRuntime
from seisserve.transport import Transport
from seisserve.windows import BATCH_SAMPLES

__all__ = [
    "RUNTIMES", "OnnxRuntime", "TensorFlowRuntime", "golden_error", "golden_tolerance", "installed", "load",
    "onnxruntime_errors", "prepare", "processors",
]  # fmt: skip

Kind = type[OnnxRuntime] | type[OpenVinoRuntime] | type[TensorFlowRuntime]
# By name, which is that of the package it needs.
RUNTIMES: dict[str, Kind] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVinoRuntime,
    "tensorflow": TensorFlowRuntime,
}


def load(
    bundle: Bundle,
    runtime: str = "onnxruntime",
    lanes: int | None = None,
    precision: str = "float32",
    providers: tuple[str, ...] = ("cpu",),
    batch_samples: int = BATCH_SAMPLES,
    device: Device = DEVICE,
    backend: Backend | None = None,
    proving: AbstractContextManager[object] | None = None,
) -> Transport:
    """The bundle's network, ready to run and proven: it has the manifest's digest and gives the golden outputs.

    Options as in `Setup`. proving: entered for the run of the golden windows, which a network may never come to the end
    of. Raises BundleError, UsageError, ServerError if a backend does not answer.
    """
    loaded: Transport
    if backend is not None:
        from seisserve.runtimes.remote import RemoteRuntime  # gRPC is only loaded where it is used

        loaded = RemoteRuntime(bundle, backend)
        name, where, tolerance = backend.address, str(bundle.folder), bundle.manifest.golden_tolerance
    else:
        chosen, wanted = _kind(runtime, providers), lanes or processors()
        if chosen is OnnxRuntime:
            loaded = OnnxRuntime(bundle, wanted, precision, providers, batch_samples, device)
        else:
            loaded = chosen(bundle, wanted, precision, batch_samples=batch_samples)
        artifact, path = bundle.artifact(chosen.format, precision)
        name, where, tolerance = runtime, str(path), golden_tolerance(bundle.manifest, artifact)
    try:
        with proving or nullcontext():
            error = golden_error(bundle, loaded)
    except UsageError as refused:  # by a backend
        raise BundleError(f"{where}: not to be had from {name}: {refused}") from refused
    if not error <= tolerance:
        raise BundleError(f"{where}: golden outputs differ by {error:.2g} on {name}, tolerance {tolerance:.2g}")
    return loaded


def prepare(
    bundle: Bundle, setup: Setup, proving: AbstractContextManager[object] | None = None
) -> tuple[Manifest, Transport]:
    """The network, loaded and proven, and its manifest for that: at another precision than float32 the manifest lists
    the artifact that runs and no other, so that the results' provenance tells it apart. Raises as `load`."""
    if setup.backend is not None:
        return bundle.manifest, load(bundle, *setup, proving)
    chosen = bundle.at(_kind(setup.runtime, setup.providers).format, setup.precision)
    return chosen.manifest, load(chosen, *setup, proving)


def _kind(runtime: str, providers: tuple[str, ...]) -> Kind:
    if runtime not in RUNTIMES:
        raise UsageError(f"runtime is {runtime!r}; it must be one of {', '.join(RUNTIMES)}")
    if runtime != "onnxruntime" and providers != ("cpu",):
        raise UsageError(f"providers are onnxruntime's; runtime {runtime!r} has none")
    return RUNTIMES[runtime]


def golden_tolerance(model: Manifest, artifact: Artifact) -> float:
    """How far an artifact may be from the golden outputs: as far as the manifest says; at other precisions than float32
    twice as far as the gate found it to be, since processors round differently."""
    measured = artifact.parity.get("golden", 0.0)
    return max(model.golden_tolerance, 0.0 if artifact.precision == "float32" else 2 * measured)


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
