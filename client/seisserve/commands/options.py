"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import click

from seisserve.client import DEFAULT_MODELS, Client
from seisserve.errors import UsageError
from seisserve.manifest import Task

__all__ = [
    "Where", "client_options", "inputs", "reading_options", "table_options", "thresholds", "verbose_option",
    "waveform_options", "writable",
]  # fmt: skip

Command = Callable[..., Any]


class Where(NamedTuple):
    """Where a model runs."""

    server: str | None
    repository: Path | None
    runtime: str
    threads: int | None
    timeout_s: float

    def client(self) -> Client:
        """A client for it."""
        return Client(
            self.server,
            repository=self.repository,
            runtime=self.runtime,
            threads=self.threads,
            timeout_s=self.timeout_s,
        )


def inputs(command: Command) -> Command:
    """Waveform files and folders."""
    return click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))(command)


def client_options(task: Task) -> Callable[[Command], Command]:
    """--model (by default the one for the task), --server and how to run in this process; the command gets `model` and
    `where`."""
    return lambda command: _client_options(command, DEFAULT_MODELS[task])


def _client_options(command: Command, default_model: str) -> Command:
    def wrapped(
        server: str | None, repository: Path | None, runtime: str, threads: int | None, timeout: float, **rest: Any
    ) -> Any:
        return command(where=Where(server, repository, runtime, threads, timeout), **rest)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__dict__.update(command.__dict__)
    for option in (
        click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS", help="Of each call to a server."),
        click.option("--threads", type=click.IntRange(1), help="Batches at once, in this process [default: all]."),
        click.option(
            "--runtime", type=click.Choice(["onnxruntime", "tensorflow"]), default="onnxruntime", show_default=True,
            help="In this process: what runs the network.",
        ),
        click.option("--repository", type=click.Path(path_type=Path), help="Folder of models [default: the shipped]."),
        click.option("--server", metavar="HOST:PORT", help="A seisserve server [default: run in this process]."),
        click.option("--model", default=default_model, show_default=True, metavar="NAME[:VERSION]"),
    ):  # fmt: skip
        wrapped = option(wrapped)
    return wrapped


def reading_options(command: Command) -> Command:
    """--hop, --stacking and --resampling."""
    return _with(
        command,
        resampling_option,
        click.option("--stacking", type=click.Choice(["mean", "max"]), help="Of overlapping windows."),
        hop_option,
    )


def table_options(command: Command) -> Command:
    """-o, --format and --threshold of commands that write a table; the command gets `output`, `kind` and `limits`."""
    return _with(
        command,
        click.option("--threshold", "limits", multiple=True, metavar="[LABEL=]NUMBER", help="In place of the model's."),
        click.option(
            "--format", "kind", help="csv, jsonl; picks: a catalog format of ObsPy's [default: by the suffix]."
        ),
        click.option("-o", "--output", default="-", show_default=True, help="File to write; - for standard output."),
    )


def waveform_options(command: Command) -> Command:
    """-o, --format, --hop and --resampling of commands that write waveforms."""
    return _with(
        command,
        resampling_option,
        hop_option,
        click.option("--format", "kind", help="Any that ObsPy writes [default: by the suffix]."),
        click.option(
            "-o", "--output", required=True, type=click.Path(path_type=Path), help="Waveform file: .mseed, ..."
        ),
    )


def _with(command: Command, *options: Command) -> Command:
    for option in options:  # the last is listed first
        command = option(command)
    return command


verbose_option = click.option("-v", "--verbose", is_flag=True, help="Say what is being read.")
resampling_option = click.option(
    "--resampling",
    type=click.Choice(["zero", "causal"]),
    default="zero",
    show_default=True,
    help="Phase of the filter.",
)
hop_option = click.option("--hop", "hop_samples", type=click.IntRange(1), help="Samples to the next window.")


def thresholds(values: tuple[str, ...], labels: Iterable[str]) -> dict[str, float]:
    """`P=0.4` and the like as a dictionary; a number alone is for all of the labels."""
    every = list(labels)
    found: dict[str, float] = {}
    for value in values:
        label, sign, number = value.rpartition("=")
        try:
            threshold = float(number)
        except ValueError as error:
            raise UsageError(f"threshold {value!r}: expected a number, or LABEL=NUMBER as in P=0.4") from error
        found.update(dict.fromkeys([label] if sign else every, threshold))
    return found


def writable(path: Path) -> Path:
    """The path itself. Raises UsageError if no file can be written there: better known before the work than after."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name the file to write")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")
    return path
