"""Errors to gRPC status codes, and those to HTTP's, in this one place (docs/server.md has the table)."""

from __future__ import annotations

import grpc

from seisserve.errors import BundleError, MissingExtra, ModelNotFound, SeisserveError, ServerError
from seisserve_serving.errors import Overloaded, Refused

__all__ = ["HTTP", "code_of", "retry_ms"]

Code = grpc.StatusCode
HTTP = {
    Code.OK: 200,
    Code.INVALID_ARGUMENT: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.FAILED_PRECONDITION: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: 499,
    Code.INTERNAL: 500,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}


def code_of(error: BaseException) -> grpc.StatusCode:
    """The status code that an error means; INTERNAL for any that was not raised on purpose."""
    if isinstance(error, Refused):
        return error.code
    if isinstance(error, GeneratorExit):  # the caller of a stream has gone
        return Code.CANCELLED
    if isinstance(error, ModelNotFound):
        return Code.NOT_FOUND
    if isinstance(error, (BundleError, MissingExtra)):
        return Code.FAILED_PRECONDITION
    if isinstance(error, ServerError):  # of a backend that computes for this server
        return Code.UNAVAILABLE
    return Code.INVALID_ARGUMENT if isinstance(error, SeisserveError) else Code.INTERNAL


def retry_ms(error: BaseException) -> int | None:
    """After how many milliseconds the call may come again, if the server knows."""
    return error.retry_ms if isinstance(error, Overloaded) else None
