"""Sessions: picks in real time over one stream, which may break and be resumed without loss and without doubles.

The work is `seisserve.realtime`'s. Each packet counts once, by its number; each answer that matters has a number, too,
and is kept until the client has seen it. A session whose connection broke waits to be resumed, and is then forgotten.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from seisserve import pipeline
from seisserve.errors import ModelNotFound, SeisserveError, UsageError, WaveformError
from seisserve.manifest import Manifest, check_task
from seisserve.messages import from_message
from seisserve.proto import seismic_pb2 as wire
from seisserve.reading import read_miniseed
from seisserve.realtime import Outcomes, Realtime, Settings, Update
from seisserve.resample import NS
from seisserve.segments import by_instrument
from seisserve.traces import Trace, check
from seisserve.transport import Transport
from seisserve_serving.calls import Call, Priority
from seisserve_serving.counting import (
    count_arrival,
    count_latency,
    count_left,
    count_packets,
    count_picks,
    count_record,
)
from seisserve_serving.errors import Expired, Overloaded, Unavailable
from seisserve_serving.front import Methods
from seisserve_serving.models import Models, Served
from seisserve_serving.record_api import phase_of

__all__ = ["Bounds", "Sessions", "streams"]

REALTIME_PICKER = "phasenet"  # where none is named: its picks come after half a minute, `onset`'s after two

log = logging.getLogger(__name__)
TICK_S = 0.5  # how often a session that hears nothing looks at the clock
COUNTS_S = 10.0
START_S = 30.0  # for the first request
STALLED_S = 120.0  # a connection that takes no answer for so long counts as broken
RETRY_MS = 1000
LONGEST_ID, LONGEST_WARNING = 255, 500  # characters: what is kept of a packet must not grow with what it says
TOGETHER, TOGETHER_BYTES = 64, 32 << 20  # requests that are worked on at once, and as many may wait behind them
MOST_PICKS = 10_000  # in an answer: a megabyte
Requests = Iterator[wire.SessionRequest]
Item = wire.SessionRequest | Exception | None  # None: the stream has ended
Came = tuple[Item, float]  # and when, of time.monotonic
Waiting = tuple[wire.SessionPackets, float]


class Bounds(NamedTuple):
    """What sessions may take of the server.

    sessions: the most at a time, broken ones included. instruments: of one session, at most. waiting_samples: of one
    instrument, that wait for those before them. resume_s: how long a session outlives its connection. answers: kept
    for a client that has not said that it has seen them; then its packets wait. ahead_s: packets that end so far in
    the future are refused.
    """

    sessions: int = 16
    instruments: int = 1000
    waiting_samples: int = 8_000_000
    resume_s: float = 300.0
    answers: int = 1000
    ahead_s: float = 60.0


class _Session:
    """One session. Its lock is held by whoever works on it; `owner` is the connection that it answers to."""

    def __init__(self, served: Served, manifest: Manifest, start: wire.SessionStart, user: str, bounds: Bounds) -> None:
        self.name, self.version, self.manifest, self.user = served.name, served.version, manifest, user
        self._served = weakref.ref(served)  # a session does not keep a version from being unloaded
        self.token = secrets.token_urlsafe(18)
        self.core = Realtime(manifest, _settings(start, bounds), phase_of(start.options))
        self.lock = threading.Lock()
        self.owner: object = None  # None: it has no connection
        self.forgotten = False
        self.seen_s = time.monotonic()  # when its connection was last at it
        self.arrived: dict[str, float] = {}  # of packets that were taken and not worked on, the first by instrument
        self.acknowledged = 0
        self.ending = self.finished = False  # the last packets have been taken; the last answer has been made
        self.answers: deque[wire.SessionResponse] = deque()  # that the client has not seen
        self._numbers = itertools.count(1)

    @property
    def served(self) -> Served | None:
        """None once it is unloaded."""
        return self._served()

    def started(self, resumed: bool, bounds: Bounds) -> wire.SessionResponse:
        """The first answer of a connection."""
        model = self.manifest
        return wire.SessionResponse(
            acknowledged=self.acknowledged,
            started=wire.SessionStarted(
                resume_token=self.token,
                model=wire.ModelSpec(name=model.name, version=self.version),
                provenance=pipeline.provenance(model, self.core.phase),
                resumed=resumed,
                resume_s=bounds.resume_s,
                waiting_answers=bounds.answers,
                history_s=self.core.history_s,
            ),
        )

    def forget(self, seen: int) -> None:
        """The client has seen that answer and those before it."""
        while self.answers and self.answers[0].number <= seen:
            self.answers.popleft()

    def push(self, packets: wire.SessionPackets, bounds: Bounds, call: Call, arrived_s: float) -> None:
        """Take packets, unless they have been taken already, and count what was in them. Raises UsageError."""
        items = len(packets.waveforms.traces) + len(packets.waveforms.miniseed)
        if packets.number < 1:
            raise UsageError(f"packets.number is {packets.number}; packets are numbered 1, 2, 3 and so on")
        if packets.number <= self.acknowledged or self.ending:
            count_packets(call, Outcomes(duplicate=items))
            return
        if packets.number != self.acknowledged + 1:
            raise UsageError(f"packets.number is {packets.number}; expected {self.acknowledged + 1}")
        unreadable: list[str] = []
        traces = list(self._decoded(packets, unreadable))
        now_ns = time.time_ns()
        latest_ns = now_ns + round(bounds.ahead_s * NS)
        outcomes = self.core.push(traces, time.monotonic(), latest_ns)
        count_packets(call, outcomes._replace(refused=outcomes.refused + len(unreadable)))
        for name, group in by_instrument(filter(_counts, traces)).items():
            count_record(call, group)
            count_arrival(call, name, group, now_ns, latest_ns)
            self.arrived.setdefault(name, arrived_s)
        if packets.finish:
            for name in self.core.instruments:
                self.arrived.setdefault(name, arrived_s)
            self.core.flush()
            self.ending = True
        self.acknowledged = packets.number

    def _decoded(self, packets: wire.SessionPackets, unreadable: list[str]) -> Iterator[Trace]:
        """The traces; one that cannot be read is told of, and the others count."""
        items: list[wire.Trace | bytes] = [*packets.waveforms.traces, *packets.waveforms.miniseed]
        for item in items:
            try:
                traces = read_miniseed(item) if isinstance(item, bytes) else [from_message(item)]
                if any(len(trace.id) > LONGEST_ID for trace in traces):
                    raise WaveformError(f"the id of a trace has more than {LONGEST_ID} characters")
                yield from traces
            except WaveformError as error:
                unreadable.append(f"packets {packets.number}: {error}"[:LONGEST_WARNING])
                self.core.warn(unreadable[-1])

    def answer(self, update: Update, counts: bool) -> list[wire.SessionResponse]:
        """What the client should know. It is kept if that could not be found out again."""
        picks = [wire.Pick(**pick._asdict()) for pick in update.picks]
        parts = [
            wire.SessionResponse(acknowledged=self.acknowledged, picks=picks[low : low + MOST_PICKS])
            for low in range(0, max(len(picks), 1), MOST_PICKS)
        ]
        last = parts[-1]  # the watermarks are true once all picks are there
        last.watermarks.extend(wire.Watermark(trace_id=name, time_ns=mark) for name, mark in update.watermarks.items())
        last.expired.extend(update.expired)
        last.warnings.extend(update.warnings)
        last.finished = self.finished = self.ending
        if counts or self.finished:
            last.counts.extend(
                wire.SessionCounts(trace_id=name, **count._asdict()) for name, count in self.core.counts.items()
            )
        for part in parts:
            if part.picks or part.expired or part.warnings or part.finished:
                part.number = next(self._numbers)
                self.answers.append(part)
        if self.finished:  # it is kept for who has not seen the last answer; the samples of the stations need not be
            self.core = Realtime(self.manifest, self.core.settings, self.core.phase)
        return parts


class Sessions:
    """All sessions of a server. `drain` ends their connections; they cannot be resumed anywhere but here."""

    def __init__(self, models: Models, bounds: Bounds | None = None) -> None:
        self.models, self.bounds = models, bounds or Bounds()
        self._lock = threading.Lock()
        self._sessions: dict[str, _Session] = {}
        self._draining = threading.Event()
        self._timer: threading.Timer | None = None

    @property
    def stations(self) -> int:
        """Instruments that the sessions that go on have state of."""
        with self._lock:
            return sum(len(one.core.instruments) for one in self._sessions.values() if not one.finished)

    @property
    def open(self) -> int:
        """Sessions that go on, or may be resumed."""
        with self._lock:
            return sum(not session.finished for session in self._sessions.values())

    def drain(self) -> None:
        """End all connections with UNAVAILABLE, as soon as what they are at work on is done and answered."""
        self._draining.set()

    def session(self, requests: Requests, call: Call) -> Iterator[wire.SessionResponse]:
        """One connection of a session: requests in, answers out."""
        call.priority = Priority.REALTIME if call.rights is None else call.rights.most_urgent
        inbox = _Inbox()
        threading.Thread(target=_pump, args=(requests, inbox), daemon=True, name="session").start()
        try:
            yield from self._connection(self._first(inbox, call), inbox, call)
        finally:
            inbox.close()
            call.cancel()  # whoever reads requests need not go on

    def _first(self, inbox: _Inbox, call: Call) -> wire.SessionRequest:
        """The request with `start`. Raises Expired if none comes, Unavailable if the server stops first."""
        until, drains = time.monotonic() + START_S, False
        while not (came := inbox.take(1)):
            call.check()
            if drains:
                raise Unavailable("draining: this server is about to stop")
            drains = self._draining.is_set()  # its request may be as good as here
            if time.monotonic() >= until:
                raise Expired(f"no request has come within {START_S:g} s; the first of a session has `start`")
        first, _ = came[0]
        if isinstance(first, Exception):
            raise first
        if first is None or first.WhichOneof("content") != "start":
            raise UsageError("the first request of a session must have `start`")
        return first

    def _connection(self, first: wire.SessionRequest, inbox: _Inbox, call: Call) -> Iterator[wire.SessionResponse]:
        owner, resumed = object(), bool(first.start.resume_token)
        if resumed:
            session = self._resumed(first.start.resume_token, owner, call)
        else:
            session = self._opened(first.start, owner, call)
        try:
            with session.lock:  # once the connection that had it until now has done what it is at
                session.forget(first.seen)
                session.core.heard(time.monotonic())
                again = list(session.answers)
            yield session.started(resumed, self.bounds)
            yield from again
            if not session.finished:
                yield from self._answers(session, owner, inbox, call)
        finally:
            self._detach(session, owner)

    def _opened(self, start: wire.SessionStart, owner: object, call: Call) -> _Session:
        version = start.model.version
        if version < 0:
            raise UsageError(f"model.version is {version}; it must be a version number, or 0 for the latest")
        usual = REALTIME_PICKER if REALTIME_PICKER in self.models.served else ""
        served = self.models.get(start.model.name or usual, version, "picking").of(call)
        check_task(served.manifest, "picking", self.models.manifests)
        options = start.options
        manifest = served.manifest.with_options(
            dict(options.thresholds), options.hop_samples or None, options.stacking or None
        )
        session = _Session(served, manifest, start, call.user, self.bounds)
        self._forget_old()
        with self._lock:
            there = sum(not one.finished for one in self._sessions.values())
            if there >= self.bounds.sessions:
                raise Overloaded(f"{there} sessions are open, at most {self.bounds.sessions} may be", RETRY_MS)
            session.owner = owner
            self._sessions[session.token] = session
        return session

    def _resumed(self, token: str, owner: object, call: Call) -> _Session:
        self._forget_old()
        with self._lock:  # until it has its owner nobody may forget it
            session = self._sessions.get(token)
            if session is None or session.user != call.user:
                raise ModelNotFound(
                    "start.resume_token: there is no such session, or its time to resume is over; start a new one"
                )
            call.about(session.name, session.version)
            session.owner, session.seen_s = owner, time.monotonic()
        return session

    def _detach(self, session: _Session, owner: object) -> None:
        with self._lock:
            if session.owner is owner:
                session.owner, session.seen_s = None, time.monotonic()
                if not session.acknowledged:  # there is nothing in it that could be lost
                    self._sessions.pop(session.token, None)
        self._forget_later()

    def _forget_later(self) -> None:
        """Look again when the time to resume is over, if there is anything to look for."""
        with self._lock:
            if self._sessions and (self._timer is None or not self._timer.is_alive()):
                self._timer = threading.Timer(self.bounds.resume_s + TICK_S, self._on_timer)
                self._timer.daemon = True
                self._timer.start()

    def _on_timer(self) -> None:
        self._forget_old()
        self._timer = None
        self._forget_later()

    def _forget_old(self) -> None:
        """Drop the sessions that nobody has resumed in time, and of those that have finished the first ones: at most as
        many may wait for their last answer to be asked for again as may be open."""
        now_s = time.monotonic()
        with self._lock:
            for token, session in list(self._sessions.items()):
                patience_s = self.bounds.resume_s + (0.0 if session.owner is None else STALLED_S)
                if now_s - session.seen_s >= patience_s and not session.lock.locked():
                    log.info("session of %s is forgotten: not resumed in time", session.manifest.name)
                    session.forgotten = True
                    del self._sessions[token]
            finished = [token for token, one in self._sessions.items() if one.finished and one.owner is None]
            for token in finished[: max(len(finished) - self.bounds.sessions, 0)]:
                del self._sessions[token]

    def _transport(self, session: _Session, call: Call) -> Transport:
        """What computes for a session. Raises Unavailable if the model's version is served no more."""
        served = self.models.served.get(session.name, {}).get(session.version)
        if served is None or served is not session.served:
            with self._lock:
                self._sessions.pop(session.token, None)
            raise Unavailable(f"version {session.version} of {session.name!r} is served no more; start a new session")
        return served.queue.at(call)

    def _answers(self, session: _Session, owner: object, inbox: _Inbox, call: Call) -> Iterator[wire.SessionResponse]:
        """Answers as requests come, all that have come worked on together."""
        todo: deque[Waiting] = deque()
        counted_s, gone = time.monotonic(), False
        while not (gone or session.finished):
            came = inbox.take()
            gone = any(item is None for item, _ in came)
            with session.lock:
                self._check_owner(session, owner)
                session.seen_s = time.monotonic()
                todo.extend(_packets(session, came))
                counts = time.monotonic() - counted_s >= COUNTS_S
                answers = self._worked(session, owner, todo, call, counts)
            counted_s = time.monotonic() if counts else counted_s
            for answer in answers:
                yield answer
                session.seen_s = time.monotonic()
            self._check_draining(session)

    def _worked(
        self, session: _Session, owner: object, todo: deque[Waiting], call: Call, counts: bool
    ) -> list[wire.SessionResponse]:
        """Work on the packets, as far as there is room for the answers."""
        if len(session.answers) >= self.bounds.answers:
            if len(todo) > TOGETHER or sum(packets.ByteSize() for packets, _ in todo) > TOGETHER_BYTES:
                raise Overloaded(
                    f"{len(session.answers)} answers have not been seen; say in `seen` which have arrived", RETRY_MS
                )
            return []
        before = session.acknowledged
        while todo:
            packets, arrived_s = todo.popleft()
            session.push(packets, self.bounds, call, arrived_s)
        session.core.expire(time.monotonic())
        update = self._patiently(session, owner, call)
        count_picks(call, update.picks)
        count_latency(call, update.picks, session.arrived)
        session.arrived.clear()
        if session.ending:
            count_left(call, [*session.core.instruments, *session.core.ended])
        told = update.picks or update.watermarks or update.expired or update.warnings
        if not (told or counts or session.ending or session.acknowledged != before):
            return []
        return session.answer(update, counts)

    def _patiently(self, session: _Session, owner: object, call: Call) -> Update:
        """Work, and again while the server is overloaded: real-time packets are not given up."""
        while True:
            try:
                return session.core.work(self._transport(session, call))
            except Overloaded as error:
                call.check()
                self._check_owner(session, owner)
                self._check_draining(session)
                time.sleep((error.retry_ms or RETRY_MS) / 1000)

    def _check_owner(self, session: _Session, owner: object) -> None:
        if session.forgotten:
            raise Unavailable("the session was forgotten: this connection took no answer for too long; start a new one")
        if session.owner is not owner:
            raise Unavailable("the session goes on over another connection")

    def _check_draining(self, session: _Session) -> None:
        if self._draining.is_set() and not session.finished:
            raise Unavailable(f"draining: this server is about to stop; resume token {session.token}")


def _counts(trace: Trace) -> bool:
    """Whether it is a trace that the session has taken; it has told of the others."""
    try:
        check(trace)
    except WaveformError:
        return False
    return True


def _packets(session: _Session, came: list[Came]) -> Iterator[Waiting]:
    """The packets in what has come; what has been seen is forgotten. Raises what was wrong with the stream."""
    for request, arrived_s in came:
        if isinstance(request, Exception):
            raise request
        if request is None:
            continue
        if request.WhichOneof("content") == "start":
            raise UsageError("a request after the first must not have `start`")
        session.forget(request.seen)
        if request.HasField("packets"):
            yield request.packets, arrived_s


def streams(sessions: Sessions) -> Methods:
    """The methods of SeismicService that are sessions."""
    return {"Session": (sessions.session, wire.SessionRequest, wire.SessionResponse)}


def _settings(start: wire.SessionStart, bounds: Bounds) -> Settings:
    usual = Settings()
    instruments = start.instruments if start.HasField("instruments") else bounds.instruments
    if not 1 <= instruments <= bounds.instruments:
        raise UsageError(f"start.instruments is {instruments}; it must lie between 1 and {bounds.instruments}")
    conflicts = start.conflicts or usual.conflicts
    if conflicts not in ("first", "drop"):
        raise UsageError(f"start.conflicts is {conflicts!r}; it must be 'first' or 'drop'")
    return Settings(
        start.wait_s if start.HasField("wait_s") else usual.wait_s,
        start.idle_s if start.HasField("idle_s") else usual.idle_s,
        "drop" if conflicts == "drop" else "first",
        instruments,
        bounds.waiting_samples,
    )


class _Inbox:
    """Requests that wait until they are worked on, no more than fit: then the stream itself must wait."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: list[Came] = []
        self._bytes = 0
        self._closed = False

    def put(self, item: Item) -> bool:
        """Wait for room; False if nobody takes anything any more."""
        arrived_s = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._full)
            self._items.append((item, arrived_s))
            self._bytes += _size(item)
            self._changed.notify_all()
            return not self._closed

    def take(self, most: int | None = None) -> list[Came]:
        """All that has come, or the first of it; nothing if nothing comes for a while."""
        with self._changed:
            self._changed.wait_for(lambda: self._items, TICK_S)
            found, self._items = self._items[:most], [] if most is None else self._items[most:]
            self._bytes = sum(_size(item) for item, _ in self._items)
            self._changed.notify_all()
            return found

    def close(self) -> None:
        """Nobody takes anything any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def _full(self) -> bool:
        return len(self._items) >= TOGETHER or self._bytes >= TOGETHER_BYTES


def _size(item: Item) -> int:
    return item.ByteSize() if isinstance(item, wire.SessionRequest) else 0


def _pump(requests: Requests, inbox: _Inbox) -> None:
    """Requests into the inbox until the stream ends or breaks, or makes no sense (then why)."""
    while True:
        item: Item
        try:
            item = next(requests, None)
        except SeisserveError as error:
            item = error
        if not inbox.put(item) or not isinstance(item, wire.SessionRequest):
            return
