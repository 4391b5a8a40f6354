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
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import grpc

from seisserve_serving.place import give_way

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
    answered: int
    under_way: int


class Knock:
    """Knocks at a server's door. Without Unix sockets or a temporary folder it takes it that nobody waits.

    under_way: how many calls the server has let in; seen, answered: how many have come, and been answered, which the
    server counts here.
    """

    def __init__(self, under_way: Callable[[], int]) -> None:
        self.seen = self.answered = 0
        self._under_way = under_way
        self._unheard: _At | None = None
        self._last, self._waited = 0, 0  # what the last knock that was heard has told
        self._method = f"/{secrets.token_hex(16)}/Knock"  # a name that nobody else knows
        self._folder = ""
        self._over = threading.Event()

    @property
    def calls(self) -> int:
        """Under way and at the door, when the server knocked; at least, if it has not heard that yet."""
        at = self._unheard
        return self._last if at is None else max(self._last, self._since(at))

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

    def start(self) -> None:
        """Begin."""
        if self._folder:
            threading.Thread(target=self._go_on, name="knock", daemon=True).start()

    def stop(self) -> None:
        """Knock no more."""
        self._over.set()
        self._remove()

    def _go_on(self) -> None:
        give_way()
        with grpc.insecure_channel(f"unix:{self._folder}/door") as channel:
            knock, seen = channel.unary_unary(self._method), 0
            while not self._over.wait(OFTEN_S if self._waited > MANY else EVERY_S):
                under_way, fresh, seen = self._under_way(), self.seen - seen, self.seen
                if not (fresh > SOME or (fresh and under_way > 1) or self._waited):
                    self._last = 0
                    continue
                self._unheard = _At(seen, self.answered, under_way)
                try:
                    knock(b"", timeout=LONGEST_S)
                except grpc.RpcError:  # nothing is known then
                    self._unheard, self._last, self._waited = None, 0, 0

    async def _answer(self, rpc: Rpc) -> None:
        self._heard()
        rpc.finish(await rpc.read() or b"")

    def _heard(self) -> None:
        at, self._unheard = self._unheard, None
        if at is not None:
            self._waited = self.seen - at.seen
            self._last = self._since(at)

    def _since(self, at: _At) -> int:
        """Calls that were there or have come, and are not answered: the knock itself may be long on its way, and who is
        answered within that time has not waited."""
        return at.under_way + (self.seen - at.seen) - (self.answered - at.answered)

    def _remove(self) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""
