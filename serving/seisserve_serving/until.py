"""Runs of a network that are wanted only until something: a deadline, a time limit, the end of the server.

onnxruntime can be told to stop between two operators. TensorFlow and OpenVINO cannot: whoever waits for them goes on
without them, and their threads come to an end when they do, or with the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from seisserve.errors import BundleError, SeisserveError
from seisserve_serving.calls import Call
from seisserve_serving.errors import Cancelled, Expired

__all__ = ["LIMIT_S", "Over", "Steps", "Until", "limited", "stopped", "while_wanted"]

LIMIT_S = 60.0
LOOK_S = 0.05  # how often a run is looked after
SLACK_S = 2.0  # for a runtime that can be stopped to stop
Over = Callable[[], SeisserveError | None]  # why a run is not wanted any more; None as long as it is


class Until(dict[str, NDArray[Any]]):
    """Inputs of a run that a runtime should stop, if it can, with the error that `over` gives once it gives one."""

    def __init__(self, inputs: Mapping[str, NDArray[Any]], over: Over) -> None:
        super().__init__(inputs)
        self.over = over


class Steps:
    """What a load has its runtime compute, one run after another, and how long each may take.

    limit_s: 0 for any time.
    """

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._now: tuple[str, float] | None = None
        self._given_up = False

    @contextmanager
    def run(self, what: str) -> Iterator[None]:
        """A run; `what` is said of it in an error."""
        self._now = what, time.monotonic()
        try:
            yield
        finally:
            self._now = None

    def over(self) -> SeisserveError | None:
        """Why the run of now should be stopped."""
        return BundleError("the server stops") if self._given_up else self._late(0.0)

    def stuck(self) -> SeisserveError | None:
        """That the run of now has not been stopped though it should have been: its runtime cannot be."""
        late = self._late(SLACK_S)
        if late is None:
            return None
        return BundleError(
            f"{late}. It cannot be stopped, and goes on, at the lowest priority, until it ends or the server is "
            "started anew"
        )

    def give_up(self) -> None:
        """Nobody waits any more."""
        self._given_up = True

    def _late(self, slack_s: float) -> SeisserveError | None:
        now = self._now
        if now is None or not self._limit_s or time.monotonic() - now[1] < self._limit_s + slack_s:
            return None
        return BundleError(f"{now[0]} did not come to an end within {self._limit_s:g} s (run_timeout_s)")


def while_wanted(call: Call, name: str) -> Over:
    """Until the call is over."""

    def over() -> SeisserveError | None:
        if not call.over:
            return None
        if call.cancelled:
            return Cancelled("the caller has gone")
        return Expired(f"the deadline passed while {name} was computed; it was stopped")

    return over


def limited(name: str, limit_s: float, over: Over | None = None) -> Over:
    """Until that many seconds have passed from now (0: any number), or something else is over."""
    begin = time.monotonic()

    def both() -> SeisserveError | None:
        if over is not None and (error := over()) is not None:
            return error
        if limit_s and time.monotonic() - begin >= limit_s:
            return Expired(f"{name} did not come to an end within {limit_s:g} s (run_timeout_s); it was stopped")
        return None

    return both


@contextmanager
def stopped(over: Over, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` once it is over, unless the block has ended by then; whatever the block then raises is that error."""
    ended, found = threading.Event(), list[SeisserveError]()

    def watch() -> None:
        while not ended.wait(LOOK_S):
            if (error := over()) is not None:
                found.append(error)
                stop()
                return

    watching = threading.Thread(target=watch, name="until", daemon=True)
    watching.start()
    try:
        yield
    except Exception as error:
        if found:
            raise found[0] from error
        raise
    finally:
        ended.set()
