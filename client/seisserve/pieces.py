"""Pieces: the curve of a long record a part at a time, so that memory does not grow with it.

What is read off the pieces is what would be read off the whole curve, bit for bit: pieces end where nothing is on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from seisserve.deferred import is_deferred
from seisserve.detections import Detection
from seisserve.manifest import Manifest
from seisserve.picks import GUARD_S, NOISE_S, SIGNAL_S, WIDTH_REACH, Pick
from seisserve.segments import Segment
from seisserve.windows import Curve, Windows, stack, stack_parts

__all__ = ["Piece", "groups", "pieces"]

PIECE_SAMPLES = 1 << 20
GROUP_SAMPLES = 1 << 18  # few enough to be read while the lanes compute the batches that wait for them

Found = TypeVar("Found", Pick, Detection)


class Piece(NamedTuple):
    """A curve with more on either side than belongs to the piece: what is found there has its surroundings.

    begin_ns, end_ns: what lies from one to just before the other belongs to the piece.
    """

    curve: Curve
    begin_ns: float = -math.inf
    end_ns: float = math.inf

    def own(self, found: Iterable[Found]) -> list[Found]:
        """Of what was found on the curve that which belongs to the piece."""
        return [item for item in found if self.begin_ns <= _begin_ns(item) < self.end_ns]


def _begin_ns(item: Pick | Detection) -> int:
    return item.time_ns if isinstance(item, Pick) else item.start_ns


def groups(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    """The segments in groups of at most GROUP_SAMPLES samples; a longer one is a group by itself.

    Samples are deferred no longer, but for those of a segment longer than PIECE_SAMPLES.
    """
    group: list[Segment] = []
    samples = 0
    for segment in segments:
        length = segment.samples.shape[1]
        if length <= PIECE_SAMPLES and is_deferred(segment.samples):
            segment = segment._replace(samples=np.asarray(segment.samples))
        if group and samples + length > GROUP_SAMPLES:
            yield group
            group, samples = [], 0
        group.append(segment)
        samples += length
    if group:
        yield group


def pieces(windows: Windows, outputs: Iterable[NDArray[np.float32]], model: Manifest) -> Iterator[Piece]:
    """The curve over the windows of a group. outputs: as for `stack`."""
    if len(windows.segments) != 1 or windows.bounds[-1] <= PIECE_SAMPLES:
        yield Piece(stack(windows, outputs, model))
        return
    (segment,), total = windows.segments, int(windows.bounds[-1])
    reach_s = NOISE_S + GUARD_S + SIGNAL_S
    reach = max(math.ceil(reach_s * model.sampling_rate_hz) + 1, WIDTH_REACH, model.edge_samples, model.window_samples)
    values = np.zeros((0, len(model.output.labels)), np.float32)
    parts: list[NDArray[np.float32]] = []
    first = own = have = 0  # in samples of the segment: where the values begin, the piece begins, the curve ends so far
    enough = PIECE_SAMPLES
    for part in stack_parts(windows, outputs, model):
        parts.append(part)
        have += len(part)
        if have - own < enough and have < total:
            continue
        values = np.concatenate([values, *parts])
        parts = []
        end = total if have == total else first + _quiet(values, own - first, have - reach - first, model)
        if end == own:  # on all the way: a longer piece, then
            enough *= 2
            continue
        last = min(end + reach, total)
        cut = segment._replace(grid_index=segment.grid_index + first, samples=segment.samples[:, first:last])
        curve = Curve([cut], np.array([0, last - first]), values[: last - first], model.output.labels)
        begin_ns = segment.time_ns(own) if own else -math.inf
        yield Piece(curve, begin_ns, segment.time_ns(end) if end < total else math.inf)
        values = values[max(end - reach - first, 0) :].copy()
        first, own, enough = max(end - reach, 0), end, PIECE_SAMPLES


def _quiet(values: NDArray[np.float32], begin: int, end: int, model: Manifest) -> int:
    """The last sample between begin and end around which no label is on, as far as two stretches can have to do with
    one another; `begin` if there is none."""
    apart_s = max(model.minimum_pick_distance_s, model.detection_gap_s)
    apart = math.ceil(apart_s * model.sampling_rate_hz) + 2
    on = np.zeros(len(values), bool)
    for label, reading in model.labels.items():
        on |= values[:, model.output.labels.index(label)] >= np.float32(reading.threshold / 2)
    places = np.flatnonzero(on[begin:]) + begin
    lasts = np.minimum(np.append(places, len(values)) - apart, end)  # before each place, and at the end
    fit = lasts >= np.append(begin, places + 1) + apart
    return int(lasts[fit][-1]) if fit.any() else begin
