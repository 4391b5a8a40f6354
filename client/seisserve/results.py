"""Results: lists that know where they come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from seisserve.errors import WaveformError

__all__ = ["Results"]

Item = TypeVar("Item")


class Results(list[Item]):
    """A list of what a model found or made.

    model, version: which model it was; provenance: digest of the weights and of every option that decides the results;
    warnings: what the user should know about the waveforms; errors: instruments that had to be left out.
    """

    def __init__(self, items: Iterable[Item], model: str, version: int, provenance: str) -> None:
        super().__init__(items)
        self.model, self.version, self.provenance = model, version, provenance
        self.warnings: list[str] = []
        self.errors: list[WaveformError] = []
