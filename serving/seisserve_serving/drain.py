"""Draining: finish the calls under way, refuse new ones with a word that tells the caller to go elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc

__all__ = ["Drain"]


class Drain(grpc.ServerInterceptor):
    """Counts the unary calls under way. After `begin`, new ones get UNAVAILABLE; `wait` returns when none is left."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self._begun = False

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """The handler of the call, counted. Streams (health's Watch, reflection) are gRPC's own to end."""
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with self._changed:
                refused = self._begun and not handler_call_details.method.startswith("/grpc.health.")
                self._under_way += not refused
            if refused:
                context.abort(grpc.StatusCode.UNAVAILABLE, "draining: this server is about to stop")
            try:
                return handler.unary_unary(request, context)
            finally:
                with self._changed:
                    self._under_way -= 1
                    self._changed.notify_all()

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    def begin(self) -> None:
        """Refuse what comes from now on."""
        with self._changed:
            self._begun = True

    def wait(self, seconds: float) -> bool:
        """Whether all calls have finished within that time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._under_way, seconds)
