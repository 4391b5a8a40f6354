"""Waveform files: whatever ObsPy reads, with errors that name the file and what is wrong with it.

Long records in miniSEED are not read at once (`Reading`): their samples are read when the pipeline comes to them.
"""

from __future__ import annotations

import glob
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve import miniseed
from seisserve.deferred import Recent
from seisserve.errors import WaveformError
from seisserve.extras import need
from seisserve.memory import LONG, give_back
from seisserve.miniseed import Miniseed, Undecodable
from seisserve.segments import SLOT_CODES, by_instrument
from seisserve.traces import Trace, check, check_samples, from_stream
from seisserve.turns import turn

if TYPE_CHECKING:
    from obspy import Stream

__all__ = ["Batch", "Reading", "batches", "files", "read_file", "read_miniseed"]

APART_S = 2.0
PART_SAMPLES = 26_000_000  # about a day of three components at 100 Hz


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
            instruments = _instruments(path)
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


def _instruments(path: Path) -> set[str]:
    """NET.STA.LOC.BI of all instruments in a file."""
    scanned = _scan(path)
    ids = scanned.ids() if scanned else {trace.id for trace in _obspy_read(path, str(path), headonly=True)[0]}
    return {name[:-1] for name in ids}


def _scan(path: Path) -> Miniseed | None:
    """What is in a miniSEED file; None if it needs ObsPy to tell, or to say what is wrong with it."""
    return miniseed.scan(path) if path.is_file() else None


# A trace of an instrument: where it comes from, and when it was recorded.
ENTRY = np.dtype([("source", "i4"), ("row", "i8"), ("start_us", "f8"), ("end_us", "f8"), ("samples", "i8")])


class _Source(NamedTuple):
    """The traces of a file: those that have been read, or the scanned file. unusable: instruments to leave out."""

    traces: list[Trace]
    scanned: Miniseed | None
    unusable: set[str]

    def entries(self, number: int) -> Iterator[tuple[str, NDArray[np.void]]]:
        """The id of each channel that can be used, and its traces (ENTRY)."""
        if self.scanned is None:
            for row, trace in enumerate(self.traces):
                start_us, samples = trace.start_ns / 1000, len(trace.samples)
                end_us = start_us + samples / trace.sampling_rate_hz * 1e6
                yield trace.id, np.array([(number, row, start_us, end_us, samples)], ENTRY)
            return
        for channel, name in enumerate(self.scanned.names):
            if name[:-1] not in self.unusable:
                rows = np.flatnonzero(self.scanned.parts["channel"] == channel)
                if not len(rows):
                    continue
                parts = self.scanned.parts[rows]
                found = np.zeros(len(rows), ENTRY)
                found["source"], found["row"], found["samples"] = number, rows, parts["samples"]
                found["start_us"] = parts["start_us"]
                found["end_us"] = parts["start_us"] + parts["samples"] / parts["rate_hz"] * 1e6
                yield name, found

    def chosen(self, rows: NDArray[np.int64], recent: Recent) -> list[Trace]:
        """The traces in these rows."""
        return self.scanned.traces(recent, rows) if self.scanned else [self.traces[row] for row in rows.tolist()]


class Reading:
    """Files whose records belong together, whose samples are read when they are wanted.

    Those of short records, and of files that are not (ordinary) miniSEED, are read at once. errors: what is wrong with
    the files, as far as they have been read. on_file: is told the name of each file when its turn comes.
    """

    def __init__(self, batch: Batch, on_file: Callable[[Path], object] = lambda _: None) -> None:
        self.errors = list(batch.errors)
        self._batch, self._on_file = batch, on_file
        self._scanned: list[Miniseed] = []
        self._undecodable: dict[Path, WaveformError] = {}

    def parts(self) -> Iterator[list[Trace]]:
        """The traces that can be used (see `read_file`), one instrument after the other, at least one list.

        A long record with gaps comes in several parts, in order of time: no segment reaches from one to another, so
        that they can be worked through one by one.
        """
        recent = Recent()
        sources = self._sources(recent)
        entries: dict[str, list[tuple[str, NDArray[np.void]]]] = defaultdict(list)
        for number, source in enumerate(sources):
            for name, found in source.entries(number):
                entries[name[:-1]].append((name[-1], found))
        for _, some in sorted(entries.items()):
            codes = {code for code, _ in some}
            for part in _apart(np.concatenate([found for _, found in some]), codes):
                numbers = np.unique(part["source"]).tolist()
                yield [
                    trace
                    for number in numbers
                    for trace in sources[number].chosen(np.sort(part["row"][part["source"] == number]), recent)
                ]
        if not entries:
            yield []

    def _sources(self, recent: Recent) -> list[_Source]:
        """What there is in each file that can be read."""
        scans = {path: _scan(path) for path in self._batch.files}
        if sum(scanned.samples for scanned in scans.values() if scanned) <= LONG:
            scans = dict.fromkeys(self._batch.files)
        sources = []
        for path, scanned in scans.items():
            if path in self._undecodable:
                continue
            self._on_file(path)
            try:
                source, problems = _deferred(scanned, recent) if scanned else _at_once(path)
            except WaveformError as error:
                self.errors.append(error)
                continue
            sources.append(source)
            self.errors.extend(problems)
        self._scanned = [source.scanned for source in sources if source.scanned]
        return sources

    def again(self, errors: Iterable[WaveformError]) -> bool:
        """Whether to work through the traces once more. errors: what went wrong in the work.

        A file with records that cannot be decoded is left out as a whole, but that turns out in the midst of the work.
        """
        found = {error.path: error for error in errors if isinstance(error, Undecodable)}
        self._undecodable.update(found)
        if found:
            self.errors = [*self._batch.errors, *self._undecodable.values()]
        return bool(found)

    def finish(self) -> None:
        """After the work: `errors` has what was wrong with samples, too."""
        for scanned in self._scanned:
            if scanned.damaged:
                messages = [message for _, some in sorted(scanned.damaged.items()) for message in some]
                self.errors.append(_damage(str(scanned.path), messages))


def _deferred(scanned: Miniseed, recent: Recent) -> tuple[_Source, list[WaveformError]]:
    """A scanned file; samples that might not be finite (whole numbers are) have been looked through."""
    traces, problems = _usable(scanned.traces(recent), scanned.path)
    unusable = {name[:-1] for name in scanned.ids()} - {trace.id[:-1] for trace in traces}
    return _Source([], scanned, unusable), [*problems, *_truncated(scanned.rest, str(scanned.path))]


def _at_once(path: Path) -> tuple[_Source, list[WaveformError]]:
    traces, problems = read_file(path)
    return _Source(traces, None, set()), problems


def _apart(entries: NDArray[np.void], codes: set[str]) -> Iterator[NDArray[np.void]]:
    """The traces of an instrument (ENTRY) in parts of about a day, or more, between which nothing was recorded for some
    seconds: too far apart to be joined, whatever their rates and offsets."""
    entries = entries[np.argsort(entries["start_us"], kind="stable")]
    begin = done = 0
    # Of two codes for one slot the first counts that there is in the whole record.
    if all(len(codes & set(slot)) < 2 for slot in SLOT_CODES.values()):
        ends = np.maximum.accumulate(entries["end_us"])
        slowest_us = ((entries["end_us"] - entries["start_us"]) / entries["samples"]).max()
        gaps = entries["start_us"][1:] > ends[:-1] + APART_S * 1e6 + 2 * slowest_us
        total = np.cumsum(entries["samples"])
        for place in (np.flatnonzero(gaps) + 1).tolist():
            if total[place - 1] - done >= PART_SAMPLES:
                yield entries[begin:place]
                begin, done = place, total[place - 1]
    yield entries[begin:]


def read_file(path: Path) -> tuple[list[Trace], list[WaveformError]]:
    """The traces of a file that can be used, and what is wrong with the rest of it.

    An instrument with a trace that cannot be used (NaN, say) is left out as far as this file goes; the others, and its
    records in other files, are not touched by that.
    """
    stream, problems = _obspy_read(path, str(path))
    traces, unusable = _usable(from_stream(stream), path)
    del stream
    if sum(len(trace.samples) for trace in traces) > LONG:
        give_back()
    return traces, problems + unusable


def _usable(given: list[Trace], path: Path) -> tuple[list[Trace], list[WaveformError]]:
    """The traces of instruments all of whose traces can be used, and what is wrong with the others."""
    traces: list[Trace] = []
    problems: list[WaveformError] = []
    for instrument in by_instrument(given).values():
        try:
            traces.extend([check_samples(check(trace)) for trace in instrument])
        except Undecodable:
            raise
        except WaveformError as error:
            problems.append(WaveformError(f"{path}: {error}"))
    return traces, problems


def read_miniseed(content: bytes) -> list[Trace]:
    """Traces of miniSEED records in memory. Raises WaveformError, also for records that are damaged or cut short."""
    stream, problems = _obspy_read(io.BytesIO(content), "miniseed", format="MSEED", size=len(content))
    for problem in problems:
        raise problem
    return from_stream(stream)


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
    with turn() as skipped:
        try:
            readable = glob.escape(str(source)) if isinstance(source, Path) else source
            stream: Stream = obspy.read(readable, **options)
        except Exception as error:  # ObsPy's readers raise bare Exception, TypeError, struct.error and more
            reason = (str(error).splitlines() or [type(error).__name__])[0].replace(repr(source), name)
            raise WaveformError(f"{name}: not a waveform file that ObsPy can read ({reason})") from error
    if not any(trace.stats.npts for trace in stream):
        raise WaveformError(f"{name}: there are no samples in it")
    problems = [_damage(name, skipped)] if skipped else []
    header = stream[0].stats.get("mseed")  # other formats borrow the name for a part of it
    rest = size % header.record_length if header is not None and "record_length" in header else 0
    return stream, problems + _truncated(rest, name)


def _damage(name: str, messages: list[str]) -> WaveformError:
    return WaveformError(f"{name}: damaged, in {len(messages)} places: {messages[0]}")


def _truncated(rest: int, name: str) -> list[WaveformError]:
    """An error if a miniSEED file does not end with a whole record, but with so many bytes."""
    return [WaveformError(f"{name}: truncated: its last {rest} bytes are no whole record")] if rest else []
