"""Read the numbers of a Keras HDF5 file, and nothing else of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy.typing as npt

__all__ = ["Variables", "read_variables"]

Variables = dict[str, npt.NDArray[Any]]  # layer/variable


def read_variables(path: Path) -> Variables:
    """All variables by ``layer/variable``. Raises FileNotFoundError, and ValueError for what is not HDF5."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a Keras HDF5 file")
    variables: Variables = {}

    def collect(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):  # .../layer/variable:0
            variables["/".join(name.removesuffix(":0").split("/")[-2:])] = item[()]

    try:
        with h5py.File(path, "r") as file:
            file.get("model_weights", file).visititems(collect)  # save() nests them, save_weights() does not
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as HDF5: {error}") from error
    return variables
