"""Sessions of clients that are broken, slow or hostile: each takes no more than its share, and ends with the reason."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from client.waveforms import fake, record
from serving.test_sessions import Method, Serving, fake_models, method, packets_of, sent, serving, start, wait_for

from seisserve.proto import seismic_pb2 as wire
from seisserve.transport import FakeTransport
from seisserve_serving import session_api
from seisserve_serving.calls import Call
from seisserve_serving.errors import Overloaded, Unavailable
from seisserve_serving.session_api import Bounds, Sessions

__all__ = ["method", "serving"]  # fixtures
Code = grpc.StatusCode


def refused(answers: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    return caught.value.code(), caught.value.details()


def silent(begin: list[wire.SessionRequest], over: threading.Event) -> Iterator[wire.SessionRequest]:
    """A client that sends these and then nothing, and does not go."""
    yield from begin
    over.wait(60)


def readers() -> int:
    """Threads that read a session's requests."""
    return sum(thread.name == "session" for thread in threading.enumerate())


def test_a_stream_without_a_first_request_ends(
    method: Method, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_api, "START_S", 0.3)
    over = threading.Event()
    code, text = refused(method(serving.port)(silent([], over)))
    assert code is Code.DEADLINE_EXCEEDED
    assert "no request has come within 0.3 s; the first of a session has `start`" in text
    over.set()


def test_a_stream_without_a_first_request_does_not_hold_up_the_stop(method: Method) -> None:
    wait_for(lambda: not readers())  # those of the test before
    started = Serving(fake_models())
    over = threading.Event()
    answers = method(started.port)(silent([], over))
    wait_for(lambda: readers() > 0)
    assert started.stop(grace_s=20)
    code, text = refused(answers)
    assert code is Code.UNAVAILABLE and "draining" in text
    over.set()


@pytest.mark.parametrize("end", ["by the server", "by the client", "in order"])
def test_no_thread_stays_behind_a_session(method: Method, serving: Serving, end: str) -> None:
    wait_for(lambda: not readers())  # those of the test before
    over = threading.Event()
    for _ in range(5):
        requests = {
            "by the server": [start(), sent(7, [])], "by the client": [start()],
            "in order": [start(), sent(1, [], finish=True)],
        }[end]  # fmt: skip
        answers = method(serving.port)(silent(requests, over))
        if end == "by the server":
            assert "expected 1" in refused(answers)[1]
        elif end == "by the client":
            next(answers)
            answers.cancel()
        else:
            assert list(answers)[-1].finished
    wait_for(lambda: not readers())
    over.set()


def test_packets_without_a_number_are_refused(method: Method, serving: Serving) -> None:
    code, text = refused(method(serving.port)(iter([start(), sent(0, record(0, 5.0))])))
    assert code is Code.INVALID_ARGUMENT
    assert "packets.number is 0; packets are numbered 1, 2, 3" in text


def test_ids_and_warnings_that_have_no_end_are_cut(method: Method, serving: Serving) -> None:
    traces = record(0, 5.0)
    long = traces[0]._replace(id="XX." + 100_000 * "S" + "..HHZ")
    bad = long._replace(samples=np.full(100, np.nan))
    answers = list(method(serving.port)(iter([start(), sent(1, [long, bad, *traces], finish=True)])))
    warnings = [text for answer in answers for text in answer.warnings]
    assert len(warnings) == 2
    assert "the id of a trace has more than 255 characters" in warnings[0]
    assert max(map(len, warnings)) <= 500
    assert [count.trace_id for count in answers[-1].counts] == ["XX.STA..HH"]


def test_sessions_that_have_finished_are_kept_for_a_while_but_no_more_than_may_be_open(method: Method) -> None:
    started = Serving(fake_models(), Bounds(sessions=3))
    tokens = []
    for _ in range(10):
        answers = list(method(started.port)(iter([start(), sent(1, record(0, 5.0), finish=True)])))
        tokens.append(answers[0].started.resume_token)
    assert started.sessions.open == 0
    assert not any(one.core.instruments or one.core.ended for one in started.sessions._sessions.values())
    resumed = method(started.port)(iter([start(resume_token=tokens[-1])]))
    assert list(resumed)[-1].finished
    assert refused(method(started.port)(iter([start(resume_token=tokens[0])])))[0] is Code.NOT_FOUND
    assert len(started.sessions._sessions) <= 3 + 1
    started.stop()


def connection(
    sessions: Sessions, over: threading.Event, *requests: wire.SessionRequest
) -> Iterator[wire.SessionResponse]:
    """A connection whose client takes an answer when it is asked to, and does not go before it is over."""
    return sessions.session(itertools.chain(requests, silent([], over)), Call())


def test_a_connection_that_takes_no_answers_does_not_hold_its_session_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when gRPC waits for a client whose network is gone."""
    monkeypatch.setattr(session_api, "STALLED_S", 1.5)
    sessions, over = Sessions(fake_models(), Bounds(sessions=1, resume_s=1.5)), threading.Event()

    def opened() -> bool:
        try:
            return next(connection(sessions, over, start())).HasField("started")
        except Overloaded:
            return False

    stalled = connection(sessions, over, start(), sent(1, record(0, 5.0)))
    next(stalled)
    assert not opened()
    wait_for(opened)
    with pytest.raises(Unavailable, match="was forgotten: this connection took no answer for too long"):
        next(stalled)
    over.set()


def test_a_new_connection_need_not_wait_until_the_server_has_room_for_the_old_one(method: Method) -> None:
    full, tried = threading.Event(), threading.Event()
    full.set()
    inner: Callable[[Any], Any] = fake().function

    def busy(windows: Any) -> Any:
        if full.is_set():
            tried.set()
            raise Overloaded("no room", 50)
        return inner(windows)

    started = Serving(fake_models(FakeTransport(busy, 2)))
    over = threading.Event()
    packets = [sent(number, together) for number, together in enumerate(packets_of(1, 30.0, length=1000), 1)]
    old = method(started.port)(silent([start(wait_s=0.0), *packets], over))
    token = next(old).started.resume_token
    assert tried.wait(30)  # it is at work, and will be
    new = method(started.port)(silent([start(resume_token=token)], over))
    assert next(new).started.resumed
    assert "another connection" in refused(old)[1]
    full.clear()
    assert next(answer for answer in new if answer.picks).picks
    over.set()
    started.stop()
