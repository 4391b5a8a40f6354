"""The callers of `peers_servers.py`: asyncio on uvloop in a process of their own, each with a connection of its own.

Told by a JSON object (`Plan`); each caller's first answer is held against the expected one. Prints a list, for each
case windows a second and the latencies of the calls, after a moment that does not count.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop
from numpy.typing import NDArray

from seisserve.proto import inference_wire_pb2 as inference
from seisserve.proto import tensorflow_serving_wire_pb2 as tensorflow_serving
from seisserve.tensors import to_array, to_proto

SERVICE = "/inference.GRPCInferenceService"
V2 = f"{SERVICE}/ModelInfer"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
LIMITS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
SKIP_S = 0.3
TIMEOUT_S = 30.0
Windows = NDArray[np.float32]
Call = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True)
class Plan:
    """protocol: `V2` (gRPC, raw contents), `V2+shm` (the same, tensors in shared memory), `TFS` (Predict of TensorFlow
    Serving) or `HTTP` (bytes to /raw). examples: file of arrays `inputs` and `outputs`. cases: callers, and windows of
    a call (at most as many as there are examples); one case after the other, each for so many seconds."""

    protocol: str
    port: int
    name: str
    input: str
    output: str
    examples: str
    cases: list[tuple[int, int]]
    seconds: float
    tolerance: float


def message(plan: Plan, windows: Windows) -> tuple[str, bytes]:
    """The gRPC method, and its request."""
    if plan.protocol == "TFS":
        predict = tensorflow_serving.PredictRequest()
        predict.model_spec.name = plan.name
        predict.inputs[plan.input].CopyFrom(to_proto(windows))
        return PREDICT, predict.SerializeToString()
    tensor = inference.ModelInferRequest.InferInputTensor(name=plan.input, datatype="FP32", shape=windows.shape)
    infer = inference.ModelInferRequest(model_name=plan.name, inputs=[tensor], raw_input_contents=[windows.tobytes()])
    return V2, infer.SerializeToString()


class Segment:
    """A caller's windows in shared memory, with room for what the network makes of them behind; known to the server by
    its name. A file of Linux, as what Python's own `SharedMemory` makes is deleted by whichever process ends first."""

    def __init__(self, plan: Plan, channel: grpc.aio.Channel, windows: Windows, number: int) -> None:
        self._plan, self._channel, self._windows = plan, channel, windows
        self._name = f"seisserve-callers-{os.getpid()}-{number}"
        self._path = Path("/dev/shm") / self._name
        self._path.write_bytes(bytes(windows.tobytes()) + bytes(windows.nbytes))

    async def register(self) -> None:
        """Tell the server."""
        request = inference.SystemSharedMemoryRegisterRequest(
            name=self._name, key=f"/{self._name}", byte_size=2 * self._windows.nbytes
        )
        await self._channel.unary_unary(f"{SERVICE}/SystemSharedMemoryRegister")(request.SerializeToString())

    def request(self) -> bytes:
        """One that names the places."""
        infer = inference.ModelInferRequest(model_name=self._plan.name)
        tensor = infer.inputs.add(name=self._plan.input, datatype="FP32", shape=self._windows.shape)
        for one, offset in ((tensor, 0), (infer.outputs.add(name=self._plan.output), self._windows.nbytes)):
            one.parameters["shared_memory_region"].string_param = self._name
            one.parameters["shared_memory_offset"].int64_param = offset
            one.parameters["shared_memory_byte_size"].int64_param = self._windows.nbytes
        return infer.SerializeToString()

    def answer(self) -> bytes:
        """What the server has left there."""
        return self._path.read_bytes()[self._windows.nbytes :]

    async def close(self) -> None:
        """Forget it, on both sides."""
        request = inference.SystemSharedMemoryUnregisterRequest(name=self._name)
        await self._channel.unary_unary(f"{SERVICE}/SystemSharedMemoryUnregister")(request.SerializeToString())
        self._path.unlink()


def grpc_caller(path: str, body: bytes, channel: grpc.aio.Channel) -> Call:
    """Calls of the method."""
    method = channel.unary_unary(path)

    async def call() -> bytes:
        answer: bytes = await method(body, timeout=TIMEOUT_S)
        return answer

    return call


async def http_caller(plan: Plan, windows: Windows) -> tuple[Call, asyncio.StreamWriter]:
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

    return call, writer


def difference(plan: Plan, answer: bytes, expected: Windows) -> float:
    """The largest, from what is expected."""
    if plan.protocol == "TFS":
        ((name, tensor),) = tensorflow_serving.PredictResponse.FromString(answer).outputs.items()
        return float(np.abs(to_array(tensor, name) - expected).max())
    if plan.protocol == "V2":
        answer = inference.ModelInferResponse.FromString(answer).raw_output_contents[0]
    return float(np.abs(np.frombuffer(answer, np.float32).reshape(expected.shape) - expected).max())


async def run(plan: Plan, callers: int, size: int) -> dict[str, Any]:
    """One case, until the seconds are over."""
    examples = np.load(plan.examples)
    windows, expected = (examples[name][:size] for name in ("inputs", "outputs"))
    calls: list[Call] = []
    writers: list[asyncio.StreamWriter] = []
    channels: list[grpc.aio.Channel] = []
    segments: list[Segment] = []
    for number in range(callers):
        if plan.protocol == "HTTP":
            call, writer = await http_caller(plan, windows)
            calls.append(call)
            writers.append(writer)
        else:
            # a setting of its own, or gRPC would put all of them on one connection
            options = [*LIMITS, ("seisserve.caller", number)]
            channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{plan.port}", options=options))
            if plan.protocol == "V2+shm":
                segments.append(Segment(plan, channels[-1], windows, number))
                await segments[-1].register()
                calls.append(grpc_caller(V2, segments[-1].request(), channels[-1]))
            else:
                calls.append(grpc_caller(*message(plan, windows), channels[-1]))
    answers = [await call() for call in calls]
    if segments:
        answers = [segment.answer() for segment in segments]
    worst = max(difference(plan, answer, expected) for answer in answers)
    if not worst <= plan.tolerance:
        raise SystemExit(f"answers differ by {worst:.2g} from the bare network's")
    took: list[float] = []
    begin = time.perf_counter() + SKIP_S
    end = begin + plan.seconds

    async def again_and_again(call: Call) -> None:
        while (sent := time.perf_counter()) < end:
            await call()
            if begin <= (now := time.perf_counter()) < end:
                took.append(now - sent)

    await asyncio.gather(*map(again_and_again, calls))
    for segment in segments:
        await segment.close()
    for channel in channels:
        await channel.close()
    for writer in writers:
        writer.close()
    if not took:
        raise SystemExit(f"no call was answered within {plan.seconds:g} s")
    p50, p99 = 1e3 * np.percentile(took, (50, 99))
    return {"rate": len(took) * size / plan.seconds, "p50": p50, "p99": p99, "worst": worst}


async def run_all(plan: Plan) -> list[dict[str, Any]]:
    """All cases."""
    return [await run(plan, callers, windows) for callers, windows in plan.cases]


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run_all(Plan(**json.loads(sys.argv[1]))))))
