"""How `seisserve serve` ends: NOT_SERVING first, then nothing that was accepted is lost, within the grace period."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving.processes import Process

from seisserve import FakeTransport
from seisserve.bundle import Bundle
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.tensors import to_array, to_proto
from seisserve_serving.lanes import Lanes
from seisserve_serving.models import Models
from seisserve_serving.server import Server

Array = np.ndarray[Any, Any]
PREDICT = "/tensorflow.serving.PredictionService/Predict"


def predict(channel: grpc.Channel, windows: Array) -> Callable[..., Any]:
    """A call of Predict with these windows, which gives the outputs as an array."""
    request = wire.PredictRequest(model_spec=wire.ModelSpec(name="phasenet"))
    request.inputs["waveform"].CopyFrom(to_proto(windows))
    call = channel.unary_unary(
        PREDICT, request_serializer=wire.PredictRequest.SerializeToString,
        response_deserializer=wire.PredictResponse.FromString,
    )  # fmt: skip
    return lambda: to_array(call(request, timeout=60).outputs["probability"], "probability")


def test_a_call_under_way_finishes_and_health_says_not_serving_meanwhile(bundle: Bundle, windows: Array) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(waveform: Array) -> Array:
        begun.set()
        assert go_on.wait(30)
        return waveform

    models = Models(Lanes(2))
    models.add(1, bundle.manifest, FakeTransport(slow))
    server = Server(models, port=0)
    server.start()
    answers: list[Any] = []
    with grpc.insecure_channel(server.address) as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="phasenet"), timeout=30
        )
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        caller = threading.Thread(target=lambda: answers.append(predict(channel, windows[:1])()))
        caller.start()
        assert begun.wait(30)
        stopper = threading.Thread(target=server.stop, args=(30,))
        stopper.start()
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not answers
        watched.cancel()
        go_on.set()
        caller.join(30)
        stopper.join(30)
    np.testing.assert_array_equal(answers[0], windows[:1])
    assert not stopper.is_alive()


@pytest.mark.parametrize("workers", [1, 2])
def test_whoever_has_read_that_it_serves_may_stop_it(workers: int) -> None:
    with Process("--workers", str(workers)) as process:
        os.kill(process.pid, signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert "Traceback" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_accepted_request_is_lost_when_a_server_is_told_to_stop(number: int, windows: Array) -> None:
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def caller(channel: grpc.Channel, part: Array) -> None:
        call, expected = predict(channel, part), None
        while True:
            try:
                found = call()
                expected = found if expected is None else expected
                outcome = "right" if np.array_equal(found, expected) else "wrong"
            except grpc.RpcError as error:
                outcome = error.code().name
            with lock:
                outcomes[outcome] += 1
            if outcome != "right":
                return

    with Process() as process:
        with grpc.insecure_channel(process.address) as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
            threads = [threading.Thread(target=caller, args=(channel, windows[k : k + 8])) for k in range(6)]
            for thread in threads:
                thread.start()
            while outcomes["right"] < 20 and all(thread.is_alive() for thread in threads):
                time.sleep(0.01)
            os.kill(process.pid, number)
            for thread in threads:
                thread.join(60)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert outcomes.pop("right") >= 20
    assert set(outcomes) <= {"UNAVAILABLE", "CANCELLED"}  # refused before it began, which gRPC tells in both ways
    assert "Traceback" not in log


STUCK = """
import time

from seisserve import FakeTransport
from seisserve.bundle import find
from seisserve_serving.lanes import Lanes
from seisserve_serving.models import Models
from seisserve_serving.server import Server

def never(waveform):
    print("called", flush=True)
    time.sleep(300)

models = Models(Lanes(2))
models.add(1, find("phasenet").manifest, FakeTransport(never))
server = Server(models, port=0)
print(server.address, flush=True)
server.run(grace_s=0.2)
"""


def test_a_call_longer_than_the_grace_period_does_not_hold_the_process(windows: Array) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        codes: list[Any] = []

        def caller(call: Callable[..., Any]) -> None:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            codes.append(caught.value.code())

        with grpc.insecure_channel(process.stdout.readline().strip()) as channel:
            thread = threading.Thread(target=caller, args=(predict(channel, windows[:1]),))
            thread.start()
            assert process.stdout.readline() == "called\n"
            process.terminate()
            _, log = process.communicate(timeout=60)
            thread.join(30)
    assert process.returncode == 1
    assert "did not finish within 0.2 s" in log
    assert codes == [grpc.StatusCode.UNAVAILABLE]
