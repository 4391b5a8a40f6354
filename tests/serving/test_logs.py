"""Logs: one line for each call, in text or JSON, that a machine can read and no caller can forge."""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime
from types import SimpleNamespace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seisserve.errors import UsageError
from seisserve_serving import logs
from seisserve_serving.calls import Call, Priority
from seisserve_serving.errors import Overloaded
from seisserve_serving.front import Arrival, Done


@pytest.fixture
def written() -> io.StringIO:
    """What is logged."""
    return io.StringIO()


def done(code: grpc.StatusCode = grpc.StatusCode.OK, request_id: str = "r-1", error: Exception | None = None) -> Done:
    call = Call(request_id, None, Priority.REALTIME, "ipv4:10.0.0.1:5", "operator")
    call.about("phasenet", 3)
    call.charge(32)
    call.spent["decode"] += 0.001
    call.spent["compute"] += 0.02
    return Done(Arrival("/a.B/C", {"authorization": "Bearer geheim"}, call.peer, 1234), call, code, 0.0251, error)


def test_a_line_of_json_has_every_fact_of_the_call(written: io.StringIO) -> None:
    logs.configure("json", "debug", written)
    logs.tell(done())
    line = json.loads(written.getvalue())
    when = datetime.fromisoformat(line.pop("time"))
    assert when.utcoffset() is not None
    assert line == {
        "level": "debug", "logger": "seisserve.calls", "message": "call", "method": "/a.B/C", "code": "OK",
        "seconds": 0.0251, "request": "r-1", "peer": "ipv4:10.0.0.1:5", "user": "operator", "model": "phasenet",
        "version": 3, "priority": "realtime", "windows": 32, "bytes": 1234, "decode_s": 0.001, "compute_s": 0.02,
    }  # fmt: skip


def test_a_line_of_text_has_them_too(written: io.StringIO) -> None:
    logs.configure("text", "debug", written)
    logs.tell(done())
    head, _, facts = written.getvalue().partition(" seisserve.calls: ")
    assert head.endswith("Z DEBUG")
    assert facts == (
        "method=/a.B/C code=OK seconds=0.0251 request=r-1 peer=ipv4:10.0.0.1:5 user=operator model=phasenet version=3 "
        "priority=realtime windows=32 bytes=1234 decode_s=0.001 compute_s=0.02\n"
    )


@pytest.mark.parametrize(
    ("code", "level", "lines"),
    [
        (grpc.StatusCode.OK, "debug", 1), (grpc.StatusCode.OK, "info", 0),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "info", 1), (grpc.StatusCode.RESOURCE_EXHAUSTED, "warning", 0),
    ],
)  # fmt: skip
def test_calls_that_went_well_are_told_at_debug_and_those_that_failed_at_info(
    code: grpc.StatusCode, level: str, lines: int, written: io.StringIO
) -> None:
    logs.configure("json", level, written)
    logs.tell(done(code))
    assert written.getvalue().count("\n") == lines


def test_why_a_call_was_refused_is_told_but_an_inner_error_only_once(written: io.StringIO) -> None:
    logs.configure("json", "info", written)
    logs.tell(done(grpc.StatusCode.INVALID_ARGUMENT, error=UsageError("hop is -1")))
    logs.tell(done(grpc.StatusCode.INTERNAL, error=ZeroDivisionError("inner")))
    first, second = map(json.loads, written.getvalue().splitlines())
    assert first["error"] == "hop is -1"
    assert "error" not in second  # the door logs it, with its traceback


def test_a_flood_of_refusals_is_no_flood_of_lines(written: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(logs, "FEW", logs._Few(3))
    logs.configure("text", "info", written)
    full = done(grpc.StatusCode.RESOURCE_EXHAUSTED, error=Overloaded("full", 200))
    for _ in range(8):
        logs.tell(full._replace(calls=50))
    logs.tell(done(grpc.StatusCode.NOT_FOUND))
    clock[0] += 2.0
    logs.tell(full)
    lines = written.getvalue().splitlines()
    assert [line.partition("code=")[2].partition(" ")[0] for line in lines] == [
        *["RESOURCE_EXHAUSTED"] * 3, "NOT_FOUND", "", "RESOURCE_EXHAUSTED"
    ]  # fmt: skip
    assert " calls=50 " in lines[0] and lines[4].endswith("250 more calls were refused, in 2.0 s")
    assert "calls=" not in lines[5].partition("code=")[2]


def test_a_message_of_text_stays_on_its_line_and_its_traceback_comes_below(written: io.StringIO) -> None:
    logs.configure("text", "info", written)
    try:
        raise ZeroDivisionError("inner")
    except ZeroDivisionError as error:
        logging.getLogger("x").error("request %s failed", "r-1\nfaked\u2028", exc_info=error)
    first, second, *_, last = written.getvalue().splitlines()
    assert first.endswith(r" ERROR x: request r-1\nfaked\u2028 failed")
    assert second.startswith("Traceback")
    assert last == "ZeroDivisionError: inner"


def test_a_traceback_stays_in_its_line_of_json(written: io.StringIO) -> None:
    logs.configure("json", "info", written)
    try:
        raise ZeroDivisionError("inner\nerror")
    except ZeroDivisionError as error:
        logging.getLogger("x").error("request %s failed", "r-1", exc_info=error)
    (line,) = map(json.loads, written.getvalue().splitlines())
    assert line["message"] == "request r-1 failed"
    assert line["traceback"].startswith("Traceback")
    assert line["traceback"].endswith("ZeroDivisionError: inner\nerror")


@pytest.mark.parametrize("log_format", ["text", "json"])
@given(st.text(max_size=400))
def test_no_caller_can_begin_a_new_line(log_format: str, text: str) -> None:
    record_of: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            record_of.append(record)

    logger, keep = logging.getLogger(logs.CALLS), Keep()
    level = logger.level
    logger.addHandler(keep)
    logger.setLevel("INFO")
    try:
        logs.tell(done(grpc.StatusCode.INVALID_ARGUMENT, text, UsageError(text)))
    finally:
        logger.removeHandler(keep)
        logger.setLevel(level)
    shown = (logs.Json() if log_format == "json" else logs.Text()).format(record_of[0])
    assert len(shown.splitlines()) == 1
    assert len(shown) < 4000
    assert "geheim" not in shown


def test_other_libraries_say_no_more_than_warnings(written: io.StringIO) -> None:
    logs.configure("text", "debug", written)
    for name in ("uvicorn.access", "grpc._server", "hpack.hpack"):
        logging.getLogger(name).info("authorization: Bearer geheim")
    logging.getLogger("uvicorn.error").warning("this matters")
    assert written.getvalue().count("\n") == 1
    assert "this matters" in written.getvalue()
