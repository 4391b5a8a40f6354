"""Metrics: what a real server counted is what it was asked; labels stay bounded; nothing is undocumented."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any, Literal

import grpc
import httpx
import numpy as np
import obspy
import prometheus_client
import pytest
from client.waveforms import manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from serving.loopback import Loopback

from seisserve import FakeTransport, Trace, __version__, runtime
from seisserve.bundle import Bundle
from seisserve.manifest import Manifest
from seisserve.messages import to_waveforms
from seisserve.proto import inference_wire_pb2 as v2
from seisserve.proto import seismic_pb2 as seismic
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.runtimes.setup import Setup
from seisserve.tensors import to_proto
from seisserve.traces import from_stream
from seisserve.transport import Arrays, Transport
from seisserve_serving.calls import Call
from seisserve_serving.counting import count_arrival, hours_and_gaps
from seisserve_serving.errors import Cancelled, Expired, Overloaded, PermissionDenied, Unauthenticated, Unavailable
from seisserve_serving.front import Arrival, Done, Front
from seisserve_serving.grpc_server import GrpcServer
from seisserve_serving.lanes import Batching, Lanes
from seisserve_serving.metric_table import ALIASES, METRICS, documentation
from seisserve_serving.metrics import (
    CONTENT_TYPE,
    FORGOTTEN_S,
    MOST_METHODS,
    MOST_MODELS,
    MOST_STATIONS,
    OTHER,
    PATHS,
    Metrics,
)
from seisserve_serving.models import Models
from seisserve_serving.server import Server
from seisserve_serving.web import Web

Array = NDArray[np.float32]
Labels = frozenset[tuple[str, str]]
PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"
PICK = "/seisserve.v1.SeismicService/Pick"
GET = "/seisserve.v1.SeismicService/GetModel"
TFS = ":tensorflow:serving:"


class Scrape:
    """The text, read as Prometheus reads it."""

    def __init__(self, metrics: Metrics) -> None:
        self.values: dict[tuple[str, Labels], float] = {}
        self.families = list(text_string_to_metric_families(metrics.text().decode()))
        for family in self.families:
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.values
                self.values[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        return self.values.get((name, frozenset(labels.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """Of all series with these labels."""
        return sum(self.series(name, **labels).values())

    def series(self, name: str, **labels: str) -> dict[Labels, float]:
        return {key: value for (n, key), value in self.values.items() if n == name and labels.items() <= key}

    def label(self, label: str) -> set[str]:
        """Every value of a label."""
        return {value for _, key in self.values for name, value in key if name == label}


class Counting:
    """A transport that counts what it computes."""

    def __init__(self, inner: Transport) -> None:
        self.inner, self.lanes, self.batch_samples = inner, inner.lanes, inner.batch_samples
        self.windows: list[int] = []

    def predict(self, model: Manifest, inputs: Arrays) -> Arrays:
        self.windows.append(len(inputs[model.input.name]))
        return self.inner.predict(model, inputs)


class World:
    """A server, its metrics, and every call that was made to it with the code that it was answered with."""

    def __init__(self, model: Manifest, transport: Transport, batching: Batching | None = None) -> None:
        self.metrics, self.asked = Metrics(), Counter[tuple[str, str, str]]()
        self.computed = Counting(transport)
        self.lanes = Lanes(2, told=self.metrics.batch)
        self.models = Models(self.lanes)
        self.models.add(1, model, self.computed, batching)
        self.front = Front([self._guard], told=[self.metrics.done], counted=self.metrics.counted)
        self.metrics.watch(self.front, self.models)
        self.server = Server(self.models, self.front, port=0)
        self.server.start()
        self.channel = grpc.insecure_channel(self.server.address)

    @staticmethod
    def _guard(arrival: Arrival, call: Call) -> None:
        if "guest" in arrival.metadata:
            raise Unauthenticated("who are you?")

    def call(self, path: str, request: Any, response: Any, model: str = "", **metadata: str) -> Any:
        """The answer, or nothing if it was refused. model: the label that is expected."""
        send = self.channel.unary_unary(
            path,
            request_serializer=lambda it: it if isinstance(it, bytes) else it.SerializeToString(),
            response_deserializer=response.FromString,
        )
        sent = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        try:
            answer, code = send(request, timeout=60, metadata=sent), "OK"
        except grpc.RpcError as error:
            answer, code = None, error.code().name
        self.asked[path, model, code] += 1
        return answer

    def predict(self, windows: Array, name: str = "phasenet") -> Any:
        request = wire.PredictRequest(model_spec=wire.ModelSpec(name=name))
        request.inputs["waveform"].CopyFrom(to_proto(windows))
        return self.call(PREDICT, request, wire.PredictResponse, name if name in self.models.served else "")

    def close(self) -> Scrape:
        """The metrics once everything has ended: a lane tells of its batch after the callers have theirs."""
        self.channel.close()
        self.server.stop(grace_s=5)
        self.lanes.close()
        return Scrape(self.metrics)


@pytest.fixture(scope="module")
def local() -> tuple[Manifest, Transport]:
    """A model with a network that takes no time."""
    model = manifest()
    return model, FakeTransport(lambda windows: np.zeros((*windows.shape[:2], len(model.output.labels)), np.float32), 2)


@pytest.fixture(scope="module")
def phasenet(bundle: Bundle) -> tuple[Manifest, Transport]:
    return runtime.prepare(bundle, Setup(lanes=2))


def stream() -> list[Trace]:
    """ObsPy's local earthquake, 30 s of three components, and 5 s of it again after 2 s without records."""
    traces = from_stream(obspy.read())
    again = [
        Trace(t.id, t.start_ns + round(32e9), t.sampling_rate_hz, t.samples[: round(5 * t.sampling_rate_hz)])
        for t in traces
    ]
    return [*traces, *again]


@pytest.fixture(scope="module")
def busy(phasenet: tuple[Manifest, Transport], windows: Array) -> tuple[World, Scrape, Counter[str]]:
    """A server after a few calls of each kind, what it says, and the picks that it gave."""
    world, picks = World(*phasenet), Counter[str]()
    for count in (1, 3, 40, 1):
        assert len(world.predict(windows[:count]).outputs["probability"].tensor_shape.dim) == 3
    world.predict(windows[:2, :100])
    world.predict(windows[:1], "nosuchmodel")
    world.predict(windows[:1], "nosuchmodel2")
    world.call(PREDICT, b"\xff\xff\xff", wire.PredictResponse)
    world.call(PREDICT, b"", wire.PredictResponse)
    world.call(PREDICT, wire.PredictRequest(), wire.PredictResponse, guest="1")
    world.call(PREDICT, wire.PredictRequest(), wire.PredictResponse, seisserve_priority="now")
    tensor = v2.ModelInferRequest.InferInputTensor(name="waveform", datatype="FP32", shape=windows[:2].shape)
    infer = v2.ModelInferRequest(model_name="phasenet", inputs=[tensor], raw_input_contents=[windows[:2].tobytes()])
    for _ in range(2):
        world.call(INFER, infer, v2.ModelInferResponse, "phasenet")
    world.call(LIVE, v2.ServerLiveRequest(), v2.ServerLiveResponse)
    world.call(GET, seismic.GetModelRequest(), seismic.GetModelResponse, "phasenet")
    record = seismic.PickRequest(waveforms=to_waveforms(stream()), model=seismic.ModelSpec(name="phasenet"))
    for _ in range(3):
        answer = world.call(PICK, record, seismic.PickResponse, "phasenet")
        picks.update(pick.phase for pick in answer.picks)
    world.call(PICK, seismic.PickRequest(), seismic.PickResponse, "phasenet")
    return world, world.close(), picks


def test_every_call_is_counted_once_under_its_method_model_and_code(busy: tuple[World, Scrape, Any]) -> None:
    world, scrape, _ = busy
    counted = Counter[tuple[str, str, str]]()
    for key, value in scrape.series("seisserve_requests_total").items():
        labels = dict(key)
        assert labels["transport"] == "grpc"
        assert labels["version"] == ("1" if labels["model"] else "")
        counted[labels["method"], labels["model"], labels["code"]] += int(value)
    assert counted == world.asked
    assert {code for _, _, code in counted} == {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED"}
    by_method = Counter[str]()
    for (method, _, _), number in world.asked.items():
        by_method[method] += number
    for method, number in by_method.items():
        assert scrape.total("seisserve_request_seconds_count", method=method) == number
    assert scrape.series("seisserve_rejected_total") == {frozenset({("reason", "unauthenticated")}): 1}
    assert scrape("seisserve_calls_under_way") == 0
    assert scrape("seisserve_draining") == 1


def test_windows_batches_and_waits_add_up(busy: tuple[World, Scrape, Any]) -> None:
    world, scrape, _ = busy
    computed = world.computed.windows
    for name in ("wait", "batch"):
        assert scrape(f"seisserve_{name}_seconds_count", model="phasenet") == len(computed)
    assert scrape("seisserve_batch_windows_count", model="phasenet") == len(computed)
    assert scrape("seisserve_batch_windows_sum", model="phasenet") == sum(computed)
    assert sum(computed) > 1 + 3 + 40 + 1 + 2 * 2
    for bound in ("1.0", "2.0", "64.0"):
        below = sum(number <= float(bound) for number in computed)
        assert scrape("seisserve_batch_windows_bucket", model="phasenet", le=bound) == below
    assert scrape("seisserve_batch_padding_windows_sum", model="phasenet") == 0
    assert scrape("seisserve_queue_windows", model="phasenet", version="1") == 0
    assert scrape("seisserve_models", state="AVAILABLE") == scrape.total("seisserve_models") == 1
    assert scrape("seisserve_models_failed") == 0


def test_stages_add_up_to_the_time_of_the_calls(busy: tuple[World, Scrape, Any]) -> None:
    world, scrape, _ = busy
    fine = sum(number for (_, model, code), number in world.asked.items() if model and code == "OK")
    for stage in ("decode", "encode", "post"):
        assert scrape("seisserve_stage_seconds_count", stage=stage, model="phasenet") == fine
    # All but GetModel had something to compute.
    for stage in ("queue", "compute"):
        assert scrape("seisserve_stage_seconds_count", stage=stage, model="phasenet") == fine - 1
    assert scrape.label("stage") == {"decode", "queue", "compute", "post", "encode"}
    spent = scrape.total("seisserve_stage_seconds_sum", model="phasenet")
    assert 0 < spent <= 2 * scrape.total("seisserve_request_seconds_sum")  # two lanes


def test_picks_hours_and_gaps_are_those_of_the_answers(busy: tuple[World, Scrape, Any]) -> None:
    _, scrape, picks = busy
    assert set(picks) == {"P", "S"}
    for phase, number in picks.items():
        assert scrape("seisserve_picks_total", phase=phase, model="phasenet") == number
    assert scrape("seisserve_gaps_total", model="phasenet") == 3
    assert scrape("seisserve_station_hours_total", model="phasenet") == pytest.approx(3 * 35 / 3600, rel=1e-12)


def own_of(alias: str, scrape: Scrape, labels: Mapping[str, str], suffix: str) -> float:
    """An alias's number, from the own ones."""
    if alias == "request_count":
        return scrape.total("seisserve_requests_total", model=labels["model_name"], code=labels["status"])
    own = next(it.of for it in ALIASES if it.name == TFS + alias) + suffix
    if alias == "request_latency":
        assert labels["entrypoint"] == "GRPC"
        found = scrape.series(own, model=labels["model_name"], transport="grpc")
        return sum(v for key, v in found.items() if dict(key)["method"].endswith("/" + labels["API"]))
    if alias == "runtime_latency":
        return scrape(own, model=labels["model_name"], stage="compute")
    return scrape(own, model=labels["thread_pool_name"])


def test_aliases_are_the_own_numbers_in_tensorflow_servings_units(busy: tuple[World, Scrape, Any]) -> None:
    world, scrape, _ = busy
    seen = Counter[str]()
    for (name, key), value in scrape.values.items():
        labels = dict(key)
        if not name.startswith(TFS) or "le" in labels:
            continue
        alias = max((it for it in ALIASES if name.startswith(it.name)), key=lambda it: len(it.name))
        suffix = name.removeprefix(alias.name)
        scale = 1e6 if alias.name.endswith("latency") and suffix == "_sum" else 1
        assert value == pytest.approx(scale * own_of(alias.name.removeprefix(TFS), scrape, labels, suffix), rel=1e-9)
        seen[alias.name] += 1
    assert set(seen) == {alias.name for alias in ALIASES}
    with_model = sum(number for (_, model, _), number in world.asked.items() if model)
    assert scrape.total(TFS + "request_count") == with_model
    assert scrape(TFS + "request_count", model_name="phasenet", status="INVALID_ARGUMENT") == 2
    own, other = "seisserve_wait_seconds_bucket", TFS + "batching_session:queuing_latency_bucket"
    for seconds, micros in (("0.0005", "500"), ("0.25", "250000"), ("60.0", "60000000"), ("+Inf", "+Inf")):
        key = {"thread_pool_name": "phasenet", "le": micros}
        assert (other, frozenset(key.items())) in scrape.values
        assert scrape(other, **key) == scrape(own, model="phasenet", le=seconds)


def test_histograms_are_whole(busy: tuple[World, Scrape, Any]) -> None:
    """Buckets rise, the last is all there is: for the own ones and for those made of them."""
    _, scrape, _ = busy
    series: dict[tuple[str, Labels], list[tuple[float, float]]] = defaultdict(list)
    for (name, key), value in scrape.values.items():
        if name.endswith("_bucket"):
            rest = frozenset(item for item in key if item[0] != "le")
            series[name.removesuffix("_bucket"), rest].append((float(dict(key)["le"]), value))
    assert any(name.startswith(TFS) for name, _ in series)
    for (name, rest), points in series.items():
        bounds, counts = zip(*sorted(points), strict=True)
        assert math.isinf(bounds[-1])
        assert list(counts) == sorted(counts)
        assert counts[-1] == scrape.values[name + "_count", rest]


def test_calls_over_http_are_counted_under_the_method_of_grpc_and_the_page_is_the_text(
    phasenet: tuple[Manifest, Transport], windows: Array
) -> None:
    world = World(*phasenet)
    web = Web(world.models, world.front, world.lanes, port=0, metrics=world.metrics.text)
    web.start()
    sent = {"instances": windows[:2].tolist()}
    codes = []
    for path, body in (
        ("/v1/models/phasenet:predict", sent), ("/v1/models/phasenet:predict", {"instances": []}),
        ("/v1/models/nosuchmodel:predict", sent), ("/v1/models/phasenet:predict", sent),
    ):  # fmt: skip
        codes.append(httpx.post(f"http://{web.address}{path}", json=body, timeout=60).status_code)
    assert codes[0] == codes[3] == 200 and codes[2] == 404
    world.predict(windows[:1])
    pages = [httpx.get(f"http://{web.address}{path}", timeout=60) for path in PATHS]
    web.stop(5)
    scrape = world.close()
    for page in pages:
        assert page.headers["content-type"] == CONTENT_TYPE
        families = {family.name for family in text_string_to_metric_families(page.text)}
        assert families == {family.name for family in scrape.families}
    http = {"method": PREDICT, "transport": "http"}
    assert scrape.total("seisserve_requests_total", **http) == 4
    assert scrape.total("seisserve_requests_total", code="OK", model="phasenet", **http) == codes.count(200)
    assert scrape.total("seisserve_requests_total", code="NOT_FOUND", model="", **http) == 1
    assert scrape.total("seisserve_requests_total", method=PREDICT, transport="grpc") == 1
    alias = {"model_name": "phasenet", "API": "Predict"}
    assert scrape(TFS + "request_latency_count", entrypoint="GRPC", **alias) == 1
    assert scrape(TFS + "request_latency_count", entrypoint="REST", **alias) == 3
    assert scrape("seisserve_batch_windows_sum", model="phasenet") == sum(world.computed.windows) >= 5


def test_padding_is_told_from_windows_at_any_concurrency(local: tuple[Manifest, Transport]) -> None:
    sizes, each = (1, 2, 3, 5, 7), 12
    world = World(*local, Batching(allowed_batch_sizes=(2, 8)))
    window = np.zeros((8, local[0].window_samples, 3), np.float32)
    name = local[0].name

    def caller(size: int) -> None:
        for _ in range(each):
            assert world.predict(window[:size], name) is not None

    callers = [threading.Thread(target=caller, args=(size,)) for size in sizes]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    scrape = world.close()
    sent = each * sum(sizes)
    assert scrape("seisserve_batch_windows_sum", model=name) == sent
    assert scrape("seisserve_batch_computed_windows_sum", model=name) == sum(world.computed.windows)
    assert scrape("seisserve_batch_padding_windows_sum", model=name) == sum(world.computed.windows) - sent > 0
    assert scrape("seisserve_wait_seconds_count", model=name) >= each * len(sizes)
    assert scrape.total("seisserve_requests_total", code="OK", model=name) == each * len(sizes)
    assert (
        scrape(TFS + "batching_session:padding_size_sum", thread_pool_name=name) == sum(world.computed.windows) - sent
    )


@pytest.fixture(scope="module")
def quiet(local: tuple[Manifest, Transport]) -> Iterator[World]:
    world = World(*local)
    yield world
    world.close()


# What protobuf takes as a string: any text without lone surrogates.
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100).filter(
    lambda it: it != manifest().name
)


@settings(max_examples=40, deadline=None)
@given(name=names, version=st.integers(0, 2**63 - 1))
def test_a_name_that_is_not_served_makes_no_label(quiet: World, name: str, version: int) -> None:
    before = quiet.asked.copy()
    spec = wire.ModelSpec(name=name)
    spec.version.value = version
    record = seismic.PickRequest(model=seismic.ModelSpec(name=name, version=version))
    assert quiet.call(PREDICT, wire.PredictRequest(model_spec=spec), wire.PredictResponse) is None
    assert quiet.call(STATUS, wire.GetModelStatusRequest(model_spec=spec), wire.GetModelStatusResponse) is None
    assert quiet.call(INFER, v2.ModelInferRequest(model_name=name), v2.ModelInferResponse) is None
    assert quiet.call(PICK, record, seismic.PickResponse) is None
    assert (quiet.asked - before).total() == 4
    scrape = Scrape(quiet.metrics)
    assert scrape.label("model") <= {"", manifest().name}
    assert scrape.label("version") <= {"", "1", __version__}  # the last is of the build
    assert scrape.label("model_name") <= {manifest().name}
    assert scrape.label("method") <= {PREDICT, STATUS, INFER, PICK}
    assert scrape.total("seisserve_requests_total") == quiet.asked.total()


def answered(
    metrics: Metrics,
    method: str,
    error: Exception | None = None,
    transport: Literal["grpc", "http"] = "grpc",
    **about: Any,
) -> None:
    """A call through a door of its own."""
    front = Front(told=[metrics.done], counted=metrics.counted)
    try:
        with front.call(Arrival(method, {}, "peer", transport=transport), None) as call:
            for name, value in about.items():
                setattr(call, name, value)
            if error is not None:
                raise error
    except type(error or Exception()):
        pass


@settings(max_examples=50, deadline=None)
@given(stations=st.lists(st.text(max_size=100), max_size=30), phase=st.text(max_size=80), method=st.text(max_size=80))
def test_any_text_makes_a_label_that_can_be_read_again(stations: list[str], phase: str, method: str) -> None:
    metrics, call = Metrics(), Call()
    call.model = phase
    for station in stations:
        metrics.counted(call, "data_latency", 1.5, station)
        metrics.counted(call, "pick_latency", 0.5, station)
        metrics.counted(call, "packets", 2, station)
    metrics.counted(call, "picks", 3, phase)
    answered(metrics, method)
    scrape = Scrape(metrics)
    assert scrape.label("station") == {readable(station) for station in stations}
    assert scrape.total("seisserve_station_pick_latency_seconds_count") == len(stations)
    assert scrape.total("seisserve_packets_total") == 2 * len(stations)
    assert scrape.label("outcome") <= {"new", "duplicate", "late", "refused", OTHER}
    assert scrape("seisserve_picks_total", phase=readable(phase), model=readable(phase)) == 3
    assert scrape.label("method") == {readable(method)}


def readable(text: str) -> str:
    return text.encode(errors="replace").decode()[:64]


def test_what_is_beyond_the_limits_is_other_and_still_counted() -> None:
    metrics, call = Metrics(), Call()
    for number in range(MOST_STATIONS + 20):
        metrics.counted(call, "data_latency", number, f"XX.S{number}")
        metrics.counted(call, "pick_latency", 0.25, f"XX.S{number}")
    for number in range(MOST_METHODS + 20):
        answered(metrics, f"GET /{number}", transport="http")
    for number in range(MOST_MODELS + 20):
        answered(metrics, "/a/B", model="m", version=number + 1)
        metrics.loaded("m", number + 1, 0.5)
    scrape = Scrape(metrics)
    assert len(scrape.label("station")) == MOST_STATIONS + 1
    assert scrape("seisserve_station_pick_latency_seconds_count", station=OTHER) == 20
    assert scrape("seisserve_station_pick_latency_seconds_sum", station=OTHER) == 5
    assert scrape("seisserve_data_latency_seconds", station="XX.S7") >= 7
    assert len(scrape.label("method")) == MOST_METHODS + 1
    assert scrape.total("seisserve_requests_total", transport="http") == MOST_METHODS + 20
    assert len(scrape.series("seisserve_model_load_seconds")) <= MOST_MODELS + 1
    assert scrape.total("seisserve_requests_total", transport="grpc") == MOST_MODELS + 20


@pytest.mark.parametrize(
    ("error", "metric", "reason"),
    [
        (Overloaded("full", 100), "rejected", "overloaded"),
        (Overloaded("never fits", None), "rejected", "too_large"),
        (Unavailable("draining"), "rejected", "unavailable"),
        (Unauthenticated("who?"), "rejected", "unauthenticated"),
        (PermissionDenied("no"), "rejected", "permission_denied"),
        (Expired("late"), "dropped", "expired"),
        (Cancelled("gone"), "dropped", "cancelled"),
    ],
)
def test_refusals_are_counted_by_reason(error: Exception, metric: str, reason: str) -> None:
    metrics = Metrics()
    answered(metrics, "/a/B", error)
    answered(metrics, "/a/B")
    scrape = Scrape(metrics)
    for name in ("rejected", "dropped"):
        expected = {frozenset({("reason", reason)}): 1.0} if name == metric else {}
        assert scrape.series(f"seisserve_{name}_total") == expected
    assert scrape.total("seisserve_stage_seconds_count") == 1  # only of the one that was answered


def test_calls_that_were_turned_away_together_are_counted_one_by_one() -> None:
    metrics, error = Metrics(), Overloaded("full", 100)
    metrics.done(Done(Arrival("/a/B", {}, ""), Call(), grpc.StatusCode.RESOURCE_EXHAUSTED, 0.0, error, 7))
    scrape = Scrape(metrics)
    assert scrape.total("seisserve_requests_total", code="RESOURCE_EXHAUSTED", method="/a/B") == 7
    assert scrape.total("seisserve_request_seconds_count", method="/a/B") == 7
    assert scrape.total("seisserve_rejected_total", reason="overloaded") == 7


def test_http_and_grpc_are_told_apart_where_the_method_is_one() -> None:
    metrics = Metrics()
    for transport in ("grpc", "http", "http"):
        answered(metrics, PREDICT, transport=transport, model="m", version=1)
    scrape = Scrape(metrics)
    for transport, entrypoint, number in (("grpc", "GRPC", 1), ("http", "REST", 2)):
        key = {"method": PREDICT, "model": "m", "transport": transport}
        assert scrape("seisserve_requests_total", version="1", code="OK", **key) == number
        assert scrape("seisserve_request_seconds_count", **key) == number
        alias = {"model_name": "m", "API": "Predict", "entrypoint": entrypoint}
        assert scrape(TFS + "request_latency_count", **alias) == number
    assert scrape(TFS + "request_count", model_name="m", status="OK") == 3


def test_a_call_that_is_cancelled_while_it_computes_was_not_dropped() -> None:
    metrics = Metrics()
    answered(metrics, "/a/B", Cancelled("gone"), spent={"compute": 0.1})
    assert Scrape(metrics).total("seisserve_dropped_total") == 0


@pytest.mark.parametrize("busy_with", ["requests", "answers"])
def test_a_stream_that_its_caller_leaves_is_no_fault_of_the_server(busy_with: str) -> None:
    """Whether it waits for requests (which gRPC then ends, with an error or without) or gives answers."""
    metrics, told, left = Metrics(), threading.Event(), threading.Event()
    front = Front(told=[metrics.done, lambda done: told.set()])

    def echo(requests: Iterator[Any], call: Call) -> Iterator[Any]:
        yield from (v2.ServerLiveResponse(live=True) for _ in requests)

    def pour(requests: Iterator[Any], call: Call) -> Iterator[Any]:
        while True:
            yield v2.ServerLiveResponse(live=True)
            time.sleep(0.01)

    def requests() -> Iterator[bytes]:
        yield b""
        left.wait(60)

    method = {"requests": echo, "answers": pour}[busy_with]
    pool = futures.ThreadPoolExecutor(2)
    methods = front.service("a.B", pool, {}, {"C": (method, v2.ServerLiveRequest, v2.ServerLiveResponse)})
    with Loopback(GrpcServer([]), methods) as loopback:
        answers = loopback.channel.stream_stream("/a.B/C")(requests())
        assert next(answers)
        answers.cancel()
        left.set()
        assert told.wait(30)
    (key,) = Scrape(metrics).series("seisserve_requests_total")
    assert dict(key)["code"] == "CANCELLED"


def test_a_full_door_shows_in_the_metrics(local: tuple[Manifest, Transport]) -> None:
    metrics, lanes = Metrics(), Lanes(1)
    models = Models(lanes)
    models.add(3, *local)
    front = Front(most_calls=1, told=[metrics.done])
    metrics.watch(front, models)
    metrics.loaded(local[0].name, 3, 1.25)
    with front.call(Arrival("/a/B", {}, "peer"), time.monotonic() + 60):
        assert Scrape(metrics)("seisserve_calls_under_way") == 1
        with pytest.raises(Overloaded), front.call(Arrival("/a/B", {}, "peer"), None):
            pass
    scrape = Scrape(metrics)
    assert scrape("seisserve_rejected_total", reason="overloaded") == 1
    assert scrape("seisserve_lanes") == scrape("seisserve_lanes_alive") == 1
    assert scrape("seisserve_model_load_seconds", model=local[0].name, version="3") == 1.25
    lanes.close()
    assert Scrape(metrics)("seisserve_lanes_alive") == 0


def test_a_station_that_is_silent_gets_older_until_it_has_left() -> None:
    metrics, call = Metrics(), Call()
    for station, age_s in (("XX.A", 5.0), ("XX.B", 1000.0)):
        metrics.counted(call, "data_latency", age_s, station)
    first, second = Scrape(metrics), Scrape(metrics)
    for station, age_s in (("XX.A", 5.0), ("XX.B", 1000.0)):
        then, later = (scrape("seisserve_data_latency_seconds", station=station) for scrape in (first, second))
        assert age_s <= then < later
    metrics.counted(call, "data_latency", 300.0, "XX.A")  # a late packet
    assert Scrape(metrics)("seisserve_data_latency_seconds", station="XX.A") < 300
    metrics.counted(call, "data_latency", FORGOTTEN_S + 1, "XX.C")
    assert Scrape(metrics).label("station") == {"XX.A", "XX.B"}
    for _ in range(2):
        metrics.counted(call, "station_left", 1, "XX.A")
        assert Scrape(metrics).label("station") == {"XX.B"}


def test_only_a_gauge_of_the_table_can_be_read() -> None:
    metrics = Metrics()
    metrics.read("seisserve_sessions", lambda: {(): 4})
    metrics.read("seisserve_stations", lambda: {(): 200})
    scrape = Scrape(metrics)
    assert (scrape("seisserve_sessions"), scrape("seisserve_stations")) == (4, 200)
    with pytest.raises(ValueError, match="counter"):
        metrics.read("seisserve_picks_total", dict)
    with pytest.raises(KeyError):
        metrics.read("seisserve_no_such_gauge", dict)


def test_servers_share_nothing_and_the_process_wide_registry_gets_nothing() -> None:
    one, other = Metrics(), Metrics()
    answered(one, "/a/B")
    assert Scrape(one).total("seisserve_requests_total") == 1
    assert Scrape(other).total("seisserve_requests_total") == 0
    assert not [family.name for family in prometheus_client.REGISTRY.collect() if "seisserve" in family.name]


def test_every_metric_is_in_the_table_and_the_table_in_the_documentation(busy: tuple[World, Scrape, Any]) -> None:
    world, scrape, _ = busy
    world.metrics.read("seisserve_sessions", lambda: {(): 0})
    world.metrics.read("seisserve_stations", lambda: {(): 0})
    found = {family.name + ("_total" if family.type == "counter" else "") for family in Scrape(world.metrics).families}
    assert found == {metric.name for metric in METRICS} | {alias.name for alias in ALIASES}
    kinds = {family.name: family.type for family in scrape.families}
    for metric in METRICS:
        assert kinds.get(metric.name.removesuffix("_total"), metric.kind) == metric.kind
    for (name, key), _value in scrape.values.items():
        base = next((it for it in (*METRICS, *ALIASES) if name.removeprefix(it.name) in SUFFIXES), None)
        assert base is not None, name
        assert {label for label, _ in key} - {"le"} == set(base.labels)
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert text == documentation(), "stale: python -m seisserve_serving.metric_table > docs/metrics.md"
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_the_age_of_packets_is_that_of_the_newest_sample() -> None:
    call, told = Call(), []
    call.counted = lambda call, what, value, label: told.append((what, value, label))
    traces = [Trace("XX.A..HHZ", 10**18, 100.0, np.zeros(count, np.int32)) for count in (301, 101)]
    count_arrival(call, "XX.A..HH", traces, 10**18 + 63 * 10**9)
    count_arrival(call, "XX.B..HH", [], 10**18)
    assert told == [("data_latency", 60.0, "XX.A..HH")]


SUFFIXES = {"", "_bucket", "_sum", "_count"}


@given(
    parts=st.lists(st.tuples(st.integers(1, 500), st.integers(0, 300)), min_size=1, max_size=6),
    seed=st.randoms(use_true_random=False),
    rate=st.sampled_from([1.0, 20.0, 100.0, 99.999]),
)
def test_hours_and_gaps_of_a_record_in_pieces(parts: list[tuple[int, int]], seed: Any, rate: float) -> None:
    """Pieces of so many samples, so many missing after each; three components, one of which has the first piece only;
    in any order, some twice."""
    traces, index = [], 0
    for number, (count, missing) in enumerate(parts):
        for component in "ZNE" if number == 0 else "ZN":
            start = 10**18 + round(index * 1e9 / rate)
            traces += [Trace(f"XX.A..HH{component}", start, rate, np.zeros(count, np.int32))] * seed.choice([1, 2])
        index += count + missing
    seed.shuffle(traces)
    hours, gaps = hours_and_gaps(traces)
    assert gaps == sum(missing > 0 for _, missing in parts[:-1])
    assert hours == pytest.approx(sum(count for count, _ in parts) / rate / 3600, rel=1e-9, abs=1e-11)
    assert hours_and_gaps([]) == (0.0, 0)
