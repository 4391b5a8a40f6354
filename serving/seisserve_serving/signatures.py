"""Signatures: what a model takes and gives, whether its manifest says so or its own file."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.errors import UsageError
from seisserve.manifest import Manifest

__all__ = [
    "CLASSIFY", "DEFAULT", "NAME", "PREDICT", "REGRESS", "Signature", "TensorSpec", "of_manifest", "zero_inputs",
]  # fmt: skip

NAME = operator.attrgetter("name")
DEFAULT, FRAGMENT = "serving_default", "fragment"
PREDICT, CLASSIFY, REGRESS = (f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress"))


class TensorSpec(NamedTuple):
    """A tensor. dtype: object for strings. shape: -1 for a free axis; None for any shape at all. inner: its name in
    TensorFlow's graph."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] | None
    inner: str = ""

    @property
    def free_batch(self) -> bool:
        """Whether the first axis may have any size."""
        return bool(self.shape) and self.shape is not None and self.shape[0] == -1

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of that shape may be this tensor."""
        return self.shape is None or (
            len(self.shape) == len(shape)
            and all(want in (-1, size) for want, size in zip(self.shape, shape, strict=True))
        )

    def told(self) -> str:
        """The shape for a message."""
        return "of any shape" if self.shape is None else f"{list(self.shape)} (-1 is free)"


class Signature(NamedTuple):
    """One way to call a model. name: the model's. key: the signature's. method: what TensorFlow calls the kind.

    lengths: the sizes that the second axis of the input may have, if it is free but not every size will do. finite:
    whether NaN and infinities are refused.
    """

    name: str
    key: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    method: str = PREDICT
    lengths: tuple[int, ...] = ()
    finite: bool = False

    @property
    def batches(self) -> bool:
        """Whether every tensor has a free batch axis."""
        return all(tensor.free_batch for tensor in (*self.inputs, *self.outputs))

    def check_outputs(self, wanted: tuple[str, ...] | list[str], field: str) -> list[str]:
        """The names of all outputs. Raises UsageError that names the field unless those wanted are among them."""
        names = list(map(NAME, self.outputs))
        for name in wanted:
            if name not in names:
                raise UsageError(f"{field} {name!r}: {self.name} has the outputs {', '.join(names)}")
        return names

    def check_names(self, names: Collection[str]) -> None:
        """Raises UsageError unless these are the inputs."""
        if set(names) != set(map(NAME, self.inputs)):
            expected = sorted(tensor.name for tensor in self.inputs)
            raise UsageError(f"inputs are {sorted(names)}; {self.name} takes {expected}")

    def check_inputs(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Raises UsageError that names the input at fault."""
        self.check_names(inputs)
        for tensor in self.inputs:
            name, array = tensor.name, inputs[tensor.name]
            if array.dtype != tensor.dtype:
                raise UsageError(f"input {name!r}: dtype is {array.dtype}; expected {tensor.dtype}")
            if not tensor.fits(array.shape):
                raise UsageError(f"input {name!r}: shape {list(array.shape)}; expected {tensor.told()}")
            if self.lengths and array.shape[1] not in self.lengths:
                lengths = ", ".join(map(str, self.lengths))
                raise UsageError(f"input {name!r}: {array.shape[1]} samples; {self.name} takes {lengths}")
            if self.finite and not _all_finite(array):
                bad = array.size - int(np.count_nonzero(np.isfinite(array)))
                raise UsageError(f"input {name!r}: {bad} of {array.size} values are NaN or infinite")


def _all_finite(array: NDArray[Any]) -> bool:
    """Whether there is no NaN and no infinity in it. Bytes are searched without giving up Python's lock, which `all`
    gives up, and gets back when the lanes are done with it."""
    return b"\0" not in np.isfinite(array).tobytes()


def of_manifest(manifest: Manifest) -> dict[str, Signature]:
    """The signatures of a bundle by name: windows and, if it takes any, fragments. The last takes most."""
    dtype = np.dtype(np.float32)
    keys = (DEFAULT, FRAGMENT) if manifest.fragment_windows else (DEFAULT,)
    found = {}
    for key in keys:
        whole = key == DEFAULT
        # TensorFlow numbers the calls of a SavedModel in the order of the signatures' names.
        place = sorted(keys).index(key)
        inner = f"StatefulPartitionedCall_{place}" if place else "StatefulPartitionedCall"
        given = manifest.input.shape if whole else (-1, -1, *manifest.input.shape[2:])
        outputs = tuple(
            TensorSpec(
                output.name, dtype, output.shape if whole or output.single else (-1, -1, *output.shape[2:]),
                f"{inner}:{number}",
            )
            for number, output in enumerate(manifest.outputs)
        )  # fmt: skip
        found[key] = Signature(
            manifest.name,
            key,
            (TensorSpec(manifest.input.name, dtype, given, f"{key}_{manifest.input.name}:0"),),
            outputs,
            lengths=(*manifest.fragment_windows, manifest.window_samples),
            finite=True,
        )
    return found


def zero_inputs(signature: Signature, batch: int) -> dict[str, NDArray[Any]] | None:
    """Zeros to try a signature with, each free axis of size 1 and the batch as given; None where its shapes are not
    known or strings would have to be made up."""
    if any(tensor.shape is None or tensor.dtype.kind == "O" for tensor in signature.inputs):
        return None
    made = {}
    for tensor in signature.inputs:
        shape = [1 if size == -1 else size for size in tensor.shape or ()]
        if tensor.free_batch:
            shape[0] = batch
        made[tensor.name] = np.zeros(shape, tensor.dtype)
    return made
