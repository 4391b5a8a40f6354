"""Memory: back to the system what is no longer used."""

from __future__ import annotations

import ctypes

__all__ = ["LONG", "give_back"]

LONG = 4 << 20  # samples of a record that is worth it: of three components at 100 Hz four hours


def give_back() -> None:
    """Return freed memory to the system where the C library would keep it (glibc does, up to 100 MB for a day of
    records). Takes some milliseconds: for after work on a whole record, not for single windows."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # another C library, or Windows
        return
    trim(ctypes.c_size_t(0))
