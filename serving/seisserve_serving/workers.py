"""Several processes on one port: Python attends to calls on one processor, however many the machine has.

Linux spreads connections over them. Each has the models and its part of the computing threads, and an HTTP port of its
own. They know nothing of one another: changing models by a call is refused (`admin.refuse`), and a session that is
resumed at another worker begins anew there, as it would with a server that was restarted.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from multiprocessing import connection, get_context, parent_process
from types import FrameType
from typing import NamedTuple

import click
from msgspec.structs import replace

from seisserve.cli import exit_code, fail
from seisserve.errors import SeisserveError, ServerError
from seisserve.memory import keep
from seisserve_serving import logs
from seisserve_serving.assembly import assemble
from seisserve_serving.place import settle
from seisserve_serving.server import Server
from seisserve_serving.settings import Settings

__all__ = ["serve"]

log = logging.getLogger(__name__)
CONTEXT = get_context("spawn")  # threads of gRPC and of the runtimes do not survive a fork
LOOK_S = 0.2
SOON_S = 30.0  # a worker that ends within that has failed to begin
MOST_FAILURES = 5  # one after the other
PAUSE_S = 1.0  # before a worker that has failed is started again; twice as long each time
SLACK_S = 10.0  # for a worker to end after its grace period


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Raises UsageError, BundleError, ServerError."""
    logs.configure(settings.operation.log_format, settings.operation.log_level)
    if settings.operation.workers > 1:
        return _run(settings)
    server = _assembled(settings)
    server.run(
        settings.operation.grace_s,
        settings.operation.drain_delay_s,
        begun=lambda: _announce("serving", _ready(server)),
    )
    return 0


def _run(settings: Settings) -> int:
    """Serve with several processes until SIGTERM or SIGINT, and start those again that die; the exit code, 1 if one
    would not begin again and again. Raises ServerError if the port is taken."""
    with _held(settings.listen.host, settings.listen.port) as held:
        asked = _signals()
        port = held.getsockname()[1]
        workers = [
            _Worker(number, _settings_of(settings, number, port)) for number in range(settings.operation.workers)
        ]
        try:
            return _Watch(workers, asked).run(settings.operation.grace_s + settings.operation.drain_delay_s + SLACK_S)
        finally:
            for worker in workers:
                worker.kill()


class _Ready(NamedTuple):
    """What a worker says when it answers."""

    models: list[str]
    address: str
    http: list[str]


class _Worker:
    """A process that serves, or is about to."""

    def __init__(self, number: int, settings: Settings) -> None:
        self.number, self._settings = number, settings
        self.ready: _Ready | None = None
        self.failures = 0
        self.again_at = 0.0  # of time.monotonic: when it is started again
        self._start()

    def _start(self) -> None:
        self.ready, self._begun = None, time.monotonic()
        self.heard, says = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(
            target=_work, args=(self._settings, self.number, says), name=f"worker {self.number}", daemon=True
        )
        # Ctrl-C in a terminal is for the process that watches over the workers, also before they can say so.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self.process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        says.close()

    def hear(self) -> bool:
        """Whether it has become ready."""
        if self.ready is None and self.heard.poll():
            try:
                self.ready = self.heard.recv()
            except EOFError:  # it has ended, which `look` will see
                return False
            for address in self.ready.http:  # a free port at first, and the same one when it is started again
                listen = replace(self._settings.listen, rest_api_port=int(address.rpartition(":")[2]))
                self._settings = replace(self._settings, listen=listen)
            return True
        return False

    def look(self) -> bool:
        """Start it again if it has ended and its time has come. False if it will not begin."""
        if self.process.is_alive():
            return True
        now = time.monotonic()
        if not self.again_at:
            soon = self.ready is None or now - self._begun < SOON_S
            self.failures = self.failures + 1 if soon else 0
            if self.failures > MOST_FAILURES:
                log.error("%s, and does not begin", self.ended)
                return False
            pause_s = PAUSE_S * 2 ** (self.failures - 1) if soon else 0.0
            self.again_at = now + pause_s
            log.error("%s; another takes its place in %g s", self.ended, pause_s)
        if now >= self.again_at:
            self.again_at = 0.0
            self._start()
        return True

    @property
    def ended(self) -> str:
        """That it has ended, for the log."""
        return f"{self.process.name} (process {self.process.pid}) has ended with {self.process.exitcode}"

    def signal(self, number: int) -> None:
        """Send it a signal, if it is there."""
        if self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join()


class _Watch(NamedTuple):
    """Over the workers; `asked` has the signals that have come."""

    workers: list[_Worker]
    asked: queue.SimpleQueue[int]

    def run(self, grace_s: float) -> int:
        """Until a signal ends it, or the workers do; the exit code."""
        late = False  # a signal to read files anew has come before all could hear it
        while not all(worker.ready for worker in self.workers):
            self._wait()
            if (number := self._next()) is not None:
                if number != signal.SIGHUP:
                    return self._stop(grace_s)
                late = True
            for worker in self.workers:
                if not worker.hear() and not worker.ready and worker.process.exitcode is not None:
                    if worker.process.exitcode > 0:
                        return worker.process.exitcode  # it has said why
                    log.error("%s before it was ready", worker.ended)
                    return 1
        self._tell()
        if late:
            self._reload()
        while True:
            self._wait()
            while (number := self._next()) is not None:
                if number != signal.SIGHUP:
                    return self._stop(grace_s)
                self._reload()
            for worker in self.workers:
                if worker.hear():
                    log.info("%s (process %s) serves again", worker.process.name, worker.process.pid)
                    worker.signal(signal.SIGHUP)  # one may have come while it loaded
            beginning = [worker.look() for worker in self.workers]
            if not all(beginning):
                self._stop(grace_s)
                return 1

    def _wait(self) -> None:
        """For something to happen, or a while."""
        if self.asked.empty():
            connection.wait([worker.process.sentinel for worker in self.workers if worker.process.is_alive()], LOOK_S)

    def _next(self) -> int | None:
        """The next signal that has come."""
        return None if self.asked.empty() else self.asked.get()

    def _reload(self) -> None:
        for worker in self.workers:
            if worker.ready:
                worker.signal(signal.SIGHUP)

    def _tell(self) -> None:
        found = [worker.ready for worker in self.workers if worker.ready]
        http = [address for ready in found for address in ready.http]
        _announce(f"{len(found)} workers serving", found[0]._replace(http=http))

    def _stop(self, grace_s: float) -> int:
        """End the workers, and wait for them; 1 if one has not ended as it should, or a signal comes again: whoever
        asks twice does not want to wait."""
        there = [worker for worker in self.workers if worker.process.is_alive()]
        for worker in there:
            worker.signal(signal.SIGTERM)
        until = time.monotonic() + grace_s
        while alive := [worker for worker in there if worker.process.is_alive()]:
            number = self._next()
            if time.monotonic() > until or (number is not None and number != signal.SIGHUP):
                return 1
            alive[0].process.join(LOOK_S)
        # one that was still loading has had nobody to tell it of the signal
        return 0 if all(worker.process.exitcode in (0, -signal.SIGTERM) for worker in there) else 1


def _work(settings: Settings, number: int, says: connection.Connection) -> None:
    """The main function of a worker's process."""
    os.setpgrp()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read anew
    logs.configure(settings.operation.log_format, settings.operation.log_level, worker=number)
    try:
        server = _assembled(settings)
    except SeisserveError as error:
        sys.exit(fail(str(error), exit_code(error)))
    threading.Thread(target=_end_with_parent, daemon=True, name="parent").start()
    # The signal may come twice: to all processes at once, from what runs the server, and from that which watches.
    server.run(
        settings.operation.grace_s,
        settings.operation.drain_delay_s,
        twice_ends=False,
        begun=lambda: says.send(_ready(server)),
    )


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _assembled(settings: Settings) -> Server:
    settle(settings.compute.cpu_affinity, settings.compute.nice)
    keep()
    return assemble(settings)


def _ready(server: Server) -> _Ready:
    return _Ready(list(server.models.served), server.address, [other.address for other in server.beside])


def _announce(what: str, ready: _Ready) -> None:
    click.echo(f"seisserve: {what} {', '.join(ready.models)} on {ready.address}")
    for where in ready.http:
        click.echo(f"seisserve: HTTP on {where}")


def _settings_of(settings: Settings, number: int, port: int) -> Settings:
    """Those of one worker: the port that all of them have, and the next HTTP port."""
    http = settings.listen.rest_api_port
    listen = replace(settings.listen, port=port, rest_api_port=http + number if http > 0 else http)
    return replace(settings, listen=listen)


def _held(host: str, port: int) -> socket.socket:
    """A socket that keeps the port (a free one for 0) for the workers; nobody can connect to it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as alone:  # fails where another server listens, this one's kind too
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            address = alone.getsockname()
        held = socket.socket(family, kind, protocol)
        # connections of a server that died must not hold up the next one; but a second server must find it taken
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except (OSError, UnicodeError) as error:
        raise ServerError(f"cannot listen on {host}:{port}: {error}") from error
    return held


def _signals() -> queue.SimpleQueue[int]:
    """Where signals arrive: those that end the server, and the one that has files read anew."""
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.put(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)
    return asked
