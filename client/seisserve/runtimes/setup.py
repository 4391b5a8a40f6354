"""Setups: how a model is run in this process."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Literal, NamedTuple

from seisserve.access import Access
from seisserve.errors import UsageError
from seisserve.windows import BATCH_SAMPLES

__all__ = ["DEVICE", "PRECISIONS", "Backend", "Device", "Setup", "checked_precision", "processor", "processors"]

# best: the fastest that is there, by the gate's own measurement
PRECISIONS = ("float32", "bfloat16", "int8", "float16", "weights8", "best")


class Device(NamedTuple):
    """Options of onnxruntime for the hardware. id: which GPU. memory_mb: what a model may take of it, 0 for any amount.
    cudnn_conv_algo_search: EXHAUSTIVE measures every algorithm at the first batch of each size. allow_spinning: threads
    of onnxruntime that wait keep their processor busy."""

    id: int = 0
    memory_mb: int = 0
    cudnn_conv_algo_search: Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"] = "HEURISTIC"
    allow_spinning: bool = False


DEVICE = Device()


OPEN = Access()


class Backend(NamedTuple):
    """A TensorFlow Serving (or seisserve) that has the same models and runs them. address: HOST:PORT."""

    address: str
    timeout_s: float = 30.0
    access: Access = OPEN


class Setup(NamedTuple):
    """How a model is run; the defaults are what is used when nobody has said or measured anything.

    runtime: onnxruntime, openvino or tensorflow. lanes: calls at once, None for one on each processor. precision:
    which artifact. providers: of onnxruntime, by preference. batch_samples: about how long a call is, all its windows
    together. device: of onnxruntime. backend: what runs the model in place of all that.
    """

    runtime: str = "onnxruntime"
    lanes: int | None = None
    precision: str = "float32"
    providers: tuple[str, ...] = ("cpu",)
    batch_samples: int = BATCH_SAMPLES
    device: Device = DEVICE
    backend: Backend | None = None


def checked_precision(precision: str) -> str:
    """The precision itself. Raises UsageError unless it is one."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    return precision


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The name of this computer's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
