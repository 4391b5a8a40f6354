"""A call: what the server knows of it besides its message."""

from __future__ import annotations

import enum
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from seisserve.errors import UsageError
from seisserve_serving.errors import Cancelled, Expired

__all__ = ["PRIORITY_KEY", "Call", "Counted", "Priority", "host_of", "priority_of"]

PRIORITY_KEY = "seisserve-priority"
# What a call may count or measure on its way. The label is a phase (picks), an outcome (packets: new, duplicate, late,
# refused) or a station. data_latency: age in seconds of its newest sample, told as it comes; station_left: it is no
# longer expected to send. pick_latency: seconds from the last sample that a pick needed to the pick.
Counted = Literal[
    "picks", "detections", "station_hours", "gaps", "packets", "data_latency", "station_left", "pick_latency"
]


class Priority(enum.IntEnum):
    """Whose windows go first."""

    REALTIME = 0
    NORMAL = 1
    ARCHIVE = 2


class Rights(Protocol):
    """What a caller may do; the guard that lets a call in gives it."""

    @property
    def most_urgent(self) -> Priority:
        """Calls that ask for more go with this."""
        ...

    def check_model(self, name: str) -> None:
        """Raises PermissionDenied for a model that the caller may not use."""
        ...

    def charge(self, windows: int) -> None:
        """Take windows off what the caller may have computed."""
        ...


class Call:
    """Who calls, until when the answer is wanted, and how urgent it is.

    deadline: of time.monotonic, or None. priority: smaller goes first. user: the name of the caller's token, empty
    without one. It is over once the deadline has passed or somebody has called `cancel`.
    """

    def __init__(
        self,
        request_id: str = "",
        deadline: float | None = None,
        priority: Priority = Priority.NORMAL,
        peer: str = "",
        user: str = "",
    ) -> None:
        self.request_id, self.deadline, self.priority, self.peer, self.user = request_id, deadline, priority, peer, user
        self.host = host_of(peer)
        self.cancelled = False
        self.model = ""  # the name of the model, once that is known
        self.version = 0
        self.windows = 0  # asked for
        self.rights: Rights | None = None
        self.spent: defaultdict[str, float] = defaultdict(float)  # seconds by stage: decode, queue, compute, encode
        self.holds: Callable[[int], None] | None = None  # who hears of how many bytes of it are at work
        self.counted: Callable[[Call, Counted, float, str], None] | None = None  # who hears of what it counts
        self._then: Callable[[], None] | None = None

    @property
    def client(self) -> str:
        """Whose room it takes: the user, or the address."""
        return self.user or self.host

    def cancel(self) -> None:
        """The caller has gone: whoever computes or waits for it may stop."""
        self.cancelled = True
        then = self._then
        if then is not None:
            then()

    def when_cancelled(self, then: Callable[[], None] | None) -> None:
        """Call a function once the call is cancelled (at once if it is already); None takes it back."""
        self._then = then
        if then is not None and self.cancelled:
            then()

    def count(self, what: Counted, value: float = 1.0, label: str = "") -> None:
        """Tell the metrics of something that was counted or measured."""
        if self.counted is not None:
            self.counted(self, what, value, label)

    def about(self, model: str, version: int) -> None:
        """Note the model. Raises PermissionDenied if the caller may not use it."""
        if self.rights is not None:
            self.rights.check_model(model)
        self.model, self.version = model, version

    def charge(self, windows: int) -> None:
        """Note windows that it wants computed."""
        self.windows += windows
        if self.rights is not None:
            self.rights.charge(windows)

    @property
    def left_s(self) -> float | None:
        """Seconds to the deadline, not below zero; None without one."""
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)

    @property
    def over(self) -> bool:
        """Whether nobody wants the answer any more."""
        return self.cancelled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def check(self) -> None:
        """Raises Cancelled or Expired if the call is over."""
        if self.cancelled:
            raise Cancelled("the caller has gone")
        if self.over:
            raise Expired("the deadline passed before the call's turn came; nothing was computed after it")


def priority_of(metadata: Mapping[str, str | bytes]) -> Priority:
    """The priority that a call's metadata ask for. Raises UsageError for an unknown one."""
    name = metadata.get(PRIORITY_KEY)
    if name is None:
        return Priority.NORMAL
    text = name.decode(errors="replace") if isinstance(name, bytes) else name
    if text.upper() not in Priority.__members__:
        raise UsageError(f"metadata {PRIORITY_KEY} is {text!r}; it must be realtime, normal or archive")
    return Priority[text.upper()]


def host_of(peer: str) -> str:
    """The address without its port, which is another one with each connection."""
    return "unix socket" if peer.startswith("unix:") else peer.rpartition(":")[0] or peer
