"""Answers do not depend on who else calls: bit for bit the same alone and among many, cancelled ones included.

In fixed mode for every shipped model: its batches all have one size, and one window where the place in a batch changes
the rounding. In exact mode, too, for all but eqtransformer, on onnxruntime's CPU kernels (another runtime, or another
processor's kernels, may round by the size of a batch: fixed mode is for that).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from seisserve import FakeTransport, bundle
from seisserve.bundle import Bundle
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.tensors import to_array, to_proto
from seisserve_serving.lanes import Batching, Lanes
from seisserve_serving.models import Models
from seisserve_serving.repository import load
from seisserve_serving.server import Server

Array = NDArray[Any]
ALL = [bundle.find(name) for name in bundle.models(bundle.shipped())]
CALLERS, WINDOWS = 12, 24
# Its attention multiplies the steps of all windows of a batch as one matrix.
ROUNDED_BY_PLACE = {"eqtransformer"}
MOST_ROUNDING = 1e-5  # of a probability


@pytest.fixture(scope="module", params=["exact", "fixed"])
def server_in(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A mode, and the address of a server that computes in it."""
    mode: Literal["exact", "fixed"] = request.param
    models = load(bundle.shipped(), "onnxruntime", 2, batching=Batching(mode=mode), warm_up=False)
    server = Server(models, port=0)
    server.start()
    yield mode, server.address
    server.stop(grace_s=1)
    models.close()
    models.lanes.close()


class Caller:
    """Predict on a channel, arrays in, arrays out."""

    def __init__(self, channel: grpc.Channel, model: str, output: str) -> None:
        self.model, self.output = model, output
        self.call = channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            request_serializer=wire.PredictRequest.SerializeToString,
            response_deserializer=wire.PredictResponse.FromString,
        )

    def begin(self, windows: Array) -> Any:
        request = wire.PredictRequest(model_spec=wire.ModelSpec(name=self.model))
        request.inputs["waveform"].CopyFrom(to_proto(windows))
        return self.call.future(request, timeout=60)

    def array(self, future: Any) -> Array:
        return to_array(future.result().outputs[self.output], self.output)

    def __call__(self, windows: Array) -> Array:
        return self.array(self.begin(windows))


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_a_window_gives_the_same_bits_alone_and_among_others(one: Bundle, server_in: tuple[str, str]) -> None:
    mode, address = server_in
    rng = np.random.default_rng(5)
    shape = (WINDOWS, one.manifest.window_samples, len(one.manifest.components))
    windows = (rng.normal(0, 100, shape) * rng.uniform(0.1, 10, (WINDOWS, 1, 1))).astype(np.float32)
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(CALLERS) as pool:
        predict = Caller(channel, one.name, one.manifest.output.name)
        alone = np.concatenate([predict(windows[k : k + 1]) for k in range(WINDOWS)])
        parts = [(low, low + int(rng.integers(1, 8))) for low in rng.integers(0, WINDOWS - 8, 3 * CALLERS)]
        found = list(pool.map(lambda part: predict(windows[part[0] : part[1]]), parts))
        for (low, high), array in zip(parts, found, strict=True):
            if mode == "exact" and one.name in ROUNDED_BY_PLACE:
                np.testing.assert_allclose(array, alone[low:high], atol=MOST_ROUNDING, rtol=0, strict=True)
            else:
                np.testing.assert_array_equal(array, alone[low:high], strict=True)


def test_callers_that_go_do_not_change_what_their_batch_mates_get(bundle: Bundle, windows: Array) -> None:
    """Calls gather while the only lane is at work; every third is cancelled before its turn comes."""
    begun, go_on = threading.Event(), threading.Event()
    sizes: list[int] = []

    def twice(waveform: Array) -> Array:
        sizes.append(len(waveform))
        begun.set()
        assert go_on.wait(30)
        return 2 * waveform

    models = Models(Lanes(1))
    queue = models.add(1, bundle.manifest, FakeTransport(twice)).queue
    server = Server(models, port=0)
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        predict = Caller(channel, "phasenet", bundle.manifest.output.name)
        first = predict.begin(windows[:1])
        assert begun.wait(30)
        calls = [predict.begin(windows[k : k + 1]) for k in range(1, 13)]
        until(lambda: queue.waiting == 12)
        for number in range(0, 12, 3):
            calls[number].cancel()
        until(lambda: queue.waiting == 8)
        go_on.set()
        for number, call in enumerate([first, *calls]):
            if number and number % 3 == 1:
                assert call.cancelled()
            else:
                np.testing.assert_array_equal(predict.array(call), 2 * windows[number : number + 1], strict=True)
    server.stop(grace_s=1)
    models.lanes.close()
    assert sizes == [1, 8]  # the others were computed together, those that had gone not at all


def until(true: Any) -> None:
    """Wait for something that must come."""
    waiting = threading.Event()
    for _ in range(3000):
        if true():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not come within 30 s")
