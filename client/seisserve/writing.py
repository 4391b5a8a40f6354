"""Waveform files, written in whatever format ObsPy writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from seisserve.errors import UsageError
from seisserve.extras import need
from seisserve.traces import Trace, to_obspy
from seisserve.turns import turn

__all__ = ["check_waveform_format", "waveform_format", "write_waveforms"]

SUFFIXES = {".miniseed": "MSEED", ".ms": "MSEED", ".seed": "MSEED"}  # the others are called like their format


def waveform_format(path: Path) -> str:
    """The format that a file's suffix means: .mseed, .sac, .gse2, ... Raises UsageError for one that means none."""
    suffix = path.suffix.lower()
    kind = SUFFIXES.get(suffix, suffix.removeprefix(".").upper())
    if kind not in _formats():
        expected = ", ".join(f".{name.lower()}" for name in _formats())
        raise UsageError(f"{path}: suffix {suffix!r} means no waveform format; use {expected}, or name the format")
    return kind


def check_waveform_format(kind: str) -> None:
    """Raises UsageError for a format that ObsPy does not write, MissingExtra without ObsPy."""
    if kind.upper() not in _formats():
        raise UsageError(f"format {kind!r}: waveforms can be written as {', '.join(_formats())}")


def write_waveforms(traces: Iterable[Trace], path: Path, kind: str) -> None:
    """Write traces to a file. Raises UsageError if the format cannot hold them, such as one of whole numbers only."""
    check_waveform_format(kind)
    try:
        stream = to_obspy(traces)
        with turn():
            stream.write(str(path), format=kind.upper())
    except OSError:  # a full disk, no leave to write
        raise
    except Exception as error:  # ObsPy's writers raise bare Exception, TypeError, struct.error and more
        path.unlink(missing_ok=True)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path}: these waveforms cannot be written as {kind.upper()}: {reason}") from error


def _formats() -> list[str]:
    return sorted(need("obspy.core.util.base", "obspy").ENTRY_POINTS["waveform_write"])
