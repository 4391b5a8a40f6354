"""Calls that wait: each wait ends once, by whoever comes first, and the call goes on with it exactly once."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref

import pytest

from seisserve_serving.waits import Gone, Task, Wait


class Work:
    """A call that waits for each of its waits, and notes how they end."""

    def __init__(self, *waits: Wait[int]) -> None:
        self.waits, self.noted = waits, list[object]()
        self.threads = list[threading.Thread]()
        self.task = Task(self._run())

    async def _run(self) -> None:
        for wait in self.waits:
            try:
                self.noted.append(await wait)
            except (Gone, ValueError) as error:
                self.noted.append(type(error))
            self.threads.append(threading.current_thread())
        self.noted.append("end")


def test_a_call_goes_on_where_what_it_waits_for_is_set() -> None:
    first, second = Wait[int](), Wait[int]()
    work = Work(first, second)
    work.task.go_on()
    assert not work.noted
    setter = threading.Thread(target=lambda: first.set(1))
    setter.start()
    setter.join()
    assert work.noted == [1]
    second.fail(ValueError())
    assert work.noted == [1, ValueError, "end"]
    assert work.threads == [setter, threading.current_thread()]


def test_what_is_there_already_is_not_waited_for() -> None:
    waits = [Wait[int]() for _ in range(3)]
    for number, wait in enumerate(waits):
        assert wait.set(number) and not wait.set(7) and not wait.fail(ValueError())
        assert not wait.then(lambda: None)
    work = Work(*waits)
    work.task.go_on()
    assert work.noted == [0, 1, 2, "end"]


def test_an_error_is_raised_for_a_thread_too() -> None:
    wait: Wait[int] = Wait()
    there = threading.Event()
    assert wait.then(there.set)
    wait.fail(ValueError("no"))
    assert there.is_set()
    with pytest.raises(ValueError, match="no"):
        wait.result()


def test_who_has_gone_waits_for_nothing_but_what_is_shielded() -> None:
    waits = Wait[int](), Wait[int](shielded=True), Wait[int]()
    work = Work(*waits)
    work.task.go_on()
    work.task.leave()
    assert work.noted == [Gone]
    work.task.leave()
    assert work.noted == [Gone]
    assert not waits[0].set(1)
    waits[1].set(2)
    assert work.noted == [Gone, 2, Gone, "end"]
    work.task.leave()


def test_a_wait_that_is_set_while_its_caller_goes_ends_once() -> None:
    for _ in range(300):
        wait: Wait[int] = Wait()
        work = Work(wait)
        work.task.go_on()
        ready = threading.Barrier(3)

        def on_mark(do: object, ready: threading.Barrier = ready) -> None:
            ready.wait(30)
            assert callable(do)
            do()

        both = [threading.Thread(target=on_mark, args=(do,)) for do in (work.task.leave, lambda wait=wait: wait.set(1))]
        for thread in both:
            thread.start()
        ready.wait(30)
        for thread in both:
            thread.join()
        assert work.noted in ([1, "end"], [Gone, "end"])


@pytest.mark.parametrize("end", ["leaves", "fails", "is answered"])
def test_nothing_of_a_call_stays_when_it_has_ended(end: str) -> None:
    """Its request may be large, and gc is long in coming."""

    class Request:
        pass

    async def attend(request: Request) -> None:
        with contextlib.suppress(Gone, ValueError):
            await wait

    gc.disable()
    try:
        wait: Wait[int] = Wait()
        request = Request()
        kept = weakref.ref(request)
        task = Task(attend(request))
        del request
        task.go_on()
        assert kept() is not None
        {"leaves": task.leave, "fails": lambda: wait.fail(ValueError()), "is answered": lambda: wait.set(1)}[end]()
        assert kept() is None
    finally:
        gc.enable()
