"""The place that the process takes on the machine: which processors, and how much it gives way to others."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from seisserve.errors import UsageError

__all__ = ["cpus", "give_way", "in_no_hurry", "settle"]

LESS = 5  # a third of the weight


def settle(cpu_affinity: str, nice: int) -> None:
    """Take that place; before any thread is started, since threads inherit it. Raises UsageError."""
    if cpu_affinity:
        if not hasattr(os, "sched_setaffinity"):
            raise UsageError("cpu_affinity: this system does not let a process choose its processors")
        os.sched_setaffinity(0, cpus(cpu_affinity))
    if nice:
        os.nice(nice)


def give_way() -> None:
    """Let other threads of the process go first from now on, as far as the system knows of threads (Linux does).

    For threads that compute: one that only reads, refuses and answers must not wait for them.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + LESS, 19))


@contextmanager
def in_no_hurry() -> Iterator[None]:
    """Threads that are made inside do not take a processor from one that computes, but wait until it has had its turn
    of a few milliseconds (on Linux): for threads that are woken several times for each call, for a little work each.
    """
    changed = _schedule("SCHED_OTHER", "SCHED_BATCH")
    try:
        yield
    finally:
        if changed:
            _schedule("SCHED_BATCH", "SCHED_OTHER")


def _schedule(before: str, after: str) -> bool:
    """Have this thread scheduled another way, if it is scheduled in that one: whoever chose a third meant it."""
    if sys.platform != "linux" or os.sched_getscheduler(0) != getattr(os, before):
        return False
    try:
        os.sched_setscheduler(0, getattr(os, after), os.sched_param(0))
    except OSError:  # some sandboxes do not allow it
        return False
    return True


def cpus(text: str) -> set[int]:
    """Processors as in 0-3,6. Raises UsageError unless this process may run on all of them."""
    found: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise UsageError(f"cpu_affinity is {text!r}; it must be numbers and ranges of processors, as 0-3,6")
        found |= set(range(int(low), int(high or low) + 1))
    allowed = os.sched_getaffinity(0)
    if not found or found - allowed:
        raise UsageError(f"cpu_affinity is {text!r}; this process may run on {','.join(map(str, sorted(allowed)))}")
    return found
