"""Deferred samples: arrays that are made a part at a time, when the part is asked for.

A record may be longer than memory. What there is, and where, is known from its headers; samples are read, joined and
resampled for the piece that is at work, and forgotten after it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["BLOCK", "Deferred", "Make", "Recent", "deferred", "in_blocks", "is_deferred", "recent_of", "spans"]

Make = Callable[[int, int], NDArray[Any]]

BLOCK = 1 << 18  # samples that are made at once
RECENT_BYTES = 48 << 20  # of blocks: what a piece of the curve and the windows after it need, of three components


class Recent:
    """The arrays that were last asked for, up to so many bytes: what is needed again soon is not made again.

    For one thread: that which works through the record.
    """

    def __init__(self, limit_bytes: int = RECENT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._arrays: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of that name, made if it is not there (any more)."""
        found = self._arrays.get(key)
        if found is None:
            found = make()
            self._arrays[key] = found
            self._bytes += found.nbytes
            while self._bytes > self.limit_bytes and len(self._arrays) > 1:
                _, oldest = self._arrays.popitem(last=False)
                self._bytes -= oldest.nbytes
        else:
            self._arrays.move_to_end(key)
        return found


class Deferred:
    """Samples [n] or [components, n] of those that `make(begin, end)` makes, from `first` on. Slices (along the last
    axis) are arrays.

    It stands where an array would (`deferred`), as far as the pipeline needs one: shape, dtype and slices. Samples are
    finite: whoever defers them has seen to it.
    """

    __slots__ = ("_first", "_make", "dtype", "recent", "shape")  # there may be one for each of many gaps

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, make: Make, recent: Recent, first: int = 0) -> None:
        self.shape, self.dtype, self._make, self.recent, self._first = shape, np.dtype(dtype), make, recent, first

    def __getitem__(self, key: slice | tuple[slice, slice]) -> NDArray[Any]:
        part = key[-1] if isinstance(key, tuple) else key
        begin, end, _ = part.indices(self.shape[-1])
        return self._make(self._first + begin, self._first + max(begin, end))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[: self.shape[-1]], dtype)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def deferred(shape: tuple[int, ...], dtype: DTypeLike, make: Make, recent: Recent, first: int = 0) -> NDArray[Any]:
    """Deferred samples, for wherever samples are wanted."""
    return cast("NDArray[Any]", Deferred(shape, dtype, make, recent, first))


def is_deferred(samples: NDArray[Any]) -> bool:
    """Whether these samples are deferred."""
    return isinstance(samples, Deferred)


def recent_of(*samples: NDArray[Any]) -> Recent | None:
    """Where the first of these that is deferred keeps its blocks; None if none is."""
    return next((some.recent for some in cast("tuple[Any, ...]", samples) if isinstance(some, Deferred)), None)


def in_blocks(edges: NDArray[np.int64], make: Make, recent: Recent) -> Make:
    """Makes whole blocks, from one edge to the next, and gives parts of them; the edges are those of the samples."""
    name, at_edge = object(), edges.tolist()  # a list: ten thousand parts are looked for in it

    def block(number: int) -> NDArray[Any]:
        return recent.get((name, number), lambda: make(at_edge[number], at_edge[number + 1]))

    def part(begin: int, end: int) -> NDArray[Any]:
        first = min(bisect_right(at_edge, begin), len(at_edge) - 1) - 1
        parts = []
        for number in range(first, max(bisect_left(at_edge, end), first + 1)):
            at = at_edge[number]
            parts.append(block(number)[max(begin - at, 0) : max(end - at, 0)])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return part


def spans(begin: int, end: int, length: int = BLOCK) -> Iterator[tuple[int, int]]:
    """From begin to end in steps of at most that length."""
    for low in range(begin, end, length):
        yield low, min(low + length, end)
