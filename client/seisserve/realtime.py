"""Picks in real time: packets of many stations in any order in, each pick once, in time order of its instrument.

The picks are those of `pipeline.pick` over all packets together. There are no clocks and threads in here: the time is
passed in, and what comes out depends on the packets alone. `docs/realtime.md` has the rules in words.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve import pipeline
from seisserve.errors import UsageError, WaveformError
from seisserve.growing import Growing, Job
from seisserve.manifest import Manifest, check_task
from seisserve.packets import PIECE_COST, Channel, Chunk, Tally
from seisserve.picks import GUARD_S, NOISE_S, SIGNAL_S, WIDTH_REACH, Pick
from seisserve.resample import NS, Phase, check_phase, exact_rate
from seisserve.segments import SLOT_CODES, Segment
from seisserve.traces import Trace, check
from seisserve.transport import Transport
from seisserve.windows import Windows

__all__ = ["Counts", "Outcomes", "Realtime", "Settings", "Update"]

Conflicts = Literal["first", "drop"]
MOST_WARNINGS = 100  # of an update
EARLIEST_NS = -70 * 365 * 86_400 * NS


class Settings(NamedTuple):
    """How packets are treated.

    wait_s: a packet may begin that much earlier than the latest one of its instrument; what is missing by then is a
    gap, and what comes later is dropped. idle_s: an instrument that has sent nothing for that long has ended.
    conflicts: `first` takes samples that continue a record as soon as they come, and drops what contradicts them later;
    `drop` keeps all samples for `wait_s` and drops both where two packets contradict one another, as the batch path
    does. instruments: the most at a time. waiting_samples: the most of one instrument that wait for those before them.
    """

    wait_s: float = 10.0
    idle_s: float = 300.0
    conflicts: Conflicts = "first"
    instruments: int = 1000
    waiting_samples: int = 8_000_000

    def check(self) -> Settings:
        """These settings. Raises UsageError that names the one at fault."""
        for name, least, most in (("wait_s", 0.0, 86_400.0), ("idle_s", 1.0, 604_800.0)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise UsageError(f"{name} is {value:g}; it must lie between {least:g} and {most:g}")
        if self.conflicts not in ("first", "drop"):
            raise UsageError(f"conflicts is {self.conflicts!r}; it must be 'first' or 'drop'")
        if self.instruments < 1 or self.waiting_samples < 1:
            raise UsageError(f"instruments and waiting_samples must be at least 1: {self}")
        return self


class Counts(NamedTuple):
    """What has become of the samples of one instrument so far.

    late: came after the wait; duplicate: were there already; conflicting: dropped since two packets contradict one
    another. refused_packets: could not be used. gaps: how often the record broke off. held_bytes: what is kept now.
    """

    received: int
    late: int
    duplicate: int
    conflicting: int
    refused_packets: int
    gaps: int
    picks: int
    held_bytes: int


class Outcomes(NamedTuple):
    """Packets that came together, by what became of them. late: some of their samples came after the wait; duplicate:
    all of them were there already; refused: could not be used."""

    new: int = 0
    late: int = 0
    duplicate: int = 0
    refused: int = 0


class Update(NamedTuple):
    """What is new: picks; for each instrument that went on the time (nanoseconds since 1970) before which all of its
    picks are out; instruments that have ended because nothing came; and what the user should know."""

    picks: list[Pick]
    watermarks: dict[str, int]
    expired: list[str]
    warnings: list[str]


class _Stretch(NamedTuple):
    """Final samples [components, n] in which no component comes or goes. runs: of each component."""

    begin: int
    samples: NDArray[Any]
    runs: tuple[tuple[Fraction, int] | None, ...]
    offset_ns: int


class _Instrument:
    """One NET.STA.LOC.BI: packets, final samples, the segment that grows, picks in order."""

    def __init__(self, name: str, model: Manifest, phase: Phase, settings: Settings) -> None:
        self.name, self.model, self.phase, self.settings = name, model, phase, settings
        self.rate = exact_rate(model.sampling_rate_hz)
        self.heard_s = 0.0  # when the last packet came
        self.tally = Tally()
        self.refused = self.gaps = self.picked = 0
        self.watermark_ns: int | None = None
        self._told_ns: int | None = None
        self._newest_ns: int | None = None
        self._front: int | None = None  # all before that sample has been made into stretches
        self._codes: list[str | None] = [None] * len(model.components)
        self._unused: set[str] = set()
        self._channels: list[Channel] = []
        self._stretches: deque[_Stretch] = deque()
        self._growing: Growing | None = None
        self._runs: tuple[tuple[Fraction, int] | None, ...] = ()
        self._flushing = False
        self._found: list[Pick] = []  # final, but earlier ones may come

    @property
    def counts(self) -> Counts:
        tally = self.tally
        held = 8 * (self._waiting() + sum(stretch.samples.size for stretch in self._stretches))
        held += self._growing.size if self._growing else 0
        return Counts(
            tally.received, tally.late, tally.duplicate, tally.conflicting, self.refused, self.gaps, self.picked, held
        )

    @property
    def outcomes(self) -> tuple[int, int, int]:
        """Packets so far that came too late, that had nothing new, and that could not be used."""
        return self.tally.late_packets, self.tally.duplicate_packets, self.refused

    def _waiting(self) -> int:
        return sum(channel.held for channel in self._channels)

    def add(self, traces: list[Trace], latest_ns: int | None) -> list[str]:
        """Take packets that came together; what was wrong with them. Then `assemble`."""
        if not self._channels:
            at_once = self.settings.conflicts == "first"
            self._channels = [Channel(self.rate, self.phase, at_once, self.tally) for _ in self._codes]
        warnings: list[str] = []
        waiting = self._waiting()
        for trace in traces:
            try:
                slot = self._slot(trace, latest_ns, warnings)
                resampled = math.ceil(len(trace.samples) * self.rate / exact_rate(trace.sampling_rate_hz))
                more = max(len(trace.samples), resampled) + PIECE_COST
                if waiting + more > self.settings.waiting_samples:
                    most = self.settings.waiting_samples
                    raise WaveformError(f"trace {trace.id}: more than {most} samples wait for earlier ones; dropped")
            except WaveformError as error:
                self.refused += 1
                warnings.append(str(error))
                continue
            if slot is None or not len(trace.samples):
                continue
            waiting += more
            self._newest_ns = max(trace.start_ns, trace.start_ns if self._newest_ns is None else self._newest_ns)
            self._channels[slot].add(trace, exact_rate(trace.sampling_rate_hz), self._front)
        return warnings

    def _slot(self, trace: Trace, latest_ns: int | None, warnings: list[str]) -> int | None:
        """The component that a packet is of, None if the model has no use for it."""
        code = trace.id[-1]
        end_ns = trace.start_ns + round(max(len(trace.samples) - 1, 0) * NS / exact_rate(trace.sampling_rate_hz))
        if trace.start_ns < EARLIEST_NS:
            raise WaveformError(f"trace {trace.id}: begins before 1900; dropped")
        if latest_ns is not None and end_ns > latest_ns:
            late_s = (end_ns - latest_ns) / NS
            raise WaveformError(f"trace {trace.id}: ends {late_s:.0f} s after the latest time that is taken; dropped")
        for slot, component in enumerate(self.model.components):
            if code not in SLOT_CODES[component]:
                continue
            there = self._codes[slot]
            if there is None or there == code:
                self._codes[slot] = code
                return slot
            order = SLOT_CODES[component].index
            if order(code) < order(there) and not self._channels[slot].given:
                # As in a whole record: Z goes before 3, whichever came first.
                at_once = self.settings.conflicts == "first"
                self._channels[slot] = Channel(self.rate, self.phase, at_once, self.tally)
                self._codes[slot], code = code, there
                self._not_used(code, warnings)
                return slot
        self._not_used(code, warnings)
        return None

    def _not_used(self, code: str, warnings: list[str]) -> None:
        if code not in self._unused and len(self._unused) < MOST_WARNINGS:
            self._unused.add(code)
            takes = self.model.components
            warnings.append(
                f"{self.name}{code}: component not used (the model takes {takes}, this one has no slot left)"
            )

    def assemble(self) -> None:
        """Make stretches of all samples that are final."""
        if self._newest_ns is not None:
            horizon_ns = self._newest_ns - round(self.settings.wait_s * NS)
            self._join(min(channel.advance(horizon_ns) for channel in self._channels))

    def flush(self) -> None:
        """The record ends here: all that waits is final."""
        ends = [channel.flush() for channel in self._channels]
        known = [end for end in [*ends, self._front] if end is not None]
        if known:
            self._join(max(known))
        # What comes later begins behind this place, with whatever components it has.
        self._channels = []
        self._flushing = True

    def _join(self, front: int) -> None:
        """Stretches of all components up to a sample, cut wherever a run begins or ends."""
        if self._front is not None and front <= self._front:
            return
        sources = [list(channel.ready.values()) for channel in self._channels]
        chunks = [chunk for slot in sources for queue in slot for chunk in queue]
        first = self._front if self._front is not None else min([front, *(chunk.begin for chunk in chunks)])
        edges = {first, front}
        for chunk in chunks:
            edges.update(min(max(edge, first), front) for edge in (chunk.begin, chunk.end))
        for begin, end in pairwise(sorted(edges)):
            here = [_covering(queues, begin) for queues in sources]
            live = [chunk for chunk in here if chunk is not None]
            if live:
                samples = np.zeros((len(here), end - begin), np.result_type(*(chunk.samples for chunk in live)))
                for row, there in zip(samples, here, strict=True):
                    if there is not None:
                        row[:] = there.samples[begin - there.begin : end - there.begin]
                runs = tuple(None if there is None else there.run for there in here)
                self._stretches.append(_Stretch(begin, samples, runs, live[0].offset_ns))
        for channel in self._channels:
            channel.forget(front)
        self._front = front

    @property
    def jobs(self) -> list[Job]:
        """Windows to run the network on."""
        return self._growing.jobs if self._growing else []

    def step(self) -> bool:
        """Go on by at most one stretch; False if there is nothing to do. Not while there are jobs."""
        growing = self._growing
        if not self._stretches:
            over = growing is not None and (self._flushing or (self._front or 0) > growing.end)
            if growing is not None and over:
                self.gaps += not self._flushing
                growing.finish()
            return over
        stretch = self._stretches[0]
        if growing is not None and (stretch.runs != self._runs or stretch.begin != growing.end):
            self.gaps += 1
            growing.finish()
            return True
        if growing is None:
            live = tuple(run is not None for run in stretch.runs)
            empty = np.zeros((len(live), 0))
            rate_hz = self.model.sampling_rate_hz
            growing = Growing(self.model, Segment(self.name, stretch.begin, stretch.offset_ns, rate_hz, empty, live))
            self._growing, self._runs = growing, stretch.runs
        growing.feed(stretch.samples[:, : growing.chunk])
        rest = stretch.samples[:, growing.chunk :]
        if rest.shape[1]:
            self._stretches[0] = stretch._replace(begin=stretch.begin + growing.chunk, samples=rest)
        else:
            self._stretches.popleft()
        return True

    def take(self, output: NDArray[np.float32]) -> None:
        """What the network says of the first of the jobs."""
        if self._growing is not None:
            self._growing.take(output)

    def read(self) -> None:
        """Look for picks, once the jobs are done."""
        if self._growing is not None:
            self._found += self._growing.read()
            if self._growing.closed:
                self._growing = None

    def give(self) -> list[Pick]:
        """Picks before the watermark, in order."""
        done = not (self._growing or self._stretches)
        if done and self._flushing:
            mark = None if self._front is None else self._time_ns(self._front - 1)
            ready, self._found, self._flushing = self._found, [], False
        else:
            if self._growing is not None:
                mark = self._growing.watermark_ns()
            elif self._stretches:
                mark = self._time_ns(self._stretches[0].begin - 1)
            else:
                mark = None if self._front is None else self._time_ns(self._front - 1)
            ready = [pick for pick in self._found if mark is not None and pick.time_ns < mark]
            self._found = [pick for pick in self._found if mark is None or pick.time_ns >= mark]
        if mark is not None:
            self.watermark_ns = mark if self.watermark_ns is None else max(mark, self.watermark_ns)
        self.picked += len(ready)
        return sorted(ready, key=lambda pick: (pick.time_ns, pick.phase))

    def new_watermark(self) -> int | None:
        """The watermark, if it has moved since this was asked last."""
        moved = self.watermark_ns != self._told_ns
        self._told_ns = self.watermark_ns
        return self.watermark_ns if moved else None

    def _time_ns(self, index: int) -> int:
        return math.floor(index * NS / self.rate)


def _covering(queues: list[deque[Chunk]], begin: int) -> Chunk | None:
    """The chunk that covers a sample; None where none does, or those of two rates."""
    found = []
    for queue in queues:
        while queue and queue[0].end <= begin:
            queue.popleft()
        if queue and queue[0].begin <= begin:
            found.append(queue[0])
    return found[0] if len(found) == 1 else None


class Realtime:
    """Many instruments at once. Raises UsageError for a model that does not pick, or settings that make no sense.

    `push`, `expire` and `flush` say what has happened; `work` does what there is to do and tells what came of it. If
    the transport fails in `work`, nothing is lost: the next call goes on where that one stopped.
    """

    def __init__(self, model: Manifest, settings: Settings | None = None, phase: Phase = "zero") -> None:
        check_task(model, "picking", list)
        check_phase(phase)
        self.model, self.phase = model, phase
        self.settings = (settings or Settings()).check()
        self._instruments: dict[str, _Instrument] = {}
        self._ended: dict[str, _Instrument] = {}  # what they must not tell again
        self._busy: dict[str, None] = {}
        self._picks: list[Pick] = []
        self._expired: list[str] = []
        self._warnings: list[str] = []
        self._silenced = 0

    @property
    def counts(self) -> dict[str, Counts]:
        """Of each instrument that has not ended."""
        return {name: instrument.counts for name, instrument in self._instruments.items()}

    @property
    def instruments(self) -> list[str]:
        """Those that have not ended."""
        return list(self._instruments)

    @property
    def ended(self) -> list[str]:
        """The last ones of those that have."""
        return list(self._ended)

    @property
    def history_s(self) -> float:
        """A pick depends on no sample of its segment that is farther away than that, as long as no label stays on."""
        model = self.model
        seconds = NOISE_S + GUARD_S + SIGNAL_S + model.minimum_pick_distance_s
        return seconds + (2 * model.window_samples + 2 * WIDTH_REACH + model.edge_samples) / model.sampling_rate_hz

    def push(self, traces: Iterable[Trace], now_s: float, latest_ns: int | None = None) -> Outcomes:
        """Packets that came together, at the time `now_s` of any clock that only goes forward; what became of them.

        latest_ns: packets that end after it are refused: one wrong date would make all that follows too late.
        """
        groups: dict[str, list[Trace]] = {}
        taken = late = duplicate = refused = 0
        for trace in traces:
            try:
                groups.setdefault(check(trace).id[:-1], []).append(trace)
            except WaveformError as error:
                self._refuse(trace.id[:-1], error)
                refused += 1
        for name, group in groups.items():
            instrument = self._instrument(name)
            if instrument is None:
                self.warn(f"{name}: not taken; the session has {self.settings.instruments} instruments already")
                refused += len(group)
                continue
            instrument.heard_s = now_s
            before = instrument.outcomes
            self._warn(instrument.add(group, latest_ns))
            more = [after - then for after, then in zip(instrument.outcomes, before, strict=True)]
            late, duplicate, refused = late + more[0], duplicate + more[1], refused + more[2]
            taken += len(group) - sum(more)
            instrument.assemble()
            self._busy[name] = None
        return Outcomes(taken, late, duplicate, refused)

    def expire(self, now_s: float) -> None:
        """End the instruments that have sent nothing for too long."""
        for name, instrument in list(self._instruments.items()):
            if now_s - instrument.heard_s >= self.settings.idle_s and name not in self._expired:
                instrument.flush()
                self._busy[name] = None
                self._expired.append(name)

    def heard(self, now_s: float) -> None:
        """None of the instruments could send until now: they are not idle for that."""
        for instrument in self._instruments.values():
            instrument.heard_s = now_s

    def flush(self) -> None:
        """The records end here: what waits is final."""
        for name, instrument in self._instruments.items():
            instrument.flush()
            self._busy[name] = None

    def work(self, transport: Transport) -> Update:
        """Run the network on all windows that are ready, those of all instruments together; what came of it."""
        working = [self._instruments[name] for name in self._busy]
        while working:
            jobs = [(one, job) for one in working for job in one.jobs]
            if jobs:
                outputs = _outputs([job for _, job in jobs], self.model, transport)
                for (one, _), output in zip(jobs, outputs, strict=True):
                    one.take(output)
            for one in working:
                one.read()
            working = [one for one in working if one.step()]
        return self._update()

    def _update(self) -> Update:
        watermarks = {}
        for name in self._busy:
            self._picks += self._instruments[name].give()
            mark = self._instruments[name].new_watermark()
            if mark is not None:
                watermarks[name] = mark
        self._busy = {}
        for name in self._expired:
            self._ended.pop(name, None)
            self._ended[name] = self._instruments.pop(name)
        for name in list(itertools.islice(self._ended, max(len(self._ended) - self.settings.instruments, 0))):
            del self._ended[name]
        if self._silenced:
            self._warnings.append(f"and {self._silenced} more")
        update = Update(self._picks, watermarks, self._expired, self._warnings)
        self._picks, self._expired, self._warnings, self._silenced = [], [], [], 0
        return update

    def _instrument(self, name: str) -> _Instrument | None:
        if name not in self._instruments:
            if len(self._instruments) >= self.settings.instruments:
                return None
            known = self._ended.pop(name, None)
            self._instruments[name] = known or _Instrument(name, self.model, self.phase, self.settings)
        return self._instruments[name]

    def _refuse(self, name: str, error: WaveformError) -> None:
        if name in self._instruments:
            self._instruments[name].refused += 1
        self.warn(str(error))

    def warn(self, text: str) -> None:
        """Something that the user should know with the next update."""
        self._warn([text])

    def _warn(self, warnings: list[str]) -> None:
        room = MOST_WARNINGS - len(self._warnings)
        self._warnings += warnings[:room]
        self._silenced += len(warnings[room:])


def _outputs(jobs: list[Job], model: Manifest, transport: Transport) -> list[NDArray[np.float32]]:
    """What the network says of each window, in batches of one length."""
    order = sorted(range(len(jobs)), key=lambda k: jobs[k].length)
    samples = np.concatenate([jobs[k].samples for k in order], axis=1)
    bounds = np.concatenate([[0], np.cumsum([jobs[k].samples.shape[1] for k in order])])
    windows = Windows([], samples, bounds, bounds[:-1], np.array([jobs[k].length for k in order]))
    found: list[NDArray[np.float32] | None] = [None] * len(jobs)
    rows = itertools.chain.from_iterable(pipeline.predict(windows, model, transport))
    for k, row in zip(order, rows, strict=True):
        found[k] = row
    return [row for row in found if row is not None]
