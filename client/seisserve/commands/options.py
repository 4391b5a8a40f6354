"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from seisserve.client import DEFAULT_MODEL, Client
from seisserve.errors import UsageError

__all__ = ["Where", "client_options", "inputs", "reading_options", "thresholds", "writable"]

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


def client_options(command: Command) -> Command:
    """--model, --server and how to run in this process; the command gets `model` and `where`."""

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
        click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME[:VERSION]"),
    ):  # fmt: skip
        wrapped = option(wrapped)
    return wrapped


def reading_options(command: Command) -> Command:
    """--hop, --stacking and --resampling."""
    for option in (
        click.option("--resampling", type=click.Choice(["zero", "causal"]), default="zero", show_default=True),
        click.option("--stacking", type=click.Choice(["mean", "max"]), help="Of overlapping windows."),
        click.option("--hop", "hop_samples", type=click.IntRange(1), help="Samples to the next window."),
    ):  # fmt: skip
        command = option(command)
    return command


def thresholds(values: tuple[str, ...]) -> dict[str, float]:
    """`P=0.4` and the like as a dictionary; a number alone is for P and S."""
    found: dict[str, float] = {}
    for value in values:
        label, sign, number = value.rpartition("=")
        try:
            threshold = float(number)
        except ValueError as error:
            raise UsageError(f"threshold {value!r}: expected a number, or LABEL=NUMBER as in P=0.4") from error
        found.update(dict.fromkeys([label] if sign else ["P", "S"], threshold))
    return found


def writable(path: Path) -> Path:
    """The path itself. Raises UsageError if no file can be written there: better known before the work than after."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name the file to write")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")
    return path
