"""Who may call what, and how often: bearer tokens with rights, and a rate for each caller (docs/security.md).

A guard sees every call at the door, before its request is decoded. Tokens are kept as SHA-256 digests and compared in
constant time; no text that leaves this module has one in it.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
import tomllib
from collections import OrderedDict
from collections.abc import Callable, Container
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from seisserve.errors import UsageError
from seisserve_serving.calls import Call, Priority
from seisserve_serving.errors import Overloaded, PermissionDenied, Unauthenticated
from seisserve_serving.front import Arrival

__all__ = ["Bucket", "Caller", "Guard", "Rate", "read_tokens"]

log = logging.getLogger(__name__)
AUTHORIZATION = "authorization"
MOST_CLIENTS = 4096  # whose rates are remembered at once; the one who has been silent longest is forgotten first


class Rate(NamedTuple):
    """How much a caller may have in a second; 0 for as much as there is."""

    calls_per_s: float = 0.0
    windows_per_s: float = 0.0


UNLIMITED = Rate()


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A [[token]] of the file. One of `token`, `sha256` and `certificate` says who it is."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._@-]{1,64}\Z")]
    token: Annotated[str, Meta(pattern=r"^[\x21-\x7e]{16,512}\Z")] | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None
    certificate: Annotated[str, Meta(min_length=1)] | None = None
    models: tuple[str, ...] = ("*",)
    admin: bool = False
    priority: Literal["realtime", "normal", "archive"] = "realtime"
    calls_per_s: Annotated[float, Meta(ge=0)] | None = None
    windows_per_s: Annotated[float, Meta(ge=0)] | None = None
    expires: datetime | None = None


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file of tokens."""

    token: Annotated[tuple[Entry, ...], Meta(min_length=1)]


class Caller(NamedTuple):
    """Somebody whom the server knows. digest: of the token, in hexadecimal, or ""; certificate: common name, or "".

    models: patterns as of a shell. most_urgent: what a call that asks for more goes with. rate: None where the server's
    own holds.
    """

    name: str
    digest: str
    certificate: str
    models: tuple[str, ...]
    admin: bool
    most_urgent: Priority
    calls_per_s: float | None
    windows_per_s: float | None
    expires: datetime | None


def read_tokens(path: Path) -> tuple[Caller, ...]:
    """The callers of a file of tokens. Raises UsageError that names the file and the entry, never with a token."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {type(error).__name__}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from error
    try:
        entries = msgspec.convert(content, File).token
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {error}; see docs/security.md for what a [[token]] has") from error
    callers = tuple(_caller(path, entry) for entry in entries)
    for what in ("name", "digest", "certificate"):
        values = [getattr(caller, what) for caller in callers if getattr(caller, what)]
        twice = next((caller.name for caller in callers if values.count(getattr(caller, what)) > 1), None)
        if twice is not None:
            of = {"name": "name", "digest": "token", "certificate": "certificate"}[what]
            raise UsageError(f"{path}: {twice}: its {of} is there twice; each must be one caller's own")
    if any(entry.token for entry in entries) and path.stat().st_mode & 0o077:
        log.warning("%s has tokens in clear, and others than its owner may read or change it: chmod 600 it", path)
    return callers


def _caller(path: Path, entry: Entry) -> Caller:
    if [entry.token, entry.sha256, entry.certificate].count(None) != 2:
        raise UsageError(f"{path}: {entry.name}: give exactly one of token, sha256 and certificate")
    if entry.expires is not None and entry.expires.tzinfo is None:
        raise UsageError(f"{path}: {entry.name}: expires has no time zone; write it as 2027-01-01T00:00:00Z")
    if not entry.models:
        raise UsageError(f"{path}: {entry.name}: models is empty; name some, or leave it out for all")
    digest = entry.sha256 or (sha256(entry.token.encode()).hexdigest() if entry.token else "")
    return Caller(
        entry.name, digest, entry.certificate or "", entry.models, entry.admin, Priority[entry.priority.upper()],
        entry.calls_per_s, entry.windows_per_s, entry.expires,
    )  # fmt: skip


class Bucket:
    """A rate with one second's worth of patience; what is taken beyond that must be paid back before the next call."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s, self._clock = per_s, clock
        self._level, self._at = max(per_s, 1.0), clock()
        self._lock = threading.Lock()

    def wait_s(self) -> float:
        """Seconds until one may be taken; 0 for now."""
        if not self.per_s:
            return 0.0
        with self._lock:
            now = self._clock()
            self._level = min(self._level + (now - self._at) * self.per_s, max(self.per_s, 1.0))
            self._at = now
            return max((1.0 - self._level) / self.per_s, 0.0)

    def take(self, amount: float) -> None:
        """Take an amount, even one that isn't there."""
        if self.per_s:
            with self._lock:
                self._level -= amount


class _Budget(NamedTuple):
    """What a caller may still have. The rights of calls without a token."""

    rate: Rate
    calls: Bucket
    windows: Bucket

    @property
    def most_urgent(self) -> Priority:
        return Priority.REALTIME

    def check_model(self, name: str) -> None:
        """All models are anybody's."""

    def charge(self, windows: int) -> None:
        self.windows.take(windows)


class _Granted(NamedTuple):
    """The rights of a call with a token."""

    caller: Caller
    budget: _Budget

    @property
    def most_urgent(self) -> Priority:
        return self.caller.most_urgent

    def check_model(self, name: str) -> None:
        """Raises PermissionDenied."""
        if not any(fnmatchcase(name, pattern) for pattern in self.caller.models):
            allowed = ", ".join(self.caller.models)
            raise PermissionDenied(f"{self.caller.name} may not use the model {name!r}, but {allowed}")

    def charge(self, windows: int) -> None:
        self.budget.charge(windows)


class Guard:
    """Lets calls in, or refuses them.

    tokens_file: who is known; None lets everybody in. admin_methods: need an admin's token; without a file of tokens,
    they are refused except over the Unix socket, or to all with `admin_for_all`. rate: of callers that have none of
    their own, by token, or by address where there are no tokens. Raises UsageError.
    """

    def __init__(
        self,
        tokens_file: Path | None = None,
        admin_methods: Container[str] = (),
        *,
        admin_for_all: bool = False,
        rate: Rate = UNLIMITED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if tokens_file is not None and admin_for_all:
            raise UsageError("allow_admin_without_token contradicts tokens_file: give a token admin = true instead")
        self._file, self._admin_methods, self._admin_for_all = tokens_file, admin_methods, admin_for_all
        self._rate, self._clock = rate, clock
        self._callers = () if tokens_file is None else read_tokens(tokens_file)
        self._budgets: OrderedDict[str, _Budget] = OrderedDict()
        self._lock = threading.Lock()

    def reload(self) -> None:
        """Read the file of tokens again. Raises UsageError, and goes on with the old ones."""
        if self._file is not None:
            self._callers = read_tokens(self._file)
            log.info("%s: %d callers are known now", self._file, len(self._callers))

    def __call__(self, arrival: Arrival, call: Call) -> None:
        """Raises Unauthenticated, PermissionDenied, Overloaded; else notes in the call who it is and what it may."""
        caller = None if self._file is None else self._who(arrival)
        if arrival.method in self._admin_methods:
            self._check_admin(arrival, caller)
        if caller is None:
            budget = self._budget(call.host, self._rate)
            call.rights = budget
        else:
            call.user = caller.name
            budget = self._budget(f"token {caller.name}", self._rate_of(caller))
            call.rights = _Granted(caller, budget)
        _take(budget, call.client)

    def _who(self, arrival: Arrival) -> Caller:
        digest = _digest(arrival)
        found = None
        for caller in self._callers:  # all of them, whatever is found: the time it takes tells nothing
            same_token = hmac.compare_digest(caller.digest, digest)
            same_certificate = hmac.compare_digest(caller.certificate.encode(), arrival.certificate.encode())
            if (same_token and digest) or (same_certificate and arrival.certificate and not digest):
                found = caller
        if found is None:
            if not digest and not arrival.certificate:
                raise Unauthenticated("this server wants a token: send metadata `authorization: Bearer TOKEN`")
            raise Unauthenticated(f"nobody here has this {'token' if digest else 'certificate'}")
        if found.expires is not None and datetime.now(UTC) >= found.expires:
            raise Unauthenticated(f"the token of {found.name} has expired, at {found.expires.isoformat()}")
        return found

    def _check_admin(self, arrival: Arrival, caller: Caller | None) -> None:
        if caller is not None and not caller.admin:
            raise PermissionDenied(f"{caller.name} may not do {arrival.method}: its token has no admin = true")
        if caller is None and not self._admin_for_all and not _on_socket(arrival.peer):
            raise PermissionDenied(
                f"{arrival.method} needs an admin's token, and this server has no tokens_file; it is also allowed over "
                "the Unix socket (grpc_socket_path), or to all with allow_admin_without_token"
            )

    def _rate_of(self, caller: Caller) -> Rate:
        calls = self._rate.calls_per_s if caller.calls_per_s is None else caller.calls_per_s
        windows = self._rate.windows_per_s if caller.windows_per_s is None else caller.windows_per_s
        return Rate(calls, windows)

    def _budget(self, client: str, rate: Rate) -> _Budget:
        with self._lock:
            budget = self._budgets.get(client)
            if budget is None or budget.rate != rate:
                budget = _Budget(rate, Bucket(rate.calls_per_s, self._clock), Bucket(rate.windows_per_s, self._clock))
                self._budgets[client] = budget
            self._budgets.move_to_end(client)
            if len(self._budgets) > MOST_CLIENTS:
                self._budgets.popitem(last=False)
            return budget


def _take(budget: _Budget, who: str) -> None:
    for bucket, what in ((budget.calls, "calls"), (budget.windows, "windows")):
        wait_s = bucket.wait_s()
        if wait_s:
            raise Overloaded(
                f"{who} may have {bucket.per_s:g} {what} per second; come again in {wait_s:.3g} s",
                max(round(1000 * wait_s), 1),
            )
    budget.calls.take(1)


def _digest(arrival: Arrival) -> str:
    """Of the token in the call's metadata, "" where there is none."""
    header = arrival.metadata.get(AUTHORIZATION)
    if header is None:
        return ""
    scheme, _, token = (header.decode("latin-1") if isinstance(header, bytes) else header).strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("the authorization is no bearer token: send metadata `authorization: Bearer TOKEN`")
    return sha256(token.strip().encode()).hexdigest()


def _on_socket(peer: str) -> bool:
    return peer.startswith("unix:")
