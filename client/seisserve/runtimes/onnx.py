"""ONNX files on onnxruntime."""

from __future__ import annotations

import threading
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from seisserve.bundle import Bundle, check_digest
from seisserve.errors import BundleError, UsageError
from seisserve.extras import need
from seisserve.manifest import Manifest
from seisserve.runtimes.setup import DEVICE, Device
from seisserve.transport import Arrays
from seisserve.windows import BATCH_SAMPLES

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["PROVIDERS", "OnnxRuntime", "check_outputs", "onnxruntime_errors"]

Provider = tuple[str, dict[str, str]]
# What onnxruntime calls them, and their options. On a GPU float32 means float32, not ten bits of mantissa.
PROVIDERS: dict[str, Provider] = {
    "tensorrt": ("TensorrtExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
    "openvino": ("OpenVINOExecutionProvider", {}),
    "cpu": ("CPUExecutionProvider", {}),
}


class OnnxRuntime:
    """An ONNX file on onnxruntime: each call on the thread that makes it, `lanes` calls at once.

    Calls side by side are faster than one call with many threads, and a window's result then does not depend on how
    many others are computed with it or beside it (on the CPU; other providers promise no such thing).
    """

    format = "onnx"

    def __init__(
        self,
        bundle: Bundle,
        lanes: int = 1,
        precision: str = "float32",
        providers: tuple[str, ...] = ("cpu",),
        batch_samples: int = BATCH_SAMPLES,
        device: Device = DEVICE,
    ) -> None:
        artifact, path = bundle.artifact(self.format, precision)
        check_digest(artifact, path)
        ort = need("onnxruntime", "edge")
        wanted = [_on(device, provider) for provider in _available(ort, providers)]
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        for threads in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{threads}.allow_spinning", str(int(device.allow_spinning)))
        try:
            self._session: InferenceSession = ort.InferenceSession(str(path), options, providers=wanted)
        except onnxruntime_errors() as error:
            raise BundleError(f"{path}: onnxruntime cannot load it: {error}") from error
        _check_started(self._session.get_providers(), providers)
        self.lanes, self.batch_samples = lanes, batch_samples
        self._outputs = check_outputs(bundle, path, [output.name for output in self._session.get_outputs()])
        self._free = threading.BoundedSemaphore(lanes)

    def predict(self, model: Manifest, inputs: Arrays) -> Arrays:
        """Outputs by name; waits while all lanes are taken."""
        with self._free:
            found = self._session.run(list(self._outputs.values()), dict(inputs))
        return dict(zip(self._outputs, found, strict=True))


def check_outputs(bundle: Bundle, path: Path, there: list[str]) -> dict[str, str]:
    """For each output of the manifest its name in the file. Raises BundleError for those that are not there."""
    outputs = {output.name: bundle.manifest.onnx_output(output.name) for output in bundle.manifest.outputs}
    missing = set(outputs.values()) - set(there)
    if missing:
        raise BundleError(f"{path} has no output {', '.join(sorted(missing))}, which the manifest lists")
    return outputs


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Everything that onnxruntime raises: its exceptions have no common base of their own."""
    state = need("onnxruntime", "edge").capi.onnxruntime_pybind11_state
    return tuple(item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception))


def _available(ort: ModuleType, providers: tuple[str, ...]) -> list[Provider]:
    """The providers as onnxruntime wants them. Raises UsageError for one that this build of onnxruntime hasn't."""
    there = ort.get_available_providers()
    installed = [name for name, (full, _) in PROVIDERS.items() if full in there]
    for name in providers:
        if name not in PROVIDERS:
            raise UsageError(f"provider {name!r}; it must be one of {', '.join(PROVIDERS)}")
        if name not in installed:
            raise UsageError(f"provider {name!r} is not in the onnxruntime installed here, which has {installed}")
    if not providers:
        raise UsageError(f"providers is empty; it must name one or more of {installed}")
    return [PROVIDERS[name] for name in providers]


def _on(device: Device, provider: Provider) -> Provider:
    """The provider with its options for the device."""
    name, options = provider
    limit = str(device.memory_mb << 20)
    if name == PROVIDERS["cuda"][0]:
        given = {"device_id": str(device.id), "cudnn_conv_algo_search": device.cudnn_conv_algo_search}
        given |= {"gpu_mem_limit": limit, "arena_extend_strategy": "kSameAsRequested"} if device.memory_mb else {}
    elif name == PROVIDERS["tensorrt"][0]:
        given = {"device_id": str(device.id)}
        given |= {"trt_max_workspace_size": limit} if device.memory_mb else {}
    else:
        given = {}
    return name, options | given


def _check_started(started: list[str], providers: tuple[str, ...]) -> None:
    """Raises UsageError for a provider that is installed but could not start: onnxruntime itself goes on without."""
    for name in providers:
        if PROVIDERS[name][0] not in started:
            raise UsageError(
                f"provider {name!r} is installed but cannot start here (no such device, or its driver or libraries "
                f"are missing); those that can: {[key for key, (full, _) in PROVIDERS.items() if full in started]}"
            )
