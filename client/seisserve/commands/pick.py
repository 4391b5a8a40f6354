"""`seisserve pick`: waveform files to a table of picks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import click

from seisserve.cli import SOME_INPUTS_FAILED, fail
from seisserve.commands.options import Where, client_options, inputs, reading_options, thresholds, writable
from seisserve.errors import WaveformError
from seisserve.reading import batches, files, read_file
from seisserve.tables import Picks, check_format, format_of
from seisserve.traces import Trace

__all__ = ["pick", "readable"]


@click.command()
@inputs
@client_options
@reading_options
@click.option("-o", "--output", default="-", show_default=True, help="File for the picks; - for standard output.")
@click.option("--format", "kind", help="csv, jsonl, or a catalog format of ObsPy's [default: by the file's suffix].")
@click.option("--threshold", "limits", multiple=True, metavar="[LABEL=]NUMBER", help="In place of the model's own.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is being read.")
def pick(
    inputs: tuple[Path, ...], where: Where, model: str, output: str, kind: str | None, limits: tuple[str, ...],
    verbose: bool, hop_samples: int | None, stacking: Literal["mean", "max"] | None,
    resampling: Literal["zero", "causal"],
) -> int:  # fmt: skip
    """Pick arrivals in waveform files (anything ObsPy reads) or folders of them.

    Components of a station may be spread over several files. A file that cannot be used is reported and left out;
    the exit code is then 3.
    """
    chosen = kind or ("csv" if output == "-" else format_of(Path(output)))
    check_format(chosen)
    target = sys.stdout if output == "-" else writable(Path(output))
    limit_by_label = thresholds(limits)
    with where.client() as client:
        loaded = client.model(model)
        loaded.manifest.with_options(limit_by_label, hop_samples, stacking)  # a wrong option fails before any work
        found: Picks | None = None
        failed = 0
        try:
            for traces, errors in readable(inputs, verbose):
                picks = client.pick(
                    traces, model=model, thresholds=limit_by_label, hop_samples=hop_samples, stacking=stacking,
                    resampling=resampling, on_error="skip",
                )  # fmt: skip
                for warning in picks.warnings:
                    click.echo(f"seisserve: warning: {warning}", err=True)
                for error in [*errors, *picks.errors]:
                    failed = fail(str(error), SOME_INPUTS_FAILED)
                if found is None:
                    found = picks
                else:
                    found.extend(picks)
        finally:  # a server that goes away half-way, or Ctrl-C, costs nothing of what was done
            if found is not None:
                found.write(target, chosen)
                if output != "-":
                    click.echo(f"{len(found)} picks in {output}", err=True)
    return failed


def readable(inputs: tuple[Path, ...], verbose: bool) -> Iterator[tuple[list[Trace], list[WaveformError]]]:
    """Traces of the files that belong together, group after group, and the errors met; at least one group."""
    paths = files(inputs)
    if not paths:
        yield [], [WaveformError(f"{', '.join(map(str, inputs))}: no files in it")]
        return
    groups = list(batches(paths))
    bar: Any = click.progressbar(groups, label="picking", file=sys.stderr, hidden=not sys.stderr.isatty())
    with bar as shown:
        for group in shown:
            traces: list[Trace] = []
            errors = list(group.errors)
            for path in group.files:
                if verbose:
                    click.echo(f"reading {path}", err=True)
                try:
                    more, problems = read_file(path)
                except WaveformError as error:
                    errors.append(error)
                    continue
                traces.extend(more)
                errors.extend(problems)
            yield traces, errors
