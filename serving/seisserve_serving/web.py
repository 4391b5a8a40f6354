"""HTTP: one port for the REST protocols, metrics, liveness and readiness, and a page for people.

Only bodies come and go asynchronously, on one thread with an event loop. What a request asks for is done by plain
functions (see `rest_routes`) on threads, behind the same door as gRPC.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from uvicorn.protocols.http.h11_impl import H11Protocol

from seisserve.errors import SeisserveError, ServerError, UsageError
from seisserve.runtime import processors
from seisserve_serving import kserve_api, rest_kserve, rest_seismic, rest_tensorflow, seismic_api, tensorflow_api
from seisserve_serving.calls import Call
from seisserve_serving.errors import Cancelled, Expired, PermissionDenied
from seisserve_serving.front import REQUEST_ID, Arrival, Front, request_id
from seisserve_serving.lanes import Lanes
from seisserve_serving.models import Models
from seisserve_serving.page import page
from seisserve_serving.record_api import MOST_SAMPLES
from seisserve_serving.rest_json import dump
from seisserve_serving.rest_routes import JSON, Asked, Reply, Route, TooLarge, number, timed
from seisserve_serving.status import HTTP, code_of, retry_ms

__all__ = ["Web"]

log = logging.getLogger(__name__)
DEADLINE = "x-request-timeout-ms"
MOST_MS = 24 * 3600 * 1000
HEADERS_S = 10.0  # for a request's headers to arrive, from the connection or its first byte on
KEEP_ALIVE_S = 30  # for the next request on a connection
UNREAD_S = 60.0  # for a caller to take the rest of an answer, once the connection has been given up
DISCARD_S = 2.0  # for what is left of a body that is too large, so that its sender reads why
MOST_HEADERS = 32 << 10  # bytes
COMPRESSED = 1 << 10  # bytes from which on an answer is worth compressing
BACKLOG = 1024  # connections that wait to be taken
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
WAYS = {"gzip": 31, "deflate": 15}  # zlib's wbits of each content coding


class _Name(StringConvertor):
    regex = "[^/:]+"


register_url_convertor("servable", _Name())


class Web:
    """The HTTP port.

    metrics: what `/metrics` shows; None for none. tls: None for plain HTTP. max_message: bytes of the largest body, as
    sent and decompressed. timeout_s: the deadline of a call that brings none. most_connections: more get 503.
    callers: threads that answer. most_samples: of a record. port: 0 takes a free one; `address` tells which.
    Raises ServerError if the port is taken.
    """

    def __init__(
        self,
        models: Models,
        front: Front,
        lanes: Lanes,
        host: str = "127.0.0.1",
        port: int = 8501,
        metrics: Callable[[], bytes] | None = None,
        tls: ssl.SSLContext | None = None,
        max_message: int = 256 << 20,
        timeout_s: float = 30.0,
        most_connections: int = 2048,
        callers: int = 0,
        most_samples: int = MOST_SAMPLES,
    ) -> None:
        self._models, self._front, self._lanes, self._metrics = models, front, lanes, metrics
        self._max_message, self._timeout_s = max_message, timeout_s
        self._services = {
            **tensorflow_api.services(models), **kserve_api.services(models),
            **seismic_api.services(models, most_samples),
        }  # fmt: skip
        self._callers = ThreadPoolExecutor(callers or 16 * processors() + 16, thread_name_prefix="http")
        self._socket = _listening(host, port)
        self.address = f"{host}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            self._app(),
            http=_Bounded,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,  # anybody could name any address in them
            server_header=False,
            limit_concurrency=most_connections,
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=MOST_HEADERS,
            ssl_context_factory=None if tls is None else lambda *_: tls,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="web", daemon=True)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._server.server_state.connections)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise ServerError(f"HTTP could not start on {self.address}; the log says why")
            time.sleep(0.005)
        log.info("HTTP on %s", self.address)

    def stop(self, grace_s: float) -> bool:
        """Refuse new calls, finish those under way within the grace period, and end; False if that was too short."""
        begin = time.monotonic()
        self._front.drain()
        finished = self._front.wait(grace_s)
        self._server.config.timeout_graceful_shutdown = max(math.ceil(grace_s - (time.monotonic() - begin)), 1)
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(grace_s + 5)
        self._socket.close()
        self._callers.shutdown(wait=finished, cancel_futures=True)
        return finished and not self._thread.is_alive()

    def _app(self) -> Starlette:
        routes = [
            *rest_tensorflow.routes(self._services),
            *rest_kserve.routes(self._services),
            *rest_seismic.routes(self._services),
            Route("GET", "/", "GET /", self._page),
        ]
        return Starlette(
            routes=[
                *[StarletteRoute(route.path, self._endpoint(route), methods=[route.verb]) for route in routes],
                # Past the door, which refuses when it is busy: a server that is busy must not be taken for dead.
                StarletteRoute("/healthz", self._healthz),
                StarletteRoute("/readyz", self._readyz),
                StarletteRoute("/v2/health/live", self._live),
                StarletteRoute("/v2/health/ready", self._ready),
                StarletteRoute("/metrics", self._metrics_page),
                StarletteRoute("/monitoring/prometheus/metrics", self._metrics_page),  # TensorFlow Serving's path
            ],
            exception_handlers={HTTPException: _not_routed},
        )

    def _endpoint(self, route: Route) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            arrival = _arrival(route.method, request)
            try:
                with self._front.call(arrival, None) as call:
                    _check_origin(request)
                    call.deadline = time.monotonic() + self._timeout(arrival)
                    body = await self._body(request, call)
                    reply = await self._answered(route, _asked(request, body), request, call)
            except Exception as error:  # the one place where anything at all may arrive: the caller must get an answer
                reply = _failure(error, str(arrival.metadata[REQUEST_ID]))
            response = Response(reply.body, reply.status, {**reply.headers}, reply.media)
            response.headers[REQUEST_ID] = str(arrival.metadata[REQUEST_ID])
            if self._front.draining or reply.status == TooLarge.http:
                response.headers["connection"] = "close"
            return response

        return endpoint

    def _timeout(self, arrival: Arrival) -> float:
        text = arrival.metadata.get(DEADLINE)
        if text is None:
            return self._timeout_s
        milliseconds = number(str(text), DEADLINE, 1)
        if milliseconds > MOST_MS:
            raise UsageError(f"{DEADLINE} is {milliseconds}; it must be at most {MOST_MS}, a day")
        return milliseconds / 1000

    async def _body(self, request: Request, call: Call) -> bytes:
        """The body as it was sent. Raises TooLarge, Expired, Cancelled."""
        declared = request.headers.get("content-length", "0")
        parts: list[bytes] = []
        size = int(declared) if len(declared) < 19 else self._max_message + 1
        try:
            async with asyncio.timeout(call.left_s):
                if size <= self._max_message:
                    size = 0
                    async for part in _parts(request):
                        size += len(part)
                        if size > self._max_message:
                            break
                        parts.append(part)
        except TimeoutError as error:
            raise Expired("the deadline passed before the body had arrived") from error
        if size > self._max_message:
            parts.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(DISCARD_S):
                    async for _ in _parts(request):
                        pass
            raise TooLarge(f"the body is larger than {self._max_message} bytes, the most that this server takes")
        return b"".join(parts)

    async def _answered(self, route: Route, asked: Asked, request: Request, call: Call) -> Reply:
        """The reply, made on a thread. Meanwhile a caller who goes cancels the call."""

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            call.cancel()

        watching = asyncio.create_task(gone())
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._callers, _worked, route, asked, call, self._max_message
            )
        except asyncio.CancelledError as error:  # the grace period is over
            call.cancel()
            raise Cancelled("the server has stopped") from error
        finally:
            watching.cancel()

    def _page(self, asked: Asked, call: Call) -> Reply:
        asked.options()
        return page(self._services, call, draining=self._front.draining, metrics=self._metrics is not None)

    async def _healthz(self, request: Request) -> Response:
        """Whether the process can still work; if not, it should be started anew."""
        dead = self._models.dead
        return _plain(dead, 503) if dead else _plain("ok", 200)

    async def _readyz(self, request: Request) -> Response:
        """Whether calls should be sent here."""
        reason = self._why_not_ready()
        return _plain(reason, 503) if reason else _plain("ok", 200)

    async def _live(self, request: Request) -> Response:
        alive = not self._models.dead
        return Response(dump({"live": alive}), 200 if alive else 503, media_type=JSON)

    async def _ready(self, request: Request) -> Response:
        ready = not self._why_not_ready()
        return Response(dump({"ready": ready}), 200 if ready else 503, media_type=JSON)

    def _why_not_ready(self) -> str:
        if self._front.draining:
            return "draining: this server is about to stop"
        if not self._lanes.alive:
            return self._models.dead
        ready, request_type, _ = self._services[kserve_api.INFERENCE_SERVICE]["ServerReady"]
        return "" if ready(request_type(), Call()).ready else "the models are not loaded yet"

    async def _metrics_page(self, request: Request) -> Response:
        """Also while draining, or when there are too many calls: that is when one looks. But not for everybody."""
        if self._metrics is None:
            return _plain("this server has no metrics", 404)
        arrival = _arrival("GET /metrics", request)
        try:
            for guard in self._front.guards:
                guard(arrival, Call(str(arrival.metadata[REQUEST_ID]), peer=arrival.peer))
        except SeisserveError as error:
            reply = _failure(error, str(arrival.metadata[REQUEST_ID]))
            return Response(reply.body, reply.status, {**reply.headers}, reply.media)
        text = await asyncio.get_running_loop().run_in_executor(None, self._metrics)
        return Response(text, media_type=PROMETHEUS)


class _Bounded(H11Protocol):
    """A connection whose caller cannot hold it for ever: uvicorn itself waits for a request's headers, and for its
    answer to be taken, as long as it takes."""

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "certificate": _common_name(transport)}
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_are_there()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before or self.transport.is_closing():
            self._headers_are_there()
        elif self.conn.their_state is h11.IDLE and self._due is None:
            self._expect_headers()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(UNREAD_S, self.transport.abort)  # closing waits until the caller has read everything

    def _expect_headers(self) -> None:
        self._due = self.loop.call_later(HEADERS_S, self.timeout_keep_alive_handler)

    def _headers_are_there(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None


def _worked(route: Route, asked: Asked, call: Call, most: int) -> Reply:
    """What the route gives, compressed as the caller wants it."""
    with timed(call, "decode"):
        asked = asked._replace(body=_inflated(asked.body, asked.headers.get("content-encoding", ""), most))
    reply = route.work(asked, call)
    with timed(call, "encode"):
        return _deflated(reply, asked.headers.get("accept-encoding", ""))


def _inflated(body: bytes, coding: str, most: int) -> bytes:
    """A body without its compression. Raises UsageError, TooLarge."""
    name = coding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in WAYS:
        raise UsageError(f"content-encoding is {coding[:40]!r}; it must be gzip, deflate or identity")
    inflating = zlib.decompressobj(WAYS[name])
    try:
        content = inflating.decompress(body, most + 1)
    except zlib.error as error:
        raise UsageError(f"the body is no {name}: {error}") from error
    if len(content) > most:
        raise TooLarge(f"the body is larger than {most} bytes once it is decompressed")
    if not inflating.eof:
        raise UsageError(f"the body is cut short: its {name} does not end")
    return content


def _deflated(reply: Reply, accepted: str) -> Reply:
    codings = {
        part.partition(";")[0].strip() for part in accepted.lower().split(",") if "q=0" not in part.split(";")[-1]
    }
    name = next((name for name in WAYS if name in codings), None)
    if name is None or len(reply.body) < COMPRESSED:
        return reply
    deflating = zlib.compressobj(1, wbits=WAYS[name])  # more gains little on samples, and costs much
    body = deflating.compress(reply.body) + deflating.flush()
    return reply._replace(body=body, headers={**reply.headers, "content-encoding": name, "vary": "accept-encoding"})


async def _parts(request: Request) -> Any:
    """The body as it arrives. Raises Cancelled if the caller goes."""
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the caller has gone before the body had arrived")
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _arrival(method: str, request: Request) -> Arrival:
    metadata = dict(request.headers)
    metadata[REQUEST_ID] = request_id(metadata)
    declared = metadata.get("content-length", "0")
    size = int(declared) if len(declared) < 19 else 0
    return Arrival(method, metadata, _peer(request), size, request.scope["state"]["certificate"], "http")


def _peer(request: Request) -> str:
    """The caller's address as gRPC writes it."""
    if request.client is None:
        return "unknown"
    host, port = request.client
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _asked(request: Request, body: bytes) -> Asked:
    query = dict(request.query_params)
    for name in query:
        if len(request.query_params.getlist(name)) > 1:
            raise UsageError(f"query parameter {name!r} is there twice")
    return Asked(request.path_params, query, dict(request.headers), body)


def _check_origin(request: Request) -> None:
    """Pages of other sites must not make a visitor's browser call a server that only the visitor can reach."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host", ""):
        raise PermissionDenied(f"calls from pages of {origin[:100]!r} are refused; this server answers its own only")


def _failure(error: Exception, request_id: str) -> Reply:
    """The error as a reply. INTERNAL carries the request id and nothing else; the log has the error."""
    code = code_of(error)
    status = getattr(error, "http", HTTP[code])
    text = str(error) if isinstance(error, SeisserveError) else None
    headers = {}
    if (retry := retry_ms(error)) is not None:
        headers["retry-after"] = str(max(math.ceil(retry / 1000), 1))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return Reply(
        dump({"error": text or f"internal error; the server's log has it as request {request_id}"}),
        status=status,
        headers=headers,
    )


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:200]}"
    text = {404: f"there is no {where}", 405: f"there is no {where}, but other methods"}.get(
        error.status_code, error.detail
    )
    return Response(dump({"error": text}), error.status_code, error.headers, JSON)


def _plain(text: str, status: int) -> Response:
    return Response(f"{text}\n", status, media_type="text/plain")


def _common_name(transport: asyncio.Transport) -> str:
    """Of the caller's certificate, "" without one. It has been verified if it is there."""
    certificate: Mapping[str, Any] = transport.get_extra_info("peercert") or {}
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return names[0] if names else ""


def _listening(host: str, port: int) -> socket.socket:
    listening = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sends small answers at once (TCP_NODELAY) only on sockets that say that they are TCP's.
        listening = socket.socket(family, kind, socket.IPPROTO_TCP)
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
        return listening
    except OSError as error:
        if listening is not None:
            listening.close()
        raise ServerError(f"cannot listen for HTTP on {host}:{port}: {error.strerror or error}") from error
