"""The path of a waveform, top to bottom: segments, cut, predict, stack, extract."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from seisserve._version import __version__
from seisserve.detections import Detection, extract_detections
from seisserve.errors import UsageError
from seisserve.manifest import Manifest
from seisserve.memory import LONG, give_back
from seisserve.picks import Pick, extract
from seisserve.pieces import Piece, groups, pieces
from seisserve.resample import Phase
from seisserve.segments import Segment, segments
from seisserve.traces import Trace
from seisserve.transport import Transport
from seisserve.windows import Curve, Windows, cut, stack

__all__ = ["Detected", "Result", "annotate", "detect", "pick", "predict", "provenance"]

AHEAD = 6  # batches, of 0.8 MB each way


class Result(NamedTuple):
    """Picks of one instrument and what the user should know about its records."""

    picks: list[Pick]
    warnings: list[str]


class Detected(NamedTuple):
    """Detections of one instrument and what the user should know about its records."""

    detections: list[Detection]
    warnings: list[str]


def pick(traces: Iterable[Trace], model: Manifest, transport: Transport, *, phase: Phase = "zero") -> Result:
    """Picks from the traces of one instrument (one NET.STA.LOC.BI). Raises WaveformError."""
    parts, warnings = _parts(traces, model, phase)
    picks: list[Pick] = []
    for piece in _pieces(parts, model, transport):
        picks += piece.own(extract(piece.curve, model))
    return Result(sorted(picks, key=lambda pick: (pick.time_ns, pick.phase)), warnings)


def detect(traces: Iterable[Trace], model: Manifest, transport: Transport, *, phase: Phase = "zero") -> Detected:
    """Detections from the traces of one instrument. Raises WaveformError."""
    parts, warnings = _parts(traces, model, phase)
    detections: list[Detection] = []
    for piece in _pieces(parts, model, transport):
        detections += piece.own(extract_detections(piece.curve, model))
    return Detected(detections, warnings)


def annotate(
    traces: Iterable[Trace], model: Manifest, transport: Transport, *, phase: Phase = "zero"
) -> tuple[Curve, list[str]]:
    """The probability curve over every sample of one instrument, and warnings. Raises WaveformError, and UsageError for
    a model that gives no probabilities."""
    parts, warnings = _parts(traces, model, phase)
    windows = cut(parts, model)
    return stack(windows, predict(windows, model, transport), model), warnings


def _parts(traces: Iterable[Trace], model: Manifest, phase: Phase) -> tuple[list[Segment], list[str]]:
    if model.gives_waveforms:
        raise UsageError(
            f"model {model.name!r} is for {model.task}: it gives waveforms, and no curves to annotate with"
        )
    parts, warnings = segments(traces, model.sampling_rate_hz, model.components, phase)
    if sum(part.samples.size for part in parts) > LONG:
        give_back()
    return parts, warnings


def _pieces(parts: list[Segment], model: Manifest, transport: Transport) -> Iterator[Piece]:
    """The curve over all segments, a part at a time; the next is read while the lanes have work of the one before."""
    begun: deque[Windows] = deque()

    def batches() -> Iterator[NDArray[np.float32]]:
        for group in groups(parts):
            begun.append(cut(group, model))
            yield from begun[-1].batches(None, transport.batch_samples)

    outputs = _computed(batches(), model, transport)
    for first in outputs:
        windows = begun.popleft()
        count = sum(1 for _ in windows.batch_rows(None, transport.batch_samples))
        yield from pieces(windows, chain([first], islice(outputs, count - 1)), model)


def predict(
    windows: Windows, model: Manifest, transport: Transport, batch: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """Outputs of all windows, batch after batch."""
    return _computed(windows.batches(batch, transport.batch_samples), model, transport)


def _computed(
    batches: Iterable[NDArray[np.float32]], model: Manifest, transport: Transport
) -> Iterator[NDArray[np.float32]]:
    """What the network says of each batch: as many at work as the transport has lanes, and a few ahead of them, so that
    the lanes have work while a block of the record is read."""
    name, output = model.input.name, model.output.name

    def call(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return transport.predict(model, {name: inputs})[output]

    if transport.lanes == 1:
        yield from map(call, batches)
        return
    with ThreadPoolExecutor(transport.lanes, thread_name_prefix="predict") as pool:
        waiting: deque[Future[NDArray[np.float32]]] = deque()
        try:
            for inputs in batches:
                waiting.append(pool.submit(call, inputs))
                if len(waiting) > transport.lanes + AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def provenance(model: Manifest, phase: Phase = "zero") -> str:
    """Digest of all that decides the picks of a waveform: weights, options, and the version of this code."""
    bare = msgspec.structs.replace(model, metrics=(), false_picks_per_hour={}, training=None, artifacts={}, figures=())
    reading = msgspec.to_builtins(bare)
    del reading["figures"]
    there = model.artifacts.values()
    float32 = [artifact.sha256 for artifact in there if artifact.precision == "float32"]
    # A model that runs at another precision lists the artifact that does so, and no other (`runtime.prepare`).
    weights = sorted(float32 or [artifact.sha256 for artifact in there])
    return hashlib.sha256(msgspec.json.encode([reading, weights, phase, __version__])).hexdigest()
