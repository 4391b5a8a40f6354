"""The door: what it lets in, what it says to those outside, and what it tells of each call."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int64Value, StringValue
from serving.loopback import Loopback

from seisserve.errors import BundleError, ModelNotFound, UsageError
from seisserve_serving import admission as admission_module
from seisserve_serving.admission import Admission
from seisserve_serving.calls import Call, Priority
from seisserve_serving.errors import Cancelled, Expired, Overloaded, PermissionDenied, Unauthenticated, Unavailable
from seisserve_serving.front import Arrival, Done, Front, request_id
from seisserve_serving.grpc_server import GrpcServer

SERVICE = "test.Echo"
ERRORS = {
    "usage": (UsageError("the field x is wrong"), grpc.StatusCode.INVALID_ARGUMENT),
    "model": (ModelNotFound("no such model"), grpc.StatusCode.NOT_FOUND),
    "bundle": (BundleError("damaged"), grpc.StatusCode.FAILED_PRECONDITION),
    "full": (Overloaded("full", 70), grpc.StatusCode.RESOURCE_EXHAUSTED),
    "late": (Expired("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
    "gone": (Cancelled("gone"), grpc.StatusCode.CANCELLED),
    "stops": (Unavailable("stops"), grpc.StatusCode.UNAVAILABLE),
    "who": (Unauthenticated("who are you"), grpc.StatusCode.UNAUTHENTICATED),
    "not you": (PermissionDenied("not you"), grpc.StatusCode.PERMISSION_DENIED),
}


class Echo(Loopback):
    """A server of one service with a method that answers, fails or waits as it is told, and a stream that adds up."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.done: list[Done] = []
        self.begun, self.go_on, self.noticed = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)
        self.front = Front(most_calls=2, told=[self.done.append])
        pool = ThreadPoolExecutor(8)
        server = GrpcServer([], lambda: self.front.under_way)
        methods = self.front.service(
            SERVICE,
            pool,
            {"Say": (self.say, StringValue, StringValue), "Watch": (self.watch, StringValue, StringValue)},
            {"Add": (self.add, Int64Value, Int64Value), "Count": (self.count, StringValue, Int64Value)},
        )
        super().__init__(server, methods)

    def say(self, request: StringValue, call: Call) -> StringValue:
        self.calls.append(call)
        if request.value in ERRORS:
            raise ERRORS[request.value][0]
        if request.value == "bug":
            raise ZeroDivisionError("the secret is xyzzy")
        if request.value == "wait":
            self.begun.release()
            assert self.go_on.wait(30)
        return request

    def watch(self, request: StringValue, call: Call) -> StringValue:
        """Wait until the caller has gone, and raise what that is."""
        gone = threading.Event()
        call.when_cancelled(gone.set)
        self.begun.release()
        assert gone.wait(30)
        self.noticed.release()
        call.check()
        return request

    def count(self, requests: Iterator[StringValue], call: Call) -> Iterator[Int64Value]:
        """Numbers, as long as there is somebody; then wait for requests, of which none comes."""
        try:
            for number in range(1 if next(requests).value == "read" else 1 << 40):
                self.begun.release()
                yield Int64Value(value=number)
            next(requests)
        finally:
            self.noticed.release()

    def add(self, requests: Iterator[Int64Value], call: Call) -> Iterator[Int64Value]:
        total = 0
        for request in requests:
            total += request.value
            yield Int64Value(value=total)

    def call(self, text: str | bytes, metadata: tuple[tuple[str, str], ...] = (), timeout: float = 30) -> grpc.Future:
        body = text if isinstance(text, bytes) else StringValue(value=text).SerializeToString()
        return self.channel.unary_unary(f"/{SERVICE}/Say").future(body, timeout=timeout, metadata=metadata)

    def told(self, count: int) -> list[Done]:
        """What was told, once it is that many calls: the caller may hear first."""
        end = time.monotonic() + 30
        while len(self.done) < count and time.monotonic() < end:
            time.sleep(0.001)
        return self.done


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as opened:
        yield opened
        opened.go_on.set()


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_error_has_its_code_its_words_and_the_request_id(echo: Echo, name: str) -> None:
    error, code = ERRORS[name]
    answer = echo.call(name, (("x-request-id", "mine"),))
    assert (answer.code(), answer.details()) == (code, str(error))
    trailing = dict(answer.trailing_metadata())
    assert trailing["x-request-id"] == "mine"
    assert trailing.get("grpc-retry-pushback-ms") == ("70" if name == "full" else None)
    assert echo.told(1)[0].code is code


def test_a_bug_is_internal_and_says_nothing(echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
    answer = echo.call("bug")
    assert answer.code() is grpc.StatusCode.INTERNAL
    assert "xyzzy" not in answer.details() and dict(answer.trailing_metadata())["x-request-id"] in answer.details()
    echo.told(1)
    assert "the secret is xyzzy" in caplog.text


def test_bytes_that_are_no_message_are_the_callers_error(echo: Echo) -> None:
    answer = echo.call(b"\xff\xff\xff")
    assert answer.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert answer.details() == "the request is no StringValue message: its 3 bytes cannot be decoded"
    assert not echo.calls


def test_priority_and_deadline_reach_the_method(echo: Echo) -> None:
    echo.call("x", (("seisserve-priority", "realtime"),), timeout=20).result()
    echo.call("x").result()
    first, second = echo.calls
    assert (first.priority, second.priority) == (Priority.REALTIME, Priority.NORMAL)
    assert first.left_s is not None and 0 < first.left_s < 22
    answer = echo.call("x", (("seisserve-priority", "urgent"),))
    assert answer.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'urgent'; it must be realtime, normal or archive" in answer.details()


def test_a_guard_refuses_before_anything_is_decoded_and_may_name_the_caller(echo: Echo) -> None:
    def guard(arrival: Arrival, call: Call) -> None:
        if arrival.metadata.get("authorization") != "Bearer good":
            raise Unauthenticated("no token")
        call.user = "gooduser"

    echo.front.guards.append(guard)
    answer = echo.call(b"\xff")
    assert (answer.code(), answer.details()) == (grpc.StatusCode.UNAUTHENTICATED, "no token")
    echo.call("x", (("authorization", "Bearer good"),)).result()
    assert echo.calls[0].user == "gooduser"
    assert [done.call.user for done in echo.told(2)] == ["", "gooduser"]


def test_one_call_too_many_is_refused_at_once(echo: Echo) -> None:
    waiting = [echo.call("wait") for _ in range(2)]
    for _ in waiting:
        assert echo.begun.acquire(timeout=30)
    answer = echo.call("x")
    assert answer.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(answer.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
    assert echo.front.under_way == 2
    echo.go_on.set()
    assert all(call.result() for call in waiting)
    assert echo.call("x").result()


def test_some_calls_are_kept_for_those_that_are_more_urgent(echo: Echo) -> None:
    echo.front.admission = Admission(4)
    waiting = [echo.call("wait") for _ in range(3)]
    for _ in waiting:
        assert echo.begun.acquire(timeout=30)
    assert echo.call("x", (("seisserve-priority", "archive"),)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert echo.call("x", (("seisserve-priority", "realtime"),)).result()
    echo.go_on.set()
    assert all(call.result() for call in waiting)


def test_a_client_leaves_others_their_part(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "SEEN_S", 1e6)
    echo.front.guards.append(lambda arrival, call: setattr(call, "user", arrival.metadata.get("who", "first")))
    echo.front.admission = Admission(4)
    waiting = [echo.call("wait") for _ in range(3)]
    for _ in waiting:
        assert echo.begun.acquire(timeout=30)
    assert echo.call("x").result()  # nobody else calls
    assert echo.call("x", (("who", "second"),)).result()
    answer = echo.call("x")
    assert answer.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer.details() == (
        "3 calls of this client are under way, at most 2 may be while others call (client_share)"
    )
    assert echo.call("x", (("who", "second"),)).result()
    echo.go_on.set()
    assert all(call.result() for call in waiting)
    assert echo.call("x").result()


def test_calls_beyond_the_room_are_turned_away_unread_and_told_of_together(echo: Echo) -> None:
    waiting = [echo.call("wait") for _ in range(2)]
    for _ in waiting:
        assert echo.begun.acquire(timeout=30)
    answers = [echo.call(b"\xff", (("x-request-id", f"mine {number}"),)) for number in range(5)]
    assert {answer.code() for answer in answers} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    trailing = [dict(answer.trailing_metadata()) for answer in answers]
    assert [each["x-request-id"] for each in trailing] == [f"mine {number}" for number in range(5)]
    assert all(int(each["grpc-retry-pushback-ms"]) > 0 for each in trailing)
    end = time.monotonic() + 30
    while sum(done.calls for done in echo.done) < 5 and time.monotonic() < end:
        time.sleep(0.01)
    assert {(done.code, done.arrival.method) for done in echo.done} == {
        (grpc.StatusCode.RESOURCE_EXHAUSTED, f"/{SERVICE}/Say")
    }
    assert sum(done.calls for done in echo.done) == 5
    echo.go_on.set()
    assert all(call.result() for call in waiting)


@pytest.mark.parametrize(
    ("own", "noted"),
    [("a" * 1000, "a" * 128), ("two words", "two words"), ("a\nb\x1b[31m", "a?b?[31m"), ("sp\xe9cial", "sp?cial")],
)
def test_a_request_id_is_one_that_a_log_can_have(own: str, noted: str) -> None:
    assert request_id({"x-request-id": own}) == noted
    assert len({request_id({}) for _ in range(100)} | {request_id({"x-request-id": ""})}) == 101


def test_what_comes_too_late_is_refused_before_it_is_read(echo: Echo) -> None:
    def let_in(call: Call) -> None:
        assert (call.priority, call.left_s is not None and 0 < call.left_s < 22) == (Priority.ARCHIVE, True)
        raise Overloaded("too late", 300)

    echo.front.let_in = let_in
    answer = echo.call(b"\xff", (("seisserve-priority", "archive"),), timeout=20)
    assert (answer.code(), answer.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too late")
    assert dict(answer.trailing_metadata())["grpc-retry-pushback-ms"] == "300"
    assert echo.told(1)[0].arrival.size == 0


def test_a_call_without_a_request_is_the_callers_error(echo: Echo) -> None:
    call = echo.channel.stream_unary(f"/{SERVICE}/Say").future(iter([]), timeout=30)
    assert (call.code(), "no request message" in call.details()) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert not echo.calls


def test_draining_finishes_what_is_under_way_and_refuses_the_rest(echo: Echo) -> None:
    waiting = echo.call("wait")
    assert echo.begun.acquire(timeout=30)
    echo.front.drain()
    assert echo.call("x").code() is grpc.StatusCode.UNAVAILABLE
    assert not echo.front.wait(0.01)
    echo.go_on.set()
    assert waiting.result()
    assert echo.front.wait(30)


def test_a_caller_who_goes_is_noticed(echo: Echo) -> None:
    waiting = echo.call("wait")
    assert echo.begun.acquire(timeout=30)
    (call,) = echo.calls
    assert not call.over
    gone = threading.Event()
    call.when_cancelled(gone.set)
    waiting.cancel()
    assert gone.wait(30) and call.over


@pytest.mark.parametrize("name", ["unary", "stream that writes", "stream that reads"])
@pytest.mark.filterwarnings("error")
def test_a_caller_who_goes_is_no_error_of_the_server(echo: Echo, name: str, caplog: pytest.LogCaptureFixture) -> None:
    hold = threading.Event()

    def requests(first: str) -> Iterator[bytes]:
        yield StringValue(value=first).SerializeToString()
        hold.wait(30)

    if name == "unary":
        call = echo.channel.unary_unary(f"/{SERVICE}/Watch").future(b"", timeout=30)
    else:
        call = echo.channel.stream_stream(f"/{SERVICE}/Count")(requests(name.rpartition(" ")[2][:-1]), timeout=30)
        next(call)
    assert echo.begun.acquire(timeout=30)
    call.cancel()
    assert echo.noticed.acquire(timeout=30)
    hold.set()
    assert [done.code for done in echo.told(1)] == [grpc.StatusCode.CANCELLED]
    assert echo.front.wait(30)
    assert echo.call("x").result()
    assert not [record for record in caplog.records if record.exc_info or record.levelno > logging.INFO]


def test_a_stream_is_a_call_like_any_other(echo: Echo) -> None:
    stream = echo.channel.stream_stream(f"/{SERVICE}/Add")
    answers = stream((Int64Value(value=n).SerializeToString() for n in (1, 2, 3)), timeout=30)
    assert [Int64Value.FromString(body).value for body in answers] == [1, 3, 6]
    assert "x-request-id" in dict(answers.trailing_metadata())
    broken = stream(iter([b"\xff"]), timeout=30)
    with pytest.raises(grpc.RpcError, match="no Int64Value message"):
        list(broken)
    assert [done.code for done in echo.told(2)] == [grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT]
    assert echo.front.under_way == 0


def test_what_is_told_has_the_stages(echo: Echo) -> None:
    echo.call("x").result()
    (done,) = echo.told(1)
    assert set(done.call.spent) == {"decode", "encode"} and done.seconds >= sum(done.call.spent.values())
    assert (done.arrival.method, done.arrival.size) == (f"/{SERVICE}/Say", 3)
