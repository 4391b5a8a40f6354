"""A real-time session with a server: packets out, picks in, and the connection made anew when it breaks.

What has been sent is kept until the server has taken it, so that nothing is lost with a connection. Of what the server
has taken as much is kept as picks to come depend on: if the server itself is lost, another one gets that, and finds the
picks that have not been told yet, the same as the first one would have.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple

import grpc

from seisserve.errors import ServerError, UsageError
from seisserve.messages import to_message
from seisserve.picks import Pick
from seisserve.proto import seismic_pb2 as wire
from seisserve.realtime import Counts
from seisserve.remote import Remote, split_model
from seisserve.resample import NS, ZERO_CROSSINGS, Phase, exact_rate
from seisserve.traces import Trace, to_traces

if TYPE_CHECKING:
    from obspy import Stream

__all__ = ["Session", "SessionOptions"]

METHOD = "/seisserve.v1.SeismicService/Session"
# A connection that ends with one of these may be made again.
BROKEN = {
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED,
}  # fmt: skip
PART_BYTES = 4 << 20  # about, of a message that goes to another server
SILENT_S = 60.0  # packets that nobody has taken for so long: the connection is dead
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
METADATA = (("seisserve-priority", "realtime"),)


class SessionOptions(NamedTuple):
    """What a session is asked for; the words are those of `Client.session`."""

    model: str
    thresholds: dict[str, float] | None = None
    hop_samples: int | None = None
    stacking: Literal["mean", "max"] | None = None
    resampling: Phase = "zero"
    wait_s: float = 10.0
    idle_s: float = 300.0
    conflicts: Literal["first", "drop"] = "first"

    def start(self) -> wire.SessionStart:
        """The message that opens a session."""
        name, version = split_model(self.model)
        return wire.SessionStart(
            model=wire.ModelSpec(name=name, version=version),
            options=wire.Options(
                thresholds=self.thresholds or {},
                hop_samples=self.hop_samples or 0,
                stacking=self.stacking or "",
                resampling=self.resampling,
            ),
            wait_s=self.wait_s,
            idle_s=self.idle_s,
            conflicts=self.conflicts,
        )


class Session:
    """Packets in, picks out, each once. Use it in a `with` statement: at its end all that waits becomes final.

    on_pick: called with each pick as it comes, on a thread of the session; without it, iterate over the session for
    them (until it is finished) or ask `new_picks`. retry_s: how long a broken connection is tried again. most_waiting:
    so many packets may be on their way; then `send` waits.
    watermarks: by NET.STA.LOC.BI the time (ns since 1970) before which all picks have come; counts: what became of the
    samples; warnings, expired: in the order in which they came. model, version, provenance: as of `Picks`.
    """

    def __init__(
        self,
        remote: Remote,
        options: SessionOptions,
        on_pick: Callable[[Pick], None] | None = None,
        retry_s: float = 300.0,
        most_waiting: int = 1000,
    ) -> None:
        self.remote, self.options, self.on_pick, self.retry_s, self.most_waiting = (
            remote, options, on_pick, retry_s, most_waiting,
        )  # fmt: skip
        self.watermarks: dict[str, int] = {}
        self.counts: dict[str, Counts] = {}
        self.warnings: list[str] = []
        self.expired: list[str] = []
        self.reconnected = 0
        self.model, self.version, self.provenance = options.model, 0, ""
        self._picks: queue.SimpleQueue[Pick | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._waiting: deque[wire.SessionPackets] = deque()  # that the server has not taken
        self._number = 0  # of the last of them
        self._kept: dict[str, deque[Trace]] = {}
        self._told: dict[str, set[tuple[str, int]]] = {}  # picks behind the watermark
        self._before: dict[str, int] = {}  # picks before that time were told by a server that is no more
        self._token, self._seen, self._history_s = "", 0, 0.0
        self._heard_s = 0.0
        self._call: grpc.Call | None = None
        self._finishing = self._finished = self._closed = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="session")
        self._opened = threading.Event()
        self._thread.start()
        self._opened.wait()
        self._check()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def send(self, waveforms: Stream | Iterable[Trace]) -> None:
        """Send packets: an ObsPy Stream, or traces. Raises what has gone wrong with the session meanwhile."""
        traces = to_traces(waveforms)
        if traces:
            self._put(wire.SessionPackets(waveforms=wire.Waveforms(traces=map(to_message, traces))), traces)

    def finish(self) -> None:
        """The records end here: wait until all picks have come. Raises ServerError."""
        with self._changed:
            finishing, self._finishing = self._finishing, True
        if not finishing:
            self._put(wire.SessionPackets(finish=True), [])
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._failure is not None)
        self._check()

    def close(self) -> None:
        """End the connection; the server keeps the session for a while, and then forgets it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._call is not None and not self._finished:
                self._call.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def new_picks(self) -> list[Pick]:
        """The picks that have come since it was asked last."""
        found = []
        with contextlib.suppress(queue.Empty):
            while (pick := self._picks.get_nowait()) is not None:
                found.append(pick)
        self._check()
        return found

    def __iter__(self) -> Iterator[Pick]:
        """The picks as they come, until the session is finished."""
        while (pick := self._picks.get()) is not None:
            yield pick
        self._picks.put(None)
        self._check()

    def _put(self, packets: wire.SessionPackets, traces: list[Trace]) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._waiting) < self.most_waiting or self._failure is not None or self._closed
            )
            self._check()
            if self._closed or (self._finishing and not packets.finish):
                raise UsageError("the session is finished; nothing can be sent any more")
            now_s = time.monotonic()
            if not self._waiting:
                self._heard_s = now_s
            elif now_s - self._heard_s > SILENT_S and self._call is not None:
                self._call.cancel()  # a connection that died without a word
            self._append(packets)
            for trace in traces:
                self._kept.setdefault(trace.id[:-1], deque()).append(trace)
            self._changed.notify_all()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    # The thread of the session.

    def _run(self) -> None:
        try:
            self._connect_until_done()
        except BaseException as error:  # whoever uses the session must hear of it, whatever it is
            self._failure = error
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._call is not None:
                self._call.cancel()
        self._picks.put(None)
        self._opened.set()

    def _connect_until_done(self) -> None:
        pause_s, broken_s = FIRST_PAUSE_S, time.monotonic()
        while not (self._finished or self._closed):
            link = _Link()
            try:
                self._connection(link)
                why = "the server ended the connection"
            except grpc.RpcError as error:
                code, why = error.code(), error.details() or ""
                if code is grpc.StatusCode.NOT_FOUND and self._token:
                    self._anew()
                    continue
                # The first connection must succeed at once: the address or the options may be wrong.
                if not self._closed and (code not in BROKEN or not self._opened.is_set()):
                    raise self.remote.mapped(error) from error
            finally:
                with self._changed:
                    link.over = True
                    self._changed.notify_all()
            if link.useful:
                pause_s, broken_s = FIRST_PAUSE_S, time.monotonic()
            if time.monotonic() - broken_s > self.retry_s and not self._closed:
                raise ServerError(f"{self.remote.address}: no connection for {self.retry_s:g} s: {why}")
            if not self._finished:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _connection(self, link: _Link) -> None:
        """One connection, until it ends. Raises grpc.RpcError."""
        stream: Callable[..., grpc.Call] = self.remote.channel.stream_stream(
            METHOD,
            request_serializer=wire.SessionRequest.SerializeToString,
            response_deserializer=wire.SessionResponse.FromString,
        )
        call = stream(self._requests(link), metadata=METADATA)
        with self._changed:
            self._call = call
            if self._closed:
                call.cancel()
        for response in call:
            self._take(response, link)

    def _requests(self, link: _Link) -> Iterator[wire.SessionRequest]:
        """What goes out over a connection; gRPC asks for it on a thread of its own."""
        start = wire.SessionStart(resume_token=self._token) if self._token else self.options.start()
        yield wire.SessionRequest(start=start, seen=self._seen)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: link.over or self._to_say(link))
                if link.over:
                    return
                packets, link.seen = self._next(link), self._seen
                if packets is not None:
                    link.sent = packets.number
            yield wire.SessionRequest(packets=packets, seen=link.seen)

    def _to_say(self, link: _Link) -> bool:
        return link.ready and (self._next(link) is not None or self._seen > link.seen)

    def _next(self, link: _Link) -> wire.SessionPackets | None:
        """The first packets that this connection has not sent."""
        if not self._waiting or self._waiting[-1].number <= link.sent:
            return None
        return self._waiting[max(link.sent + 1 - self._waiting[0].number, 0)]

    def _take(self, response: wire.SessionResponse, link: _Link) -> None:
        """An answer. Its picks are told first: then it counts as seen."""
        again = 0 < response.number <= self._seen
        if not again:
            for message in response.picks:
                self._tell(_pick(message))
        with self._changed:
            self._heard_s = time.monotonic()
            while self._waiting and self._waiting[0].number <= response.acknowledged:
                self._waiting.popleft()
            if response.HasField("started"):
                self._begin(response.started)
                link.sent, link.ready = response.acknowledged, True
            else:
                link.useful = True
            self._seen = max(self._seen, response.number)
            for mark in response.watermarks:
                self.watermarks[mark.trace_id] = max(mark.time_ns, self.watermarks.get(mark.trace_id, mark.time_ns))
                self._forget(mark.trace_id)
            for counts in response.counts:
                self.counts[counts.trace_id] = Counts(*(getattr(counts, name) for name in Counts._fields))
            self.warnings += [] if again else response.warnings
            self.expired += [] if again else response.expired
            self._finished = self._finished or response.finished
            link.over = link.over or self._finished
            self._changed.notify_all()
        self._opened.set()

    def _begin(self, started: wire.SessionStarted) -> None:
        self._token, self._history_s = started.resume_token, started.history_s
        self.model, self.version, self.provenance = started.model.name, started.model.version, started.provenance
        self.reconnected += self._opened.is_set()

    def _tell(self, pick: Pick) -> None:
        told = self._told.setdefault(pick.trace_id, set())
        if pick.time_ns < self._before.get(pick.trace_id, pick.time_ns) or (pick.phase, pick.time_ns) in told:
            return
        told.add((pick.phase, pick.time_ns))
        if self.on_pick is None:
            self._picks.put(pick)
        else:
            self.on_pick(pick)

    def _forget(self, name: str) -> None:
        """Let go of what no pick behind the watermark depends on."""
        mark = self.watermarks[name]
        self._told[name] = {item for item in self._told.get(name, ()) if item[1] >= mark}
        kept = self._kept.get(name, deque())
        while kept and _end_ns(kept[0]) < mark - (self._history_s + self.options.wait_s) * NS:
            kept.popleft()

    def _anew(self) -> None:
        """The server has forgotten the session, or is another one: begin again with what picks to come depend on."""
        with self._changed:
            self._before = dict(self.watermarks)
            self._token, self._seen, self._number = "", 0, 0
            self._waiting.clear()
            packets = wire.SessionPackets()
            size = 0
            for kept in self._kept.values():  # all of an instrument together: so nothing of it is late
                packets.waveforms.traces.extend(map(to_message, kept))
                size += sum(trace.samples.nbytes for trace in kept)
                if size > PART_BYTES:
                    self._append(packets)
                    packets, size = wire.SessionPackets(), 0
            packets.finish = self._finishing
            self._append(packets)

    def _append(self, packets: wire.SessionPackets) -> None:
        self._number += 1
        packets.number = self._number
        self._waiting.append(packets)


class _Link:
    """One connection: the numbers of the last packets that were sent over it and of the last answer that was confirmed;
    whether the server has greeted, whether it has said more than that, whether the connection is over."""

    def __init__(self) -> None:
        self.sent = self.seen = 0
        self.ready = self.useful = self.over = False


def _pick(message: wire.Pick) -> Pick:
    return Pick(
        message.trace_id,
        message.phase,
        message.time_ns,
        message.probability,
        message.uncertainty_s,
        message.snr_db,
        tuple(message.flags),
    )


def _end_ns(trace: Trace) -> float:
    """When the last sample was taken, and the filter that resamples has done with it."""
    return trace.start_ns + (len(trace.samples) + 4 * ZERO_CROSSINGS) * NS / float(exact_rate(trace.sampling_rate_hz))
