"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import click

from seisserve.access import read
from seisserve.client import DEFAULT_MODELS, Client
from seisserve.errors import UsageError
from seisserve.manifest import Task
from seisserve.runtime import RUNTIMES
from seisserve.runtimes.onnx import PROVIDERS
from seisserve.runtimes.setup import PRECISIONS

__all__ = [
    "Command", "Where", "client_options", "inputs", "reading_options", "setup_options", "table_options", "thresholds",
    "verbose_option", "waveform_options", "where_options", "writable",
]  # fmt: skip

Command = Callable[..., Any]


class Where(NamedTuple):
    """Where a model runs."""

    server: str | None
    repository: Path | None
    runtime: str | None
    threads: int | None
    precision: str | None
    providers: tuple[str, ...] | None
    tuned: bool
    timeout_s: float
    access: Path | None

    def client(self) -> Client:
        """A client for it."""
        return Client(
            self.server,
            repository=self.repository,
            runtime=self.runtime,
            threads=self.threads,
            precision=self.precision,
            providers=self.providers,
            tuned=self.tuned,
            timeout_s=self.timeout_s,
            access=None if self.access is None else read(self.access),
        )


def inputs(command: Command) -> Command:
    """Waveform files and folders."""
    return click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))(command)


def client_options(task: Task) -> Callable[[Command], Command]:
    """--model (by default the one for the task), --server and how to run in this process; the command gets `model` and
    `where`."""
    model = click.option("--model", default=DEFAULT_MODELS[task], show_default=True, metavar="NAME[:VERSION]")
    return lambda command: model(where_options(command))


def where_options(command: Command) -> Command:
    """--server and how to run in this process; the command gets `where`."""

    def wrapped(
        server: str | None,
        repository: Path | None,
        runtime: str | None,
        threads: int | None,
        precision: str | None,
        providers: tuple[str, ...],
        tuned: bool,
        timeout: float,
        access: Path | None,
        **rest: Any,
    ) -> Any:
        where = Where(server, repository, runtime, threads, precision, providers or None, tuned, timeout, access)
        return command(where=where, **rest)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__dict__.update(command.__dict__)
    return _with(
        wrapped,
        click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS", help="Of each call to a server."),
        setup_options,
        click.option("--repository", type=click.Path(path_type=Path), help="Folder of models [default: the shipped]."),
        click.option(
            "--access", type=click.Path(path_type=Path), help="TOML file with the token, the ca and such of a server."
        ),
        click.option("--server", metavar="HOST:PORT", help="A seisserve server [default: run in this process]."),
    )


def setup_options(command: Command) -> Command:
    """--runtime, --threads, --precision, --provider and --no-tuned: how models are run in this process."""
    return _with(
        command,
        click.option(
            "--tuned/--no-tuned", default=True, help="Use what `seisserve tune` chose, where none of these is given."
        ),
        click.option(
            "--provider", "providers", multiple=True, type=click.Choice(list(PROVIDERS)),
            help="Of onnxruntime; several in order of preference [default: cpu].",
        ),
        click.option(
            "--precision", type=click.Choice(PRECISIONS), help="Which artifact of the model [default: float32]."
        ),
        click.option("--threads", type=click.IntRange(1), help="Batches at once [default: one for each processor]."),
        click.option(
            "--runtime", type=click.Choice(list(RUNTIMES)), help="What runs the network [default: onnxruntime]."
        ),
    )  # fmt: skip


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
