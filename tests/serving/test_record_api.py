"""Records in many requests: the same answer as in one, in responses that are never too large."""

from __future__ import annotations

import io
import itertools
import queue
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from client.small_bundles import repository
from client.waveforms import START_NS, part, pieces, record, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from seisserve.messages import from_message, to_message, to_waveforms
from seisserve.proto import seismic_pb2 as wire
from seisserve.traces import Trace, to_obspy
from seisserve_serving import record_api, seismic_api
from seisserve_serving.calls import Call
from seisserve_serving.errors import Cancelled, Overloaded
from seisserve_serving.front import Done, Front
from seisserve_serving.models import Models
from seisserve_serving.record_api import Answer, parts
from seisserve_serving.repository import load
from seisserve_serving.server import Server

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
TYPES = {
    "Pick": (wire.PickRequest, wire.PickResponse),
    "Detect": (wire.DetectRequest, wire.DetectResponse),
    "Denoise": (wire.DenoiseRequest, wire.DenoiseResponse),
    "Recover": (wire.RecoverRequest, wire.RecoverResponse),
    "Annotate": (wire.AnnotateRequest, wire.AnnotateResponse),
}
MODEL = {"Pick": "eqtransformer", "Annotate": "cred"}
names = pytest.mark.parametrize("name", list(TYPES))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return load(repository(tmp_path_factory.mktemp("models")), "onnxruntime", 2)


@pytest.fixture(scope="module")
def told() -> queue.Queue[Done]:
    """Every call that the server has answered."""
    return queue.Queue()


@pytest.fixture(scope="module")
def channel(models: Models, told: queue.Queue[Done]) -> Iterator[grpc.Channel]:
    server = Server(models, Front(told=[told.put]), port=0)
    server.start()
    with grpc.insecure_channel(server.address) as opened:  # as it comes: no message above 4 MiB is taken
        yield opened
    server.stop(grace_s=1)


def one(channel: grpc.Channel, name: str) -> Callable[..., Any]:
    method = f"/seisserve.v1.SeismicService/{name}"
    request, response = TYPES[name]
    return channel.unary_unary(
        method, request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )


def many(channel: grpc.Channel, name: str) -> Callable[..., Any]:
    method = f"/seisserve.v1.SeismicService/{name}Stream"
    request, response = TYPES[name]
    return channel.stream_stream(
        method, request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )


def merged(responses: Iterable[Any]) -> Any:
    first, *rest = responses
    for response in rest:
        first.MergeFrom(response)
    return first


def miniseed(trace: Trace) -> bytes:
    content = io.BytesIO()
    to_obspy([trace]).write(content, format="MSEED")
    return content.getvalue()


def events(seed: int, rate_hz: float = 100.0) -> list[Trace]:
    """Half a minute of two stations, one of them with a gap."""
    z, n, e = record(seed, 30, rate_hz)
    length = len(z.samples)
    other = [trace._replace(id=trace.id.replace("STA", "B")) for trace in record(seed + 1, 20, rate_hz)]
    return [part(z, 0, length // 3), part(z, length // 2, length), n, e, *other]


@names
@given(data=st.data(), seed=seeds, rate=st.sampled_from([100.0, 40.0, 200.0]))
@settings(max_examples=12, deadline=None)
def test_a_record_in_many_requests_gives_what_it_gives_in_one(
    channel: grpc.Channel, name: str, data: st.DataObject, seed: int, rate: float
) -> None:
    whole = events(seed, rate)
    request_type = TYPES[name][0]
    head = {"model": wire.ModelSpec(name=MODEL.get(name, "")), "options": wire.Options(resampling="causal")}
    expected = one(channel, name)(request_type(**head, waveforms=to_waveforms(whole)), timeout=30)
    cuts = st.lists(st.integers(1, 5999), max_size=4)
    cut = [piece for trace in whole for piece in pieces(trace, [c for c in data.draw(cuts) if c < len(trace.samples)])]
    shuffled = data.draw(st.permutations(cut))
    edges = sorted({0, len(cut), *data.draw(st.lists(st.integers(0, len(cut)), max_size=5))})
    requests = [request_type(**head)]  # waveforms may come with the first, and need not
    for begin, end in itertools.pairwise(edges):
        waveforms = wire.Waveforms()
        for trace in shuffled[begin:end]:
            if data.draw(st.booleans()):
                waveforms.miniseed.append(miniseed(trace))
            else:
                waveforms.traces.append(to_message(trace))
        requests.append(request_type(waveforms=waveforms))
    if data.draw(st.booleans()):
        requests[1].MergeFrom(requests.pop(0))
    found = merged(many(channel, name)(iter(requests), timeout=30))
    assert found.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    assert len(expected.ListFields()) >= 2


def test_a_request_may_repeat_the_model_and_the_options(channel: grpc.Channel) -> None:
    requests = [
        wire.DetectRequest(
            model=wire.ModelSpec(name="cred"), options=wire.Options(hop_samples=200), waveforms=to_waveforms([trace])
        )
        for trace in record(1, 30)
    ]
    found = merged(many(channel, "Detect")(iter(requests), timeout=30))
    for other in requests[1:]:
        requests[0].waveforms.MergeFrom(other.waveforms)
    assert found == one(channel, "Detect")(requests[0], timeout=30)
    assert found.detections


@pytest.mark.parametrize("name", ["Recover", "Denoise", "Annotate"])
def test_no_response_is_larger_than_a_client_takes_that_was_told_nothing(channel: grpc.Channel, name: str) -> None:
    request, _ = TYPES[name]
    model = wire.ModelSpec(name={"Annotate": "eqtransformer"}.get(name, ""))
    minute = record(2, 60.0)
    traces = [trace._replace(samples=np.tile(trace.samples, 134)[:800_000]) for trace in minute]  # 19 MB as float64
    requests = [request(model=model)] + [
        request(waveforms=to_waveforms([piece])) for t in traces for piece in pieces(t, range(0, 800_000, 350_000))
    ]
    responses = list(many(channel, name)(iter(requests), timeout=120))
    assert len(responses) > 2
    assert max(response.ByteSize() for response in responses) <= 4 << 20
    assert [response.HasField("model") for response in responses] == [True] + [False] * (len(responses) - 1)
    if name == "Annotate":
        found = [item for response in responses for item in response.annotations]
        assert sum(len(item.values) for item in found) == 800_000 * 3 * 4
        starts = [START_NS + 10_000_000 * (sum(len(i.values) for i in found[:k]) // 12) for k in range(len(found))]
        assert [item.start_ns for item in found] == starts
        return
    made = [from_message(trace) for response in responses for trace in response.traces]
    for trace in traces:
        own = [piece for piece in made if piece.id == trace.id]
        assert len(own) > 1
        assert len({len(piece.samples) for piece in own[:-1]}) == 1
        samples = np.concatenate([piece.samples for piece in own])
        expected = trace.samples if name == "Recover" else None
        assert len(samples) == 800_000
        for k, piece in enumerate(own):
            assert piece.start_ns == START_NS + 10_000_000 * k * len(own[0].samples)
        if expected is not None:
            quiet = np.abs(expected) < 500
            np.testing.assert_array_equal(samples[quiet], expected[quiet])


@given(
    picks=st.integers(0, 60),
    warnings=st.lists(st.text(max_size=100), max_size=10),
    most=st.integers(300, 3000),
)
@settings(max_examples=50, deadline=None)
def test_an_answer_in_parts_is_the_whole_answer(picks: int, warnings: list[str], most: int) -> None:
    def answer() -> Answer:
        head = wire.PickResponse(model=wire.ModelSpec(name="fake", version=3), provenance="e" * 64)
        found = (
            wire.Pick(trace_id=f"XX.STA{k}..HH", phase="P", time_ns=k, probability=0.5, snr_db=float("nan"))
            for k in range(picks)
        )
        return Answer(head, "picks", found, warnings)

    made = list(parts(answer(), most))
    assert max(part.ByteSize() for part in made) <= most
    assert made[0].model.version == 3
    assert merged(made).SerializeToString() == record_api.whole(answer()).SerializeToString()


@given(length=st.integers(0, 3000), dtype=st.sampled_from(["int32", "float32", "float64"]), most=st.integers(300, 5000))
@settings(max_examples=50, deadline=None)
def test_a_long_trace_is_cut_into_consecutive_traces(length: int, dtype: str, most: int) -> None:
    samples = np.random.default_rng(length).integers(-(2**31), 2**31, length).astype(dtype)
    trace = Trace("XX.STA..HHZ", START_NS + 123_000, 30.0, samples)
    made = list(parts(Answer(wire.DenoiseResponse(provenance="e"), "traces", [to_message(trace)], []), most))
    assert max(part.ByteSize() for part in made) <= most
    found = [from_message(message) for response in made for message in response.traces]
    np.testing.assert_array_equal(np.concatenate([piece.samples for piece in found]), samples)
    at = 0
    for piece in found:
        assert piece.start_ns == trace.start_ns + round(at * 1_000_000_000 / 30)
        assert piece.samples.dtype == samples.dtype
        at += len(piece.samples)


def nan() -> Trace:
    return Trace("XX.STA..HHZ", START_NS, 100.0, np.array([1.0, np.nan]))


GOOD = to_waveforms(record(0, 10))
REFUSALS: list[tuple[str, list[dict[str, Any]], grpc.StatusCode, str]] = [
    ("no request", [], INVALID, "no request came"),
    ("no waveforms", [{}, {}], INVALID, "waveforms is empty"),
    ("NaN", [{"waveforms": GOOD}, {"waveforms": to_waveforms([nan()])}], INVALID, "XX.STA..HHZ: 1 of 2 samples"),
    (
        "no type", [{}, {"waveforms": wire.Waveforms(traces=[wire.Trace(id="A.B.C.D", samples=b"1234")])}], INVALID,
        "trace A.B.C.D: sample_type",
    ),
    ("garbage", [{"waveforms": GOOD}, {"waveforms": wire.Waveforms(miniseed=[b"no" * 99])}], INVALID, "miniseed"),
    (
        "half a file", [{"waveforms": wire.Waveforms(miniseed=[miniseed(record(0, 60)[0])[:-100]])}], INVALID,
        "truncated",
    ),
    ("model", [{"model": wire.ModelSpec(name="nope"), "waveforms": GOOD}], NOT_FOUND, "'nope'"),
    (
        "another model", [{"waveforms": GOOD}, {"model": wire.ModelSpec(name="phasenet")}], INVALID,
        "request 2: model is not that of the first",
    ),
    (
        "other options", [{"options": wire.Options(hop_samples=200)}, {}, {"options": wire.Options()}], INVALID,
        "request 3: options is not that of the first",
    ),
    ("option", [{"options": wire.Options(hop_samples=-1), "waveforms": GOOD}], INVALID, "hop_samples is -1"),
    ("resampling", [{"options": wire.Options(resampling="fft")}], INVALID, "options.resampling is 'fft'"),
]  # fmt: skip


@names
@pytest.mark.parametrize(("requests", "code", "text"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_a_bad_request_is_refused_with_what_is_at_fault(
    channel: grpc.Channel, name: str, requests: list[dict[str, Any]], code: grpc.StatusCode, text: str
) -> None:
    model = {"model": wire.ModelSpec(name=MODEL[name])} if name in MODEL else {}
    sent = [TYPES[name][0](**(model if number == 0 else {}) | each) for number, each in enumerate(requests)]
    with pytest.raises(grpc.RpcError) as caught:
        list(many(channel, name)(iter(sent), timeout=30))
    assert caught.value.code() is code
    assert text in caught.value.details()


def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel) -> None:
    call = channel.stream_stream("/seisserve.v1.SeismicService/PickStream")
    good = wire.PickRequest(model=wire.ModelSpec(name="eqtransformer"), waveforms=GOOD).SerializeToString()
    for bodies in ([b"\xff\xff"], [good, good[:-7]]):
        with pytest.raises(grpc.RpcError) as caught:
            list(call(iter(bodies), timeout=30))
        assert caught.value.code() is INVALID
        assert "no PickRequest message" in caught.value.details()


def test_a_wrong_model_is_refused_before_waveforms_are_read(models: Models) -> None:
    taken: list[int] = []

    def requests() -> Iterator[wire.PickRequest]:
        for number in range(3):
            taken.append(number)
            yield wire.PickRequest(model=wire.ModelSpec(name="cred"), waveforms=GOOD)

    method, _, _ = seismic_api.streams(models)[seismic_api.SEISMIC_SERVICE]["PickStream"]
    with pytest.raises(ValueError, match="'cred' is for detection; for picking there is eqtransformer"):
        list(method(requests(), Call()))
    assert taken == [0]


def test_a_record_that_is_too_long_is_refused_as_soon_as_that_is_known(models: Models) -> None:
    method, _, _ = seismic_api.streams(models, most=5000)[seismic_api.SEISMIC_SERVICE]["DetectStream"]
    single, _, _ = seismic_api.services(models, most=5000)[seismic_api.SEISMIC_SERVICE]["Detect"]
    taken: list[int] = []

    def requests(waveforms: list[wire.Waveforms]) -> Iterator[wire.DetectRequest]:
        for number, each in enumerate(waveforms):
            taken.append(number)
            yield wire.DetectRequest(waveforms=each)

    fits = [to_waveforms([trace]) for trace in record(0, 16)]
    assert merged(method(requests(fits), Call())).detections
    long = [wire.Waveforms(miniseed=[miniseed(trace)]) for trace in record(0, 20)]
    taken.clear()
    with pytest.raises(Overloaded, match="more than 5000 samples; send it in parts") as caught:
        list(method(requests([*long, *long]), Call()))
    assert caught.value.retry_ms is None
    assert taken == [0, 1, 2]
    slow = to_waveforms(record(0, 100, 10.0))
    for call in (lambda: list(method(requests([slow]), Call())), lambda: single(next(requests([slow])), Call())):
        with pytest.raises(Overloaded, match="3e\\+04 samples at the model's 100 Hz"):
            call()


def test_a_call_that_is_over_reads_no_further(models: Models) -> None:
    method, _, _ = seismic_api.streams(models)[seismic_api.SEISMIC_SERVICE]["DetectStream"]
    call, taken = Call(), []

    def requests() -> Iterator[wire.DetectRequest]:
        for number in range(5):
            taken.append(number)
            if number == 2:
                call.cancel()
            yield wire.DetectRequest(waveforms=GOOD)

    with pytest.raises(Cancelled):
        list(method(requests(), call))
    assert taken == [0, 1, 2]


def test_a_caller_that_goes_away_is_no_fault_of_the_server(channel: grpc.Channel, told: queue.Queue[Done]) -> None:
    started: queue.Queue[wire.DetectRequest | None] = queue.Queue()
    started.put(wire.DetectRequest(waveforms=GOOD))
    while not told.empty():
        told.get()
    answers = many(channel, "Detect")(iter(started.get, None), timeout=30)
    answers.cancel()
    started.put(None)
    done = told.get(timeout=20)
    assert (done.arrival.method, done.code) == ("/seisserve.v1.SeismicService/DetectStream", grpc.StatusCode.CANCELLED)
