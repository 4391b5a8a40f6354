"""What a server answers besides the errors of the work itself, each with the gRPC status that it means."""

from __future__ import annotations

import grpc

from seisserve.errors import SeisserveError

__all__ = [
    "Cancelled", "Expired", "NotReady", "Overloaded", "PermissionDenied", "Refused", "Unauthenticated", "Unavailable",
    "Unsupported",
]  # fmt: skip


class Refused(SeisserveError):
    """Base of the server's own refusals; `code` is the gRPC status."""

    code = grpc.StatusCode.UNKNOWN


class Overloaded(Refused):
    """There is no room for the call now; it may come again after `retry_ms` milliseconds (None: it never fits)."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, text: str, retry_ms: int | None) -> None:
        super().__init__(text)
        self.retry_ms = retry_ms


class Expired(Refused):
    """The deadline of the call has passed before its turn came."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(Refused):
    """The caller has gone."""

    code = grpc.StatusCode.CANCELLED


class Unavailable(Refused):
    """The server stops, or the model is not ready yet: another server, or a later call, may do it."""

    code = grpc.StatusCode.UNAVAILABLE


class Unauthenticated(Refused):
    """The call has no token, or one that nobody knows."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(Refused):
    """The token is good, but not for this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class NotReady(Refused):
    """What is asked for needs something that is not there yet: a version that is not available, a repository."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Unsupported(Refused):
    """The protocol has the method, this model or server does not."""

    code = grpc.StatusCode.UNIMPLEMENTED
