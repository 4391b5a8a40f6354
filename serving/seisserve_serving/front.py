"""How every call comes in and goes out: counted, let in or refused, decoded, answered, told of.

The protocols' methods are plain functions of a request and its `Call`; what they raise becomes a status in `status`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Literal, NamedTuple, TypeVar

import grpc
from google.protobuf.message import DecodeError

from seisserve.errors import SeisserveError, UsageError
from seisserve_serving.calls import Call, Counted, Priority, priority_of
from seisserve_serving.errors import Cancelled, Overloaded, Unavailable
from seisserve_serving.status import code_of, retry_ms

__all__ = ["Arrival", "Done", "Front", "Methods"]

log = logging.getLogger(__name__)
RETRY_MS = 200
# Of the calls that may be under way: the rest is kept for calls that are more urgent.
SHARE = {Priority.REALTIME: 1.0, Priority.NORMAL: 0.9, Priority.ARCHIVE: 0.75}
# By name: the function, its request and response types; a stream method takes an iterator of requests and gives one
# of responses.
Method = Callable[[Any, Call], Any]
Methods = Mapping[str, tuple[Method, Any, Any]]
REQUEST_ID = "x-request-id"
GONE = "the caller has gone"
LOOK_S = 0.2  # how often a thread that waits for a request looks whether its caller is still there
Made = TypeVar("Made")
Context = Any  # grpc.aio.ServicerContext, which has no types
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
    """A call that has been answered. code: the gRPC status."""

    arrival: Arrival
    call: Call
    code: grpc.StatusCode
    seconds: float
    error: BaseException | None


class Front:
    """The door of the server.

    guards: each sees an arrival and its call before the request is decoded, and raises to refuse it (a token that is
    not known, a caller that comes too often); it may name the caller in `call.user`. most_calls: at work or waiting for
    a lane at once; more are refused at once, those that are less urgent a little earlier (`SHARE`). told: hears of
    every call that has been answered; counted: of what calls count on their way (`Call.count`). in_time: raises
    Overloaded for a call of that priority which has only so many seconds; asked before a gRPC request is read.
    """

    def __init__(
        self,
        guards: Sequence[Callable[[Arrival, Call], None]] = (),
        most_calls: int = 256,
        told: Sequence[Callable[[Done], None]] = (),
        counted: Callable[[Call, Counted, float, str], None] | None = None,
        in_time: Callable[[Priority, float], None] | None = None,
    ) -> None:
        self.guards, self.most_calls, self.told, self.counted = list(guards), most_calls, list(told), counted
        self.in_time = in_time
        self._changed = threading.Condition()
        self._under_way = 0
        self._draining = False

    @property
    def under_way(self) -> int:
        """Calls that are being answered now."""
        return self._under_way

    @property
    def draining(self) -> bool:
        """Whether new calls are refused because the server stops."""
        return self._draining

    def drain(self) -> None:
        """Refuse what comes from now on."""
        with self._changed:
            self._draining = True

    def wait(self, seconds: float) -> bool:
        """Whether all calls have finished within that time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._under_way, seconds)

    @contextlib.contextmanager
    def call(self, arrival: Arrival, deadline: float | None) -> Iterator[Call]:
        """A call under way. Raises what its guards raise, Unavailable while draining, Overloaded if there are too many.

        Whatever the caller's block raises goes on to the caller, after it was told of.
        """
        begin = time.monotonic()
        call = Call(_request_id(arrival.metadata), deadline, peer=arrival.peer)
        call.counted = self.counted
        try:
            self._let_in(arrival, call)
        except SeisserveError as error:
            self._tell(arrival, call, begin, error)
            raise
        failure: BaseException | None = None
        try:
            yield call
        except BaseException as error:
            failure = error
            raise
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()
            self._tell(arrival, call, begin, failure)

    def service(
        self, name: str, pool: Executor, unary: Methods, streams: Methods | None = None, quick: Methods | None = None
    ) -> grpc.GenericRpcHandler:
        """A service of gRPC's asyncio server. Requests are decoded here: a malformed one is answered with a reason.

        pool: threads for methods that block. streams: methods of an iterator of requests that give one of responses.
        quick: methods that give a `Later` without waiting.
        """
        path = f"/{name}/"
        handlers = {method: self._unary(path + method, pool, *parts[:2]) for method, parts in unary.items()}
        handlers |= {method: self._stream(path + method, pool, *parts[:2]) for method, parts in (streams or {}).items()}
        handlers |= {method: self._quick(path + method, *parts[:2]) for method, parts in (quick or {}).items()}
        return grpc.method_handlers_generic_handler(name, handlers)

    def _let_in(self, arrival: Arrival, call: Call) -> None:
        for guard in self.guards:
            guard(arrival, call)
        call.priority = priority_of(arrival.metadata)
        if call.rights is not None:
            call.priority = max(call.priority, call.rights.most_urgent)
        with self._changed:
            self._check_room(call.priority)
            self._under_way += 1

    async def _body(self, arrival: Arrival, context: Context) -> bytes:
        """The request, read if there is room for the call: what nobody reads is hardly sent, and costs nothing.

        The call is not counted in before: it may be long in coming. Raises Unavailable, Overloaded, UsageError.
        """
        begin, call = time.monotonic(), Call(str(arrival.metadata[REQUEST_ID]), peer=arrival.peer)
        try:
            priority, left_s = priority_of(arrival.metadata), context.time_remaining()
            self._check_room(priority)
            if self.in_time is not None and left_s is not None:
                self.in_time(priority, left_s)
            body = await context.read()
            if not isinstance(body, bytes):
                raise UsageError("the call has no request message; it must have one")
        except SeisserveError as error:
            self._tell(arrival, call, begin, error)
            raise
        return body

    def _check_room(self, priority: Priority) -> None:
        if self._draining:
            raise Unavailable("draining: this server is about to stop")
        most = math.ceil(SHARE[priority] * self.most_calls)
        if self._under_way >= most:
            text = f"{self._under_way} calls are under way, at most {most} of this priority may be let in"
            raise Overloaded(text, RETRY_MS)

    def _tell(self, arrival: Arrival, call: Call, begin: float, error: BaseException | None) -> None:
        code = grpc.StatusCode.OK if error is None else code_of(error)
        if code is grpc.StatusCode.INTERNAL:
            log.error("request %s failed (%s)", call.request_id, arrival.method, exc_info=error)
        for told in self.told:
            told(Done(arrival, call, code, time.monotonic() - begin, error))

    def _unary(self, name: str, pool: Executor, method: Method, request_type: Any) -> grpc.RpcMethodHandler:
        """A method that blocks, on a thread of the pool."""

        def work(body: bytes, call: Call) -> bytes:
            return _encoded(method(_decoded(request_type, body, call), call), call)

        async def handle(_: object, context: Context) -> bytes:
            arrival = _arrival(name, context)
            async with _status(context, arrival):
                body = await self._body(arrival, context)
                with self.call(arrival._replace(size=len(body)), _deadline(context)) as call:
                    working = asyncio.get_running_loop().run_in_executor(pool, work, body, call)
                    return await _unless_gone(working, call)

        return grpc.stream_unary_rpc_method_handler(handle)  # on the wire the same; see _body

    def _quick(self, name: str, method: Method, request_type: Any) -> grpc.RpcMethodHandler:
        """A method that gives a `Later`, on the event loop itself."""

        async def handle(_: object, context: Context) -> bytes:
            arrival = _arrival(name, context)
            async with _status(context, arrival):
                body = await self._body(arrival, context)
                with self.call(arrival._replace(size=len(body)), _deadline(context)) as call:
                    later = method(_decoded(request_type, body, call), call)
                    try:
                        return _encoded(await later.done(), call)
                    except asyncio.CancelledError as gone:
                        call.cancel()
                        raise Cancelled(GONE) from gone

        return grpc.stream_unary_rpc_method_handler(handle)  # on the wire the same; see _body

    def _stream(self, name: str, pool: Executor, method: Method, request_type: Any) -> grpc.RpcMethodHandler:
        """A method that blocks on requests as they come, and gives responses one after the other."""

        def answers(requests: Iterator[Any], call: Call) -> Iterator[bytes]:
            for response in method(requests, call):
                yield _encoded(response, call)

        async def handle(bodies: AsyncIterator[bytes], context: Context) -> None:
            arrival, loop = _arrival(name, context), asyncio.get_running_loop()
            async with _status(context, arrival):
                with self.call(arrival, _deadline(context)) as call:
                    requests = (_decoded(request_type, body, call) for body in _incoming(bodies, loop, call))
                    responses = answers(requests, call)
                    while (
                        body := await _unless_gone(loop.run_in_executor(pool, next, responses, None), call)
                    ) is not None:
                        await context.write(body)

        return grpc.stream_stream_rpc_method_handler(handle)


async def _unless_gone(working: asyncio.Future[Made], call: Call) -> Made:
    """What a thread of the pool makes. Raises Cancelled if the caller goes, once the thread has noticed."""
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError as gone:
        call.cancel()
        await asyncio.wait([working])
        raise Cancelled(GONE) from gone


def _incoming(bodies: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop, call: Call) -> Iterator[bytes]:
    """The requests of a stream, for a thread of the pool: the next is read when it is wanted. Raises Cancelled and
    Expired."""

    async def read() -> bytes | None:
        return await anext(bodies, None)

    while True:
        reading = asyncio.run_coroutine_threadsafe(read(), loop)
        while True:
            with contextlib.suppress(TimeoutError):
                body = reading.result(LOOK_S)
                break
            call.check()
        if body is None:
            return
        yield body


@contextlib.asynccontextmanager
async def _status(context: Context, arrival: Arrival) -> AsyncIterator[None]:
    """Whatever is raised inside becomes a status, and every answer has the request id.

    INTERNAL carries that id and nothing else; the log has the error.
    """
    request_id = str(arrival.metadata[REQUEST_ID])
    trailing = [(REQUEST_ID, request_id)]
    try:
        yield
    except Exception as error:  # the one place where anything at all may arrive: the caller must get an answer
        if (retry := retry_ms(error)) is not None:
            trailing.append(("grpc-retry-pushback-ms", str(retry)))
        inner = f"internal error; the server's log has it as request {request_id}"
        text = str(error) if isinstance(error, SeisserveError) else inner
        await context.abort(code_of(error), text, tuple(trailing))
    context.set_trailing_metadata(tuple(trailing))


def _request_id(metadata: Mapping[str, str | bytes]) -> str:
    return str(metadata.get(REQUEST_ID) or f"{STARTED}{next(NUMBERS):08x}")


def _arrival(name: str, context: grpc.ServicerContext) -> Arrival:
    metadata = dict(context.invocation_metadata())
    metadata[REQUEST_ID] = _request_id(metadata)
    names = context.auth_context().get("x509_common_name", ())
    return Arrival(name, metadata, context.peer(), 0, names[0].decode() if names else "")


def _deadline(context: grpc.ServicerContext) -> float | None:
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left


def _decoded(request_type: Any, body: bytes, call: Call) -> Any:
    begin = time.monotonic()
    try:
        request = request_type.FromString(body)
    except DecodeError as error:
        name = request_type.DESCRIPTOR.name
        raise UsageError(f"the request is no {name} message: its {len(body)} bytes cannot be decoded") from error
    call.spend("decode", time.monotonic() - begin)
    return request


def _encoded(response: Any, call: Call) -> bytes:
    begin = time.monotonic()
    encoded: bytes = response.SerializeToString()
    call.spend("encode", time.monotonic() - begin)
    return encoded
