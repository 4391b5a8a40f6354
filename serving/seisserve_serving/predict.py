"""The data plane: check the arrays, run the network on them. It knows no protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from seisserve.errors import UsageError
from seisserve.manifest import Manifest
from seisserve.windows import batch_size
from seisserve_serving.models import Served

__all__ = ["SIGNATURES", "check_outputs", "predict", "signature_names", "signature_shape"]

SIGNATURES = ("serving_default", "fragment")


def signature_names(manifest: Manifest) -> tuple[str, ...]:
    """The signatures that a model has; the last is the one that takes most."""
    return SIGNATURES if manifest.fragment_windows else SIGNATURES[:1]


def signature_shape(manifest: Manifest, signature: str) -> tuple[int, ...]:
    """Shape of the input in a signature, -1 where it is free. Raises UsageError for one that the model hasn't."""
    offered = signature_names(manifest)
    name = signature or SIGNATURES[0]
    if name not in offered:
        raise UsageError(f"signature {signature!r}: {manifest.name} has {', '.join(offered)}")
    return manifest.input.shape if name == SIGNATURES[0] else (-1, -1, *manifest.input.shape[2:])


def predict(
    served: Served,
    inputs: Mapping[str, NDArray[np.float32]],
    signature: str,
    output_filter: Sequence[str],
    pool: ThreadPoolExecutor,
) -> dict[str, NDArray[np.float32]]:
    """The outputs that are asked for (all without a filter). Raises UsageError that names the input at fault.

    More windows than a batch are split, and the parts run side by side; what a window gives does not depend on that.
    """
    manifest = served.manifest
    _check(manifest, inputs, signature)
    names = check_outputs(manifest, output_filter, "output_filter")
    windows = inputs[manifest.input.name]
    size = batch_size(windows.shape[1], served.transport.batch_samples)
    if not len(windows):
        samples = windows.shape[1]
        outputs = {o.name: np.zeros((0, *o.window_shape(samples)), np.float32) for o in manifest.outputs}
    elif len(windows) <= size:
        outputs = dict(served.transport.predict(manifest, inputs))
    else:
        parts = [{manifest.input.name: windows[low : low + size]} for low in range(0, len(windows), size)]
        done = list(pool.map(lambda part: served.transport.predict(manifest, part), parts))
        outputs = {name: np.concatenate([part[name] for part in done]) for name in names}
    return {name: outputs[name] for name in (output_filter or names)}


def check_outputs(manifest: Manifest, wanted: Sequence[str], field: str) -> list[str]:
    """The names of all outputs. Raises UsageError that names the field unless those that are wanted are among them."""
    names = [output.name for output in manifest.outputs]
    for name in wanted:
        if name not in names:
            raise UsageError(f"{field} {name!r}: {manifest.name} has the outputs {', '.join(names)}")
    return names


def _check(manifest: Manifest, inputs: Mapping[str, NDArray[np.float32]], signature: str) -> None:
    shape = signature_shape(manifest, signature)
    name = manifest.input.name
    if set(inputs) != {name}:
        raise UsageError(f"inputs are {sorted(inputs)}; {manifest.name} takes [{name!r}]")
    found = inputs[name].shape
    fits = len(found) == len(shape) and all(want in (-1, size) for size, want in zip(found, shape, strict=True))
    if not fits:
        raise UsageError(f"input {name!r}: shape {list(found)}; expected {list(shape)} (-1 is free)")
    lengths = (*manifest.fragment_windows, manifest.window_samples)
    if found[1] not in lengths:
        raise UsageError(f"input {name!r}: {found[1]} samples; {manifest.name} takes {', '.join(map(str, lengths))}")
    bad = inputs[name].size - int(np.count_nonzero(np.isfinite(inputs[name])))
    if bad:
        raise UsageError(f"input {name!r}: {bad} of {inputs[name].size} values are NaN or infinite")
