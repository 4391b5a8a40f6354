"""The server: one gRPC port with every service on it, health that tells the truth, and a graceful stop."""

from __future__ import annotations

import logging
import os
import queue
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import Protocol

from grpc_health.v1 import health, health_pb2

from seisserve.errors import SeisserveError, ServerError, UsageError
from seisserve.runtime import processors
from seisserve_serving import kserve_api, reflection, seismic_api, session_api, tensorflow_api
from seisserve_serving.front import Front
from seisserve_serving.grpc_server import GrpcServer
from seisserve_serving.health import handlers
from seisserve_serving.models import Models
from seisserve_serving.place import give_way
from seisserve_serving.record_api import MOST_SAMPLES
from seisserve_serving.session_api import Sessions
from seisserve_serving.shared_memory import Regions
from seisserve_serving.tls import Tls

__all__ = ["Beside", "Server"]

log = logging.getLogger(__name__)
SERVICES = [
    tensorflow_api.PREDICTION_SERVICE, tensorflow_api.MODEL_SERVICE, kserve_api.INFERENCE_SERVICE,
    seismic_api.SEISMIC_SERVICE, health.SERVICE_NAME,
]  # fmt: skip
SLACK_S = 1.0  # for threads to end that may still be computing
ENDING_S = 5.0  # for those that have nothing left to do
LOOK_S = 1.0  # how often health looks whether everything is still there
RELOAD = getattr(signal, "SIGHUP", None)  # Windows has none


class Beside(Protocol):
    """What starts and stops with the server: HTTP, say."""

    address: str

    def start(self) -> None: ...

    def stop(self, grace_s: float) -> object:
        """Take nothing new, and end what is under way within the grace period."""
        ...


class Server:
    """Serves models until it is stopped.

    host: empty for the Unix socket alone. port: 0 takes a free one; `address` tells which. max_message: bytes of the
    largest request and response. callers: requests decoded and answered at once. socket_path: of a Unix socket, which
    only this user may open; it has no TLS. options: of the gRPC channel. most_samples: of a record. sessions: in real
    time. beside: starts and stops with it. reloads: what SIGHUP does. endings: what is done when it has stopped.
    reuse_port: others may listen on the port too; else a second server on it fails, and takes no part of the calls.
    shared_memory: callers on this machine may have tensors read from there and written there.
    """

    def __init__(
        self,
        models: Models,
        front: Front | None = None,
        host: str = "127.0.0.1",
        port: int = 8500,
        max_message: int = 256 << 20,
        callers: int = 0,
        *,
        socket_path: str = "",
        tls: Tls | None = None,
        options: Iterable[tuple[str, int]] = (),
        most_samples: int = MOST_SAMPLES,
        sessions: Sessions | None = None,
        beside: Sequence[Beside] = (),
        reloads: Sequence[Callable[[], None]] = (),
        endings: Sequence[Callable[[], None]] = (),
        reuse_port: bool = False,
        shared_memory: bool = False,
    ) -> None:
        self.models, self._front = models, front or Front()
        self.beside, self._reloads, self._endings = beside, reloads, endings
        self._calls = ThreadPoolExecutor(
            callers or 16 * processors() + 16, thread_name_prefix="call", initializer=give_way
        )
        self._grpc = GrpcServer(
            [
                ("grpc.max_receive_message_length", max_message),
                ("grpc.max_send_message_length", max_message),
                ("grpc.so_reuseport", int(reuse_port)),
                *options,
            ],
            lambda: self._front.under_way,
        )
        self._front.admission.knock = self._grpc.knock
        self._health = health.HealthServicer()
        self._grpc.add(handlers(self._health))
        regions = Regions(max_message) if shared_memory else None
        services = {
            **tensorflow_api.services(models), **kserve_api.services(models, regions),
            **seismic_api.services(models, most_samples),
        }  # fmt: skip
        self._sessions = sessions or Sessions(models)
        streams = {**seismic_api.streams(models, most_samples), **reflection.streams(SERVICES)}
        streams[seismic_api.SEISMIC_SERVICE] = {
            **streams[seismic_api.SEISMIC_SERVICE], **session_api.streams(self._sessions)
        }  # fmt: skip
        quick = {**tensorflow_api.quick(models), **kserve_api.quick(models, regions)}
        for name in {**services, **streams}:
            self._grpc.add(
                self._front.service(name, self._calls, services.get(name, {}), streams.get(name), quick.get(name))
            )
        where = [self._listen(host, port, tls)] if host else []
        if socket_path:
            where.append(self._listen_on_socket(socket_path))
        self.address = where[0]
        self._where = " and ".join(where)
        self._healthy: dict[str, bool] = {}
        self._updating = threading.Lock()

    def start(self) -> None:
        """Begin to answer, and say so in the health service."""
        self.models.on_change(lambda name, ready: self.update())
        self.update()
        self._grpc.start()
        for other in self.beside:
            other.start()
        log.info("listening on %s", self._where)

    def update(self) -> None:
        """Bring the health service up to date: a model is SERVING while a version of it is served; all together ("")
        while any is, and every thread that computes or loads is alive."""
        with self._updating:
            served = set(self.models.served)
            alive = self.models.lanes.alive
            now = {name: alive and name in served for name in (*self._healthy, *served)}
            dead = self.models.dead
            now[""] = bool(served) and not dead
            for name, healthy in now.items():
                if self._healthy.get(name) is not healthy:
                    status = health_pb2.HealthCheckResponse
                    self._health.set(name, status.SERVING if healthy else status.NOT_SERVING)
            if self._healthy.get("") and not now[""]:
                log.error("this server is not healthy any more: %s", dead or "no model is left")
            self._healthy = now

    def stop(self, grace_s: float, delay_s: float = 0.0) -> bool:
        """Say NOT_SERVING, take no new calls, finish those under way within the grace period, and end.

        delay_s: go on taking calls for so long after NOT_SERVING, for balancers that look only now and then.
        False if the grace period was too short: the callers have been told, but threads are still computing.
        """
        self._health.enter_graceful_shutdown()
        time.sleep(delay_s)
        begin = time.monotonic()
        self._front.drain()
        self._sessions.drain()
        finished = self._front.wait(grace_s)
        left_s = max(grace_s - (time.monotonic() - begin), 0)
        for other in self.beside:
            other.stop(left_s)
        wait([self._grpc.stop(left_s)], left_s + SLACK_S)
        ender = threading.Thread(target=self._end_threads, daemon=True)
        ender.start()
        ender.join(ENDING_S if finished else SLACK_S)
        for ending in self._endings:
            ending()
        log.info("stopped")
        return finished and not ender.is_alive()

    def reload(self) -> None:
        """Read anew what SIGHUP reads anew: tokens, certificates. What cannot be read stays as it was."""
        for each in self._reloads:
            try:
                each()
            except SeisserveError as error:
                log.error("not reloaded: %s", error)

    def run(
        self,
        grace_s: float,
        delay_s: float = 0.0,
        *,
        twice_ends: bool = True,
        begun: Callable[[], object] = lambda: None,
    ) -> None:
        """Serve until SIGTERM or SIGINT. Does not return, but ends the process, if calls outlast the grace period, or
        if the signal comes again (unless `twice_ends` is off). begun: called once it answers, and hears signals."""
        asked: queue.SimpleQueue[int] = queue.SimpleQueue()
        stopping = threading.Event()

        def ask(number: int, frame: FrameType | None) -> None:
            if number != RELOAD and stopping.is_set() and twice_ends:
                os._exit(1)  # whoever asks twice does not want to wait
            asked.put(number)

        for signal_number in (signal.SIGTERM, signal.SIGINT, RELOAD):
            if signal_number is not None:
                signal.signal(signal_number, ask)
        self.start()
        begun()
        while True:
            try:
                number = asked.get(timeout=LOOK_S)
            except queue.Empty:
                self.update()
                continue
            if number != RELOAD:
                break
            self.reload()
        stopping.set()
        log.info("%s: finishing what is under way, at most %g s", signal.Signals(number).name, grace_s)
        if not self.stop(grace_s, delay_s):
            log.warning("calls under way did not finish within %g s; leaving without them", grace_s)
            logging.shutdown()
            os._exit(1)  # an ordinary exit would wait for their threads

    def _listen(self, host: str, port: int, tls: Tls | None) -> str:
        host = f"[{host}]" if ":" in host.strip("[]") and not host.startswith("[") else host
        try:
            bound = self._grpc.add_port(f"{host}:{port}", tls and tls.credentials())
        except RuntimeError as error:
            raise ServerError(f"cannot listen on {host}:{port}: the port is taken, or not allowed") from error
        return f"{host}:{bound}"

    def _listen_on_socket(self, path: str) -> str:
        there = Path(path)
        if there.exists() and not stat.S_ISSOCK(there.stat().st_mode):
            raise UsageError(f"grpc_socket_path {path} is there already, and is no socket")
        mask = os.umask(0o077)  # whoever may open the socket may call
        try:
            self._grpc.add_port(f"unix:{path}")
        except RuntimeError as error:
            raise ServerError(f"cannot listen on {path}: no such folder, or not allowed") from error
        finally:
            os.umask(mask)
        return f"unix:{path}"

    def _end_threads(self) -> None:
        self._calls.shutdown()  # what waits there is over, and ends at once
