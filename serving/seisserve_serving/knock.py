"""How many calls there are, with those that wait at gRPC's door and that the server has not seen yet.

gRPC takes calls off the wire faster than a server can look at them, and what waits in between shows nowhere. So the
server knocks at its own door now and then, through a socket that nobody else may open: all the calls that it sees
before it hears the knock were waiting.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import grpc

if TYPE_CHECKING:
    from seisserve_serving.grpc_server import GrpcServer, Rpc

__all__ = ["Knock"]

log = logging.getLogger(__name__)
EVERY_S, OFTEN_S = 0.02, 0.01  # usually, and while many wait: a knock costs more than a small call
SOME, MANY = 16, 8  # calls since the last look, for one caller after another; calls that waited
LONGEST_S = 5.0


class _At(NamedTuple):
    """What the server knew when it knocked."""

    seen: int
    under_way: int


class Knock:
    """Knocks at a server's door. Without Unix sockets or a temporary folder it takes it that nobody waits.

    under_way: how many calls the server has let in; seen: how many have come, which the server counts here.
    """

    def __init__(self, under_way: Callable[[], int]) -> None:
        self.seen = 0
        self._under_way = under_way
        self._unheard: deque[_At] = deque()
        self._last, self._waited = 0, 0  # what the last knock that was heard has told
        self._seen_then = 0
        self._method = f"/{secrets.token_hex(16)}/Knock"  # a name that nobody else knows
        self._folder = ""
        self._channel: grpc.Channel | None = None

    @property
    def calls(self) -> int:
        """Under way and at the door, when the server knocked; at least, if it has not heard that yet."""
        if not self._unheard:
            return self._last
        at = self._unheard[0]
        return max(self._last, at.under_way + self.seen - at.seen)

    def listen(self, server: GrpcServer) -> None:
        """Add what hears it to a server that has not begun."""
        server.add({self._method: self._answer})
        if hasattr(socket, "AF_UNIX"):
            try:
                self._folder = tempfile.mkdtemp(prefix="seisserve-")  # which only this user may open
                server.add_port(f"unix:{self._folder}/door")
            except (OSError, RuntimeError) as error:
                log.info("calls that wait at the door are not counted: %s", error)
                self._remove()

    def start(self, later: Callable[[float, Callable[[], object]], None]) -> None:
        """Begin. later: calls a function after some seconds."""
        if not self._folder:
            return
        self._channel = channel = grpc.insecure_channel(f"unix:{self._folder}/door")
        method = channel.unary_unary(self._method)

        def look() -> None:
            if self._channel is None:
                return
            later(OFTEN_S if self._waited > MANY else EVERY_S, look)
            under_way, fresh, self._seen_then = self._under_way(), self.seen - self._seen_then, self.seen
            if fresh > SOME or (fresh and under_way > 1) or self._waited:
                self._unheard.append(_At(self.seen, under_way))
                method.future(b"", timeout=LONGEST_S).add_done_callback(self._back)
            else:
                self._last = 0

        later(EVERY_S, look)

    def stop(self) -> None:
        """Knock no more."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        self._remove()

    async def _answer(self, rpc: Rpc) -> None:
        self._heard()
        rpc.finish(await rpc.read() or b"")

    def _back(self, answer: grpc.Future) -> None:
        if answer.cancelled() or answer.exception() is not None:  # nothing is known then
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
