"""Bundles and the repository: models on disk in `REPOSITORY/NAME/VERSION/`, as TensorFlow Serving lays them."""

from __future__ import annotations

import hashlib
import tokenize
import zlib
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from seisserve import manifest as manifests
from seisserve.errors import BundleError, ModelNotFound, UsageError
from seisserve.manifest import Artifact, Manifest

__all__ = [
    "Bundle", "check_digest", "digest", "find", "golden", "models", "read", "saved_model", "shipped", "versions",
    "write_golden",
]  # fmt: skip

MOST_GOLDEN = 256 << 20  # bytes of golden windows: a small file must not ask for all memory
# What numpy and zipfile raise for files that are damaged, encrypted, or claim to hold more than there is memory for.
UNREADABLE = (
    ValueError, KeyError, OSError, EOFError, BadZipFile, zlib.error, MemoryError, OverflowError, RuntimeError,
    TypeError, tokenize.TokenError, SyntaxError,
)  # fmt: skip


class Bundle(NamedTuple):
    """A model version on disk: its folder, its number and its manifest."""

    folder: Path
    version: int
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    def has(self, artifact: Artifact) -> bool:
        """Whether an artifact that the manifest lists is in the folder (a wheel carries ONNX files only)."""
        path = self.folder / artifact.file
        return (path / "saved_model.pb" if artifact.format == "saved_model" else path).is_file()

    def artifact(self, format: str, precision: str = "float32") -> tuple[Artifact, Path]:
        """The artifact of that format and precision; `best` is the fastest, as the gate measured them on onnxruntime
        (bfloat16, which needs OpenVINO, is not among them). Raises BundleError that lists what is here if there is
        none."""
        here = [artifact for artifact in self.manifest.artifacts.values() if self.has(artifact)]
        fitting = [
            item for item in here if item.format == format
            and (item.precision != "bfloat16" if precision == "best" else item.precision == precision)
        ]  # fmt: skip
        if not fitting:
            wanted = f"{format} artifact" if precision == "best" else f"{format} artifact of precision {precision}"
            there = ", ".join(f"{item.file if item.file != '.' else item.format} ({item.precision})" for item in here)
            raise BundleError(f"{self.folder} has no {wanted}; there is {there or 'none'}")
        # Where nothing was measured float32 goes first.
        chosen = max(fitting, key=lambda item: (item.windows_per_second or 0.0, item.precision == "float32"))
        return chosen, self.folder / chosen.file

    def at(self, format: str, precision: str) -> Bundle:
        """This bundle; at another precision than float32 its manifest lists the artifact that this means, and no other.
        Raises BundleError."""
        chosen, _ = self.artifact(format, precision)
        if chosen.precision == "float32":
            return self
        only = {name: item for name, item in self.manifest.artifacts.items() if item == chosen}
        return self._replace(manifest=replace(self.manifest, artifacts=only))


def shipped() -> Path:
    """The repository of the models that come with seisserve."""
    here = Path(__file__).resolve().parent
    installed = here / "models"
    return installed if installed.is_dir() else here.parents[1] / "models"


def models(repository: Path) -> dict[str, list[int]]:
    """Names and version numbers of the bundles in a repository, in order. Raises UsageError if it is no folder."""
    if not repository.is_dir():
        raise UsageError(f"{repository} is not a model repository: no such folder")
    found = {folder.name: versions(folder) for folder in sorted(repository.iterdir()) if folder.is_dir()}
    return {name: numbers for name, numbers in found.items() if numbers}


def versions(folder: Path) -> list[int]:
    """The version numbers of a model folder, in order: subfolders named by a whole number that hold a manifest."""
    numbers = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
    return sorted(number for number in numbers if (folder / str(number) / "manifest.json").is_file())


def find(model: str, repository: Path | None = None) -> Bundle:
    """The bundle that NAME or NAME:VERSION means; without a version the latest. Raises ModelNotFound."""
    root = shipped() if repository is None else repository
    available = models(root)
    name, _, version = model.partition(":")
    if name not in available:
        raise ModelNotFound(f"no model {name!r} in {root}; there is {', '.join(available) or 'none'}")
    if version and not version.isdecimal():
        raise UsageError(f"model {model!r}: the version must be a whole number, as in {name}:{available[name][-1]}")
    if version and int(version) not in available[name]:
        raise ModelNotFound(f"no version {version} of {name!r} in {root}; there is {available[name]}")
    number = int(version) if version else available[name][-1]
    return read(root / name / str(number))


def read(folder: Path) -> Bundle:
    """The bundle in a version folder. Raises BundleError."""
    number = int(folder.name) if folder.name.isdecimal() else 0
    return Bundle(folder, number, manifests.read(folder))


def digest(path: Path) -> tuple[str, int]:
    """SHA-256 and size in bytes of a file, or of a SavedModel folder's graph and variables (names included)."""
    files = [path] if path.is_file() else [path / "saved_model.pb", *sorted((path / "variables").glob("*"))]
    total, size = hashlib.sha256(), 0
    for file in files:
        if path.is_dir():
            total.update(str(file.relative_to(path)).encode() + b"\0")
        content = file.read_bytes()
        total.update(content)
        size += len(content)
    return total.hexdigest(), size


def check_digest(artifact: Artifact, path: Path) -> None:
    """Raises BundleError unless the artifact's content is what the manifest says."""
    found, _ = digest(path)
    if found != artifact.sha256:
        raise BundleError(f"{path}: sha256 is {found[:12]}..., the manifest says {artifact.sha256[:12]}...")


def golden(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The golden windows of a bundle and the SavedModel's outputs for them. Raises BundleError."""
    path = folder / "golden.npz"
    if not path.is_file():
        raise BundleError(f"{folder} has no golden.npz")
    try:
        with ZipFile(path) as file:
            size = sum(item.file_size for item in file.infolist())
        if size > MOST_GOLDEN:
            raise BundleError(f"{path}: {size} bytes once it is decompressed, at most {MOST_GOLDEN} may be")
        with np.load(path, allow_pickle=False) as arrays:
            found = arrays["input"], arrays["output"]
    except UNREADABLE as error:
        raise BundleError(f"{path}: not a file of golden windows ({error or type(error).__name__})") from error
    for array in found:  # what is no array at all comes as bytes
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            kind = getattr(array, "dtype", type(array).__name__)
            raise BundleError(f"{path}: not a file of golden windows (it has {kind}, expected float32)")
    return found


def write_golden(folder: Path, windows: NDArray[np.float32], outputs: NDArray[np.float32]) -> None:
    """Write the golden windows of a bundle and the SavedModel's outputs for them, as `golden` reads them."""
    np.savez_compressed(folder / "golden.npz", input=windows, output=outputs)


def saved_model(folder: Path) -> Artifact:
    """The SavedModel in a bundle's folder as its manifest lists it. Raises BundleError if there is none."""
    if not (folder / "saved_model.pb").is_file():
        raise BundleError(f"{folder} has no saved_model.pb")
    sha256, size = digest(folder)
    return Artifact(file=".", format="saved_model", sha256=sha256, size_bytes=size)
