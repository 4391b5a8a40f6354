"""Calls as coroutines, without an event loop: whichever thread has what a call waits for goes on with it.

Each hand-over from one thread to another costs more than most of what is done for a small call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

__all__ = ["Gone", "MayFail", "Task", "Wait"]

Value = TypeVar("Value")


class Gone(Exception):
    """The caller has gone: what is raised where its call waits."""


class MayFail:
    """Something that may have an error in place of what is waited for."""

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def raise_once(self) -> None:
        """Raise the error, the first time, and keep nothing of it: its traceback has this very frame, and together they
        would keep the whole call until gc comes."""
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error


class Wait(MayFail, Generic[Value]):
    """Something that one call, or one thread, waits for. It is set once; whoever comes later is told so.

    shielded: it is waited for even if the caller has gone.
    """

    __slots__ = ("_lock", "_over", "_then", "_value", "shielded")

    def __init__(self, shielded: bool = False) -> None:
        super().__init__()
        self.shielded = shielded
        self._lock, self._over = threading.Lock(), False
        self._then: Callable[[], None] | None = None
        self._value: Any = None

    def set(self, value: Value) -> bool:
        """It is there: who waits goes on, on this thread. Whether it was the first to say so."""
        return self._end(value, None)

    def fail(self, error: BaseException) -> bool:
        """It will not come: the error is raised where it is waited for. As `set`."""
        return self._end(None, error)

    def _end(self, value: Value | None, error: BaseException | None) -> bool:
        with self._lock:
            if self._over:
                return False
            self._over, self._value, self.error, then = True, value, error, self._then
        if then is not None:
            then()
        return True

    def then(self, function: Callable[[], None]) -> bool:
        """Have a function called once it is there. False if it is there already; the function is not called then."""
        with self._lock:
            if not self._over:
                self._then = function
            return not self._over

    def result(self) -> Value:
        """What was set. Raises the error in place of it, the first time."""
        self.raise_once()
        value: Value = self._value
        return value

    def __await__(self) -> Generator[Wait[Value], None, Value]:
        yield self
        return self.result()


class Task:
    """A coroutine that awaits nothing but `Wait`s. It begins with `go_on`, and must not raise."""

    __slots__ = ("_waits_for", "_work", "gone")

    def __init__(self, work: Coroutine[Wait[Any], None, None]) -> None:
        self._work, self.gone = work, False
        self._waits_for: Wait[Any] | None = None

    def go_on(self) -> None:
        """Run until it waits for something that is not there, or to its end."""
        try:
            while True:
                wait = self._waits_for = self._work.send(None)
                if self.gone and not wait.shielded:
                    wait.fail(Gone())
                if wait.then(self.go_on):
                    return
        except StopIteration:
            self._waits_for = None

    def leave(self) -> None:
        """Its caller has gone: Gone is raised where it waits now, or will wait next."""
        self.gone = True
        wait = self._waits_for
        if wait is not None and not wait.shielded:
            wait.fail(Gone())
