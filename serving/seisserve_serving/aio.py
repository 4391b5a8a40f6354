"""gRPC's asyncio server on a thread of its own, behind the methods of the blocking one.

Small calls cost less on it than on the blocking server (docs/performance.md): an answer needs no thread of its own, and
a batch wakes the loop once. Methods that block run on the pool, as on the blocking server.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from seisserve_serving.knock import Knock

__all__ = ["AioServer"]

Made = TypeVar("Made")


class AioServer:
    """A gRPC server. pool: runs the methods that block. options: of the channel. `knock` tells how many calls it has
    not seen yet."""

    def __init__(
        self, pool: ThreadPoolExecutor, options: Sequence[tuple[str, int]], under_way: Callable[[], int] = lambda: 0
    ) -> None:
        self._loop = _new_loop()
        threading.Thread(target=self._loop.run_forever, name="grpc-loop", daemon=True).start()
        self._server = self.run(_make(pool, options))
        self.knock = Knock(under_way)
        self.knock.listen(self._server)
        self.add_generic_rpc_handlers = self._server.add_generic_rpc_handlers
        self.add_registered_method_handlers = self._server.add_registered_method_handlers
        self.add_insecure_port = self._server.add_insecure_port
        self.add_secure_port = self._server.add_secure_port

    def start(self) -> None:
        """Begin to answer."""
        self.run(self._start())

    def stop(self, grace_s: float) -> Future[None]:
        """Take no new calls; end those under way when the grace period is over. The result is there after that."""
        return self._do(self._stop(grace_s))

    def run(self, work: Coroutine[Any, Any, Made]) -> Made:
        """Do something on the server's loop, and wait for it."""
        return self._do(work).result()

    async def _start(self) -> None:
        await self._server.start()
        self.knock.start()

    async def _stop(self, grace_s: float) -> None:
        await self.knock.stop()
        await self._server.stop(grace_s)

    def _do(self, work: Coroutine[Any, Any, Made]) -> Future[Made]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)


async def _make(pool: ThreadPoolExecutor, options: Sequence[tuple[str, int]]) -> grpc.aio.Server:
    return grpc.aio.server(migration_thread_pool=pool, options=options)


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where that is installed (it has no Windows)."""
    if importlib.util.find_spec("uvloop"):
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
    return asyncio.new_event_loop()
