"""Memory: back to the system what is no longer used, or kept for what comes next."""

from __future__ import annotations

import ctypes
from typing import Any

__all__ = ["LONG", "give_back", "keep"]

LONG = 4 << 20  # samples of a record that is worth it: of three components at 100 Hz four hours
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT_BYTES = 64 << 20


def give_back() -> None:
    """Return freed memory to the system where the C library would keep it (glibc does, up to 100 MB for a day of
    records). Takes some milliseconds: for after work on a whole record, not for single windows."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))


def keep() -> None:
    """Keep freed memory for what comes next, up to 64 MB at a time: for a server, whose messages of some MB would else
    be mapped, cleared by the system and unmapped again for every call."""
    option = _function("mallopt")
    if option is not None:
        option(M_MMAP_THRESHOLD, KEPT_BYTES)
        option(M_TRIM_THRESHOLD, 2 * KEPT_BYTES)


def _function(name: str) -> Any:
    """A function of the C library; None with another one than glibc, or on Windows."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, TypeError, AttributeError):
        return None
