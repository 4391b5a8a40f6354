"""What an HTTP route is: a pure function from a request that has arrived in full to a reply."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import grpc

from seisserve.errors import UsageError
from seisserve_serving.calls import Call
from seisserve_serving.errors import Refused

__all__ = ["JSON", "Asked", "NotAcceptable", "Reply", "Route", "TooLarge", "number", "timed"]

JSON = "application/json"


class Asked(NamedTuple):
    """A request. path: the parts of its path that the route leaves open; headers: names in lower case; body: not
    compressed any more."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def options(self, *known: str) -> Mapping[str, str]:
        """The query. Raises UsageError for a name that is not known; one that ends in a dot stands for all such."""
        for name in self.query:
            if not any(name == each or (each.endswith(".") and name.startswith(each)) for each in known):
                raise UsageError(f"query parameter {name!r} is unknown; there is {', '.join(known) or 'none'}")
        return self.query


class Reply(NamedTuple):
    """An answer. media: its Content-Type."""

    body: bytes
    media: str = JSON
    status: int = 200
    headers: Mapping[str, str] = {}


class Route(NamedTuple):
    """verb and path: as of Starlette. method: what the call is named at the door: that of gRPC where there is one, so
    that the same rights, limits and metrics hold for both."""

    verb: str
    path: str
    method: str
    work: Callable[[Asked, Call], Reply]


class TooLarge(Refused):
    """The body of the request is larger than the server takes."""

    code, http = grpc.StatusCode.RESOURCE_EXHAUSTED, 413


class NotAcceptable(Refused):
    """The Accept header names nothing that the answer can be written in."""

    code, http = grpc.StatusCode.INVALID_ARGUMENT, 406


def number(text: str, what: str, least: int = 0) -> int:
    """A whole number in a header, query or path. Raises UsageError that names `what`."""
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) >= least):
        raise UsageError(f"{what} is {text[:40]!r}; it must be a whole number, {least} or more")
    return int(text)


@contextmanager
def timed(call: Call, stage: str) -> Iterator[None]:
    """Add what the block takes to the time of a stage: decode or encode."""
    begin = time.monotonic()
    yield
    call.spent[stage] += time.monotonic() - begin
