"""What `seisserve tune` has chosen on this machine: a small file in the user's configuration folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from seisserve import runtime as runtimes
from seisserve._version import __version__
from seisserve.bundle import Bundle
from seisserve.errors import UsageError
from seisserve.runtimes.setup import Setup, processor, processors

__all__ = ["Choice", "file", "find", "setup_for", "write"]


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The setup of one model on one machine, and what it was measured to give.

    It is for exactly what it was measured on: an artifact (sha256), a processor and how many of it, and a version of
    seisserve. For anything else it is stale, and not used.
    """

    model: str
    sha256: str
    processor: str
    processors: int
    seisserve: str
    runtime: str
    lanes: int
    precision: str
    batch_samples: int
    windows_per_second: float
    default_windows_per_second: float

    @property
    def setup(self) -> Setup:
        """How the model is to be run."""
        return Setup(self.runtime, self.lanes, self.precision, batch_samples=self.batch_samples)


def file() -> Path:
    """Where the choices are kept: where the platform has the user's configuration."""
    home = Path.home()
    folders = {"win32": ("APPDATA", home / "AppData/Roaming"), "darwin": ("", home / "Library/Application Support")}
    variable, usual = folders.get(sys.platform, ("XDG_CONFIG_HOME", home / ".config"))
    named = Path(os.environ.get(variable, ""))
    return (named if named.is_absolute() else usual) / "seisserve" / "tuned.json"


def setup_for(
    bundle: Bundle,
    runtime: str | None = None,
    lanes: int | None = None,
    precision: str | None = None,
    providers: tuple[str, ...] | None = None,
    *,
    use_tuned: bool = True,
) -> Setup:
    """How to run a model: as the options say, if any is given; else as tuned, if it is; else the default."""
    options = {"runtime": runtime, "lanes": lanes, "precision": precision, "providers": providers}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if given or not use_tuned:
        return Setup()._replace(**given)
    choice = find(bundle)
    return Setup() if choice is None else choice.setup


def find(bundle: Bundle) -> Choice | None:
    """The choice for a model on this machine, if its runtime is still there. Raises UsageError for a file that cannot
    be read."""
    digests = {artifact.sha256 for artifact in bundle.manifest.artifacts.values() if bundle.has(artifact)}
    here = (processor(), processors(), __version__)
    for choice in _read():
        measured_on = (choice.processor, choice.processors, choice.seisserve)
        current = choice.model == bundle.name and choice.sha256 in digests and measured_on == here
        if current and choice.runtime in runtimes.RUNTIMES and runtimes.installed(choice.runtime):
            return choice
    return None


def write(choice: Choice) -> None:
    """Keep a choice, in place of an older one for that model on this kind of machine. Raises UsageError, OSError."""
    path = file()
    others = [
        old
        for old in _read()
        if (old.model, old.processor, old.processors) != (choice.model, choice.processor, choice.processors)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_bytes(msgspec.json.format(msgspec.json.encode([*others, choice]), indent=2) + b"\n")
    new.replace(path)  # at once: who reads meanwhile gets the old file or the new one


def _read() -> list[Choice]:
    path = file()
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Choice])
    except FileNotFoundError:
        return []
    except (msgspec.DecodeError, OSError) as error:
        raise UsageError(f"{path}: not a file of `seisserve tune` ({error}); delete it and run that again") from error
