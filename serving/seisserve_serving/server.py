"""The server: one gRPC port with every service on it, health that tells the truth, and a graceful stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from seisserve.errors import ServerError
from seisserve.runtime import processors
from seisserve_serving import kserve_api, reflection, seismic_api, tensorflow_api
from seisserve_serving.drain import Drain
from seisserve_serving.models import Models

__all__ = ["Server"]

log = logging.getLogger(__name__)
SERVICES = [
    tensorflow_api.PREDICTION_SERVICE, tensorflow_api.MODEL_SERVICE, kserve_api.INFERENCE_SERVICE,
    seismic_api.SEISMIC_SERVICE, health.SERVICE_NAME,
]  # fmt: skip
SLACK_S = 1.0  # for threads to end after the last call has


class Server:
    """Serves models until it is stopped.

    port: 0 takes a free one; `address` tells which. max_message: bytes of the largest request and response.
    callers: requests handled at once; more wait for their turn.
    """

    def __init__(
        self, models: Models, host: str = "127.0.0.1", port: int = 8500, max_message: int = 256 << 20, callers: int = 0
    ) -> None:
        self._work = ThreadPoolExecutor(processors(), thread_name_prefix="predict")
        self._calls = ThreadPoolExecutor(callers or 4 * processors() + 4, thread_name_prefix="call")
        self._drain = Drain()
        self._grpc = grpc.server(
            self._calls,
            interceptors=[self._drain],
            options=[
                ("grpc.max_receive_message_length", max_message),
                ("grpc.max_send_message_length", max_message),
                ("grpc.so_reuseport", 0),  # a second server on the port must fail, not take half of the calls
            ],
        )
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        self._grpc.add_generic_rpc_handlers(
            [
                *tensorflow_api.handlers(models, self._work),
                kserve_api.handlers(models, self._work),
                seismic_api.handlers(models),
            ]
        )
        reflection.enable(SERVICES, self._grpc)
        try:
            bound = self._grpc.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise ServerError(f"cannot listen on {host}:{port}: the port is taken, or not allowed") from error
        self.address = f"{host}:{bound}"
        self._names = ["", *models.served]

    def start(self) -> None:
        """Begin to answer, and say so in the health service."""
        self._grpc.start()
        for name in self._names:
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("listening on %s", self.address)

    def stop(self, grace_s: float) -> bool:
        """Say NOT_SERVING, take no new calls, finish those under way within the grace period, and end.

        False if the grace period was too short: the callers have been told, but threads are still computing.
        """
        begin = time.monotonic()
        self._health.enter_graceful_shutdown()
        self._drain.begin()
        self._drain.wait(grace_s)
        left_s = max(grace_s - (time.monotonic() - begin), 0)
        self._grpc.stop(left_s).wait(left_s + SLACK_S)
        ender = threading.Thread(target=self._end_threads, daemon=True)
        ender.start()
        ender.join(SLACK_S)
        log.info("stopped")
        return not ender.is_alive()

    def _end_threads(self) -> None:
        self._calls.shutdown(cancel_futures=True)
        self._work.shutdown(cancel_futures=True)

    def run(self, grace_s: float) -> None:
        """Serve until SIGTERM or SIGINT. Does not return, but ends the process, if calls outlast the grace period."""
        asked = threading.Event()

        def ask(number: int, frame: FrameType | None) -> None:
            log.info("%s: finishing what is under way, at most %g s", signal.Signals(number).name, grace_s)
            asked.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, ask)
        self.start()
        asked.wait()
        if not self.stop(grace_s):
            log.warning("calls under way did not finish within %g s; leaving without them", grace_s)
            logging.shutdown()
            os._exit(1)  # an ordinary exit would wait for their threads
