"""Packets: one channel's records of any order and size, made into samples that nothing to come can change.

What `segments` does with the whole record at hand is done here as it arrives. Whether a sample counts depends only on
packets that begin at or before it: once no earlier packet can come any more, the sample is final.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.resample import NS, ZERO_CROSSINGS, Phase, resample
from seisserve.segments import Run, on_grid
from seisserve.traces import Trace

__all__ = ["PIECE_COST", "Channel", "Chunk", "Tally", "index_of"]

REMEMBERED = 64  # runs that are over, to tell a packet that comes twice from one that comes too late
PIECE_COST = 64  # what a packet that waits takes besides its samples, in samples
LEAST_S = 0.1  # so much is resampled at once: small packets would cost as much as large ones


class Chunk(NamedTuple):
    """Final samples of one channel. run: of which gapless run, as (rate in Hz, number); offset_ns: that of the run."""

    begin: int
    samples: NDArray[Any]
    run: tuple[Fraction, int]
    offset_ns: int

    @property
    def end(self) -> int:
        return self.begin + len(self.samples)


class Tally:
    """Samples of one instrument, by what became of them; and packets: those of which samples came too late, and those
    that had nothing new."""

    def __init__(self) -> None:
        self.received = self.late = self.duplicate = self.conflicting = 0
        self.late_packets = self.duplicate_packets = 0


def index_of(time_ns: int, rate: Fraction) -> int:
    """The number of the sample that a packet from that time on would begin with."""
    return on_grid(Trace("", time_ns, float(rate), np.empty(0)), rate).grid_index


class _Waiting(NamedTuple):
    """A packet whose turn has not come, in the order in which `segments` takes them."""

    begin: int
    end: int
    offset_ns: int
    number: int
    skip: int  # samples at its beginning that are final already
    samples: NDArray[Any]


class _Rate:
    """One channel at one sampling rate: packets in any order, final samples in order.

    at_once: samples that continue a run without a gap are final when they come. Otherwise they wait like all others,
    for a packet that contradicts them.
    """

    def __init__(self, rate: Fraction, front: int | None, at_once: bool, tally: Tally, numbers: Iterator[int]) -> None:
        self.rate, self.at_once, self.tally, self._numbers = rate, at_once, tally, numbers
        self.front = front  # all before that sample is final
        self.waiting: list[_Waiting] = []
        self._there: dict[tuple[int, int, int], _Waiting] = {}  # of those that wait
        self._waiting_samples = 0
        self.open = False  # whether the sample before `front` belongs to a run that may go on
        self._number = self._arrived = 0
        self._offset_ns = 0
        # Behind `front`: samples of packets whose turn has come, all contradictions between them found.
        self._samples: NDArray[Any] = np.zeros(0, np.int32)
        self._dropped = np.zeros(0, bool)
        self._heads: list[tuple[int, int, int]] = []  # begin, end and offset of these packets
        self._past: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)

    @property
    def run(self) -> tuple[Fraction, int]:
        return self.rate, self._number

    @property
    def held(self) -> int:
        """Samples that are kept, and what goes with them."""
        return self._waiting_samples + len(self.waiting) * PIECE_COST + len(self._samples)

    @property
    def _end(self) -> int:
        return (self.front or 0) + len(self._samples)

    def add(self, trace: Trace) -> None:
        """Take a packet. What of it lies before `front` comes too late, or for the second time."""
        piece = on_grid(trace, self.rate)
        self.tally.received += len(piece.samples)
        skip = 0 if self.front is None else min(max(self.front - piece.grid_index, 0), len(piece.samples))
        known = self._known(piece.grid_index, piece.grid_index + skip) if skip else 0
        self.tally.duplicate += known
        self.tally.late += skip - known
        nothing_new = skip == len(piece.samples) or self._twice(piece)
        if known < skip:
            self.tally.late_packets += 1
        elif nothing_new:
            self.tally.duplicate_packets += 1
        if nothing_new:
            return
        self._arrived += 1
        # A copy: what waits should not keep the message that it came in.
        item = _Waiting(
            piece.grid_index, piece.end, piece.offset_ns, self._arrived, skip, np.array(piece.samples[skip:])
        )
        heapq.heappush(self.waiting, item)
        self._there[item[:3]] = item
        self._waiting_samples += len(item.samples)

    def _twice(self, piece: Run) -> bool:
        """Whether the very same packet is waiting already."""
        item = self._there.get((piece.grid_index, piece.end, piece.offset_ns))
        if item is None or not np.array_equal(item.samples, piece.samples[item.skip :]):
            return False
        self.tally.duplicate += len(item.samples)
        return True

    def _known(self, begin: int, end: int) -> int:
        """How many of these samples are in runs that are remembered."""
        return sum(max(min(end, high) - max(begin, low), 0) for low, high in self._past)

    def advance(self, horizon: int) -> list[Chunk]:
        """Samples that are final now that no packet which begins before the sample `horizon` will come."""
        chunks: list[Chunk] = []
        while True:
            while self.waiting and self._turn(self.waiting[0], horizon):
                item = heapq.heappop(self.waiting)
                self._there.pop(item[:3], None)
                self._waiting_samples -= len(item.samples)
                begin = item.begin + item.skip
                if self.front is None:
                    self.front = begin
                elif begin > self._end:  # a gap, and nothing can fill it any more
                    chunks += self._finish(begin)
                self._lay(item)
            reach = max(horizon, self._end) if self.at_once and self.open else horizon
            if self.front is None:
                self.front = horizon
            if reach <= self.front:
                return chunks
            chunks += self._finish(reach)

    def flush(self) -> list[Chunk]:
        """All that is left: nothing will come that continues it."""
        last = max([self._end, *(item.end for item in self.waiting)])
        chunks = self.advance(last) if self.front is not None or self.waiting else []
        self.open = False
        return chunks

    def _turn(self, item: _Waiting, horizon: int) -> bool:
        return item.begin < horizon or (self.at_once and self.open and item.begin <= self._end)

    def _lay(self, item: _Waiting) -> None:
        """Put a packet behind those that begin before it. Where they contradict one another, what they share is
        dropped."""
        front = self.front or 0
        begin = item.begin + item.skip - front
        skip = max(-begin, 0)  # final meanwhile
        if skip >= len(item.samples):
            self.tally.duplicate += len(item.samples)
            return
        samples, begin = item.samples[skip:], begin + skip
        self.tally.duplicate += skip
        shared = min(len(self._samples) - begin, len(samples))
        if shared > 0:
            here = slice(begin, begin + shared)
            good = ~self._dropped[here]
            if np.any(good & (self._samples[here] != samples[:shared])):
                self._dropped[here] = True
                self.tally.conflicting += int(np.count_nonzero(good))
            else:
                self.tally.duplicate += int(np.count_nonzero(good))
        if shared < len(samples):
            rest = samples[max(shared, 0) :]
            self._samples = np.concatenate([self._samples, rest]) if len(self._samples) else rest
            self._dropped = np.append(self._dropped, np.zeros(len(rest), bool))
        self._heads.append((item.begin, item.end, item.offset_ns))

    def _finish(self, reach: int) -> list[Chunk]:
        """Samples before `reach` are final."""
        front = self.front or 0
        length = min(reach - front, len(self._samples))
        kept = ~self._dropped[:length]
        edges = [[0, length]] if length else []
        if not kept.all():
            edges = np.flatnonzero(np.diff(kept, prepend=False, append=False)).reshape(-1, 2).tolist()
        chunks = []
        for low, high in edges:
            if low or not self.open:  # a new run
                self._number = next(self._numbers)
                self._offset_ns = next(o for begin, end, o in self._heads if begin <= front + low < end)
                self._past.append((front + low, front + high))
            else:
                self._past[-1] = (self._past[-1][0], front + high)
            chunks.append(Chunk(front + low, self._samples[low:high], self.run, self._offset_ns))
            self.open = True
        if length < reach - front or not length or not kept[-1]:
            self.open = False
        self._samples, self._dropped = self._samples[length:].copy(), self._dropped[length:].copy()
        self._heads = [head for head in self._heads if head[1] > reach]
        self.front = reach
        return chunks


class _Resampled:
    """Final samples of a rate at another one, as soon as all samples that the filter weighs are there."""

    def __init__(self, source: _Rate, target: Fraction, phase: Phase) -> None:
        self.source, self.target, self.phase = source, target, phase
        self._step = source.rate / target
        half = math.ceil(ZERO_CROSSINGS * max(self._step, Fraction(1)))
        self._reach = half if phase == "zero" else 2 * half  # samples on either side, as in `resample`
        self._run: tuple[Fraction, int] | None = None
        self._origin = Fraction(0)  # of the run's sample 0, in samples since 1970, offset included
        self._first = 0  # the run's first sample
        self._begin = 0  # of what is held, counted as the origin is
        self._held: NDArray[Any] = np.zeros(0)
        self._next: int | None = None  # the first output that has not been given

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def front(self) -> int | None:
        """All outputs before that one have been given."""
        if self._run is not None:
            return self._next
        if self.source.front is None:
            return None
        # The next run begins there at the soonest, or half an interval earlier than its grid point.
        soonest = math.ceil((self.source.front - Fraction(1, 2)) / self._step)
        return soonest if self._next is None else max(soonest, self._next)

    def take(self, chunks: list[Chunk], flush: bool = False) -> list[Chunk]:
        """Outputs that these samples complete."""
        made: list[Chunk] = []
        for chunk in chunks:
            if chunk.run != self._run:
                made += self._give(closed=True)
                self._run = chunk.run
                self._origin = chunk.offset_ns * self.source.rate / NS
                self._first = self._begin = chunk.begin
                self._held = chunk.samples
                self._next = math.ceil((self._first + self._origin) / self._step)
            else:
                self._held = np.concatenate([self._held, chunk.samples])
        if flush or not self.source.open:
            return made + self._give(closed=True)
        return made + self._give(closed=False)

    def _give(self, closed: bool) -> list[Chunk]:
        if self._run is None or self._next is None:
            return []
        end = self._begin + len(self._held)
        if closed:
            last = (self._origin + end - 1) // self._step
        else:  # the filter reaches so far behind the sample before the output
            last = math.ceil((self._origin + end - self._reach) / self._step) - 1
        chunks = []
        least = 1 if closed else math.ceil(LEAST_S * self.target)
        if last - self._next + 1 >= least:
            start = (self._begin + self._origin) * NS / self.source.rate
            samples, first = resample(self._held, start, float(self.source.rate), float(self.target), self.phase)
            part = samples[self._next - first : last + 1 - first]
            chunks.append(Chunk(self._next, part, self._run, 0))
            self._next = last + 1
            kept = max(math.floor(self._next * self._step - self._origin) - self._reach, self._begin)
            self._held, self._begin = self._held[kept - self._begin :].copy(), kept
        if closed:
            self._run, self._held = None, np.zeros(0)
        return chunks


class Channel:
    """One channel: its final samples at the rate of the model, whatever rates it comes in.

    front: of the instrument, at the target rate; what lies before it is over. Where records of two rates overlap they
    are taken to contradict one another.
    """

    def __init__(self, target: Fraction, phase: Phase, at_once: bool, tally: Tally) -> None:
        self.target, self.phase, self.at_once, self.tally = target, phase, at_once, tally
        self.rates: dict[Fraction, tuple[_Rate, _Resampled | None]] = {}
        self.ready: dict[Fraction, deque[Chunk]] = {}  # final, and not yet taken over into a segment
        self.given = False  # whether any sample has been final
        self._numbers = itertools.count(1)

    @property
    def held(self) -> int:
        """Samples that are kept."""
        there = sum(source.held + (sink.held if sink else 0) for source, sink in self.rates.values())
        return there + sum(len(chunk.samples) for chunks in self.ready.values() for chunk in chunks)

    def add(self, trace: Trace, rate: Fraction, front: int | None) -> None:
        """Take a packet."""
        if rate not in self.rates:
            # Behind the last sample that is over at the target rate, not at `front`: a sample between the two counts.
            begin = None if front is None else math.floor((front - 1) * rate / self.target) + 1
            source = _Rate(rate, begin, self.at_once, self.tally, self._numbers)
            sink = None if rate == self.target else _Resampled(source, self.target, self.phase)
            self.rates[rate] = (source, sink)
            self.ready.setdefault(rate, deque())
        self.rates[rate][0].add(trace)

    def advance(self, horizon_ns: int) -> int:
        """Before which sample all is final, now that no packet from before the horizon will come."""
        fronts = []
        for source, sink in self.rates.values():
            chunks = source.advance(index_of(horizon_ns, source.rate))
            self.ready[source.rate] += sink.take(chunks) if sink else chunks
            fronts.append(sink.front if sink else source.front)
            self.given = self.given or bool(chunks)
        self._forget_rates()
        horizon = index_of(horizon_ns, self.target)
        known = [horizon if front is None else front for front in fronts]
        return min(known, default=horizon)

    def flush(self) -> int | None:
        """All that is left; where it ends."""
        for source, sink in self.rates.values():
            chunks = source.flush()
            self.ready[source.rate] += sink.take(chunks, flush=True) if sink else chunks
        return max((chunks[-1].end for chunks in self.ready.values() if chunks), default=None)

    def forget(self, before: int) -> None:
        """The samples before that one have been taken over."""
        for chunks in self.ready.values():
            while chunks and chunks[0].end <= before:
                chunks.popleft()

    def _forget_rates(self) -> None:
        """A rate that is over while there is another would only be waited for."""
        for rate, (source, _) in list(self.rates.items()):
            if len(self.rates) > 1 and not (source.open or source.waiting or self.ready[rate]):
                del self.rates[rate], self.ready[rate]
