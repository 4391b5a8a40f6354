"""What a SeisBench network is to the importer: its arguments as the weight set states them, and what they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from seisserve.errors import UsageError
from seisserve.manifest import DETECTION

__all__ = ["Arguments", "Network", "Normalisation", "phases", "sigmoid_or_softmax"]

Task = Literal["picking", "detection", "denoising"]


class Normalisation(NamedTuple):
    """What is done to a window of raw counts, after the mean of each component is taken off.

    by: std (of n - 1) or peak. together: one factor for all components. taper: samples at both ends.
    """

    by: Literal["std", "peak"] = "std"
    together: bool = False
    detrend: bool = False
    taper: int = 0


class Network(NamedTuple):
    """A network with its weights and SeisBench's defaults for reading it.

    run: normalised windows [n, samples, components] (raw ones where normalisation is None) to what `labels` name,
    [n, samples, labels] or, if single, [n, labels]. overlap: a share of the window below 1, else samples.
    """

    name: str
    citation: str
    task: Task
    window: int
    labels: tuple[str, ...]
    run: Callable[[tf.Tensor], tf.Tensor]
    normalisation: Normalisation | None
    thresholds: dict[str, float]
    overlap: float = 0
    stacking: str = "avg"
    blinding: tuple[int, int] = (0, 0)
    single: bool = False
    stride: int | None = None


class Arguments:
    """Keys of the description, each taken once; `finish` refuses those that nobody has asked for."""

    def __init__(self, source: Path, where: str, values: dict[str, Any]) -> None:
        self.source, self.where, self._left = source, where, dict(values)

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, the default if it is missing or null."""
        value = self._left.pop(key, None)
        return default if value is None else value

    def number(self, key: str, default: float) -> float:
        """A number of 0 or more. Raises UsageError."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise self.refused(key, value, "a number of 0 or more")
        return value

    def whole(self, key: str, default: int) -> int:
        """A whole number of 0 or more. Raises UsageError."""
        value = self.number(key, default)
        if value != int(value):
            raise self.refused(key, value, "a whole number")
        return int(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false. Raises UsageError."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.refused(key, value, "true or false")
        return value

    def choice(self, key: str, choices: Sequence[Any], default: Any) -> Any:
        """One of a few values. Raises UsageError."""
        value = self.take(key, default)
        if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in choices):
            raise self.refused(key, value, " or ".join(map(repr, choices)))
        return value

    def finish(self) -> None:
        """Raises UsageError for keys that are left: what they would change is not known here."""
        if self._left:
            raise UsageError(
                f"{self.source}: {self.where} has {', '.join(sorted(self._left))}, not known to this network"
            )

    def refused(self, key: str, value: Any, expected: str) -> UsageError:
        """The error for a value that cannot be carried over."""
        return UsageError(f"{self.source}: {self.where}.{key} is {value!r}; expected {expected}")


def phases(arguments: Arguments, default: str | None, count: int | None = None) -> tuple[str, ...]:
    """Labels of the outputs, N for noise. Raises UsageError."""
    value = arguments.take("phases", default)
    names = list(value) if isinstance(value, str | list) else []
    classes = arguments.whole("classes", count or len(names))
    if not names or not all(isinstance(name, str) and name for name in names) or len({*names, DETECTION}) <= len(names):
        raise arguments.refused("phases", value, "the names of the outputs, all different, as 'PSN'")
    if len(names) != classes:
        raise arguments.refused("phases", value, f"{classes} names, as many as there are classes")
    return tuple(names)


def sigmoid_or_softmax(logits: tf.Tensor, name: str) -> tf.Tensor:
    """Probabilities of classes along the last axis."""
    return {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}[name](logits)
