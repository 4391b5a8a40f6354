"""The command `seisserve`: one group, to which each package adds its commands through entry points."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import Any

import click

from seisserve._version import __version__
from seisserve.errors import BundleError, SeisserveError, WaveformError

__all__ = ["FAILED", "SOME_INPUTS_FAILED", "WRONG_USAGE", "exit_code", "fail", "main", "run", "seisserve"]

ENTRY_POINTS = "seisserve.commands"
FAILED, WRONG_USAGE, SOME_INPUTS_FAILED = 1, 2, 3


class Commands(click.Group):
    """The commands of all packages, each loaded when it is called (or asked for its help)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(entry_points(group=ENTRY_POINTS).names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for entry in entry_points(group=ENTRY_POINTS, name=cmd_name):
            command: click.Command = entry.load()
            return command
        return None


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="seisserve")
def seisserve() -> None:
    """Seismic deep learning as a service: train, export, serve and use models on waveforms."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command and leave with its exit code: 0 done, 1 failed, 2 wrong usage, 3 some inputs failed."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code; errors go to standard error, one line each."""
    try:
        result: Any = seisserve(arguments, prog_name="seisserve", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return WRONG_USAGE
    except click.UsageError as error:
        see = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return fail(f"{error.format_message()}{see}", WRONG_USAGE)
    except click.ClickException as error:
        return fail(error.format_message(), WRONG_USAGE)
    except click.Abort:
        return fail("interrupted", FAILED)
    except SeisserveError as error:
        return fail(str(error), exit_code(error))
    except OSError as error:  # a full disk, a file without leave to write
        return fail(str(error), FAILED)
    return result if isinstance(result, int) else 0


def exit_code(error: SeisserveError) -> int:
    """The exit code that an error means."""
    if isinstance(error, WaveformError):
        return SOME_INPUTS_FAILED
    return FAILED if isinstance(error, BundleError) else WRONG_USAGE


def fail(message: str, code: int) -> int:
    """Say what went wrong on standard error."""
    click.echo(f"seisserve: {' '.join(message.split())}", err=True)
    return code
