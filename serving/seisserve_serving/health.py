"""gRPC's health service. Past the door, which refuses when it is busy: a server that is busy must not be taken for
dead. Requests are decoded here, since a malformed one must be answered with a reason."""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from seisserve_serving.grpc_server import Handler, Rpc
from seisserve_serving.waits import Wait

__all__ = ["handlers"]


def handlers(servicer: health.HealthServicer) -> dict[str, Handler]:
    """The methods of the service."""

    async def check(rpc: Rpc) -> None:
        request, context = await _request(rpc), _Context()
        if request is not None:
            response = servicer.Check(request, context)
            if context.code is None:
                rpc.finish(response.SerializeToString())
            else:
                rpc.abort(context.code, f"service {request.service!r} is not known")

    async def watch(rpc: Rpc) -> None:
        request, context, mail = await _request(rpc), _Context(), _Mail()
        if request is not None:
            try:
                servicer.Watch(request, context, mail.put)
                while True:
                    await rpc.write((await mail.get()).SerializeToString())
            finally:  # the caller has gone; the servicer may be at its list of callers on this very thread
                for callback in context.callbacks:
                    rpc.later(0.0, callback)

    return {f"/{health.SERVICE_NAME}/Check": check, f"/{health.SERVICE_NAME}/Watch": watch}


class _Context:
    """What the servicer wants of a call."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.callbacks: list[Callable[[], None]] = []

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.callbacks.append(callback)
        return True


class _Mail:
    """The newest response, from any thread, for one call that waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: health_pb2.HealthCheckResponse | None = None
        self._come: Wait[None] = Wait()

    def put(self, response: health_pb2.HealthCheckResponse) -> None:
        with self._lock:
            self._newest, come = response, self._come
        come.set(None)

    async def get(self) -> health_pb2.HealthCheckResponse:
        while True:
            with self._lock:
                newest, self._newest = self._newest, None
                if newest is not None:
                    return newest
                come = self._come = Wait()
            await come


async def _request(rpc: Rpc) -> health_pb2.HealthCheckRequest | None:
    """The request; None if it has been refused."""
    body = await rpc.read() or b""
    try:
        return health_pb2.HealthCheckRequest.FromString(body)
    except DecodeError:
        text = f"the request is no HealthCheckRequest message: its {len(body)} bytes cannot be decoded"
        rpc.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        return None
