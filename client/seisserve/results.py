"""Results: lists that know where they come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from seisserve.errors import WaveformError
from seisserve.traces import Trace, to_obspy

if TYPE_CHECKING:
    from obspy import Stream

    from seisserve.chain import Outcome
    from seisserve.tables import Detections, Picks

__all__ = ["Origin", "Processed", "Results", "Waveforms"]

Item = TypeVar("Item")


class Origin(NamedTuple):
    """Which model something is from, and the digest of all that decided it."""

    model: str
    version: int
    provenance: str


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


class Waveforms(Results[Trace]):
    """Traces that a model made, and where they come from, see `Results`."""

    def to_stream(self) -> Stream:
        """An ObsPy stream of them."""
        return to_obspy(self)


class Processed:
    """What the stages of a chain found and made; None for what was not asked for.

    warnings, errors: as of `Results`, of all stages together; each of the results has them, too.
    """

    def __init__(
        self,
        picks: Picks | None,
        detections: Detections | None,
        recovered: Waveforms | None,
        denoised: Waveforms | None,
    ) -> None:
        self.picks, self.detections, self.recovered, self.denoised = picks, detections, recovered, denoised
        self.warnings: list[str] = []
        self.errors: list[WaveformError] = []

    def add(self, made: Outcome) -> None:
        """What the chain made of one more instrument."""
        if self.picks is not None:
            self.picks.extend(made.picks)
        if self.detections is not None:
            self.detections.extend(made.detections)
        if self.recovered is not None:
            self.recovered.extend(made.waveforms["recover"])
        if self.denoised is not None:
            self.denoised.extend(made.waveforms["denoise"])
        for each in self._each():
            each.warnings.extend(made.warnings)

    def leave_out(self, error: WaveformError) -> None:
        """An instrument that could not be used."""
        for each in self._each():
            each.errors.append(error)

    def _each(self) -> list[Processed | Results[Any]]:
        there = (self.picks, self.detections, self.recovered, self.denoised)
        return [self, *(results for results in there if results is not None)]
