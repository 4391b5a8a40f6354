"""Logs: lines of text or of JSON on standard error, and one line for each call."""

from __future__ import annotations

import json
import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import grpc

from seisserve_serving.front import Done

__all__ = ["CALLS", "configure", "tell"]

CALLS = "seisserve.calls"  # the logger of the lines of calls
log = logging.getLogger(CALLS)
MOST_REFUSALS = 10  # lines a second of calls for which there is no room
MOST_CHARACTERS = 200  # of a text that the caller chose
# These say at DEBUG (and some at INFO) what is of use to their own makers, headers with tokens among it.
QUIET = ("asyncio", "grpc", "h11", "hpack", "opentelemetry", "uvicorn")


def configure(
    log_format: Literal["text", "json"], level: str, stream: TextIO | None = None, worker: int | None = None
) -> None:
    """Send the logs of the whole process to a stream (standard error), in one format and from a level on. worker: its
    number, if it is one of several processes whose lines go there."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Json(worker) if log_format == "json" else Text(worker))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def tell(done: Done) -> None:
    """Log a call: at INFO if it failed, at DEBUG if it went well. For `Front.told`."""
    level = logging.DEBUG if done.code is grpc.StatusCode.OK else logging.INFO
    if log.isEnabledFor(level) and (done.code is not grpc.StatusCode.RESOURCE_EXHAUSTED or FEW.let(done.calls)):
        facts = _facts(done)
        log.log(level, "%s", " ".join(f"{key}={_plain(value)}" for key, value in facts.items()), extra={"call": facts})


class _Few:
    """Lets so many lines a second through, and says how many calls the others were of: no flood of lines."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._since, self._lines, self._left_out = time.monotonic(), 0, 0

    def let(self, calls: int) -> bool:
        now = time.monotonic()
        with self._lock:
            left_out, seconds = self._left_out, now - self._since
            if seconds >= 1.0:
                self._since, self._lines, self._left_out = now, 0, 0
            self._lines += 1
            lets = self._lines <= self._most
            if not lets:
                self._left_out += calls
        if left_out and seconds >= 1.0:
            log.info("%d more calls were refused, in %.1f s", left_out, seconds)
        return lets


FEW = _Few(MOST_REFUSALS)


def _facts(done: Done) -> dict[str, Any]:
    """What a line says of a call; never its metadata, which have the token. Times in seconds."""
    arrival, call = done.arrival, done.call
    facts: dict[str, Any] = {
        "method": arrival.method,
        "code": done.code.name,
        "seconds": round(done.seconds, 6),
        "request": call.request_id[:MOST_CHARACTERS],
        "peer": call.peer,
    }
    if done.calls > 1:
        facts["calls"] = done.calls
    if call.user:
        facts["user"] = call.user
    if call.model:
        facts |= {"model": call.model, "version": call.version, "priority": call.priority.name.lower()}
    if call.windows:
        facts["windows"] = call.windows
    if arrival.size:
        facts["bytes"] = arrival.size
    facts |= {f"{stage}_s": round(seconds, 6) for stage, seconds in list(call.spent.items())}
    if done.error is not None and done.code is not grpc.StatusCode.INTERNAL:  # that one has a line of its own
        facts["error"] = str(done.error)[: 5 * MOST_CHARACTERS]
    return facts


def _plain(value: Any) -> str:
    """A value in one word, or in quotes; a caller's text cannot begin a new line."""
    text = str(value)
    plain = text and text.isprintable() and not any(character in " \"'=\\" for character in text)
    return text if plain else repr(text)


class Text(logging.Formatter):
    """TIME LEVEL LOGGER: MESSAGE on one line, and a traceback below it where there is one."""

    def __init__(self, worker: int | None = None) -> None:
        who = "" if worker is None else f"worker {worker} "
        super().__init__(f"%(asctime)s %(levelname)s {who}%(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _time(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return line if line.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


class Json(logging.Formatter):
    """One object on each line: time, level, logger, message; error with the traceback; the facts of a call."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._who = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        entry |= self._who
        facts = getattr(record, "call", None)
        if facts is None:
            entry["message"] = record.getMessage()
        else:
            entry |= {"message": "call", **facts}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
