"""Annotations: probability curves as results, with times."""

from __future__ import annotations

from string import ascii_uppercase, digits
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.traces import Trace, to_obspy
from seisserve.windows import Curve

if TYPE_CHECKING:
    from collections.abc import Iterable

    from obspy import Stream

__all__ = ["Annotation", "channel_letters", "from_curve", "to_stream"]


class Annotation(NamedTuple):
    """The curves over one segment: values [samples, labels], the first sample at `start_ns` since 1970 UTC."""

    trace_id: str
    start_ns: int
    sampling_rate_hz: float
    labels: tuple[str, ...]
    values: NDArray[np.float32]


def from_curve(curve: Curve) -> list[Annotation]:
    """One annotation for each segment of a curve."""
    return [
        Annotation(
            segment.trace_id,
            segment.time_ns(0),
            segment.sampling_rate_hz,
            curve.labels,
            curve.values[curve.bounds[k] : curve.bounds[k + 1]],
        )
        for k, segment in enumerate(curve.segments)
    ]


def to_stream(annotated: Iterable[Annotation]) -> Stream:
    """An ObsPy stream with one trace for each label of each segment; the channel code ends in the label's letter
    (HHP, HHS; HHD for detection)."""
    return to_obspy(
        Trace(f"{item.trace_id}{letter}", item.start_ns, item.sampling_rate_hz, values)
        for item in annotated
        for letter, values in zip(channel_letters(item.labels), item.values.T, strict=True)
    )


def channel_letters(labels: tuple[str, ...]) -> list[str]:
    """A letter for each label, all different: the label itself if it is one, else the first of its letters, upper case,
    that is free, else any that is."""
    taken = {label for label in labels if len(label) == 1}
    letters = []
    for label in labels:
        letter = label
        if len(label) != 1:
            letter = next(one for one in label.upper() + ascii_uppercase + digits if one.isalnum() and one not in taken)
            taken.add(letter)
        letters.append(letter)
    return letters
