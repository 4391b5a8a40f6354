"""How every call comes in and goes out: counted, let in or refused, decoded, answered, told of.

The protocols' methods are plain functions of a request and its `Call`; what they raise becomes a status in `status`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Literal, NamedTuple, TypeVar

import grpc
from google.protobuf.message import DecodeError

from seisserve.errors import SeisserveError, UsageError
from seisserve_serving.admission import RETRY_MS, SLOW_S, Admission, Turns
from seisserve_serving.calls import Call, Counted, Priority, priority_of
from seisserve_serving.errors import Cancelled, Overloaded, Unavailable
from seisserve_serving.grpc_server import Handler, Rpc, Trailing
from seisserve_serving.status import code_of, retry_ms
from seisserve_serving.waits import Gone, Wait

__all__ = ["Arrival", "Done", "Front", "Methods", "Quick", "request_id"]

log = logging.getLogger(__name__)
# By name: the function, its request and response types; a stream method takes an iterator of requests and gives one
# of responses. Quick ones give a `Later`; the last is how many bytes a request stands for beside its own.
Method = Callable[[Any, Call], Any]
Methods = Mapping[str, tuple[Method, Any, Any]]
Quick = Mapping[str, tuple[Method, Any, Any, Callable[[Any], int]]]
REQUEST_ID = "x-request-id"
MOST_CHARACTERS = 128  # of a caller's request id
LARGE = 128 << 10  # bytes of a request that the server's thread does not work on itself: others would wait for it
ARCHIVE_BYTES = 8 << 20  # of archive requests that are at work: some batches for each lane, and nothing that waits long
GONE = "the caller has gone"
PLAIN = dict.fromkeys((*range(32), 127), "?")
LOOK_S = 0.2  # how often a thread that waits for a request looks whether its caller is still there
Made = TypeVar("Made")
Work = Callable[[bytes, Call], Awaitable[bytes]]
TOGETHER_S = 0.1
FULL = Overloaded("as many calls as may be are under way or wait to be let in; try again later", RETRY_MS)
STARTED, NUMBERS = uuid.uuid4().hex[:24], itertools.count()  # random once: the system's dice cost a switch of threads


class Arrival(NamedTuple):
    """A call at the door. method: /package.Service/Method, or the HTTP method and route. size: bytes of its request (0
    where the request is a stream). certificate: the common name in the caller's TLS certificate, or "". transport: how
    it came."""

    method: str
    metadata: Mapping[str, str | bytes]
    peer: str
    size: int = 0
    certificate: str = ""
    transport: Literal["grpc", "http"] = "grpc"


class Done(NamedTuple):
    """A call that has been answered. code: the gRPC status. calls: more than one if so many were turned away alike."""

    arrival: Arrival
    call: Call
    code: grpc.StatusCode
    seconds: float
    error: BaseException | None
    calls: int = 1


class Front:
    """The door of the server.

    guards: each sees an arrival and its call before the request is read, and raises to refuse it (a token that is
    not known, a caller that comes too often); it may name the caller in `call.user`. most_calls, client_share: as of
    `Admission`. told: hears of every call that has been answered; counted: of what calls count on their way
    (`Call.count`). let_in: raises Overloaded for a call that would be late; asked before a gRPC request is read.
    """

    def __init__(
        self,
        guards: Sequence[Callable[[Arrival, Call], None]] = (),
        most_calls: int = 256,
        told: Sequence[Callable[[Done], None]] = (),
        counted: Callable[[Call, Counted, float, str], None] | None = None,
        let_in: Callable[[Call], None] | None = None,
        client_share: float = 0.5,
    ) -> None:
        self.guards, self.told, self.counted, self.let_in = list(guards), list(told), counted, let_in
        self.admission = Admission(most_calls, client_share)
        self._turns = Turns(ARCHIVE_BYTES, most_calls)
        self._away: Counter[str] = Counter()  # calls of each method that were turned away and not told of yet

    @property
    def under_way(self) -> int:
        """Calls that are being answered now."""
        return self.admission.under_way

    @property
    def draining(self) -> bool:
        """Whether new calls are refused because the server stops."""
        return self.admission.draining

    def drain(self) -> None:
        """Refuse what comes from now on."""
        self.admission.drain()

    def wait(self, seconds: float) -> bool:
        """Whether all calls have finished within that time."""
        return self.admission.wait(seconds)

    @contextlib.contextmanager
    def call(self, arrival: Arrival, deadline: float | None) -> Iterator[Call]:
        """A call under way. Raises what its guards raise, Unavailable while draining, Overloaded if there are too many.

        Whatever the caller's block raises goes on to the caller, after it was told of.
        """
        begin, call, failure = time.monotonic(), self._call(arrival, deadline), None
        try:
            self._guard(arrival, call)
            self.admission.enter(call.priority, call.client)
            try:
                yield call
            finally:
                self.admission.leave(call.client)
        except BaseException as error:
            failure = error
            raise
        finally:
            self._tell(arrival, call, begin, failure)

    def service(
        self, name: str, pool: Executor, unary: Methods, streams: Methods | None = None, quick: Quick | None = None
    ) -> dict[str, Handler]:
        """The methods of a service, for a `GrpcServer`. Requests are decoded here: a malformed one is answered with a
        reason.

        pool: threads for methods that block. streams: methods of an iterator of requests that give one of responses.
        quick: methods that give a `Later` without waiting.
        """
        handlers = {method: self._unary(pool, *parts[:2]) for method, parts in unary.items()}
        handlers |= {method: self._stream(pool, *parts[:2]) for method, parts in (streams or {}).items()}
        handlers |= {method: self._quick(pool, parts[0], parts[1], parts[3]) for method, parts in (quick or {}).items()}
        return {f"/{name}/{method}": handler for method, handler in handlers.items()}

    def _call(self, arrival: Arrival, deadline: float | None) -> Call:
        call = Call(request_id(arrival.metadata), deadline, peer=arrival.peer)
        call.counted = self.counted
        return call

    def _guard(self, arrival: Arrival, call: Call) -> None:
        """Find out who calls, and how urgent it is. Raises what the guards raise."""
        for guard in self.guards:
            guard(arrival, call)
        call.priority = priority_of(arrival.metadata)
        if call.rights is not None:
            call.priority = max(call.priority, call.rights.most_urgent)

    async def _attend(self, rpc: Rpc, work: Work) -> None:
        """Answer a call of one request. It is counted in once that has been read: it may be long in coming. One for
        which there is no room is turned away before anything else is done."""
        self.admission.seen()
        if self._no_room_for(rpc):
            self._turn_away(rpc)
            return
        begin, arrival, turn = time.monotonic(), _arrival(rpc), None
        call = self._call(arrival, rpc.deadline)
        try:
            self._guard(arrival, call)
            call.check()
            self.admission.check(call.priority, call.client)
            if self.let_in is not None:
                self.let_in(call)
            if call.priority is Priority.ARCHIVE:
                turn = await self._turns.come()
                rpc.later(SLOW_S, turn.is_slow)
            body = await rpc.read()
            if body is None:
                raise UsageError("the call has no request message; it must have one")
            arrival = arrival._replace(size=len(body))
            if turn is not None:
                turn.read(len(body))
                call.holds = turn.hold
            self.admission.enter(call.priority, call.client)
            try:
                answer = await work(body, call)
            finally:
                self.admission.leave(call.client)
        except Gone:
            call.cancel()
            self._tell(arrival, call, begin, Cancelled(GONE))
        except Exception as error:  # the one place where anything at all may arrive: the caller must get an answer
            self._tell(arrival, call, begin, error)
            _abort(rpc, call.request_id, error)
        else:
            rpc.finish(answer, _trailing(call.request_id))
            self._tell(arrival, call, begin, None)
        finally:
            if turn is not None:
                turn.read(0)

    def _tell(self, arrival: Arrival, call: Call, begin: float, error: BaseException | None) -> None:
        code = grpc.StatusCode.OK if error is None else code_of(error)
        if code is grpc.StatusCode.INTERNAL:
            log.error("request %s failed (%s)", call.request_id, arrival.method, exc_info=error)
        self._tell_all(Done(arrival, call, code, time.monotonic() - begin, error))

    def _tell_all(self, done: Done) -> None:
        for told in self.told:
            told(done)

    def _unary(self, pool: Executor, method: Method, request_type: Any) -> Handler:
        """A method that blocks, on a thread of the pool."""

        def work(body: bytes, call: Call) -> bytes:
            return _encoded(method(_decoded(request_type, body, call), call), call)

        return functools.partial(self._attend, work=functools.partial(_on_pool, pool, work))

    def _quick(self, pool: Executor, method: Method, request_type: Any, beside: Callable[[Any], int]) -> Handler:
        """A method that gives a `Later`: on the server's thread; on one of the pool if the request is large."""

        def answer(request: Any, call: Call) -> bytes:
            return _encoded(method(request, call).result(), call)

        def work(body: bytes, call: Call) -> bytes:
            return answer(_decoded(request_type, body, call), call)

        async def working(body: bytes, call: Call) -> bytes:
            if len(body) > LARGE:
                return await _on_pool(pool, work, body, call)
            request = _decoded(request_type, body, call)
            if (elsewhere := beside(request)) > LARGE:
                if call.holds is not None:
                    call.holds(len(body) + elsewhere)
                return await _on_pool(pool, answer, request, call)
            return _encoded(await method(request, call).done(), call)

        return functools.partial(self._attend, work=working)

    def _no_room_for(self, rpc: Rpc) -> bool:
        admission = self.admission
        if not admission.over(Priority.ARCHIVE) or admission.draining:
            return False
        try:
            return admission.over(priority_of(rpc.metadata))
        except UsageError:  # of an unknown priority: who attends to the call will say so
            return False

    def _turn_away(self, rpc: Rpc) -> None:
        """Answer a call for which there is no room, with as little work as possible: more come than can be answered."""
        if not self._away:
            rpc.later(TOGETHER_S, self._tell_of_those_away)
        self._away[rpc.method] += 1
        _abort(rpc, request_id(rpc.metadata), FULL)

    def _tell_of_those_away(self) -> None:
        away, self._away = self._away, Counter()
        for method, count in away.items():
            self._tell_all(Done(Arrival(method, {}, ""), Call(), code_of(FULL), 0.0, FULL, count))

    def _stream(self, pool: Executor, method: Method, request_type: Any) -> Handler:
        """A method that blocks on requests as they come, and gives responses one after the other."""

        def answers(requests: Iterator[Any], call: Call) -> Generator[bytes, None, None]:
            for response in method(requests, call):
                yield _encoded(response, call)

        async def handle(rpc: Rpc) -> None:
            self.admission.seen()
            arrival = _arrival(rpc)
            own_id = str(arrival.metadata[REQUEST_ID])
            try:
                with self.call(arrival, rpc.deadline) as call:
                    requests = (_decoded(request_type, body, call) for body in _incoming(rpc, call))
                    responses = answers(requests, call)
                    try:
                        while (body := await _on_pool(pool, _next, responses, call)) is not None:
                            await rpc.write(body)
                    except Gone as gone:
                        call.cancel()
                        await _closed(pool, responses)  # what it holds must not wait to be collected
                        raise Cancelled(GONE) from gone
            except Exception as error:  # as in _attend
                _abort(rpc, own_id, error)
            else:
                rpc.finish(None, _trailing(own_id))

        return handle


async def _on_pool(pool: Executor, work: Callable[[Any, Call], Made], what: Any, call: Call) -> Made:
    """The work, on a thread of the pool. If the caller goes, the thread is told, and waited for."""
    made: Wait[Made] = Wait()
    ended: Wait[None] = Wait(shielded=True)

    def over(future: Future[Made]) -> None:
        error = Unavailable("the server has stopped") if future.cancelled() else future.exception()
        if error is None:
            made.set(future.result())
        else:
            made.fail(error)
        ended.set(None)

    try:
        pool.submit(work, what, call).add_done_callback(over)
    except RuntimeError as error:
        raise Unavailable("the server has stopped") from error
    try:
        return await made
    except Gone:
        call.cancel()
        await ended
        raise


def _next(responses: Iterator[bytes], call: Call) -> bytes | None:
    return next(responses, None)


async def _closed(pool: Executor, responses: Generator[bytes, None, None]) -> None:
    """Close what no thread is at any more."""
    closed: Wait[None] = Wait(shielded=True)
    try:
        pool.submit(responses.close).add_done_callback(lambda _: closed.set(None))
    except RuntimeError:  # the server has stopped
        responses.close()
    else:
        await closed


def _incoming(rpc: Rpc, call: Call) -> Iterator[bytes]:
    """The requests of a stream, for a thread of the pool: the next is read when it is wanted. Raises Cancelled and
    Expired."""
    while True:
        reading, there = rpc.read(), threading.Event()
        if reading.then(there.set):
            while not there.wait(LOOK_S):
                call.check()
        body = reading.result()
        if body is None:
            if rpc.gone:
                raise Cancelled(GONE)
            return
        yield body


def _abort(rpc: Rpc, request_id: str, error: Exception) -> None:
    """End a call with the status that an error means. INTERNAL has the request id and nothing else; the log has the
    error."""
    trailing = _trailing(request_id)
    if (retry := retry_ms(error)) is not None:
        trailing = (*trailing, ("grpc-retry-pushback-ms", str(retry)))
    text = f"internal error; the server's log has it as request {request_id}"
    if isinstance(error, SeisserveError):
        text = str(error)
    rpc.abort(code_of(error), text, trailing)


def _trailing(request_id: str) -> Trailing:
    return ((REQUEST_ID, request_id),)


def request_id(metadata: Mapping[str, str | bytes]) -> str:
    """The caller's own, as far as it can be in a line of a log; or a new one."""
    own = metadata.get(REQUEST_ID)
    if not own:
        return f"{STARTED}{next(NUMBERS):08x}"
    text = str(own)[:MOST_CHARACTERS]
    return text if text.isascii() and text.isprintable() else text.encode("ascii", "replace").decode().translate(PLAIN)


def _arrival(rpc: Rpc) -> Arrival:
    rpc.metadata[REQUEST_ID] = request_id(rpc.metadata)
    return Arrival(rpc.method, rpc.metadata, rpc.peer, 0, rpc.certificate)


def _decoded(request_type: Any, body: bytes, call: Call) -> Any:
    begin = time.monotonic()
    try:
        request = request_type.FromString(body)
    except DecodeError as error:
        name = request_type.DESCRIPTOR.name
        raise UsageError(f"the request is no {name} message: its {len(body)} bytes cannot be decoded") from error
    call.spent["decode"] += time.monotonic() - begin
    return request


def _encoded(response: Any, call: Call) -> bytes:
    begin = time.monotonic()
    encoded: bytes = response.SerializeToString()
    call.spent["encode"] += time.monotonic() - begin
    return encoded
