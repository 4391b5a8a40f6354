"""Restoration: waveforms from waveforms, without their noise or with the tops that the instrument clipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.manifest import Manifest
from seisserve.pipeline import predict
from seisserve.resample import Phase
from seisserve.results import Results
from seisserve.segments import Segment, segments, slot_codes
from seisserve.traces import Trace
from seisserve.transport import Transport
from seisserve.windows import cut, overlap

__all__ = ["Restoration", "Restored", "restore"]


class Restored(NamedTuple):
    """A segment, what the network made of it, [components, n] at its rate, and the channel codes of its components."""

    segment: Segment
    samples: NDArray[np.float32] | NDArray[np.float64]
    codes: tuple[str | None, ...]

    def traces(self) -> list[Trace]:
        """One trace for each component that was recorded."""
        return self._traces(self.samples)

    def removed(self) -> list[Trace]:
        """What is no longer there, offset included: the samples that went in less those that came out, float64."""
        return self._traces(self.segment.samples - self.samples.astype(np.float64))

    def _traces(self, samples: NDArray[np.float32] | NDArray[np.float64]) -> list[Trace]:
        name, rate, start = self.segment.trace_id, self.segment.sampling_rate_hz, self.segment.time_ns(0)
        return [
            Trace(f"{name}{code}", start, rate, row)
            for code, live, row in zip(self.codes, self.segment.live, samples, strict=True)
            if live
        ]


class Restoration(Results[Restored]):
    """The restored segments of any number of instruments, and where they come from, see `Results`."""

    def traces(self) -> list[Trace]:
        """The waveforms; one trace for each recorded component of each segment."""
        return [trace for item in self for trace in item.traces()]

    def removed(self) -> list[Trace]:
        """What was taken from the waveforms, laid out like `traces`."""
        return [trace for item in self for trace in item.removed()]


def restore(
    traces: Iterable[Trace], model: Manifest, transport: Transport, *, phase: Phase = "zero"
) -> tuple[list[Restored], list[str]]:
    """The segments of one instrument as a model for denoising or recovery gives them, and warnings.

    Samples stay in the units of the input, at the rate of the model. Denoising gives float32, and no offset: that is
    noise. Recovery gives float64: to the samples as they were is added by how much the network changed them, so that
    those that it leaves alone come back exactly as they were, offset and all. Raises WaveformError.
    """
    given = list(traces)
    parts, warnings = segments(given, model.sampling_rate_hz, model.components, phase)
    windows = cut(parts, model)
    outputs = predict(windows, model, transport)
    if model.task == "recovery":
        inputs = windows.batches(samples=transport.batch_samples)
        changes = overlap(windows, _changes(outputs, inputs), model, np.float64)
        samples = windows.samples + changes.T
    else:
        signal = overlap(windows, (batch.astype(np.float64) for batch in outputs), model, np.float64)
        samples = signal.T.astype(np.float32)
    codes = tuple(slot_codes(given, model.components))
    pieces = np.split(samples, windows.bounds[1:-1], axis=1)
    return [Restored(segment, piece, codes) for segment, piece in zip(parts, pieces, strict=False)], warnings


def _changes(
    outputs: Iterator[NDArray[np.float32]], inputs: Iterator[NDArray[np.float32]]
) -> Iterator[NDArray[np.float64]]:
    """By how much a network changed its windows, batch after batch: zero, exactly, where it left them alone."""
    for after, before in zip(outputs, inputs, strict=True):
        yield np.subtract(after, before, dtype=np.float64)
