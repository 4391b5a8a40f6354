"""Read the weights in a published Keras file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from seisserve.errors import UsageError

__all__ = ["Published", "read"]


class Published(NamedTuple):
    """What a Keras HDF5 file holds: arrays by `layer/variable`, and the model's configuration as it was written."""

    path: Path
    arrays: dict[str, NDArray[Any]]
    config: dict[str, Any]

    def array(self, source: str, own: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """The array that the file calls `source`, in the shape of the network's `own`.

        The kernel of a one-dimensional convolution, or of one of width one, becomes one of height one.
        Raises UsageError that names both if the file does not have it, or not in that shape.
        """
        there = value = self.arrays.get(source)
        if value is not None and len(shape) == 4:
            value = value[None] if value.ndim == 3 else np.swapaxes(value, 0, 1)
        if value is None or value.shape != shape:
            have = "nothing" if there is None else str(list(there.shape))
            raise UsageError(f"{self.path}: for {own!r} {source} should be {list(shape)}, the file has {have}")
        return value


def read(path: Path) -> Published:
    """Raises UsageError if the file cannot be read as HDF5."""
    arrays: dict[str, NDArray[Any]] = {}

    def collect(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            arrays["/".join(name.removesuffix(":0").split("/")[-2:])] = item[()]

    try:
        with h5py.File(path, "r") as file:
            file.get("model_weights", file).visititems(collect)
            return Published(path, arrays, json.loads(file.attrs.get("model_config", "{}")))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read as a Keras HDF5 file: {error}") from error
