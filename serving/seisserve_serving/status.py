"""Errors to gRPC status codes, in this one place (docs/server.md has the table)."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any

import grpc

from seisserve.errors import BundleError, MissingExtra, ModelNotFound, SeisserveError

__all__ = ["Methods", "service"]

log = logging.getLogger(__name__)
Method = Callable[[Any], Any]
Methods = dict[str, tuple[Method, Any, Any]]


def service(name: str, methods: Methods) -> grpc.GenericRpcHandler:
    """A service of unary methods: by name the function, its request type and its response type."""
    return grpc.method_handlers_generic_handler(name, {method: _handler(*parts) for method, parts in methods.items()})


def _handler(method: Method, request_type: Any, response_type: Any) -> grpc.RpcMethodHandler:
    """A unary method as gRPC wants it: errors become status codes, and every call has a request id.

    INTERNAL carries the id and nothing else; the log has the error under it.
    """

    def call(request: Any, context: grpc.ServicerContext) -> Any:
        request_id = dict(context.invocation_metadata()).get("x-request-id") or uuid.uuid4().hex
        context.set_trailing_metadata((("x-request-id", str(request_id)),))
        try:
            return method(request)
        except SeisserveError as error:
            context.abort(code_of(error), str(error))
        except Exception:  # the one place where anything at all may arrive: the caller must get an answer
            log.exception("request %s failed", request_id)
            context.abort(grpc.StatusCode.INTERNAL, f"internal error; the server's log has it as request {request_id}")

    return grpc.unary_unary_rpc_method_handler(call, request_type.FromString, response_type.SerializeToString)


def code_of(error: SeisserveError) -> grpc.StatusCode:
    """The status code that an error means."""
    if isinstance(error, ModelNotFound):
        return grpc.StatusCode.NOT_FOUND
    if isinstance(error, (BundleError, MissingExtra)):
        return grpc.StatusCode.FAILED_PRECONDITION
    return grpc.StatusCode.INVALID_ARGUMENT
