"""Waveform files: whatever ObsPy reads, with errors that name the file and what is wrong with it."""

from __future__ import annotations

import glob
import io
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from seisserve.errors import WaveformError
from seisserve.extras import need
from seisserve.memory import LONG, give_back
from seisserve.segments import by_instrument
from seisserve.traces import Trace, check, from_stream

if TYPE_CHECKING:
    from obspy import Stream

__all__ = ["Batch", "batches", "files", "read_file", "read_miniseed"]


class Batch(NamedTuple):
    """Files whose records belong together, since they share an instrument."""

    files: list[Path]
    errors: list[WaveformError]


def files(inputs: Iterable[Path]) -> list[Path]:
    """The inputs, folders replaced by the files in them and below."""
    return [
        file
        for path in inputs
        for file in (sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path])
    ]


def batches(paths: list[Path]) -> Iterator[Batch]:
    """Groups of files to read together: those that hold records of the same instrument (NET.STA.LOC.BI).

    So the components of a station may come in files of their own, and a day may be in several. Only headers are read
    (a single file needs no grouping). A file that cannot be read has a batch of its own, with the error.
    """
    if len(paths) == 1:
        yield Batch(paths, [])
        return
    owner: dict[str, int] = {}
    groups: dict[int, list[Path]] = {}
    for number, path in enumerate(paths):
        try:
            instruments = by_instrument(from_headers(_obspy_read(path, str(path), headonly=True)[0]))
        except WaveformError as error:
            yield Batch([], [error])
            continue
        shared = sorted({owner[name] for name in instruments if name in owner})
        joined = [file for group in shared for file in groups.pop(group)] + [path]
        groups[number] = joined
        owner = {name: number if group in shared else group for name, group in owner.items()}
        owner.update(dict.fromkeys(instruments, number))
    for group in groups.values():
        yield Batch(group, [])


def read_file(path: Path) -> tuple[list[Trace], list[WaveformError]]:
    """The traces of a file that can be used, and what is wrong with the rest of it.

    An instrument with a trace that cannot be used (NaN, say) is left out as far as this file goes; the others, and its
    records in other files, are not touched by that.
    """
    stream, problems = _obspy_read(path, str(path))
    traces: list[Trace] = []
    for instrument in by_instrument(from_stream(stream)).values():
        try:
            traces.extend([check(trace) for trace in instrument])
        except WaveformError as error:
            problems.append(WaveformError(f"{path}: {error}"))
    del stream
    if sum(len(trace.samples) for trace in traces) > LONG:
        give_back()
    return traces, problems


def read_miniseed(content: bytes) -> list[Trace]:
    """Traces of miniSEED records in memory. Raises WaveformError, also for records that are damaged or cut short."""
    stream, problems = _obspy_read(io.BytesIO(content), "miniseed", format="MSEED", size=len(content))
    for problem in problems:
        raise problem
    return from_stream(stream)


def from_headers(stream: Stream) -> list[Trace]:
    """Traces without samples: what a file holds."""
    return [Trace(t.id, t.stats.starttime.ns, t.stats.sampling_rate, t.data) for t in stream]


def _obspy_read(
    source: Path | io.BytesIO, name: str, size: int | None = None, **options: Any
) -> tuple[Stream, list[WaveformError]]:
    """What ObsPy makes of it, and what it had to leave out. Raises WaveformError if that is everything."""
    obspy = need("obspy", "obspy")
    if isinstance(source, Path):
        if not source.is_file():
            raise WaveformError(f"{name}: no such file")
        size = source.stat().st_size
    if not size:
        raise WaveformError(f"{name}: the file is empty")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            readable = glob.escape(str(source)) if isinstance(source, Path) else source
            stream: Stream = obspy.read(readable, **options)
        except Exception as error:  # ObsPy's readers raise bare Exception, TypeError, struct.error and more
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WaveformError(f"{name}: not a waveform file that ObsPy can read ({reason})") from error
    if not any(trace.stats.npts for trace in stream):
        raise WaveformError(f"{name}: there are no samples in it")
    skipped = [str(item.message) for item in caught if item.category.__name__ == "InternalMSEEDWarning"]
    problems = [WaveformError(f"{name}: damaged, in {len(skipped)} places: {skipped[0]}")] if skipped else []
    return stream, problems + _truncated(stream, name)


def _truncated(stream: Stream, name: str) -> list[WaveformError]:
    """An error if a miniSEED file does not end with a whole record."""
    header = stream[0].stats.get("mseed")
    if header is None or "filesize" not in header:  # other formats borrow the name for a part of it
        return []
    rest = header.filesize % header.record_length
    return [WaveformError(f"{name}: truncated: its last {rest} bytes are no whole record")] if rest else []
