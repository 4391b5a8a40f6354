"""How many calls there are, with those that wait at gRPC's door and that the server has not seen yet.

gRPC takes calls off the wire faster than an event loop can look at them, and what waits in between shows nowhere. So
the server knocks at its own door now and then, through a socket that nobody else may open: all the calls that it sees
before it hears the knock were waiting.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

__all__ = ["Knock"]

log = logging.getLogger(__name__)
EVERY_S, OFTEN_S = 0.02, 0.01  # while there are calls, and while many wait: a knock costs as much as a small call
MANY = 8
LONGEST_S = 5.0


class _At(NamedTuple):
    """What the server knew when it knocked."""

    seen: int
    under_way: int


class Knock:
    """Knocks at a server's door, on its loop. Without Unix sockets or a temporary folder it takes it that nobody waits.

    under_way: how many calls the server has let in; seen: how many have come, which the server counts here.
    """

    def __init__(self, under_way: Callable[[], int]) -> None:
        self.seen = 0
        self._under_way = under_way
        self._unheard: deque[_At] = deque()
        self._last, self._waited = 0, 0  # what the last knock that was heard has told
        self._method = f"/{secrets.token_hex(16)}/Knock"  # a name that nobody else knows
        self._folder = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def calls(self) -> int:
        """Under way and at the door, when the server knocked; at least, if it has not heard that yet."""
        if not self._unheard:
            return self._last
        at = self._unheard[0]
        return max(self._last, at.under_way + self.seen - at.seen)

    def listen(self, server: grpc.aio.Server) -> None:
        """Add what hears it to a server that has not begun."""
        server.add_generic_rpc_handlers((_Ear(self._method, self._heard),))
        if hasattr(socket, "AF_UNIX"):
            try:
                self._folder = tempfile.mkdtemp(prefix="seisserve-")  # which only this user may open
                server.add_insecure_port(f"unix:{self._folder}/door")
            except (OSError, RuntimeError) as error:
                log.info("calls that wait at the door are not counted: %s", error)
                self._remove()

    def start(self) -> None:
        """Begin, on the server's loop."""
        if self._folder:
            self._task = asyncio.get_running_loop().create_task(self._go_on())

    async def stop(self) -> None:
        """Knock no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._remove()

    async def _go_on(self) -> None:
        async with grpc.aio.insecure_channel(f"unix:{self._folder}/door") as channel:
            method, knocks = channel.unary_unary(self._method), set()
            seen = 0
            while True:
                await asyncio.sleep(OFTEN_S if self._waited > MANY else EVERY_S)
                if seen != self.seen or self._waited:
                    seen = self.seen
                    self._unheard.append(_At(seen, self._under_way()))
                    knock = asyncio.ensure_future(self._knock(method))
                    knocks.add(knock)
                    knock.add_done_callback(knocks.discard)
                else:
                    self._last = 0

    async def _knock(self, method: Any) -> None:
        try:
            await method(b"", timeout=LONGEST_S)
        except grpc.aio.AioRpcError:  # nothing is known then
            self._unheard.clear()
            self._last = self._waited = 0

    def _heard(self) -> None:
        if self._unheard:
            at = self._unheard.popleft()
            self._waited = self.seen - at.seen
            self._last = at.under_way + self._waited

    def _remove(self) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""


class _Ear(grpc.GenericRpcHandler):
    def __init__(self, method: str, heard: Any) -> None:
        async def answer(body: bytes, context: Any) -> bytes:
            return body

        self._method, self._heard, self._handler = method, heard, grpc.unary_unary_rpc_method_handler(answer)

    def service(self, details: Any) -> grpc.RpcMethodHandler | None:
        if details.method != self._method:
            return None
        self._heard()
        return self._handler
