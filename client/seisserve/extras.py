"""Optional packages: imported where they are needed, missed with the command that brings them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from seisserve.errors import MissingExtra

__all__ = ["need"]

# What these packages only heed before they are imported; a value that is set already stays.
BEFORE_IMPORT = {
    "onnxruntime": {"ORT_DISABLE_TELEMETRY": "1"},  # its official builds report to their maker unless told not to
    "tensorflow": {"TF_CPP_MIN_LOG_LEVEL": "3"},  # announces its devices on standard error
}
# What they must not find while they are imported: openvino reports each import to its maker if it finds this.
HIDDEN = {"openvino": "openvino_telemetry"}


def need(module: str, extra: str) -> ModuleType:
    """The module, or MissingExtra with the pip command for the extra that has it."""
    package = module.partition(".")[0]
    for variable, value in BEFORE_IMPORT.get(package, {}).items():
        os.environ.setdefault(variable, value)
    try:
        with _hidden(HIDDEN.get(package)):
            return import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise MissingExtra(f"{missing} is not installed; it comes with: pip install 'seisserve[{extra}]'") from error


@contextmanager
def _hidden(package: str | None) -> Iterator[None]:
    """A package that cannot be imported meanwhile, unless it has been before."""
    if package is None or package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # Python's own way to say: there is none
    try:
        yield
    finally:
        del sys.modules[package]
