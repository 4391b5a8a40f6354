"""A gRPC server on gRPC's core, with one thread of its own that waits for what happens on all connections.

It has what grpcio's own servers are made of (the module `cygrpc`, which is theirs and not public) and none of what they
do besides: an answer costs less than half of what it costs on grpcio's asyncio server (docs/performance.md). Calls
are coroutines (`waits`); whoever has computed an answer sends it.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import grpc
from grpc._cython import cygrpc

from seisserve_serving.knock import Knock
from seisserve_serving.place import in_no_hurry
from seisserve_serving.waits import Gone, Task, Wait

__all__ = ["GrpcServer", "Handler", "Rpc", "Trailing"]

log = logging.getLogger(__name__)
Trailing = Sequence[tuple[str, str]]
PATIENCE_S = 1.0
NEVER_S = 1e9  # gRPC's deadline of a call without one is that far away, or infinite
MOMENT_S = 0.02  # gRPC says that nothing more is to come, and only then that this is because the caller has gone


class Rpc:
    """A call as it comes. method: /package.Service/Method. deadline: of time.monotonic, or None.

    What ends it is on its way when a method returns; a response of several must be there before the next is sent.
    """

    __slots__ = ("_call", "_head_sent", "_over", "_server", "_task", "deadline", "metadata", "method")

    def __init__(self, server: GrpcServer, event: Any) -> None:
        self._server, self._call = server, event.call
        self.method: str = event.call_details.method.decode("latin-1")
        self.metadata: dict[str, str | bytes] = dict(event.invocation_metadata)
        left_s = event.call_details.deadline - time.time()
        self.deadline = time.monotonic() + max(left_s, 0.0) if left_s < NEVER_S else None
        self._head_sent = self._over = False
        self._task: Task  # there from `begin` on

    @property
    def peer(self) -> str:
        """Where it comes from, in gRPC's words."""
        peer: str = self._call.peer().decode()
        return peer

    @property
    def certificate(self) -> str:
        """The common name in the caller's certificate; empty without one."""
        if not self._server.secret or not cygrpc.peer_identity_key(self._call):
            return ""
        names = (cygrpc.auth_context(self._call) or {}).get(b"x509_common_name", ())
        return names[0].decode() if names else ""

    @property
    def gone(self) -> bool:
        """Whether the caller has gone."""
        return self._task.gone

    def later(self, seconds: float, function: Callable[[], object]) -> None:
        """As `GrpcServer.later`."""
        self._server.later(seconds, function)

    def read(self) -> Wait[bytes | None]:
        """The next request; None if there is no more."""
        wait: Wait[bytes | None] = Wait()

        def read(event: Any) -> None:
            body = event.batch_operations[0].message()
            if body is None:
                self.later(MOMENT_S, lambda: wait.set(None))
            else:
                wait.set(body)

        self._server.do(self._call, (cygrpc.ReceiveMessageOperation(0),), read)
        return wait

    def write(self, body: bytes) -> Wait[None]:
        """Send one response of several; the next may follow when this one is on the wire."""
        wait: Wait[None] = Wait()
        self._send((cygrpc.SendMessageOperation(body, 0),), lambda event: wait.set(None))
        return wait

    def finish(self, body: bytes | None, trailing: Trailing = ()) -> None:
        """End with OK. body: the only response, or None."""
        message = () if body is None else (cygrpc.SendMessageOperation(body, 0),)
        self._end(message, cygrpc.StatusCode.ok, "", trailing)

    def abort(self, code: grpc.StatusCode, text: str, trailing: Trailing = ()) -> None:
        """End with an error."""
        self._end((), code.value[0], text, trailing)

    def begin(self, work: Coroutine[Wait[Any], None, None]) -> None:
        """Go on with what answers it."""
        self._task = Task(self._to_the_end(work))
        self._server.do(self._call, (cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)
        self._task.go_on()

    async def _to_the_end(self, work: Coroutine[Wait[Any], None, None]) -> None:
        try:
            await work
        except (Gone, GeneratorExit):  # the second: nothing will ever go on with it
            pass
        except BaseException:  # of one call, whatever it is: its thread has others to go on with
            log.exception("%s ended with an error in place of an answer", self.method)
            if not self._over:
                self.abort(grpc.StatusCode.INTERNAL, "internal error")

    def _end(self, message: tuple[Any, ...], code: int, text: str, trailing: Trailing) -> None:
        status = cygrpc.SendStatusFromServerOperation(tuple(trailing), code, text.encode(), 0)
        self._send((*message, status), _nothing)
        self._over = True

    def _send(self, operations: tuple[Any, ...], then: Callable[[Any], object]) -> None:
        head = () if self._head_sent else (cygrpc.SendInitialMetadataOperation(None, 0),)
        self._server.do(self._call, (*head, *operations), then)
        self._head_sent = True

    def _closed(self, event: Any) -> None:
        if event.batch_operations[0].cancelled():
            self._task.leave()


Handler = Callable[[Rpc], Coroutine[Wait[Any], None, None]]


class GrpcServer:
    """A gRPC server. options: of the channel. `knock` tells how many calls it has not seen yet."""

    def __init__(self, options: Sequence[tuple[str, int]], under_way: Callable[[], int] = lambda: 0) -> None:
        self._methods: dict[str, Handler] = {}
        self._due: set[_Tag] = set()  # what gRPC has not answered yet
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._lock, self._numbers, self._next_timer = threading.Lock(), itertools.count(), math.inf
        self.secret = False  # whether any port has TLS
        self._stopping = self._shut = self._over = False
        self._ended = Future[None]()
        with in_no_hurry():  # the threads that gRPC makes for itself
            self._queue = cygrpc.CompletionQueue()
            self._server = cygrpc.Server(tuple(options), False)
            self._server.register_completion_queue(self._queue)
        self._thread = threading.Thread(target=self._serve, name="grpc", daemon=True)
        self.knock = Knock(under_way)
        self.knock.listen(self)

    def add(self, methods: Mapping[str, Handler]) -> None:
        """Answer these methods."""
        self._methods |= methods

    def add_port(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen; which port that is. Raises RuntimeError if it cannot."""
        secret = () if credentials is None else (credentials._credentials,)
        self.secret = self.secret or bool(secret)
        with in_no_hurry():
            port: int = self._server.add_http2_port(address.encode(), *secret)
        if not port:
            raise RuntimeError(f"cannot listen on {address}")
        return port

    def start(self) -> None:
        """Begin to answer."""
        with in_no_hurry():
            self._server.start()
            self._ask()
            self._thread.start()
        self.knock.start()

    def stop(self, grace_s: float) -> Future[None]:
        """Take no new calls; end those under way when the grace period is over. The result is there after that."""
        self.knock.stop()
        with self._lock:
            first, self._stopping = not self._stopping, True
        if first and not self._thread.ident:
            self._ended.set_result(None)
        elif first:
            self._server.shutdown(self._queue, self._tag(self._has_shut))
        if not self._ended.done():
            threading.Thread(target=self._cancel_after, args=(grace_s,), daemon=True).start()
        return self._ended

    def later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call a function on the server's thread, after so many seconds; from other threads, up to a second later."""
        due = time.monotonic() + seconds
        with self._lock:
            heapq.heappush(self._timers, (due, next(self._numbers), function))
            self._next_timer = min(self._next_timer, due)

    def do(self, call: Any, operations: tuple[Any, ...], then: Callable[[Any], object]) -> None:
        """Have gRPC do something for a call."""
        if self._over:
            return
        tag, refused = self._tag(then), -1
        try:
            refused = call.start_server_batch(operations, tag)
        finally:
            if refused:  # it will not come back
                self._due.discard(tag)
        if refused:
            raise RuntimeError(f"gRPC refuses {[type(one).__name__ for one in operations]}: its call error {refused}")

    def _tag(self, then: Callable[[Any], object]) -> _Tag:
        tag = _Tag(then)
        self._due.add(tag)
        return tag

    def _ask(self) -> None:
        """Ask for the next call, unless the server stops."""
        tag = self._tag(self._arrived)
        try:
            self._server.request_call(self._queue, self._queue, tag)
        except ValueError:  # it has been told so meanwhile
            self._due.discard(tag)

    def _arrived(self, event: Any) -> None:
        if not event.success:
            return
        self._ask()
        rpc = Rpc(self, event)
        handler = self._methods.get(rpc.method, _unknown)
        rpc.begin(handler(rpc))

    def _has_shut(self, event: Any) -> None:
        self._shut = True

    def _serve(self) -> None:
        while not (self._shut and not self._due):
            left_s = min(self._next_timer - time.monotonic(), PATIENCE_S)
            event = self._queue.poll(time.time() + left_s)
            tag = event.tag
            try:
                if isinstance(tag, _Tag):
                    self._due.discard(tag)
                    tag.then(event)
                if left_s <= 0.0:
                    self._ring()
            except Exception:  # of one call, or timer: everybody else depends on this thread
                log.exception("the server goes on after an error")
            del event, tag  # they may be the last to hold a call that has ended
        with self._lock:
            self._over = True
        self._server.destroy()
        self._ended.set_result(None)
        while self._timers:  # what was to be told soon is told now
            self._ring()

    def _ring(self) -> None:
        """Call what a timer is due for, and note which is next."""
        with self._lock:
            function = heapq.heappop(self._timers)[2]
            self._next_timer = self._timers[0][0] if self._timers else math.inf
        function()

    def _cancel_after(self, grace_s: float) -> None:
        try:
            self._ended.result(grace_s)
        except TimeoutError:
            with self._lock:
                if not self._over:  # else gRPC's server is gone, and asking it for anything ends the process
                    self._server.cancel_all_calls()


class _Tag:
    """What gRPC gives back when it has done something."""

    __slots__ = ("then",)

    def __init__(self, then: Callable[[Any], object]) -> None:
        self.then = then


def _nothing(event: Any) -> None:
    pass


async def _unknown(rpc: Rpc) -> None:
    rpc.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
