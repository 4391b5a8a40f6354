"""What the commands that work through waveform files share: reading them, and tables and waveforms as results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import click

from seisserve.cli import SOME_INPUTS_FAILED, fail
from seisserve.commands.options import writable
from seisserve.errors import WaveformError
from seisserve.reading import Batch, Reading, batches, files, read_file
from seisserve.restoration import Restoration
from seisserve.tables import Table, format_of
from seisserve.traces import Trace, handed_over
from seisserve.writing import check_waveform_format, waveform_format, write_waveforms

__all__ = ["Group", "Target", "readable", "readings", "report", "restore", "table_target", "tabulate"]

Group = tuple[list[Trace], list[WaveformError]]


class Target(NamedTuple):
    """Where a table goes, and in which format."""

    file: Path | TextIO
    kind: str


def table_target(table: type[Table[Any]], output: str, kind: str | None) -> Target:
    """The target that -o and --format mean. Raises UsageError."""
    chosen = kind or ("csv" if output == "-" else format_of(Path(output)))
    table.check_format(chosen)
    return Target(sys.stdout if output == "-" else writable(Path(output)), chosen)


def tabulate(groups: Iterable[Reading], work: Callable[[Iterable[Trace]], Table[Any]], target: Target) -> int:
    """Write what the work finds in all files as one table; the exit code."""
    found: Table[Any] | None = None
    failed = 0
    try:
        for reading in groups:
            more = None
            while more is None:
                more = _worked(reading, work)
            failed = report(more.warnings, [*reading.errors, *more.errors]) or failed
            if found is None:
                found = more
            else:
                found.extend(more)
    finally:  # a server that goes away half-way, or Ctrl-C, costs nothing of what was done
        if found is not None:
            found.write(target.file, target.kind)
            if isinstance(target.file, Path):
                click.echo(f"{len(found)} {found.what} in {target.file}", err=True)
    return failed


def _worked(reading: Reading, work: Callable[[Iterable[Trace]], Table[Any]]) -> Table[Any] | None:
    """What the work finds in the files of one reading, part by part; None if it is to be done again."""
    found: Table[Any] | None = None
    for part in reading.parts():
        more = work(handed_over(part))
        if reading.again(more.errors):
            return None
        if found is None:
            found = more
            continue
        found.extend(more)
        found.errors.extend(more.errors)
        found.warnings.extend(warning for warning in more.warnings if warning not in found.warnings)
    reading.finish()
    return found


def restore(
    groups: Iterable[Group],
    work: Callable[[list[Trace]], Restoration],
    output: Path,
    kind: str | None,
    removed: Path | None = None,
) -> int:
    """Write the waveforms that the work makes of all groups, and what it removed from them; the exit code.

    groups: must not have been begun: wrong files and formats are refused before any work.
    """
    targets = [(path, kind or waveform_format(path)) for path in (output, removed) if path is not None]
    for path, chosen in targets:
        writable(path)
        check_waveform_format(chosen)
    made: list[list[Trace]] = [[] for _ in targets]
    failed = 0
    try:
        for traces, errors in groups:
            restored = work(traces)
            failed = report(restored.warnings, [*errors, *restored.errors]) or failed
            for kept, more in zip(made, (restored.traces(), restored.removed()), strict=False):
                kept.extend(more)
    finally:
        for (path, chosen), kept in zip(targets, made, strict=True):
            if kept:
                write_waveforms(kept, path, chosen)
            click.echo(f"{len(kept)} traces in {path}" if kept else f"no traces: no {path} written", err=True)
    return failed


def report(warnings: Iterable[str], errors: Iterable[WaveformError]) -> int:
    """Say them on standard error; the exit code that they mean."""
    failed = 0
    for warning in warnings:
        click.echo(f"seisserve: warning: {warning}", err=True)
    for error in errors:
        failed = fail(str(error), SOME_INPUTS_FAILED)
    return failed


def readings(inputs: tuple[Path, ...], verbose: bool, doing: str) -> Iterator[Reading]:
    """The files that belong together, group after group, to be read as their samples are wanted; at least one group."""
    for group in _batches(inputs, doing):
        yield Reading(group, lambda path: _say(path, verbose))


def readable(inputs: tuple[Path, ...], verbose: bool, doing: str) -> Iterator[Group]:
    """Traces of the files that belong together, group after group, and the errors met; at least one group."""
    for group in _batches(inputs, doing):
        yield _read(group, verbose)


def _batches(inputs: tuple[Path, ...], doing: str) -> Iterator[Batch]:
    paths = files(inputs)
    if not paths:
        yield Batch([], [WaveformError(f"{', '.join(map(str, inputs))}: no files in it")])
        return
    groups = list(batches(paths))
    bar: Any = click.progressbar(groups, label=doing, file=sys.stderr, hidden=not sys.stderr.isatty())
    with bar as shown:
        yield from shown


def _say(path: Path, verbose: bool) -> None:
    if verbose:
        click.echo(f"reading {path}", err=True)


def _read(group: Batch, verbose: bool) -> Group:
    """The traces of files that belong together, and the errors met."""
    traces: list[Trace] = []
    errors = list(group.errors)
    for path in group.files:
        _say(path, verbose)
        try:
            more, problems = read_file(path)
        except WaveformError as error:
            errors.append(error)
            continue
        traces.extend(more)
        errors.extend(problems)
    return traces, errors
