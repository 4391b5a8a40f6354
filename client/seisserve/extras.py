"""Optional packages: imported where they are needed, missed with the command that brings them."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

from seisserve.errors import MissingExtra

__all__ = ["need"]

# What these packages only heed before they are imported; a value that is set already stays.
BEFORE_IMPORT = {
    "onnxruntime": {"ORT_DISABLE_TELEMETRY": "1"},  # its official builds report to their maker unless told not to
    "tensorflow": {"TF_CPP_MIN_LOG_LEVEL": "3"},  # announces its devices on standard error
}


def need(module: str, extra: str) -> ModuleType:
    """The module, or MissingExtra with the pip command for the extra that has it."""
    for variable, value in BEFORE_IMPORT.get(module.partition(".")[0], {}).items():
        os.environ.setdefault(variable, value)
    try:
        return import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise MissingExtra(f"{missing} is not installed; it comes with: pip install 'seisserve[{extra}]'") from error
