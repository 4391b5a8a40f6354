"""Setups: how a model is run in this process."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import NamedTuple

from seisserve.errors import UsageError
from seisserve.windows import BATCH_SAMPLES

__all__ = ["PRECISIONS", "Setup", "checked_precision", "processor", "processors"]

# best: the fastest that is there, by the gate's own measurement
PRECISIONS = ("float32", "int8", "float16", "weights8", "best")


class Setup(NamedTuple):
    """How a model is run; the defaults are what is used when nobody has said or measured anything.

    runtime: onnxruntime, openvino or tensorflow. lanes: calls at once, None for one on each processor. precision:
    which artifact. providers: of onnxruntime, by preference. batch_samples: about how long a call is, all its windows
    together.
    """

    runtime: str = "onnxruntime"
    lanes: int | None = None
    precision: str = "float32"
    providers: tuple[str, ...] = ("cpu",)
    batch_samples: int = BATCH_SAMPLES


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
