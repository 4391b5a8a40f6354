"""Dynamic batching: whoever is computed together, each gets its own answer, in the right order, or is not computed."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from client.waveforms import manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from serving.small_models import eventually

from seisserve.bundle import Bundle
from seisserve.errors import UsageError
from seisserve.runtime import OnnxRuntime
from seisserve.transport import FakeTransport
from seisserve_serving.calls import Call, Priority
from seisserve_serving.errors import Cancelled, Expired, Overloaded, Refused, Unavailable
from seisserve_serving.lanes import BRIEF_S, Batch, Batching, Lanes, Queue
from seisserve_serving.waits import Task

Array = NDArray[np.float32]
MODEL = manifest()


class Gate:
    """A network that waits until it is let go, and remembers the batches that it was given."""

    def __init__(self, lanes: int = 8) -> None:
        self.open, self.begun = threading.Event(), threading.Semaphore(0)
        self.batches: list[Array] = []
        self.transport = FakeTransport(self._run, lanes)

    def _run(self, windows: Array) -> Array:
        self.batches.append(windows)
        self.begun.release()
        assert self.open.wait(30)
        return windows * 2

    def order(self) -> list[float]:
        """The first value of each window in the order of computing."""
        return [float(window[0, 0]) for batch in self.batches for window in batch]


@pytest.fixture
def lane() -> Iterator[Lanes]:
    """A single lane."""
    lanes = Lanes(1)
    yield lanes
    lanes.close()


def windows(*values: float, samples: int = 600) -> Array:
    return np.stack([np.full((samples, 3), value, np.float32) for value in values])


class Caller(threading.Thread):
    """A call on a thread of its own."""

    def __init__(self, queue: Queue, array: Array, call: Call | None = None) -> None:
        super().__init__(daemon=True)
        self.queue, self.array, self.call = queue, array, call or Call()
        self.answer: Array | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self.queue.predict(self.array, self.call)[MODEL.output.name]
        except (Refused, RuntimeError) as error:
            self.error = error

    def ended(self) -> Caller:
        self.join(30)
        assert not self.is_alive()
        return self


def busy(queue: Queue, gate: Gate) -> Caller:
    """A call that keeps the lane until the gate opens."""
    caller = Caller(queue, windows(-1))
    assert gate.begun.acquire(timeout=30)
    return caller


def waiting(queue: Queue, count: int) -> None:
    """Return once that many windows wait."""
    end = time.monotonic() + 30
    while queue.waiting != count:
        assert time.monotonic() < end, f"{queue.waiting} windows wait, expected {count}"
        time.sleep(0.001)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), most=st.integers(1, 16), lanes=st.integers(1, 3),
    mode=st.sampled_from(["exact", "fixed"]), timeout=st.sampled_from([0, 500]),
)  # fmt: skip
def test_each_caller_gets_its_own_windows_back(
    sizes: list[int], most: int, lanes: int, mode: str, timeout: int
) -> None:
    told: list[Batch] = []
    shared = Lanes(lanes, told.append)
    batching = Batching(max_batch_size=most, mode=mode, batch_timeout_micros=timeout, max_enqueued_batches=1000)  # type: ignore[arg-type]
    queue = shared.queue(MODEL, FakeTransport(lambda array: array * 2, 8), batching)
    arrays = [windows(*np.arange(100 * n, 100 * n + size)) for n, size in enumerate(sizes)]
    callers = [Caller(queue, array) for array in arrays]
    for caller, array in zip(callers, arrays, strict=True):
        assert caller.ended().error is None
        np.testing.assert_array_equal(caller.answer, array * 2)
    shared.close()
    assert queue.waiting == queue.running == 0
    assert sum(batch.windows for batch in told) == sum(sizes)
    assert all(batch.windows + batch.padding <= most for batch in told)
    assert mode == "exact" or all(batch.windows + batch.padding == most for batch in told)


def test_calls_that_wait_are_computed_together(lane: Lanes) -> None:
    gate = Gate()
    queue = lane.queue(MODEL, gate.transport, Batching(max_batch_size=8))
    first = busy(queue, gate)
    others = [Caller(queue, windows(value)) for value in range(5)]
    waiting(queue, 5)
    gate.open.set()
    for caller in (first, *others):
        assert caller.ended().error is None
    assert [len(batch) for batch in gate.batches] == [1, 5]


def test_windows_of_other_lengths_are_no_batch_mates(lane: Lanes) -> None:
    gate = Gate()
    queue = lane.queue(MODEL, gate.transport, Batching(max_batch_size=8))
    busy(queue, gate)
    callers = []
    for value in range(4):
        callers.append(Caller(queue, windows(value, samples=600 if value % 2 else 100)))
        waiting(queue, value + 1)
    gate.open.set()
    for value, caller in enumerate(callers):
        assert caller.ended().answer is not None
        assert caller.answer is not None and caller.answer.shape[1] == (600 if value % 2 else 100)
    assert [batch.shape[:2] for batch in gate.batches[1:]] == [(2, 100), (2, 600)]


def test_real_time_goes_before_the_archive(lane: Lanes) -> None:
    gate = Gate()
    queue = lane.queue(MODEL, gate.transport, Batching(max_batch_size=1))
    busy(queue, gate)
    callers = []
    for place, priority in enumerate([Priority.ARCHIVE, Priority.NORMAL, Priority.REALTIME, Priority.ARCHIVE]):
        callers.append(Caller(queue, windows(place), Call(priority=priority)))
        waiting(queue, place + 1)
    gate.open.set()
    for caller in callers:
        caller.ended()
    assert gate.order() == [-1, 2, 1, 0, 3]


def test_the_archive_of_one_model_waits_for_the_real_time_of_another(lane: Lanes) -> None:
    gate = Gate()
    one, two = (lane.queue(MODEL, gate.transport) for _ in range(2))
    busy(one, gate)
    archive = Caller(one, windows(1), Call(priority=Priority.ARCHIVE))
    waiting(one, 1)
    real_time = Caller(two, windows(2), Call(priority=Priority.REALTIME))
    waiting(two, 1)
    gate.open.set()
    archive.ended()
    real_time.ended()
    assert gate.order() == [-1, 2, 1]


def test_the_archive_does_not_fill_up_a_real_time_batch(lane: Lanes) -> None:
    gate = Gate()
    queue = lane.queue(MODEL, gate.transport, Batching(max_batch_size=8))
    busy(queue, gate)
    priorities = [Priority.ARCHIVE, Priority.REALTIME, Priority.NORMAL, Priority.REALTIME]
    callers = []
    for place, priority in enumerate(priorities):
        callers.append(Caller(queue, windows(place), Call(priority=priority)))
        waiting(queue, place + 1)
    gate.open.set()
    assert all(caller.ended().error is None for caller in callers)
    assert [[float(window[0, 0]) for window in batch] for batch in gate.batches] == [[-1], [1, 3], [2, 0]]


def test_nothing_is_computed_after_its_deadline(lane: Lanes) -> None:
    gate = Gate()
    queue = lane.queue(MODEL, gate.transport)
    busy(queue, gate)
    late = Caller(queue, windows(1), Call(deadline=time.monotonic() + 0.05))
    mate = Caller(queue, windows(2))
    assert isinstance(late.ended().error, Expired)
    gate.open.set()
    np.testing.assert_array_equal(mate.ended().answer, windows(2) * 2)
    assert gate.order() == [-1, 2]
    with pytest.raises(Expired):
        queue.predict(windows(3), Call(deadline=time.monotonic() - 1))


def test_one_who_goes_does_not_take_the_batch_mates_along(lane: Lanes) -> None:
    gate = Gate()
    queue = lane.queue(MODEL, gate.transport)
    busy(queue, gate)
    callers = []
    for value in range(6):
        callers.append(Caller(queue, windows(value)))
        waiting(queue, value + 1)
    for caller in callers[::2]:
        caller.call.cancel()
        assert isinstance(caller.ended().error, Cancelled)
    gate.open.set()
    for value, caller in list(enumerate(callers))[1::2]:
        np.testing.assert_array_equal(caller.ended().answer, windows(value) * 2)
    assert gate.order() == [-1, 1, 3, 5]
    assert queue.waiting == 0


def test_one_who_goes_while_computing_does_not_either(lane: Lanes) -> None:
    gate = Gate()
    queue = lane.queue(MODEL, gate.transport)
    busy(queue, gate)
    callers = [Caller(queue, windows(value)) for value in range(3)]
    waiting(queue, 3)
    gate.open.set()
    callers[0].call.cancel()
    for value, caller in list(enumerate(callers))[1:]:
        np.testing.assert_array_equal(caller.ended().answer, windows(value) * 2)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(lane: Lanes) -> None:
    gate = Gate()
    queue = lane.queue(MODEL, gate.transport, Batching(max_batch_size=2, max_enqueued_batches=2))
    first = busy(queue, gate)
    held = [Caller(queue, windows(value)) for value in range(4)]
    waiting(queue, 4)
    refused = Caller(queue, windows(9)).ended().error
    assert isinstance(refused, Overloaded) and refused.retry_ms and refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "4 windows wait" in str(refused) and "max_enqueued_batches" in str(refused)
    gate.open.set()
    assert all(caller.ended().error is None for caller in (first, *held))
    assert 9 not in gate.order()


def test_what_is_less_urgent_takes_no_room_from_what_is_more(lane: Lanes) -> None:
    gate = Gate()
    queue = lane.queue(MODEL, gate.transport, Batching(max_batch_size=2, max_enqueued_batches=2))
    first = busy(queue, gate)
    archive = [Caller(queue, windows(value), Call(priority=Priority.ARCHIVE)) for value in range(4)]
    waiting(queue, 4)
    urgent = Caller(queue, windows(9), Call(priority=Priority.REALTIME))
    waiting(queue, 5)
    assert isinstance(Caller(queue, windows(5), Call(priority=Priority.ARCHIVE)).ended().error, Overloaded)
    gate.open.set()
    assert all(caller.ended().error is None for caller in (first, urgent, *archive))
    assert gate.order()[1] == 9


def test_a_call_whose_turn_would_come_too_late_is_refused_at_once(lane: Lanes) -> None:
    gate = Gate()
    queue = lane.queue(MODEL, gate.transport, Batching(max_batch_size=2))
    first = busy(queue, gate)
    queue.window_s = 10.0  # as if batches had taken so long
    held = Caller(queue, windows(1))
    waiting(queue, 1)
    soon = time.monotonic() + 14
    late = Caller(queue, windows(2), Call(deadline=soon)).ended().error
    assert isinstance(late, Overloaded) and late.retry_ms == 5000 and "turn in about 10 s" in str(late)
    with pytest.raises(Overloaded):
        lane.let_in(Call(deadline=soon))
    lane.let_in(Call(deadline=time.monotonic() + 60))
    lane.let_in(Call())
    lane.let_in(Call(deadline=time.monotonic() + 0.1, priority=Priority.REALTIME))  # nothing goes before it
    urgent = Caller(queue, windows(3), Call(deadline=soon, priority=Priority.REALTIME))
    waiting(queue, 2)
    gate.open.set()
    assert all(caller.ended().error is None for caller in (first, held, urgent))


def test_calls_that_are_on_their_way_to_the_queue_are_reckoned_with(lane: Lanes) -> None:
    gate = Gate()
    queue = lane.queue(MODEL, gate.transport, Batching(max_batch_size=2))
    first = busy(queue, gate)
    queue.window_s = 20.0
    held = Caller(queue, windows(1, 2))  # a call takes two seconds by now, twenty times what the one before it has told
    waiting(queue, 2)
    held.call.cancel()
    held.ended()
    coming = [Call() for _ in range(3)]
    for call in coming:
        lane.let_in(call)
    with pytest.raises(Overloaded, match="in about 6 s"):
        lane.let_in(Call(deadline=time.monotonic() + 7))
    lane.let_in(Call(deadline=time.monotonic() + 1, priority=Priority.REALTIME))
    coming.pop()  # has ended without having been computed: a broken request, say
    del call
    with pytest.raises(Overloaded, match="in about 4 s"):
        lane.let_in(Call(deadline=time.monotonic() + 5))
    gate.open.set()
    assert first.ended().error is None


def test_a_call_larger_than_the_queue_is_taken_when_nobody_waits(lane: Lanes) -> None:
    queue = lane.queue(
        MODEL, FakeTransport(lambda array: array * 2, 8), Batching(max_batch_size=2, max_enqueued_batches=1)
    )
    array = windows(*range(11))
    np.testing.assert_array_equal(queue.predict(array, Call())[MODEL.output.name], array * 2)


def test_a_large_call_is_computed_on_all_lanes() -> None:
    lanes, gate = Lanes(3), Gate()
    queue = lanes.queue(MODEL, gate.transport, Batching(max_batch_size=2))
    caller = Caller(queue, windows(*range(6)))
    for _ in range(3):  # all three parts are at work before the first one ends
        assert gate.begun.acquire(timeout=30)
    gate.open.set()
    np.testing.assert_array_equal(caller.ended().answer, windows(*range(6)) * 2)
    lanes.close()


@pytest.mark.parametrize("error", [ZeroDivisionError, UsageError, SystemExit])
def test_an_error_keeps_nothing_of_its_call(lane: Lanes, error: type[BaseException]) -> None:
    def fail(array: Any) -> Any:
        raise error("wrong")

    queue = lane.queue(MODEL, FakeTransport(fail, 8))
    gc.collect()
    gc.disable()
    try:
        for waits in (False, True):
            if waits:
                queue.batching = Batching(batch_timeout_micros=1)  # on the lane's thread
            call = Call()
            gone = weakref.ref(call)
            with pytest.raises(error):
                queue.predict(windows(1), call)
            del call
            eventually(lambda gone=gone: gone() is None)
    finally:
        gc.enable()


def test_a_model_takes_no_more_lanes_than_it_may() -> None:
    lanes, gate, other = Lanes(2), Gate(), Gate()
    queue = lanes.queue(MODEL, gate.transport, Batching(max_batch_size=1, num_batch_threads=1))
    free = lanes.queue(MODEL, other.transport)
    callers = [Caller(queue, windows(value)) for value in range(3)]
    assert gate.begun.acquire(timeout=30)
    other.open.set()
    assert Caller(free, windows(7)).ended().error is None  # the second lane is there for it
    assert len(gate.batches) == 1
    gate.open.set()
    assert all(caller.ended().error is None for caller in callers)
    lanes.close()


def test_a_batch_that_fails_tells_all_its_callers_and_the_next_one_works(lane: Lanes) -> None:
    gate = Gate()
    broken = FakeTransport(lambda array: gate.transport.function(array) if array[0, 0, 0] < 0 else 1 / 0, 8)  # type: ignore[arg-type]
    queue = lane.queue(MODEL, broken)
    busy(queue, gate)
    errors: list[BaseException] = []

    def call(value: float) -> None:
        try:
            queue.predict(windows(value), Call())
        except ZeroDivisionError as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    waiting(queue, 2)
    gate.open.set()
    for thread in threads:
        thread.join(30)
    assert len(errors) == 2
    eventually(lambda: queue.waiting == queue.running == 0)
    assert lane.alive
    np.testing.assert_array_equal(queue.predict(windows(-3), Call())[MODEL.output.name], windows(-3) * 2)


def test_a_batch_that_is_not_full_waits_for_more(lane: Lanes) -> None:
    gate = Gate()
    gate.open.set()
    batching = Batching(max_batch_size=3, batch_timeout_micros=30_000_000)
    queue = lane.queue(MODEL, gate.transport, batching)
    callers = [Caller(queue, windows(value)) for value in range(3)]
    assert all(caller.ended().error is None for caller in callers)
    assert [len(batch) for batch in gate.batches] == [3]


def test_batches_are_filled_up_to_an_allowed_size(lane: Lanes) -> None:
    gate = Gate()
    gate.open.set()
    queue = lane.queue(MODEL, gate.transport, Batching(allowed_batch_sizes=(2, 8)))
    assert queue.sizes(600) == [2, 8]
    for count in (1, 2, 3, 8, 9):
        array = windows(*range(count))
        np.testing.assert_array_equal(queue.predict(array, Call())[MODEL.output.name], array * 2)
    assert [len(batch) for batch in gate.batches] == [2, 2, 8, 8, 8, 2]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_batch_size": -1}, "max_batch_size is -1"), ({"max_enqueued_batches": 0}, "max_enqueued_batches is 0"),
        ({"allowed_batch_sizes": (4, 2)}, "must rise"), ({"allowed_batch_sizes": (0, 2)}, "must rise"),
        ({"allowed_batch_sizes": (2, 4), "max_batch_size": 8}, "max_batch_size is 8"),
        ({"batch_timeout_micros": -5}, "batch_timeout_micros is -5"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(options: dict[str, int], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Batching(**options)  # type: ignore[arg-type]


def test_who_waits_when_it_closes_is_told() -> None:
    lanes, gate = Lanes(1), Gate()
    queue = lanes.queue(MODEL, gate.transport)
    first = busy(queue, gate)
    second = Caller(queue, windows(1))
    waiting(queue, 1)
    closing = threading.Thread(target=lanes.close)
    closing.start()
    assert isinstance(second.ended().error, Unavailable)
    gate.open.set()
    closing.join(30)
    assert first.ended().error is None and not lanes.alive
    with pytest.raises(Unavailable):
        queue.predict(windows(1), Call())


class Answered:
    """A call as the server's thread makes it: a coroutine that awaits its answer."""

    def __init__(self, queue: Queue, values: Array, call: Call) -> None:
        self.outputs: dict[str, Array] = {}
        self.there, self.threads = threading.Event(), list[threading.Thread]()
        self._later = queue.later(values, call)
        Task(self._run()).go_on()

    async def _run(self) -> None:
        self.outputs = await self._later.done()
        self.threads.append(threading.current_thread())
        self.there.set()


def test_the_servers_thread_computes_only_what_is_brief_and_alone(bundle: Bundle) -> None:
    computed_on = list[threading.Thread]()
    lanes = Lanes(2, lambda batch: computed_on.append(threading.current_thread()))
    queue = lanes.queue(bundle.manifest, OnnxRuntime(bundle, 2))
    some = windows(1, 2, 3, 4, samples=bundle.manifest.window_samples)
    first = Answered(queue, some[:1], Call())
    assert first.there.wait(30)  # nothing is known of how long it takes
    while queue.running:  # the lane is given back after that
        time.sleep(0.001)
    queue.window_s = BRIEF_S / 3
    alone = Answered(queue, some[:2], Call())
    assert alone.there.is_set()
    queue.window_s = BRIEF_S / 3
    long = Answered(queue, some[:4], Call())
    assert long.there.wait(30)
    queue.window_s, coming = BRIEF_S / 3, Call()
    lanes.let_in(coming)
    beside = Answered(queue, some[:2], Call())
    assert beside.there.wait(30)
    here = threading.current_thread()
    assert [one.threads == [here] for one in (first, alone, long, beside)] == [False, True, False, False]
    lanes.close()
    assert [thread is here for thread in computed_on] == [False, True, False, False]
    for name, values in beside.outputs.items():
        np.testing.assert_array_equal(values, alone.outputs[name])


def test_a_network_that_may_take_any_time_is_not_for_the_servers_thread(lane: Lanes) -> None:
    gate = Gate()
    queue = lane.queue(MODEL, gate.transport)
    queue.window_s = BRIEF_S / 3
    answered = Answered(queue, windows(1), Call())
    assert not answered.there.is_set()
    gate.open.set()
    assert answered.there.wait(30)
