"""What is to be served: models by name, where their versions are, and which of them are wanted."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from seisserve.errors import BundleError, UsageError
from seisserve_serving.lanes import Batching

__all__ = [
    "MOST_MESSAGE_MB",
    "All",
    "Latest",
    "ModelConfig",
    "Policy",
    "Specific",
    "check_links",
    "check_size",
    "confined",
    "content",
    "scan",
    "versions",
    "wanted",
]

log = logging.getLogger(__name__)
# What makes a folder a model version: a bundle, a plain SavedModel, a plain ONNX file.
CONTENTS = ("manifest.json", "saved_model.pb", "model.onnx")
MOST_MESSAGE_MB = 2047  # of a protobuf message


class Latest(NamedTuple):
    """The so many versions with the highest numbers."""

    number: int = 1


class All(NamedTuple):
    """Every version."""


class Specific(NamedTuple):
    """These versions, as far as they are there."""

    versions: frozenset[int]


Policy = Latest | All | Specific


class ModelConfig(NamedTuple):
    """A model that is to be served.

    name: callers use it. base_path: its folder, with a folder for each version. platform: tensorflow or onnxruntime
    for a plain folder that could be either, else empty. labels: versions by label. batching: of this model, None for
    the server's.
    """

    name: str
    base_path: Path
    platform: str = ""
    policy: Policy = Latest()
    labels: dict[str, int] = {}  # noqa: RUF012  # never changed
    batching: Batching | None = None


def scan(root: Path) -> list[ModelConfig]:
    """A configuration for each model in a folder of models. Raises UsageError if there is no such folder, or it cannot
    be read."""
    if not root.is_dir():
        raise UsageError(f"{root} is not a model repository: no such folder")
    try:
        folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir()]
    except OSError as error:
        raise UsageError(f"{root}: cannot be read: {error.strerror}") from error
    return [ModelConfig(folder.name, folder) for folder in folders if _is_model(folder)]


def _is_model(folder: Path) -> bool:
    """Whether a folder of models has a model there. One that cannot be read now may be one that is served."""
    if folder.name.startswith("."):
        return False
    try:
        folder.name.encode()
    except UnicodeEncodeError:
        log.debug("%a is left out: its name is not UTF-8", str(folder))
        return False
    try:
        return bool(versions(folder))
    except OSError:
        return True


def versions(base_path: Path) -> dict[int, Path]:
    """The version folders of a model by number: those that are named by a whole number above 0 and hold a model.
    Raises OSError if the folder cannot be read."""
    found = {}
    for folder in sorted(base_path.iterdir()):
        if folder.name.isascii() and folder.name.isdecimal() and len(folder.name) < 19 and int(folder.name):
            if content(folder):
                found[int(folder.name)] = folder
            else:
                log.debug("%s is left out: it has none of %s", folder, ", ".join(CONTENTS))
    return found


def content(folder: Path) -> str:
    """Which of the files that make a model version is there; empty if none is."""
    return next((name for name in CONTENTS if (folder / name).is_file()), "")


def wanted(policy: Policy, there: Iterable[int]) -> set[int]:
    """The versions of those that are there that the policy asks for."""
    match policy:
        case Latest(number):
            return set(sorted(there)[-number:])
        case Specific(chosen):
            return set(there) & chosen
        case _:
            return set(there)


def confined(path: Path, roots: Collection[Path]) -> None:
    """Raises UsageError for a path with `..`, or one that leads out of all the folders that models may be in."""
    if ".." in path.parts:
        raise UsageError(f"base_path {str(path)!r} has '..' in it; it must say directly where the model is")
    resolved = _resolved(path)
    if not any(resolved.is_relative_to(_resolved(root)) for root in roots):
        raise UsageError(f"base_path {str(path)!r} is not inside {', '.join(map(str, roots))}")


def check_links(folder: Path, base_path: Path) -> None:
    """Raises BundleError if anything in a version folder is a link that leads out of the model's folder, or neither a
    file nor a folder: whoever reads a pipe waits for ever."""
    base = _resolved(base_path)
    for path in [folder, *folder.rglob("*")]:
        if path.is_symlink() and not _resolved(path).is_relative_to(base):
            raise BundleError(f"{path} is a link that leads out of {base_path}")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise BundleError(f"{path} is neither a file nor a folder")


def check_size(path: Path, most_mb: int) -> None:
    """Raises BundleError for a file that is larger, before anybody reads it."""
    if path.stat().st_size > most_mb << 20:
        raise BundleError(f"{path}: larger than {most_mb} MB")


def _resolved(path: Path) -> Path:
    """Where a path leads in the end. Unlike Path.resolve it takes links that lead back to themselves."""
    return Path(os.path.realpath(path))
