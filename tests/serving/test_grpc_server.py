"""The gRPC server itself, with grpcio's own client."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from serving.loopback import Loopback

from seisserve_serving.grpc_server import GrpcServer, Rpc
from seisserve_serving.waits import Gone, Wait


class Held(Loopback):
    """A server with a method that waits until it is told to go on, and some that answer at once."""

    def __init__(self) -> None:
        self.rpcs: list[Rpc] = []
        self.begun, self.ended = threading.Semaphore(0), threading.Semaphore(0)
        self.waits: list[Wait[bytes]] = []
        methods = (self.echo, self.hold, self.bug, self.twice, self.again, self.slow)
        super().__init__(
            GrpcServer([("grpc.max_receive_message_length", 1000), ("grpc.so_reuseport", 0)]),
            {f"/t.T/{method.__name__.title()}": method for method in methods},
        )

    async def echo(self, rpc: Rpc) -> None:
        self.rpcs.append(rpc)
        body = await rpc.read()
        rpc.finish(b"nothing" if body is None else body, (("a", "b"), ("c", "d")))

    async def hold(self, rpc: Rpc) -> None:
        """Answer with what is set; note whether the caller goes."""
        wait: Wait[bytes] = Wait()
        self.waits.append(wait)
        self.begun.release()
        try:
            rpc.finish(await wait)
        except Gone:
            self.ended.release()

    async def bug(self, rpc: Rpc) -> None:
        raise SystemExit("the secret is xyzzy") if await rpc.read() == b"exit" else ZeroDivisionError("xyzzy")

    async def again(self, rpc: Rpc) -> None:
        """End twice, which gRPC does not allow."""
        rpc.finish(b"first")
        rpc.finish(b"second")

    async def slow(self, rpc: Rpc) -> None:
        """Hold up the server's thread."""
        self.begun.release()
        time.sleep(0.5)
        rpc.finish(b"slow")

    async def twice(self, rpc: Rpc) -> None:
        """Each request twice."""
        while (body := await rpc.read()) is not None:
            await rpc.write(body)
            await rpc.write(body)
        rpc.finish(None)

    def call(self, name: str, body: bytes = b"x", timeout: float | None = 30, **options: object) -> grpc.Future:
        return self.channel.unary_unary(f"/t.T/{name}").future(body, timeout=timeout, **options)


@pytest.fixture
def held() -> Iterator[Held]:
    with Held() as opened:
        yield opened


def test_a_call_comes_with_what_its_caller_said(held: Held) -> None:
    answer = held.call("Echo", b"abc", 20, metadata=(("one", "1"), ("two-bin", b"\x00\xff")))
    assert answer.result() == b"abc"
    assert dict(answer.trailing_metadata()) == {"a": "b", "c": "d"}
    held.call("Echo", timeout=None).result()
    first, second = held.rpcs
    assert (first.method, first.metadata["one"], first.metadata["two-bin"]) == ("/t.T/Echo", "1", b"\x00\xff")
    assert first.deadline is not None and 0 < first.deadline - time.monotonic() < 21
    assert second.deadline is None
    assert first.peer.startswith("ipv4:127.0.0.1:") and first.certificate == "" and not first.gone


def test_requests_and_responses_of_a_stream_keep_their_order(held: Held) -> None:
    bodies = [bytes([number]) * number for number in range(200)]
    answers = held.channel.stream_stream("/t.T/Twice")(iter(bodies), timeout=30)
    assert list(answers) == [body for body in bodies for _ in range(2)]
    assert answers.code() is grpc.StatusCode.OK


def test_a_stream_without_requests_ends(held: Held) -> None:
    assert list(held.channel.stream_stream("/t.T/Twice")(iter([]), timeout=30)) == []
    assert held.channel.stream_unary("/t.T/Echo")(iter([]), timeout=30) == b"nothing"


def test_an_unknown_method_and_a_request_that_is_too_large_have_their_codes(held: Held) -> None:
    assert held.call("What").code() is grpc.StatusCode.UNIMPLEMENTED
    assert held.call("Echo", bytes(1001)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert held.call("Echo", bytes(1000)).result() == bytes(1000)


def test_an_error_in_one_call_or_timer_is_of_that_alone(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    def wrong() -> None:
        raise ZeroDivisionError("a timer")

    for body in (b"bug", b"exit"):
        answer = held.call("Bug", body)
        assert (answer.code(), answer.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert held.call("Again").result() == b"first"
    held.server.later(0, wrong)
    right = threading.Event()
    held.server.later(0, right.set)
    assert held.call("Echo").result() == b"x"
    assert right.wait(30)
    for text in ("secret is xyzzy", "a timer", "gRPC refuses"):
        assert text in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


def test_timers_come_in_the_order_of_their_times(held: Held) -> None:
    came, end = list[int](), threading.Event()
    for number in (3, 1, 2):
        held.server.later(0.2 * number, lambda number=number: came.append(number))
    held.server.later(1.0, end.set)
    assert end.wait(30)
    assert came == [1, 2, 3]


def test_whoever_has_the_answer_sends_it(held: Held) -> None:
    calls = [held.call("Hold") for _ in range(50)]
    for _ in calls:
        assert held.begun.acquire(timeout=30)
    threads = [
        threading.Thread(target=lambda part=part: [wait.set(b"%d" % part) for wait in held.waits[part::4]])
        for part in range(4)
    ]
    for thread in threads:
        thread.start()
    assert sorted(call.result() for call in calls) == sorted(b"%d" % (number % 4) for number in range(50))


@pytest.mark.parametrize("how", ["cancels", "is late"])
def test_a_caller_who_goes_is_told_of(held: Held, how: str) -> None:
    held.call("Echo").result()  # has the connection
    call = held.call("Hold", timeout=2 if how == "is late" else 30)
    assert held.begun.acquire(timeout=30)
    if how == "cancels":
        call.cancel()
    assert held.ended.acquire(timeout=30)
    assert not held.waits[0].set(b"too late")
    assert held.call("Echo").result() == b"x"


def test_stopping_ends_what_is_under_way_when_its_time_is_over(held: Held) -> None:
    soon, never = held.call("Hold"), held.call("Hold")
    for _ in range(2):
        assert held.begun.acquire(timeout=30)
    begin = time.monotonic()
    stopped = held.server.stop(3)
    held.waits[0].set(b"in time")
    answers = {(call.exception() and call.code()) or call.result() for call in (soon, never)}  # either came first
    assert answers <= {b"in time", grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE} and b"in time" in answers
    assert held.ended.acquire(timeout=30)
    stopped.result(30)
    assert 2.9 < time.monotonic() - begin < 30
    assert held.server.stop(0).result(1) is None
    with pytest.raises(grpc.RpcError):
        grpc.insecure_channel(f"127.0.0.1:{held.port}").unary_unary("/t.T/Echo")(b"", timeout=5)


def test_a_server_that_has_just_ended_is_not_told_to_cancel_calls(held: Held) -> None:
    """gRPC's own server is gone by then: that would end the process."""

    class Ending:
        """gRPC's server, when the thread that has destroyed it is paused."""

        def __init__(self, inner: Any) -> None:
            self.shutdown, self._inner, self.is_there = inner.shutdown, inner, True
            self.wrong = False

        def destroy(self) -> None:
            self._inner.destroy()
            self.is_there = False
            time.sleep(0.5)

        def cancel_all_calls(self) -> None:
            self.wrong = not self.is_there

    ending = held.server._server = Ending(held.server._server)
    held.server.stop(0.2).result(30)
    time.sleep(0.1)
    assert not ending.is_there and not ending.wrong


def test_calls_that_come_while_it_is_stopped_do_not_keep_it(held: Held) -> None:
    first = held.call("Slow")
    assert held.begun.acquire(timeout=30)
    others = [held.call("Echo") for _ in range(5)]
    time.sleep(0.1)
    stopped = held.server.stop(10)
    assert first.result() == b"slow"
    stopped.result(30)
    for call in others:  # one that gRPC had handed over is answered; the others hear that nobody is there
        assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_the_shorter_grace_period_counts(held: Held) -> None:
    call = held.call("Hold")
    assert held.begun.acquire(timeout=30)
    stopped = held.server.stop(100)
    assert held.server.stop(0) is stopped
    stopped.result(30)
    assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


def test_a_server_that_has_not_begun_can_be_stopped_more_than_once() -> None:
    server = GrpcServer([])
    assert server.stop(1).result(1) is None and server.stop(1).result(1) is None


def test_a_port_that_is_taken_is_refused(held: Held) -> None:
    other = GrpcServer([("grpc.so_reuseport", 0)])
    with pytest.raises(RuntimeError):
        other.add_port(f"127.0.0.1:{held.port}")
    other.stop(0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not know this of threads")
def test_the_threads_of_grpc_do_not_take_a_processor_from_one_that_computes() -> None:
    before = set(os.listdir("/proc/self/task"))
    with Held() as held:
        assert held.call("Echo").result() == b"x"
        own = held.server._thread.native_id
        assert own is not None and os.sched_getscheduler(own) == os.SCHED_BATCH
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
        assert str(own) not in before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not know this of threads")
def test_a_system_that_does_not_allow_that_is_served_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*what: object) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with Held() as held:
        assert held.call("Echo").result() == b"x"
