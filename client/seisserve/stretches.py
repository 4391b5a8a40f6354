"""Stretches: where a probability curve is on, and what there is to say about a place in a segment."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.manifest import Manifest
from seisserve.segments import Segment

__all__ = ["Stretches", "flags", "flags_of", "stretches"]


class Stretches(NamedTuple):
    """Where a curve is on, in order, by sample of the curve.

    segment: its number; begin: the first sample that reaches the threshold; top: the (first) highest; end: the last
    before the curve falls below half the threshold, or of its segment.
    """

    segment: NDArray[np.int64]
    begin: NDArray[np.int64]
    top: NDArray[np.int64]
    end: NDArray[np.int64]


def stretches(values: NDArray[np.float32], bounds: NDArray[np.int64], threshold: float) -> Stretches:
    """Stretches of a curve [n] over segments with these bounds: on where it reaches the threshold, off below half."""
    above = np.flatnonzero(values >= np.float32(threshold / 2))
    segment = np.searchsorted(bounds, above, side="right") - 1
    begins = np.flatnonzero(np.diff(above, prepend=-2) + np.diff(segment, prepend=-1) > 1)
    if not len(begins):
        return Stretches(segment, above, above, above)
    ends = np.append(begins[1:], len(above)) - 1
    highest = np.maximum.reduceat(values[above], begins)
    stretch = np.repeat(np.arange(len(begins)), ends - begins + 1)
    top = _first(stretch, values[above] == highest[stretch])
    kept = highest >= np.float32(threshold)
    begin = _first(stretch, values[above] >= np.float32(threshold))
    return Stretches(segment[top][kept], above[begin], above[top][kept], above[ends][kept])


def _first(stretch: NDArray[np.int64], yes: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first place in each stretch where it is so, of those that have one."""
    places = np.flatnonzero(yes)
    return places[np.diff(stretch[places], prepend=-1) > 0]


def flags(segment: Segment, first: int, last: int, model: Manifest) -> tuple[str, ...]:
    """What to know about samples first to last of a segment: `edge`, `fragment`, `missing_N` and so on."""
    return flags_of(segment.samples.shape[1], segment.live, first, last, model)


def flags_of(length: int, live: tuple[bool, ...], first: int, last: int, model: Manifest) -> tuple[str, ...]:
    """The same for a segment of that length, with those components."""
    found = [f"missing_{code}" for code, there in zip(model.components, live, strict=True) if not there]
    if length < model.window_samples:
        found.insert(0, "fragment")
    if min(first, length - 1 - last) < model.edge_samples:
        found.insert(0, "edge")
    return tuple(found)
