"""Windows: cut segments on the absolute-time grid, and stack what the network says about them into a curve."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from seisserve.manifest import Manifest
from seisserve.segments import Segment

__all__ = [
    "BATCH_SAMPLES", "Curve", "Windows", "batch_size", "between_frames", "cut", "overlap", "stack", "stack_parts",
]  # fmt: skip

Real = TypeVar("Real", np.float32, np.float64)

BATCH_SAMPLES = 65_536  # a call: long enough to amortise it, short enough for the network's work to stay in the cache


def batch_size(length: int, samples: int = BATCH_SAMPLES) -> int:
    """How many windows of that length go into one call of about so many samples."""
    return max(1, samples // length)


class Windows(NamedTuple):
    """Windows over the segments of one instrument, ordered by length, then by time.

    samples: [components, n], all segments one after the other, segment k from bounds[k] to bounds[k + 1]; those of one
    long segment may be deferred.
    starts, lengths: [windows], in samples. A fragment (a segment shorter than a window) has one window, padded with
    its edge values; it is the only case of a window that reaches beyond its segment.
    """

    segments: list[Segment]
    samples: NDArray[np.number]
    bounds: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def batches(self, size: int | None = None, samples: int = BATCH_SAMPLES) -> Iterator[NDArray[np.float32]]:
        """Windows as the network wants them, in order: float32 [at most size, length, components].

        size: by default as many as make a call of about `samples` samples, which depends on their length.

        The middle of each component's range is subtracted first, so that large counts keep their last bits in float32.
        It depends on nothing but the window's own extremes. Whole numbers less the middle are exact in float32
        as long as their range is below 2**24.
        """
        for rows in self.batch_rows(size, samples):
            gathered = self._gather(self.starts[rows], int(self.lengths[rows.start]))
            highest = gathered.max(axis=2, keepdims=True).astype(np.float64)
            lowest = gathered.min(axis=2, keepdims=True).astype(np.float64)
            middle = highest / 2 + lowest / 2
            batch = np.empty((gathered.shape[1], gathered.shape[2], gathered.shape[0]), np.float32)
            np.subtract(gathered, middle, out=batch.transpose(2, 0, 1), casting="unsafe")
            yield batch

    def batch_rows(self, size: int | None = None, samples: int = BATCH_SAMPLES) -> Iterator[slice]:
        """The rows of each batch: at most `size` windows of one length."""
        several = len(self) > 0 and self.lengths[0] != self.lengths[-1]
        changes = (np.flatnonzero(np.diff(self.lengths)) + 1).tolist() if several else []
        edges = sorted({0, *changes, len(self)})
        for begin, end in pairwise(edges):
            step = size or batch_size(int(self.lengths[begin]), samples)
            for low in range(begin, end, step):
                yield slice(low, min(low + step, end))

    def _gather(self, starts: NDArray[np.int64], length: int) -> NDArray[np.number]:
        """[components, windows, length]"""
        segment = np.searchsorted(self.bounds, starts, side="right") - 1
        first, last = self.bounds[segment], self.bounds[segment + 1] - 1
        if np.all(starts + length - 1 <= last):
            low, high = int(starts.min()), int(starts.max()) + length
            return sliding_window_view(self.samples[:, low:high], length, axis=1)[:, starts - low]
        index = np.minimum(starts[:, None] + np.arange(length), last[:, None])
        # A plain index would put the components side by side in memory: 100 times as long to find the extremes of.
        gathered: NDArray[np.number] = np.take(self.samples, np.maximum(index, first[:, None]), axis=1)
        return gathered


class Curve(NamedTuple):
    """What the network says about every sample: values [n, labels], laid out like `Windows.samples`."""

    segments: list[Segment]
    bounds: NDArray[np.int64]
    values: NDArray[np.float32]
    labels: tuple[str, ...]


def cut(segments: list[Segment], model: Manifest) -> Windows:
    """Windows that cover every sample of the segments (of one instrument).

    Windows start at whole multiples of the hop since 1970; one more at each end of a segment, flush with it, loses
    no sample. A fragment goes into the shortest window that the model offers for it.
    """
    window, hop = model.window_samples, model.hop_samples
    lengths = np.array([segment.samples.shape[1] for segment in segments], np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    starts: list[NDArray[np.int64]] = []
    sizes: list[NDArray[np.int64]] = []
    choices = np.array(sorted({*model.fragment_windows, window}))
    for segment, length, begin in zip(segments, lengths.tolist(), bounds.tolist(), strict=False):
        if length < window:
            starts.append(np.array([begin]))
            sizes.append(choices[np.searchsorted(choices, [length])])
            continue
        last = length - window
        first = -segment.grid_index % hop
        grid = np.arange(begin + first, begin + last + 1, hop)
        flush = last > 0 and (last < first or (last - first) % hop > 0)  # one more, that ends with the segment
        inside = np.concatenate([[begin] if first else grid[:0], grid, [begin + last] if flush else grid[:0]])
        starts.append(inside)
        sizes.append(np.broadcast_to(np.int64(window), len(inside)))
    if not segments:
        return Windows([], np.zeros((len(model.components), 0)), bounds, np.zeros(0, np.int64), np.zeros(0, np.int64))
    if len(segments) == 1:
        return Windows(segments, segments[0].samples, bounds, starts[0], sizes[0])
    all_starts, all_sizes = np.concatenate(starts), np.concatenate(sizes)
    order = np.argsort(all_sizes, kind="stable")
    samples = np.concatenate([segment.samples for segment in segments], axis=1)
    return Windows(segments, samples, bounds, all_starts[order], all_sizes[order])


def stack(windows: Windows, outputs: Iterable[NDArray[np.float32]], model: Manifest) -> Curve:
    """The curve over every sample from the outputs of the windows, batch after batch in the order of `batches`.

    outputs: [batch, frames, labels], stacked by `overlap`; or [batch, labels] of networks that give one value for a
    window: it belongs to the sample in the middle of the window (length // 2). Between two of them the curve is a
    straight line, and the first and the last are held to the ends of their segment.
    """
    values = _joined(stack_parts(windows, outputs, model), windows, model, np.float32)
    return Curve(windows.segments, windows.bounds, values, model.output.labels)


def stack_parts(
    windows: Windows, outputs: Iterable[NDArray[np.float32]], model: Manifest
) -> Iterator[NDArray[np.float32]]:
    """The values of that curve in parts, one after the other, each as soon as it is finished."""
    if model.output.single:
        yield from _between_middles(windows, outputs, model)
    else:
        yield from _overlap_parts(windows, outputs, model, np.float32)


def overlap(windows: Windows, outputs: Iterable[NDArray[Real]], model: Manifest, dtype: type[Real]) -> NDArray[Real]:
    """[n, labels]: windows laid over one another, and their mean (or maximum) at each sample.

    outputs: [batch, frames, labels]. Frames of several samples are first joined by straight lines between their
    middles. A window's first and last `blinding_samples` count only where they are also the first or last of the
    segment. Windows are added up in order of time, so the sum does not depend on the batches.
    """
    return _joined(_overlap_parts(windows, outputs, model, dtype), windows, model, dtype)


def _joined(parts: Iterator[NDArray[Real]], windows: Windows, model: Manifest, dtype: type[Real]) -> NDArray[Real]:
    """[n, labels] from its parts."""
    values = np.empty((int(windows.bounds[-1]), len(model.output.labels)), dtype)
    filled = 0
    for part in parts:
        if len(part) == len(values):
            return part
        values[filled : filled + len(part)] = part
        filled += len(part)
    return values


def _overlap_parts(
    windows: Windows, outputs: Iterable[NDArray[Real]], model: Manifest, dtype: type[Real]
) -> Iterator[NDArray[Real]]:
    """`overlap` in parts: what lies before all windows that are still to come is finished."""
    total = int(windows.bounds[-1])
    segment = np.searchsorted(windows.bounds, windows.starts, side="right") - 1
    first, last = windows.bounds[segment], windows.bounds[segment + 1]
    begins = np.where(windows.starts == first, windows.starts, windows.starts + model.blinding_samples)
    ends = windows.starts + windows.lengths
    ends = np.where(ends >= last, last, ends - model.blinding_samples)
    finished = np.minimum.accumulate(begins[::-1])[::-1]  # before this, once the turn has come to a window
    open_samples = int(np.max(np.maximum.accumulate(ends) - finished, initial=0))
    room = min(total, open_samples + BATCH_SAMPLES)
    nothing = -np.inf if model.stacking == "max" else 0
    values = np.full((room, len(model.output.labels)), nothing, dtype)
    count = np.zeros(room, np.float32)

    def closed(length: int) -> NDArray[Real]:
        return values[:length].copy() if model.stacking == "max" else values[:length] / count[:length, None]

    places = list(zip(begins.tolist(), ends.tolist(), windows.starts.tolist(), finished.tolist(), strict=True))
    row = origin = 0  # origin: the sample that the first of the values is for
    for batch in outputs:
        for output in between_frames(batch, model.output.stride):
            begin, end, start, done = places[row]
            if end > origin + room:
                length = done - origin
                yield closed(length)
                for array, empty in ((values, nothing), (count, 0)):
                    array[: room - length] = array[length:]
                    array[room - length :] = empty
                origin = done
            here = slice(begin - origin, end - origin)
            part = output[begin - start : end - start]
            if model.stacking == "max":
                np.maximum(values[here], part, out=values[here])
            else:
                values[here] += part
            count[here] += 1
            row += 1
    if row != len(windows):
        raise ValueError(f"{row} outputs for {len(windows)} windows")
    yield closed(total - origin)


def between_frames(frames: NDArray[Real], stride: int) -> NDArray[Real]:
    """[batch, frames, labels] -> [batch, frames * stride, labels]: straight lines between the middles of the frames.

    Before the first middle and after the last its value is held.
    """
    if stride == 1:
        return frames
    last = frames.shape[1] - 1
    place = np.clip((np.arange(frames.shape[1] * stride) + 0.5) / stride - 0.5, 0, last)
    below = place.astype(np.int64)
    share = (place - below).astype(frames.dtype)[:, None]
    lower = frames[:, below]
    return lower + (frames[:, np.minimum(below + 1, last)] - lower) * share


def _between_middles(
    windows: Windows, outputs: Iterable[NDArray[np.float32]], model: Manifest
) -> Iterator[NDArray[np.float32]]:
    """[n, labels] in parts from [batch, labels]."""
    if len(windows.segments) == 1:
        yield from _line(windows, outputs, model)
        return
    labels, total = len(model.output.labels), int(windows.bounds[-1])
    found = np.concatenate([np.zeros((0, labels), np.float32), *outputs])
    if len(found) != len(windows):
        raise ValueError(f"{len(found)} outputs for {len(windows)} windows")
    order = np.argsort(windows.starts, kind="stable")
    starts = windows.starts[order]
    segment = np.searchsorted(windows.bounds, starts, side="right") - 1
    first, last = windows.bounds[segment], windows.bounds[segment + 1] - 1
    middles = np.minimum(starts + windows.lengths[order] // 2, last)
    opens, closes = starts == first, np.diff(segment, append=len(windows.segments)) > 0
    # The ends of each segment are knots too, with the values that are held there: nothing leads across a gap.
    knots = np.concatenate([first[opens], middles, last[closes]])
    source = np.concatenate([order[opens], order, order[closes]])
    places, where = np.unique(knots, return_index=True)
    for begin in range(0, total, BATCH_SAMPLES):
        samples = np.arange(begin, min(begin + BATCH_SAMPLES, total))
        values = np.empty((len(samples), labels), np.float32)
        for label in range(labels):
            values[:, label] = np.interp(samples, places, found[source[where], label])
        yield values


def _line(windows: Windows, outputs: Iterable[NDArray[np.float32]], model: Manifest) -> Iterator[NDArray[np.float32]]:
    """The same for the windows of one segment, without holding all that there is to one window."""
    total, labels = int(windows.bounds[-1]), len(model.output.labels)
    places, found = np.zeros(0, np.int64), np.zeros((0, labels), np.float32)  # knots from the last used one on
    row = begin = 0

    def drawn(end: int) -> NDArray[np.float32]:
        values = np.empty((end - begin, labels), np.float32)
        for label in range(labels):
            values[:, label] = np.interp(np.arange(begin, end), places, found[:, label])
        return values

    for output in outputs:
        rows = slice(row, row + len(output))
        row = rows.stop
        if row > len(windows):
            break
        middles = np.minimum(windows.starts[rows] + windows.lengths[rows] // 2, total - 1)
        places, found = np.concatenate([places, middles]), np.concatenate([found, output])
        if (end := int(places[-1])) - begin >= BATCH_SAMPLES:
            yield drawn(end)
            begin, places, found = end, places[-1:], found[-1:]
    if row != len(windows):
        raise ValueError(f"{row} outputs for {len(windows)} windows")
    if total > begin:
        yield drawn(total)  # before the first middle and after the last its value is held
