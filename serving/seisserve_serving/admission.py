"""Whether a call may come in: the server does not stop, keeps up, has room, and has it for this client.

Nothing here looks into a call's request: what is refused has cost next to nothing.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter, OrderedDict, deque

from seisserve_serving.calls import Priority
from seisserve_serving.errors import Overloaded, Unavailable
from seisserve_serving.knock import Knock
from seisserve_serving.waits import Gone, Wait

__all__ = ["SLOW_S", "Admission", "Turn", "Turns"]

RETRY_MS = 200
# Of the calls that may be under way: the rest is kept for calls that are more urgent.
SHARE = {Priority.REALTIME: 1.0, Priority.NORMAL: 0.9, Priority.ARCHIVE: 0.75}
SEEN_S = 1.0  # a client that has not called for so long leaves its part of the room to the others
ASSUMED = 1 << 20  # bytes of a request that is being read
SLOW_S = 1.0  # one that has not been read by then does not hold up the others


class Admission:
    """Counts the calls under way, of all and by client.

    most_calls: at once; more are refused, those that are less urgent a little earlier (`SHARE`). client_share: once
    that part of them is under way, a client gets no more than its even part, as long as others call too.
    """

    def __init__(self, most_calls: int = 256, client_share: float = 0.5) -> None:
        self.most_calls, self.client_share = most_calls, client_share
        self._most = {priority: math.ceil(share * most_calls) for priority, share in SHARE.items()}
        self.knock: Knock | None = None
        self.draining = False
        self.under_way = 0
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._of: Counter[str] = Counter()  # calls under way by client
        self._seen: OrderedDict[str, float] = OrderedDict()  # when each client has called, the latest at the end

    def drain(self) -> None:
        """Refuse what comes from now on."""
        with self._changed:
            self.draining = True

    def wait(self, seconds: float) -> bool:
        """Whether all calls have finished within that time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.under_way, seconds)

    def over(self, priority: Priority) -> bool:
        """Whether as many calls are under way as may be, or about as many again wait at the door: those of that
        priority must go."""
        most = self._most[priority]
        return self.under_way >= most or (self.knock is not None and self.knock.calls >= 2 * most)

    def seen(self) -> None:
        """A call has come."""
        if self.knock is not None:
            self.knock.seen += 1

    def check(self, priority: Priority, client: str) -> None:
        """Raises Unavailable while draining, Overloaded if there is no room."""
        with self._lock:
            self._check(priority, client)

    def enter(self, priority: Priority, client: str) -> None:
        """Count a call in. Raises as `check`."""
        with self._lock:
            self._check(priority, client)
            self.under_way += 1
            self._of[client] += 1

    def leave(self, client: str) -> None:
        """Count it out."""
        with self._lock:
            self.under_way -= 1
            self._of[client] -= 1
            if not self._of[client]:
                del self._of[client]
            if self.knock is not None:
                self.knock.answered += 1
            if not self.under_way:
                self._changed.notify_all()

    def _check(self, priority: Priority, client: str) -> None:
        if self.draining:
            raise Unavailable("draining: this server is about to stop")
        clients = self._clients_with(client)
        most = self._most[priority]
        if self.under_way >= most:
            text = f"{self.under_way} calls are under way, at most {most} of this priority may be let in"
            raise Overloaded(text, RETRY_MS)
        own, even = self._of[client], math.ceil(self.most_calls / clients)
        if own >= even and self.under_way >= self.client_share * self.most_calls:
            text = f"{own} calls of this client are under way, at most {even} may be while others call (client_share)"
            raise Overloaded(text, RETRY_MS)

    def _clients_with(self, client: str) -> int:
        """How many have called of late, with this one."""
        now = time.monotonic()
        self._seen[client] = now
        self._seen.move_to_end(client)
        while next(iter(self._seen.values())) < now - SEEN_S:
            self._seen.popitem(last=False)
        return len(self._seen)


class Turns:
    """Lets requests be read one after the other, while not more than so many bytes of them are at work.

    For calls that can wait. most_waiting: calls; more are refused.
    """

    def __init__(self, most_bytes: int, most_waiting: int) -> None:
        self._most, self._most_waiting = most_bytes, most_waiting
        self._lock, self._held = threading.Lock(), 0
        self._line: deque[Wait[None]] = deque()

    async def come(self) -> Turn:
        """Wait for a turn. Raises Overloaded if too many wait already."""
        with self._lock:
            own: Wait[None] | None = None
            if not self._line and self._held < self._most:
                self._held += ASSUMED
            elif len(self._line) < self._most_waiting:
                own = Wait()
                self._line.append(own)
            else:
                raise Overloaded(f"{len(self._line)} calls of this priority wait for their turn", RETRY_MS)
        if own is not None:
            try:
                await own
            except Gone:
                with self._lock, contextlib.suppress(ValueError):  # it may have been called meanwhile
                    self._line.remove(own)
                raise
        return Turn(self)

    def hold(self, more: int) -> None:
        """So many more bytes are at work, or fewer."""
        while True:
            with self._lock:
                self._held += more
                if not self._line or self._held >= self._most:
                    return
                first = self._line.popleft()
                self._held += ASSUMED
            more = 0 if first.set(None) else -ASSUMED  # if its caller has gone


class Turn:
    """One request's turn, which has begun; `hold(0)` ends it."""

    def __init__(self, turns: Turns) -> None:
        self._turns, self._held, self._read = turns, ASSUMED, False

    def hold(self, size: int) -> None:
        """It turns out to have so many bytes."""
        more, self._held = size - self._held, size
        self._turns.hold(more)

    def read(self, size: int) -> None:
        """It has been read."""
        self._read = True
        self.hold(size)

    def is_slow(self) -> None:
        """It has had its time (`SLOW_S`): if it has not been read by now it does not hold up the others."""
        if not self._read:
            self.hold(0)
