"""The files of a SeisBench weight set: read NAME.json and NAME.pt, or fetch them from SeisBench's public repository.

A .pt file is a zip archive of raw arrays and of a pickle that says which is which (PyTorch 1.6 and later). The pickle
is read here with nothing allowed in it but that, so that PyTorch, two gigabytes, is not needed for two megabytes.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import pickle
import re
import urllib.error
import urllib.request
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from seisserve.errors import UsageError

__all__ = ["REPOSITORY", "Files", "fetch", "find", "read_arrays", "read_description"]

REPOSITORY = "https://hifis-storage.desy.de/Helmholtz/HelmholtzAI/SeisBench/models/v3/"
TIMEOUT_S = 30.0
PIECE = 1 << 18  # bytes read at once
STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
Progress = Callable[[str, int, int], None]  # file name, bytes so far, bytes in all (0 if unknown)


class Files(NamedTuple):
    """A weight set on disk; network: as the repository calls it, "" if nobody said."""

    description: Path
    weights: Path
    network: str = ""

    @property
    def name(self) -> str:
        """NAME of NAME.json.v1"""
        return re.sub(r"\.json(\.v[^/]*)?$", "", self.description.name)

    def digest(self) -> str:
        """SHA-256 of the weights."""
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()


def find(description: Path) -> Files:
    """The weight set of a NAME.json or NAME.json.vN with its NAME.pt or NAME.pt.vN beside it. Raises UsageError."""
    found = re.fullmatch(r"(.+)\.json(\.v[^/]*)?", description.name)
    if found is None:
        raise UsageError(
            f"{description}: expected the .json file of a SeisBench weight set, as NAME.json or NAME.json.v1"
        )
    weights = description.with_name(f"{found[1]}.pt{found[2] or ''}")
    for path in (description, weights):
        if not path.is_file():
            raise UsageError(f"{path}: no such file; a SeisBench weight set is NAME.json and NAME.pt side by side")
    return Files(description, weights)


def read_description(path: Path) -> dict[str, Any]:
    """The JSON file. Raises UsageError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: holds {type(content).__name__}; expected the description of a weight set")
    return content


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a state dictionary by name. Raises UsageError for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = next((name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)), None)
            if record is None:
                raise UsageError(f"{path}: not the weights of a PyTorch network: the archive has no data.pkl")
            with archive.open(record) as file:
                content = _Reader(file, archive, record.removesuffix("data.pkl")).load()
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: not a weights file of PyTorch 1.6 or later ({error})") from error
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: not a plain state dictionary ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(array, np.ndarray) for array in content.values()):
        raise UsageError(f"{path}: holds something else than arrays by name; expected a state dictionary")
    return dict(content)


class _Reader(pickle.Unpickler):
    """Makes arrays of what the pickle says, and nothing else."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        """The three things that a state dictionary is made of."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _array
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weights file")

    def persistent_load(self, reference: Any) -> NDArray[Any]:
        """The values of one storage, wherever they were when they were saved (processor or graphics card)."""
        _, dtype, key, _, count = reference
        values = np.frombuffer(self.archive.read(f"{self.folder}data/{key}"), dtype)
        if len(values) != count:
            raise pickle.UnpicklingError(f"storage {key} has {len(values)} values in place of {count}")
        return values


def _array(
    storage: NDArray[Any], offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> NDArray[Any]:
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if min((*strides, offset, *shape), default=0) < 0 or (0 not in shape and last >= len(storage)):
        raise pickle.UnpicklingError("an array reaches beyond its storage")
    steps = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()


def fetch(name: str, folder: Path, repository: str = REPOSITORY, progress: Progress | None = None) -> Files:
    """Download NETWORK/WEIGHTS or NETWORK/WEIGHTS:VERSION, as phasenet/instance:2, into a folder.

    Without a version: the latest. Raises UsageError if it is not there or the repository cannot be reached.
    """
    found = re.fullmatch(r"([A-Za-z0-9_]+)/([A-Za-z0-9][A-Za-z0-9_.+-]*)(?::([A-Za-z0-9.]+))?", name)
    if found is None:
        raise UsageError(f"{name}: no such file, and no name of SeisBench weights; those are as phasenet/instance")
    network, weights, version = found[1].lower(), found[2], found[3]
    root = f"{repository.rstrip('/')}/{network}"
    there = _versions(_listing(f"{root}/"), weights)
    if not there:
        raise UsageError(f"{root} has no weights {weights!r}")
    if version is None:
        version = max(there, key=_order)
    elif version not in there and "" not in there:
        raise UsageError(
            f"{root} has no version {version} of {weights!r}; there is {', '.join(sorted(there, key=_order))}"
        )
    suffix = f".v{version}" if version in there and version else ""
    files = Files(folder / f"{weights}.json{suffix}", folder / f"{weights}.pt{suffix}", network)
    for path in files[:2]:
        _download(f"{root}/{quote(path.name)}", path, progress)
    if found[3] and not suffix and str(read_description(files.description).get("version", "1")) != version:
        raise UsageError(f"{root} has no version {version} of {weights!r}")
    return files


def _versions(names: list[str], weights: str) -> set[str]:
    """Versions of a weight set among file names; "" is a file without one."""
    found = (re.fullmatch(rf"{re.escape(weights)}\.json(?:\.v(.+))?", name) for name in names)
    return {match[1] or "" for match in found if match}


def _order(version: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in version.split("."))


def _listing(url: str) -> list[str]:
    """File names in a WebDAV folder."""
    body = b'<?xml version="1.0"?><a:propfind xmlns:a="DAV:"><a:prop><a:resourcetype/></a:prop></a:propfind>'
    request = urllib.request.Request(url, body, {"Depth": "1", "Content-Type": "application/xml"}, method="PROPFIND")
    with _open(request) as response:
        text = response.read()
    try:
        links = ElementTree.fromstring(text).iter("{DAV:}href")
    except ElementTree.ParseError as error:
        raise UsageError(f"{url}: the answer is not the listing of a WebDAV folder ({error})") from error
    return [unquote(urlsplit(link.text or "").path).rstrip("/").rpartition("/")[2] for link in links]


def _download(url: str, path: Path, progress: Progress | None) -> None:
    with _open(urllib.request.Request(url)) as response, path.open("wb") as file:
        total, done = int(response.headers.get("Content-Length") or 0), 0
        while piece := response.read(PIECE):
            file.write(piece)
            done += len(piece)
            if progress is not None:
                progress(path.name, done, total)
    if total and done != total:
        raise UsageError(f"{url}: the download broke off after {done} of {total} bytes; try again")


@contextmanager
def _open(request: urllib.request.Request) -> Iterator[Any]:
    url = request.full_url
    if urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"{url}: the repository's address must begin with https:// or http://")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            yield response
    except urllib.error.HTTPError as error:
        raise UsageError(f"{url}: the repository answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        raise UsageError(
            f"{url} cannot be reached ({reason}); without a network, give the .json file of downloaded weights"
        ) from error
