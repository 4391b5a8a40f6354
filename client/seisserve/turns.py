"""Who uses ObsPy's readers and writers takes turns.

Its library for miniSEED has one place for what it has to say, for all threads: if two use it at a time their messages
get mixed up, and the library calls functions that are there no more, which ends the process. Python's warnings, which
the messages become, have one place as well.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["turn"]

_held = threading.RLock()


@contextmanager
def turn() -> Iterator[list[str]]:
    """Nobody else uses ObsPy meanwhile. Once it is over, the list has all that its library for miniSEED complained of,
    also messages that ObsPy itself loses since codes of stations in them are no text."""
    found: list[str] = []
    lost: list[str] = []

    def keep(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if isinstance(error, UnicodeDecodeError) and error.object.startswith((b"ERROR: ", b"INFO: ")):
            lost.append(error.object.partition(b": ")[2].decode(errors="replace").strip())
        else:
            before(unraisable)

    with _held, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before, sys.unraisablehook = sys.unraisablehook, keep
        try:
            yield found
        finally:
            sys.unraisablehook = before
            found += [str(item.message) for item in caught if item.category.__name__ == "InternalMSEEDWarning"]
            found += lost
