"""Optional packages: imported where they are needed, missed with the command that brings them."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

from seisserve.errors import MissingExtra

__all__ = ["need"]


def need(module: str, extra: str) -> ModuleType:
    """The module, or MissingExtra with the pip command for the extra that has it."""
    if module == "tensorflow":  # it announces its devices on standard error unless told not to before the import
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        return import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise MissingExtra(f"{missing} is not installed; it comes with: pip install 'seisserve[{extra}]'") from error
