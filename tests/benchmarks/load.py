"""The callers of the server benchmarks: gRPC's asyncio client on uvloop, in a process of its own.

`Load` starts that process and reads from it what became of every call. Linux only: the clock of one process must be
that of the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import msgspec
import numpy as np
import uvloop
from numpy.typing import NDArray

from seisserve.bundle import find
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.tensors import to_proto
from seisserve_serving.grpc_server import GrpcServer, Rpc

PREDICT = "/tensorflow.serving.PredictionService/Predict"
LIMITS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
CODES = {code.value[0]: code.name for code in grpc.StatusCode}
# A call: which group it is of, when it was sent (time.monotonic), the seconds that it took, its status, and the
# milliseconds after which the server wants it back (-1: it did not say).
CALL = np.dtype([("group", "i2"), ("sent", "f8"), ("took", "f8"), ("code", "i2"), ("pushback", "f8")])
MOST_OPEN = 4000  # calls of a group without an answer; a load beyond that is the server's failure, and the clients' end
Calls = NDArray[Any]  # of CALL


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Callers that do the same. windows: of a call. rate: calls a second of all of them together, whatever becomes of
    those before; 0: each caller calls again when it has its answer. pause_s: between answer and next call. timeout_s:
    the deadline of each call. patient: wait as long as a refusal says before calling again."""

    callers: int = 1
    windows: int = 1
    rate: float = 0.0
    pause_s: float = 0.0
    priority: str = "normal"
    timeout_s: float = 30.0
    patient: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is told."""

    address: str
    model: str
    seconds: float
    groups: list[Group]
    result: str  # the file that it writes: bytes of CALL


class Load:
    """A load that runs until its seconds are over; `calls` waits for that. `begun` is when the first call was sent;
    cpu_s: processor seconds that the callers took from then on, once they have ended."""

    cpu_s = 0.0

    def __init__(self, address: str, model: str, seconds: float, *groups: Group) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._result = Path(self._folder.name) / "calls"
        plan = Plan(
            address=address, model=model, seconds=seconds, groups=list(groups), result=str(self._result)
        )  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, __file__, msgspec.json.encode(plan).decode()], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self.begun = float(self._process.stdout.readline() or 0)
        if not self.begun:
            raise SystemExit("the callers did not begin; what they said stands above")
        self._before_s = cpu_s(self._process.pid)

    def calls(self) -> Calls:
        """Every call, in the order of its answer."""
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode, self.cpu_s = (
            os.waitstatus_to_exitcode(status),
            used.ru_utime + used.ru_stime - self._before_s,
        )
        if self._process.returncode:
            raise SystemExit("the callers failed; what they said stands above")
        with self._folder:
            return np.fromfile(self._result, CALL)


def rate(calls: Calls, begun: float, seconds: float, windows: int = 1, skip_s: float = 0.5) -> float:
    """Windows a second that were answered with OK, apart from the first moments."""
    ended = calls["sent"] + calls["took"] - begun
    inside = (calls["code"] == 0) & (ended >= skip_s) & (ended < seconds)
    return float(np.count_nonzero(inside)) * windows / (seconds - skip_s)


def percentiles(values: NDArray[Any]) -> str:
    """p50, p99 and the largest, in milliseconds."""
    if not len(values):
        return "- | - | -"
    return " | ".join(f"{1e3 * value:.1f}" for value in (*np.percentile(values, (50, 99)), values.max()))


def spread(values: Sequence[float]) -> str:
    """Median (smallest to largest) of rates."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


class Served(NamedTuple):
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    address: str
    http: str

    def memory_mb(self, field: str = "VmRSS") -> float:
        """Resident now, or at most until now (VmHWM), in MB of 2**20 bytes."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(status.read().partition(f"{field}:")[2].split()[0]) / 1024

    def cpu_s(self) -> float:
        """Processor seconds so far."""
        return cpu_s(self.process.pid)

    def metrics(self) -> dict[str, float]:
        """What /metrics says, added up over labels, and also by label value: `name`, `name:value`."""
        found: dict[str, float] = {}
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=30) as answer:
            for line in answer.read().decode().splitlines():
                if match := re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line):
                    name, labels, value = match[1], match[2] or "", float(match[3])
                    for key in {name, *(f"{name}:{label}" for label in re.findall(r'"([^"]*)"', labels))}:
                        found[key] = found.get(key, 0.0) + value
        return found


def start(*options: str, port: int = 0) -> Served:
    """`seisserve serve`, once it listens."""
    command = [sys.executable, "-m", "seisserve", "serve", "--port", str(port), "--rest_api_port", "-1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    found = [re.search(r"on (\S+:\d+)$", process.stdout.readline().strip()) for _ in range(2)]
    if not found[0] or not found[1]:
        process.kill()
        raise SystemExit(f"the server did not begin; see what {' '.join(command)} says")
    return Served(process, found[0][1], found[1][1])


@contextmanager
def served(*options: str) -> Iterator[Served]:
    """A server, stopped at the end."""
    server = start(*options)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)


class BareGrpc(NamedTuple):
    """A server without anything behind it, in a process of its own."""

    process: subprocess.Popen[str]
    address: str

    def cpu_s(self) -> float:
        """Processor seconds so far."""
        return cpu_s(self.process.pid)


@contextmanager
def bare_grpc(what: str) -> Iterator[BareGrpc]:
    """A server that does nothing else. what: "echo" gives back the bytes that it gets, "refuse" refuses every call,
    before it has read it, both on our gRPC server; "asyncio" is the echo of grpcio's asyncio server."""
    process = subprocess.Popen([sys.executable, __file__, what], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield BareGrpc(process, process.stdout.readline().strip())
    finally:
        process.terminate()
        process.wait(30)


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _asyncio_echo() -> None:
    async def same(body: bytes, context: Any) -> bytes:
        return body

    server = grpc.aio.server(options=LIMITS)
    service, _, method = PREDICT[1:].partition("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(same)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    print(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    await server.start()
    await server.wait_for_termination()


def _bare(what: str) -> None:
    async def echo(rpc: Rpc) -> None:
        rpc.finish(await rpc.read())

    async def refuse(rpc: Rpc) -> None:
        rpc.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("grpc-retry-pushback-ms", "200"),))

    server = GrpcServer(LIMITS)
    server.add({PREDICT: {"echo": echo, "refuse": refuse}[what]})
    print(f"127.0.0.1:{server.add_port('127.0.0.1:0')}", flush=True)
    server.start()
    threading.Event().wait()


async def _run(plan: Plan) -> Calls:
    manifest = find(plan.model).manifest
    rng = np.random.default_rng(0)
    shape = (max(group.windows for group in plan.groups), manifest.window_samples, len(manifest.components))
    windows = rng.normal(0, 100, shape).astype(np.float32)
    made: list[tuple[int, float, float, int, float]] = []

    async def one(number: int, group: Group, method: Any, body: bytes) -> float:
        metadata = (("seisserve-priority", group.priority),)
        sent, code, pushback = time.monotonic(), 0, -1.0
        try:
            await method(body, timeout=group.timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            code = error.code().value[0]
            pushback = float(dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms", -1))
        made.append((number, sent, time.monotonic() - sent, code, pushback))
        return pushback if group.patient and pushback > 0 else 0.0

    async def again_and_again(number: int, group: Group, method: Any, body: bytes) -> None:
        while time.monotonic() < end:
            wait_ms = await one(number, group, method, body)
            if wait_ms or group.pause_s:
                await asyncio.sleep(group.pause_s + wait_ms / 1e3)

    async def at_a_rate(number: int, group: Group, methods: list[Any], body: bytes) -> None:
        open_calls: set[asyncio.Task[float]] = set()
        gaps, due, count = np.random.default_rng(number), time.monotonic(), 0
        while (due := due + gaps.exponential(1 / group.rate)) < end:
            await asyncio.sleep(max(due - time.monotonic(), 0))
            if len(open_calls) > MOST_OPEN:
                raise SystemExit(f"{MOST_OPEN} calls have no answer: the server neither answers nor refuses")
            task = asyncio.create_task(one(number, group, methods[count % len(methods)], body))
            open_calls.add(task)
            task.add_done_callback(open_calls.discard)
            count += 1
        await asyncio.gather(*open_calls)

    channels, work = [], []
    for number, group in enumerate(plan.groups):
        message = wire.PredictRequest(model_spec=wire.ModelSpec(name=plan.model))
        message.inputs[manifest.input.name].CopyFrom(to_proto(windows[: group.windows]))
        body = message.SerializeToString()
        own = [
            # a setting of its own, or gRPC would put all of them on one connection
            grpc.aio.insecure_channel(plan.address, options=[*LIMITS, ("seisserve.caller", 1000 * number + caller)])
            for caller in range(group.callers)
        ]
        channels += own
        work.append((number, group, [channel.unary_unary(PREDICT) for channel in own], body))
    for _, _, methods, body in work:  # connections are made, and nothing is new any more
        for method in methods:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await method(body, timeout=60)
    begun = time.monotonic()
    end = begun + plan.seconds
    print(begun, flush=True)
    tasks = []
    for number, group, methods, body in work:
        if group.rate:
            tasks.append(at_a_rate(number, group, methods, body))
        else:
            tasks += [again_and_again(number, group, method, body) for method in methods]
    await asyncio.gather(*tasks)
    for channel in channels:
        await channel.close()
    return np.array(made, CALL)


if __name__ == "__main__":
    if sys.argv[1] == "asyncio":
        uvloop.run(_asyncio_echo())
    elif sys.argv[1] in ("echo", "refuse"):
        _bare(sys.argv[1])
    else:
        told = msgspec.json.decode(sys.argv[1], type=Plan)
        uvloop.run(_run(told)).tofile(told.result)
