"""The callers of `peers_servers.py`: asyncio on uvloop in a process of their own, each with a connection of its own.

Told by a JSON object (`Plan`); each caller's first answer is held against the expected one. Prints windows a second and
the latencies of the calls, after half a second that does not count.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
import numpy as np
import uvloop
from numpy.typing import NDArray

from seisserve.proto import inference_wire_pb2 as wire

INFER = "/inference.GRPCInferenceService/ModelInfer"
LIMITS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
SKIP_S = 0.5
TIMEOUT_S = 30.0
Call = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True)
class Plan:
    """protocol: `grpc` (V2, raw contents) or `http` (bytes to /raw). windows: of a call. examples: file of arrays
    `inputs` and `outputs` with at least so many windows."""

    protocol: str
    port: int
    name: str
    input: str
    examples: str
    callers: int
    windows: int
    seconds: float
    tolerance: float


def grpc_caller(plan: Plan, number: int, windows: NDArray[np.float32]) -> Call:
    """ModelInfer with raw contents."""
    tensor = wire.ModelInferRequest.InferInputTensor(name=plan.input, datatype="FP32", shape=windows.shape)
    request = wire.ModelInferRequest(model_name=plan.name, inputs=[tensor], raw_input_contents=[windows.tobytes()])
    body = request.SerializeToString()
    # a setting of its own, or gRPC would put all of them on one connection
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{plan.port}", options=[*LIMITS, ("seisserve.caller", number)])
    method = channel.unary_unary(INFER)

    async def call() -> bytes:
        answer: bytes = await method(body, timeout=TIMEOUT_S)
        return answer

    return call


async def http_caller(plan: Plan, windows: NDArray[np.float32]) -> Call:
    """POST on a connection that stays, as lean as it can be."""
    reader, writer = await asyncio.open_connection("127.0.0.1", plan.port, limit=2**22)
    body, shape = windows.tobytes(), ",".join(map(str, windows.shape))
    head = (f"POST /raw HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
            f"Shape: {shape}\r\nContent-Length: {len(body)}\r\n\r\n").encode()  # fmt: skip

    async def call() -> bytes:
        async with asyncio.timeout(TIMEOUT_S):
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)^content-length: *(\d+)\r", answer, re.MULTILINE)
            if not answer.startswith(b"HTTP/1.1 200 ") or not length:
                raise SystemExit(f"answered {answer[:200]!r}")
            return await reader.readexactly(int(length[1]))

    return call


def difference(plan: Plan, answer: bytes, expected: NDArray[np.float32]) -> float:
    """The largest, from what is expected."""
    if plan.protocol == "grpc":
        answer = wire.ModelInferResponse.FromString(answer).raw_output_contents[0]
    return float(np.abs(np.frombuffer(answer, np.float32).reshape(expected.shape) - expected).max())


async def run(plan: Plan) -> dict[str, object]:
    """Call until the seconds are over."""
    examples = np.load(plan.examples)
    windows, expected = (examples[name][: plan.windows] for name in ("inputs", "outputs"))
    calls = [
        grpc_caller(plan, number, windows) if plan.protocol == "grpc" else await http_caller(plan, windows)
        for number in range(plan.callers)
    ]
    worst = max([difference(plan, await call(), expected) for call in calls])
    if not worst <= plan.tolerance:
        raise SystemExit(f"answers differ by {worst:.2g} from ours")
    took: list[float] = []
    begin = time.perf_counter() + SKIP_S
    end = begin + plan.seconds

    async def again_and_again(call: Call) -> None:
        while (sent := time.perf_counter()) < end:
            await call()
            if begin <= (now := time.perf_counter()) < end:
                took.append(now - sent)

    await asyncio.gather(*map(again_and_again, calls))
    if not took:
        raise SystemExit(f"no call was answered within {plan.seconds:g} s")
    p50, p99 = 1e3 * np.percentile(took, (50, 99))
    return {"rate": len(took) * plan.windows / plan.seconds, "p50": p50, "p99": p99, "worst": worst}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(Plan(**json.loads(sys.argv[1]))))))
