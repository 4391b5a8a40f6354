"""ONNX files on OpenVINO."""

from __future__ import annotations

import queue
from typing import Any

from seisserve.bundle import Bundle, check_digest
from seisserve.errors import BundleError
from seisserve.extras import need
from seisserve.manifest import Manifest
from seisserve.runtimes.onnx import check_outputs
from seisserve.transport import Arrays
from seisserve.windows import BATCH_SAMPLES

__all__ = ["OpenVinoRuntime", "computes_bfloat16"]


def computes_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor (AMX, AVX512-BF16)."""
    return "BF16" in need("openvino", "openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoRuntime:
    """An ONNX file on OpenVINO: `lanes` calls at once, each on one thread of its own.

    What a window gives does not depend on how many others are computed with it or beside it. It differs from
    onnxruntime's answer by rounding (some 1e-7 of a probability). Artifacts of precision bfloat16 are computed in that
    where the processor can, else in float32.
    """

    format = "onnx"

    def __init__(
        self,
        bundle: Bundle,
        lanes: int = 1,
        precision: str = "float32",
        batch_samples: int = BATCH_SAMPLES,
    ) -> None:
        artifact, path = bundle.artifact(self.format, precision)
        check_digest(artifact, path)
        core = need("openvino", "openvino").Core()
        options = {
            "NUM_STREAMS": lanes,
            "INFERENCE_NUM_THREADS": lanes,
            "ENABLE_CPU_PINNING": False,  # other processes, and other models of this one, want processors too
            # By default it computes in bfloat16 wherever the processor can.
            "INFERENCE_PRECISION_HINT": "bf16" if artifact.precision == "bfloat16" else "f32",
        }
        try:
            compiled = core.compile_model(core.read_model(str(path)), "CPU", options)
        except RuntimeError as error:
            raise BundleError(f"{path}: OpenVINO cannot load it: {error}") from error
        self.lanes, self.batch_samples = lanes, batch_samples
        there = [name for output in compiled.outputs for name in output.get_names()]
        self._outputs = check_outputs(bundle, path, there)
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(lanes):
            self._free.put(compiled.create_infer_request())

    def predict(self, model: Manifest, inputs: Arrays) -> Arrays:
        """Outputs by name; waits while all lanes are taken."""
        request = self._free.get()
        try:
            request.infer(dict(inputs), share_inputs=True)
            return {name: request.get_tensor(inner).data.copy() for name, inner in self._outputs.items()}
        finally:
            self._free.put(request)
