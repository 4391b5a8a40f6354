"""The process's one budget of computing threads, and dynamic batching on it.

A lane computes one batch at a time, on one thread. Calls wait in a queue of their model; a lane that is free takes the
most urgent call, and as many other windows of the same model and length as fill a batch. A call that is larger than a
batch is computed on as many lanes as there are. A call that finds a free lane and nobody waiting computes at once, on
its caller's thread. What a window gives does not depend on its batch-mates.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import queue
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from seisserve.errors import BundleError, UsageError
from seisserve.manifest import Manifest
from seisserve.runtimes.onnx import OnnxRuntime
from seisserve.runtimes.openvino import OpenVinoRuntime
from seisserve.transport import Arrays, Transport
from seisserve.windows import batch_size
from seisserve_serving.calls import Call, Priority
from seisserve_serving.errors import Overloaded, Unavailable
from seisserve_serving.place import give_way
from seisserve_serving.signatures import Signature
from seisserve_serving.waits import MayFail, Wait

__all__ = ["BRIEF_S", "Batch", "Batching", "Lanes", "Later", "Network", "Queue"]

Answer = TypeVar("Answer")
Next = TypeVar("Next")
Outputs = dict[str, NDArray[Any]]

RETRY_MS, MOST_RETRY_MS = 100, 5000  # a caller that comes back at once finds the same queue
OF_LATE = 0.05  # what the last batch counts in the mean time of a window
BRIEF_S = 0.002  # so long may the server's own thread compute, and look at nobody else
SLACK = 1.5  # an answer that comes after its deadline was computed for nothing: better to refuse a few more


class Batching(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the windows of one model are batched; the names are TensorFlow Serving's.

    max_batch_size: windows in a batch, 0 for as many as the model's runtime wants in a call. batch_timeout_micros: how
    long a batch that is not full waits for more. max_enqueued_batches: batches that may wait; beyond that, calls are
    refused at once. num_batch_threads: lanes that the model may use at once, 0 for all. allowed_batch_sizes: windows
    that a batch may have, rising to max_batch_size; smaller ones are filled up. mode: "exact" computes what is there;
    "fixed" always computes full batches, so that even a runtime whose rounding depends on the size answers the same.
    """

    max_batch_size: int = 0
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 64
    num_batch_threads: int = 0
    allowed_batch_sizes: tuple[int, ...] = ()
    mode: Literal["exact", "fixed"] = "exact"

    def __post_init__(self) -> None:
        sizes = self.allowed_batch_sizes
        for name in ("max_batch_size", "batch_timeout_micros", "num_batch_threads"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.max_enqueued_batches < 1:
            raise UsageError(f"max_enqueued_batches is {self.max_enqueued_batches}; it must be at least 1")
        if any(size < 1 for size in sizes) or any(low >= high for low, high in itertools.pairwise(sizes)):
            raise UsageError(f"allowed_batch_sizes are {list(sizes)}; they must rise, from 1 or more")
        if sizes and self.max_batch_size and sizes[-1] != self.max_batch_size:
            raise UsageError(f"allowed_batch_sizes end with {sizes[-1]}; max_batch_size is {self.max_batch_size}")


class Network(Protocol):
    """What a queue computes on: any Transport, or a model that has no manifest, called with its signature."""

    @property
    def lanes(self) -> int: ...

    @property
    def batch_samples(self) -> int: ...

    def predict(self, model: Any, inputs: Arrays) -> Arrays: ...


class Batch(NamedTuple):
    """What is told of a batch that was computed. Times in seconds; waited_s: of each call in it."""

    model: Manifest | Signature
    windows: int
    padding: int
    waited_s: Sequence[float]
    compute_s: float


class _Item(MayFail):
    """A call's windows on their way. Everything changes under the lanes' lock.

    Who waits for it is a thread, at `inbox`, or a coroutine, at `wait`.
    """

    __slots__ = (
        "arrived", "call", "count", "inbox", "inputs", "kind", "left", "outputs", "samples", "taken", "to_do",
        "wait",
    )  # fmt: skip

    def __init__(self, inputs: Arrays, count: int, samples: int, kind: Hashable, call: Call) -> None:
        super().__init__()
        self.inputs, self.count, self.samples, self.kind, self.call = inputs, count, samples, kind, call
        self.arrived = time.monotonic()
        self.taken = 0  # windows that a lane has taken
        self.to_do = count  # windows without an answer
        self.left = False  # nobody waits any more
        self.outputs: dict[str, NDArray[np.float32]] = {}
        self.inbox: queue.SimpleQueue[None] | None = None  # something has happened
        self.wait: Wait[None] | None = None

    @property
    def answered(self) -> bool:
        """Whether nothing more is to come: all its outputs are there, or an error."""
        return not self.to_do or self.error is not None

    def result(self) -> Outputs:
        """Its outputs. Raises what went wrong."""
        self.raise_once()
        return self.outputs


def _wake(items: Sequence[_Item]) -> None:
    """Tell who waits for these items that something has happened. Without the lanes' lock: who waits goes on here."""
    for item in items:
        if item.wait is not None:
            item.wait.set(None)
        elif item.inbox is not None:
            item.inbox.put(None)


def _retry_ms(wait_s: float) -> int:
    """When to come again: when those that wait now have had their turn."""
    return max(RETRY_MS, min(round(1e3 * wait_s), MOST_RETRY_MS))


def _check_time(wait_s: float, own_s: float, left_s: float) -> None:
    """Raises Overloaded if a call that waits so long, and is computed so long, will be late. One that does not wait is
    never refused: were its time a wrong guess, it would stay one."""
    if wait_s and SLACK * (wait_s + own_s) > left_s:
        text = f"it would be the call's turn in about {wait_s:.2g} s, and its deadline is in {left_s:.2g} s"
        raise Overloaded(f"{text}; try again later", _retry_ms(wait_s))


class Later(Generic[Answer]):
    """An answer that a lane will make: `result` waits for it on this thread, `done` in a coroutine of a call.

    Both raise Overloaded, Expired, Cancelled, Unavailable, and what the computing raised. The answer is made once.
    """

    def __init__(self, queue: Queue | None, item: _Item | None, finish: Callable[[Outputs], Answer]) -> None:
        self._queue, self._item, self._finish = queue, item, finish

    def then(self, function: Callable[[Answer], Next]) -> Later[Next]:
        """What a function makes of it."""
        finish = self._finish
        return Later(self._queue, self._item, lambda outputs: function(finish(outputs)))

    def result(self) -> Answer:
        """The answer."""
        if self._queue is None or self._item is None:
            return self._finish({})
        return self._finish(self._queue.answer(self._item))

    async def done(self) -> Answer:
        """The answer."""
        if self._queue is None or self._item is None:
            return self._finish({})
        return self._finish(await self._queue.awaited(self._item))


class _Part(NamedTuple):
    """Windows low to high of an item."""

    item: _Item
    low: int
    high: int


class Lanes:
    """As many computing threads as `count`, shared by all models. `told` hears of every batch."""

    def __init__(self, count: int, told: Callable[[Batch], None] | None = None) -> None:
        if count < 1:
            raise UsageError(f"lanes is {count}; it must be at least 1")
        self.count, self.told = count, told
        self.lock = threading.RLock()  # by itself it is taken in less time than the condition
        self.changed = threading.Condition(self.lock)
        self.numbers = itertools.count()
        self._free, self._closed = count, False
        # Calls that were let in and have not reached a queue, by priority; what ends in between is forgotten by itself.
        self._coming: list[weakref.WeakSet[Call]] = [weakref.WeakSet() for _ in Priority]
        self._item_s = 0.0  # of one lane that what a call puts into a queue takes, of late
        self._lines: dict[tuple[int, Hashable], _Line] = {}
        self._dropped: list[_Item] = []  # whose call is over, and who has not been told yet
        self._threads = [
            threading.Thread(target=self._work, name=f"lane-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def queue(
        self, model: Manifest | Signature, transport: Network, batching: Batching | None = None, *, whole: bool = False
    ) -> Queue:
        """A queue for one model version (or one signature of it) on these lanes. whole: never batch its calls."""
        return Queue(self, model, transport, batching or Batching(), whole)

    @property
    def alive(self) -> bool:
        """Whether all threads are there."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """End the threads; calls that wait get Unavailable."""
        with self.changed:
            self._closed = True
            items = [item for line in self._lines.values() for _, _, item in line.waiting]
            self._lines.clear()
            self.changed.notify_all()
        for item in items:
            item.error = Unavailable("the server has stopped")
        _wake(items)
        for thread in self._threads:
            thread.join()

    def try_take(self, queue: Queue, alone: Call | None = None) -> bool:
        """Take a lane for a caller's own thread, if one is free and nobody waits; for a call that must be alone, if no
        other one computes or comes."""
        with self.lock:
            if self._closed:
                raise Unavailable("the server has stopped")
            if not self._free or self._lines or queue.running >= queue.most_running:
                return False
            if alone is not None:
                if self._free < self.count or self._others_come(alone):
                    return False
                self._coming[alone.priority].discard(alone)
            self._free -= 1
            queue.running += 1
            return True

    def give_back(self, queue: Queue) -> None:
        """Give back a lane that was taken."""
        with self.lock:
            self._free += 1
            queue.running -= 1
            if self._lines:
                self.changed.notify()

    def put(self, queue: Queue, item: _Item) -> None:
        """Let an item wait for its turn. Raises Overloaded if the queue is full."""
        key = (id(queue), item.kind)
        with self.lock:
            if self._closed:
                raise Unavailable("the server has stopped")
            self._coming[item.call.priority].discard(item.call)
            queue.admit(item, self._ahead_s(item.call.priority))
            self._item_s += OF_LATE * (item.count * queue.window_s - self._item_s)
            line = self._lines.get(key)
            if line is None:
                line = self._lines[key] = _Line(queue, queue.size(item.samples))
            heapq.heappush(line.waiting, (item.call.priority, next(self.numbers), item))
            line.windows += item.count
            self.changed.notify()

    def let_in(self, call: Call) -> None:
        """Reckon with a call. Raises Overloaded if it is known by now that its turn will not come before its deadline:
        what it sends need not be read then."""
        left_s = call.left_s
        with self.lock:
            if left_s is not None:
                coming = sum(map(len, self._coming[: call.priority + 1])) * self._item_s
                _check_time((self._ahead_s(call.priority) + coming) / self.count, 0.0, left_s)
            self._coming[call.priority].add(call)

    def _others_come(self, call: Call) -> bool:
        return sum(map(len, self._coming)) > (call in self._coming[call.priority])

    def drop(self, item: _Item) -> None:
        """Tell who waits for it that its call is over, as soon as the lock is free."""
        self._dropped.append(item)

    def _ahead_s(self, priority: Priority) -> float:
        """Seconds of one lane that what is at least that urgent will take."""
        queues = {line.queue for line in self._lines.values()}
        return sum([queue.ahead(priority) * queue.window_s for queue in queues])

    def leave(self, queue: Queue, item: _Item) -> None:
        """The caller waits no more: what no lane has taken yet is never computed."""
        if item.taken == item.count:
            return  # nothing of it waits; the lock is for those who need it
        with self.lock:
            if not item.left:
                item.left = True
                queue.waits(item, item.taken - item.count)

    def _work(self) -> None:
        give_way()
        while True:
            with self.changed:
                while (found := self._next()) is None and not self._dropped:
                    if self._closed:
                        return
                    self.changed.wait(self._patience())
                dropped, self._dropped = self._dropped, []
                if found is not None:
                    line, parts = found
                    self._free -= 1
                    line.queue.running += 1
                    if self._lines and self._free:
                        self.changed.notify()  # what is left is for the next free lane
            _wake(dropped)
            del dropped
            if found is None:
                continue
            try:
                line.queue.compute(parts)
            finally:
                self.give_back(line.queue)
            del found, line, parts  # while this lane waits, nothing of a model that is unloaded may stay

    def _next(self) -> tuple[_Line, list[_Part]] | None:
        """The most urgent batch, if a lane is free for one."""
        if not self._free:
            return None
        for key in [key for key, line in self._lines.items() if not line.head()]:
            del self._lines[key]
        ready = [line for line in self._lines.values() if line.ready()]
        if not ready:
            return None
        line = min(ready, key=lambda line: line.waiting[0][:2])
        parts = line.take()
        if not line.head():
            self._lines = {key: other for key, other in self._lines.items() if other is not line}
        return line, parts

    def _patience(self) -> float | None:
        """Until when a batch that is not full waits for more, in seconds from now."""
        times = [line.due for line in self._lines.values() if line.due is not None]
        return max(min(times) - time.monotonic(), 0.0005) if times and self._free else None


class _Line:
    """The items of one model and window length that wait, the most urgent first."""

    def __init__(self, queue: Queue, size: int) -> None:
        self.queue, self.size = queue, size
        self.waiting: list[tuple[int, int, _Item]] = []
        self.windows = 0
        self.due: float | None = None

    def head(self) -> _Item | None:
        """The next item that somebody still waits for; those whose call is over are dropped."""
        while self.waiting:
            item = self.waiting[0][2]
            if not item.left and item.error is None and not item.call.over:
                return item
            heapq.heappop(self.waiting)
            self.windows -= item.count - item.taken
            if not item.left:
                item.left = True
                self.queue.waits(item, item.taken - item.count)
                self.queue.lanes.drop(item)
        return None

    def ready(self) -> bool:
        """Whether a batch may be taken now: it is full, or has waited for more long enough."""
        self.due = None
        if self.queue.running >= self.queue.most_running:
            return False
        wait_s = self.queue.batching.batch_timeout_micros / 1e6
        if not wait_s or self.windows >= self.size:
            return True
        due = min(item.arrived for _, _, item in self.waiting) + wait_s
        if time.monotonic() >= due:
            return True
        self.due = due
        return False

    def take(self) -> list[_Part]:
        """A batch from the head on. What is over is left out, and so is what would hold up a real-time call."""
        parts: list[_Part] = []
        room = self.size
        while room and (item := self.head()):
            if parts and item.call.priority > parts[0].item.call.priority is Priority.REALTIME:
                break
            low, high = item.taken, min(item.taken + room, item.count)
            parts.append(_Part(item, low, high))
            item.taken = high
            room -= high - low
            self.windows -= high - low
            self.queue.waits(item, low - high)
            if high == item.count:
                heapq.heappop(self.waiting)
        return parts


class Queue:
    """The calls of one model version; `batching` says how they are put together, unless each is computed as it is."""

    def __init__(
        self, lanes: Lanes, model: Manifest | Signature, transport: Network, batching: Batching, whole: bool
    ) -> None:
        self.lanes, self.model, self.transport, self.batching = lanes, model, transport, batching
        self.whole = whole
        self.in_one_pass = isinstance(transport, OnnxRuntime | OpenVinoRuntime) and not whole  # of known length
        self._input = model.input.name if isinstance(model, Manifest) else ""
        self.running = 0  # lanes at work. Under the lanes' lock, as the next
        self._waiting = [0] * len(Priority)  # windows that wait, by how urgent they are
        self.window_s = 0.0  # that a lane takes for a window of a batch, of late
        self.most_running = min(batching.num_batch_threads or lanes.count, lanes.count, transport.lanes)

    @property
    def waiting(self) -> int:
        """Windows that wait."""
        return sum(self._waiting)

    def ahead(self, priority: Priority) -> int:
        """Windows that wait and are at least that urgent."""
        return sum(self._waiting[: priority + 1])

    def waits(self, item: _Item, windows: int) -> None:
        """Count so many windows of an item in, or out if negative."""
        self._waiting[item.call.priority] += windows

    def size(self, samples: int) -> int:
        """Windows of that many samples in a full batch."""
        if self.whole:
            return 1
        allowed = self.batching.allowed_batch_sizes
        if self.batching.max_batch_size or allowed:
            return self.batching.max_batch_size or allowed[-1]
        return batch_size(samples, self.transport.batch_samples)

    def sizes(self, samples: int) -> list[int]:
        """Every number of windows that a batch may have, rising: what to warm up."""
        full = self.size(samples)
        if self.batching.mode == "fixed":
            return [full]
        return list(self.batching.allowed_batch_sizes) or list(range(1, full + 1))

    def at(self, call: Call) -> Transport:
        """A transport for one call."""
        return _At(self, call)

    def predict(self, windows: NDArray[np.float32], call: Call) -> dict[str, NDArray[np.float32]]:
        """Outputs of [n, samples, components], n at least 1, by name. Raises Overloaded, Expired, Cancelled,
        Unavailable."""
        return self.later(windows, call).result()

    def later(self, windows: NDArray[np.float32], call: Call) -> Later[Outputs]:
        """As `predict`, without waiting."""
        samples = windows.shape[1]
        return self._later(_Item({self._input: windows}, len(windows), samples, samples, call))

    def run_later(self, inputs: Arrays, call: Call) -> Later[Outputs]:
        """Outputs by name for a model without a manifest; the first axis of all inputs is the batch, at least 1, unless
        the calls are computed as they are."""
        if self.whole:
            return self._later(_Item(inputs, 1, 1, None, call))
        kind = tuple((name, inputs[name].shape[1:]) for name in sorted(inputs))
        return self._later(_Item(inputs, len(next(iter(inputs.values()))), 1, kind, call))

    def _later(self, item: _Item) -> Later[Outputs]:
        item.call.check()
        item.call.charge(item.count)
        return Later(self, item, lambda outputs: outputs)

    async def awaited(self, item: _Item) -> Outputs:
        """The outputs of an item, awaited: a lane computes them, and its thread goes on with the call."""
        if 0 < item.count * self.window_s < BRIEF_S and self.in_one_pass and self._at_once(item, item.call):
            return item.result()
        item.wait = Wait()
        self.lanes.put(self, item)
        try:
            await item.wait
            if not item.answered:  # it was dropped
                item.call.check()
        finally:
            self.lanes.leave(self, item)
        return item.result()

    def answer(self, item: _Item) -> Outputs:
        """The outputs of an item, computed on this thread if a lane is free for it."""
        if not self._at_once(item):
            self._wait(item)
        return item.result()

    def _at_once(self, item: _Item, alone: Call | None = None) -> bool:
        """Compute an item on this thread if there is a lane for that. Whether there was."""
        if self.batching.batch_timeout_micros or item.count > self.size(item.samples):
            return False
        if not self.lanes.try_take(self, alone):
            return False
        item.taken = item.count
        try:
            self.compute([_Part(item, 0, item.taken)])
        finally:
            self.lanes.give_back(self)
        return True

    def _wait(self, item: _Item) -> None:
        call, inbox = item.call, queue.SimpleQueue[None]()
        item.inbox = inbox
        self.lanes.put(self, item)
        call.when_cancelled(lambda: inbox.put(None))
        try:
            while not item.answered:
                with contextlib.suppress(queue.Empty):
                    inbox.get(timeout=call.left_s)
                if not item.answered:
                    call.check()
        finally:
            call.when_cancelled(None)
            self.lanes.leave(self, item)

    def admit(self, item: _Item, ahead_s: float) -> None:
        """Count an item in. Raises Overloaded if there is no room for it, or no hope that its turn comes in time.

        What is less urgent leaves room and time to it. ahead_s: seconds of one lane that go before.
        """
        ahead = self.ahead(item.call.priority)
        room = self.batching.max_enqueued_batches * self.size(item.samples)
        wait_s = ahead_s / self.most_running
        if ahead and ahead + item.count > room:
            raise Overloaded(
                f"{ahead} windows wait for {self.model.name}, at most {room} may (max_enqueued_batches); "
                "try again later",
                _retry_ms(wait_s),
            )
        left_s = item.call.left_s
        if left_s is not None:
            _check_time(wait_s, item.count * self.window_s / self.most_running, left_s)
        self.waits(item, item.count)

    def compute(self, parts: list[_Part]) -> None:
        """Compute a batch and give each item its share, or all of them what went wrong."""
        begin = time.monotonic()
        windows = sum([high - low for _, low, high in parts])
        try:
            outputs, padding = self._run(parts, windows)
        except BaseException as error:  # it is raised where the call waits, whatever it is
            if isinstance(error, UsageError) and len(parts) > 1:  # of what one of them sent: let no other pay for it
                for part in parts:
                    self.compute([part])
                return
            traceback.clear_frames(error.__traceback__)  # they have the items, and these will have the error
            self._tell(parts, None, error)
            del parts
            return
        compute_s = time.monotonic() - begin
        self.window_s += OF_LATE * (compute_s / windows - self.window_s) if self.window_s else compute_s / windows
        for item, _, _ in parts:
            item.call.spent["queue"] += begin - item.arrived
            item.call.spent["compute"] += compute_s
        self._tell(parts, outputs, None)
        if self.lanes.told:
            waited = [begin - item.arrived for item, _, _ in parts]
            self.lanes.told(Batch(self.model, windows, padding, waited, compute_s))

    def _run(self, parts: list[_Part], windows: int) -> tuple[Arrays, int]:
        if self.whole:
            return self.transport.predict(self.model, parts[0].item.inputs), 0
        full = windows
        if self.batching.mode == "fixed" or self.batching.allowed_batch_sizes:
            full = next(size for size in self.sizes(parts[0].item.samples) if size >= windows)
        batch = {}
        for name in parts[0].item.inputs:
            arrays = [item.inputs[name][low:high] for item, low, high in parts]
            if full > windows:
                arrays.append(np.repeat(arrays[-1][-1:], full - windows, axis=0))
            batch[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        outputs = self.transport.predict(self.model, batch)
        for name, values in outputs.items():
            if values.shape[:1] != (full,):
                raise BundleError(f"{self.model.name}: output {name!r} has shape {values.shape} for {full} inputs")
        return outputs, full - windows

    def _tell(self, parts: list[_Part], outputs: Arrays | None, error: BaseException | None) -> None:
        begin = 0
        for item, low, high in parts:
            count = high - low
            if outputs is None:
                item.error = error
            else:
                for name, values in outputs.items():
                    share = values if self.whole else values[begin : begin + count]
                    if count == item.count:
                        item.outputs[name] = share
                    else:
                        with self.lanes.lock:
                            whole = item.outputs.get(name)
                            if whole is None:
                                whole = np.empty((item.count, *share.shape[1:]), share.dtype)
                                item.outputs[name] = whole
                        whole[low:high] = share
            begin += count
            if count == item.count:
                item.to_do = 0
            else:
                with self.lanes.lock:  # other lanes have other parts of it
                    item.to_do -= count
        _wake([item for item, _, _ in parts if item.answered])


class _At(NamedTuple):
    """A queue as the transport of one call."""

    queue: Queue
    call: Call

    @property
    def lanes(self) -> int:
        return self.queue.most_running

    @property
    def batch_samples(self) -> int:
        return self.queue.transport.batch_samples

    def predict(self, model: Manifest, inputs: Arrays) -> Arrays:
        """Outputs by name. Raises as `Queue.predict`."""
        return self.queue.predict(np.asarray(inputs[model.input.name]), self.call)
