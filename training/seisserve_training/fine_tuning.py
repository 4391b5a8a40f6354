"""Begin from what another network has learnt: copy weights by name, and keep some layers as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from seisserve.errors import UsageError
from seisserve_training.config import Config, FineTune
from seisserve_training.models import ARCHITECTURES

__all__ = ["Copied", "freeze", "keep", "saved_weights", "transfer"]

Weights = Mapping[str, NDArray[Any]]


class Copied(NamedTuple):
    """Names (layer/variable) of the weights that were found in the source, and of those that were not."""

    copied: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        parts = sorted({name.split("/")[0] for name in self.fresh})
        rest = f"; fresh: {', '.join(parts)}" if parts else ""
        return f"{len(self.copied)} of {len(self.copied) + len(self.fresh)} weight arrays copied{rest}"


def transfer(model: keras.Model, config: Config, root: Path) -> Copied:
    """Copy into the network what `fine_tune` names: every array of the same layer name, variable name and shape.

    root: the folder that a relative `init_from` begins at. Networks of other tasks will do: what they share is copied.
    Raises UsageError if the source cannot be read, or nothing in it fits.
    """
    found = _found(model, config, root)
    fresh = [variable.path for variable in _variables(model) if variable.path not in found]
    for variable in _variables(model):
        if variable.path in found:
            variable.assign(found[variable.path])
    return Copied(tuple(found), tuple(fresh))


def keep(model: keras.Model, config: Config, root: Path) -> None:
    """Go back part of the way to the weights that training began from: `fine_tune.keep` of each that was copied."""
    if config.fine_tune is not None and config.fine_tune.keep:
        share = config.fine_tune.keep
        found = _found(model, config, root)
        for variable in _variables(model):
            if variable.path in found:
                variable.assign(share * found[variable.path] + (1 - share) * variable)


def freeze(model: keras.Model, prefixes: tuple[str, ...]) -> None:
    """Stop training of the layers whose names begin so; statistics of batch normalisation stay as they are, too.

    Raises UsageError if a prefix fits no layer with weights, or nothing is left to train.
    """
    for prefix in prefixes:
        for layer in _beginning(model, prefix, "fine_tune.freeze"):
            layer.trainable = False
    if not model.trainable_variables:
        raise UsageError(f"fine_tune.freeze: {', '.join(prefixes)} leaves no layer to train; name fewer")


def saved_weights(folder: Path) -> Weights:
    """The weights in the SavedModel of a bundle, by layer name and variable name (`logits/kernel`)."""
    loaded = tf.saved_model.load(str(folder))  # kept here: its functions hold their variables weakly
    variables = loaded.signatures["serving_default"].variables
    return {variable.name.partition(":")[0]: variable.numpy() for variable in variables}


def _found(model: keras.Model, config: Config, root: Path) -> Weights:
    """What the source has for this network, by the name of the variable, in the order of the network."""
    assert config.fine_tune is not None
    path = root / config.fine_tune.init_from
    there = _weights(path, model, config)
    chosen = _chosen(model, config.fine_tune)
    found = {}
    for variable in _variables(model):
        value = there.get(variable.path)
        if variable.path.split("/")[0] in chosen and value is not None and value.shape == tuple(variable.shape):
            found[variable.path] = value
    if not found:
        raise UsageError(
            f"fine_tune.init_from: no weights of {path} have the name and shape of any in {config.network.kind!r}"
            f" (there, for example: {', '.join(list(there)[:3]) or 'none at all'}); use a network of the same sizes"
        )
    return found


def _weights(path: Path, model: keras.Model, config: Config) -> Weights:
    """Of a bundle, of a run that has one, or of a file of published weights."""
    for folder in (path, path / "bundle"):
        if (folder / "saved_model.pb").is_file():
            return saved_weights(folder)
    if path.is_dir():
        raise UsageError(f"fine_tune.init_from: {path} holds no bundle (saved_model.pb); a run has one when it is done")
    if not path.exists():
        raise UsageError(f"fine_tune.init_from: {path}: no such file or folder")
    load = ARCHITECTURES[config.network.kind].published
    if load is None:
        raise UsageError(f"fine_tune.init_from: {path} is a file, and no published weights of {config.network.kind!r}"
                         " can be read; name the folder of a bundle or of a run")  # fmt: skip
    own = model.get_weights()
    load(model, path)
    found = {variable.path: np.array(variable) for variable in _variables(model)}
    model.set_weights(own)
    return found


def _chosen(model: keras.Model, fine_tune: FineTune) -> set[str]:
    """Names of the layers that `fine_tune.layers` speaks of."""
    with_weights = [layer.name for layer in model.layers if layer.weights]
    if isinstance(fine_tune.layers, int):
        return set(with_weights[: fine_tune.layers])
    if not fine_tune.layers:
        return set(with_weights)
    return {layer.name for prefix in fine_tune.layers for layer in _beginning(model, prefix, "fine_tune.layers")}


def _beginning(model: keras.Model, prefix: str, key: str) -> list[keras.layers.Layer]:
    with_weights = [layer for layer in model.layers if layer.weights]
    found = [layer for layer in with_weights if layer.name.startswith(prefix)]
    if not found:
        names = ", ".join(layer.name for layer in with_weights)
        raise UsageError(f"{key}: no layer's name begins with {prefix!r}; the layers with weights are {names}")
    return found


def _variables(model: keras.Model) -> list[keras.Variable]:
    """Weights in the order of the layers, without the states of random generators (dropout), which are not learnt."""
    return [variable for variable in model.weights if "seed_generator" not in variable.path]
