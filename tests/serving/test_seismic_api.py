"""SeismicService against the pipeline in this process, and every way of asking it wrongly."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import obspy
import pytest
from obspy import Stream

from seisserve import Client, Picks, Trace
from seisserve.manifest import decode
from seisserve.messages import to_message, to_waveforms
from seisserve.proto import seismic_pb2 as wire
from seisserve.traces import from_stream

Refused = Callable[..., tuple[grpc.StatusCode, str]]
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


class Stub:
    """The service's methods."""

    def __init__(self, channel: grpc.Channel) -> None:
        def method(name: str, response: Any) -> Any:
            return channel.unary_unary(
                f"/seisserve.v1.SeismicService/{name}",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=response.FromString,
            )

        self.pick = method("Pick", wire.PickResponse)
        self.annotate = method("Annotate", wire.AnnotateResponse)
        self.model = method("GetModel", wire.GetModelResponse)


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Stub:
    return Stub(channel)


@pytest.fixture(scope="module")
def here() -> Client:
    """The models in this process."""
    return Client()


def example(dtype: str = "int32") -> Stream:
    """ObsPy's local earthquake, 30 s of three components, as counts of this type."""
    stream = obspy.read()
    for trace in stream:
        trace.data = np.round(trace.data * 100).astype(dtype)
    return stream


def miniseed(stream: Stream) -> bytes:
    content = io.BytesIO()
    stream.write(content, format="MSEED")
    return content.getvalue()


def waveforms(stream: Stream) -> wire.Waveforms:
    return to_waveforms(from_stream(stream))


def rows(picks: Picks) -> list[Any]:
    """Picks as the message has them: uncertainty and SNR are floats of 32 bits."""
    return [(*p[:5], str(p.snr_db), p.flags) for p in picks]


def answered(response: wire.PickResponse) -> list[Any]:
    return [
        (p.trace_id, p.phase, p.time_ns, p.probability, p.uncertainty_s, str(p.snr_db), tuple(p.flags))
        for p in response.picks
    ]


@pytest.mark.parametrize("dtype", ["int32", "float32", "float64"])
def test_samples_and_miniseed_give_the_picks_of_this_process_bit_for_bit(stub: Stub, here: Client, dtype: str) -> None:
    stream = example(dtype)
    expected = here.pick(stream)
    assert {pick.phase for pick in expected} == {"P", "S"}
    for sent in (waveforms(stream), wire.Waveforms(miniseed=[miniseed(stream)])):
        response = stub.pick(wire.PickRequest(waveforms=sent), timeout=60)
        assert answered(response) == rows(expected)
        assert (response.model.name, response.model.version) == ("onset", 1)
        assert response.provenance == expected.provenance


def test_components_may_come_as_samples_and_miniseed_in_one_request(stub: Stub, here: Client) -> None:
    stream = example()
    sent = waveforms(stream[:1])
    sent.miniseed.extend(miniseed(Stream([trace])) for trace in stream[1:])
    assert answered(stub.pick(wire.PickRequest(waveforms=sent), timeout=60)) == rows(here.pick(stream))


def test_several_stations_go_in_one_request(stub: Stub, here: Client) -> None:
    streams = []
    for station in ("BBB", "AAA"):
        streams.append(example())
        for trace in streams[-1]:
            trace.stats.station = station
    both = here.pick(streams[0] + streams[1])
    response = stub.pick(wire.PickRequest(waveforms=waveforms(streams[0] + streams[1])), timeout=60)
    assert answered(response) == rows(both)
    assert answered(response) == rows(here.pick(streams[1])) + rows(here.pick(streams[0]))


OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"thresholds": {"P": 0.9, "S": 0.05}},
        {"thresholds": {"P": float(np.float32(0.9)), "S": float(np.float32(0.05))}},
    ),
    ({"hop_samples": 700}, {"hop_samples": 700}),
    ({"stacking": "max"}, {"stacking": "max"}),
    ({"stacking": "mean", "resampling": "zero"}, {}),
    ({"resampling": "causal"}, {"resampling": "causal"}),
]


@pytest.mark.parametrize(("sent", "meant"), OPTIONS)
def test_options_do_what_they_do_in_this_process(
    stub: Stub, here: Client, sent: dict[str, Any], meant: dict[str, Any]
) -> None:
    stream = obspy.read().resample(80.0)
    for trace in stream:
        trace.data = np.concatenate([trace.data, trace.data[::-1], trace.data])  # three windows
    response = stub.pick(wire.PickRequest(waveforms=waveforms(stream), options=wire.Options(**sent)), timeout=60)
    expected = here.pick(stream, **meant)
    assert answered(response) == rows(expected)
    assert response.provenance == expected.provenance


def test_curves_are_those_of_this_process_bit_for_bit(stub: Stub, here: Client) -> None:
    stream = example()
    late = stream.copy()
    for trace in late:
        trace.stats.starttime += 100
    response = stub.annotate(wire.AnnotateRequest(waveforms=waveforms(stream + late)), timeout=60)
    expected = here.annotate(stream + late)
    assert len(response.annotations) == len(expected) == 2
    for found, item in zip(response.annotations, expected, strict=True):
        assert (found.trace_id, found.start_ns, found.sampling_rate_hz) == item[:3]
        assert tuple(found.labels) == item.labels
        assert found.values == item.values.tobytes()


def test_conflicting_records_come_with_a_warning(stub: Stub) -> None:
    stream = example() + example()
    stream[3].data = stream[3].data + 1
    response = stub.pick(wire.PickRequest(waveforms=waveforms(stream)), timeout=60)
    assert ["BW.RJOB..EHZ: overlapping records disagree" in text for text in response.warnings] == [True]


@pytest.mark.parametrize("name", ["", "onset"])
def test_a_model_tells_its_manifest(stub: Stub, here: Client, name: str) -> None:
    response = stub.model(wire.GetModelRequest(model=wire.ModelSpec(name=name)), timeout=30)
    assert (response.model.name, response.model.version) == ("onset", 1)
    assert decode(response.manifest_json, "answer") == here.model().manifest


def sample(samples: Any, **changes: Any) -> wire.Waveforms:
    trace = Trace("XX.STA..HHZ", 0, 100.0, np.asarray(samples))._replace(**changes)
    return wire.Waveforms(traces=[to_message(trace)])


def raw(**fields: Any) -> wire.Waveforms:
    return wire.Waveforms(traces=[wire.Trace(id="XX.STA..HHZ", sampling_rate_hz=100.0, **fields)])


GOOD = {"waveforms": sample(np.arange(3000))}
REFUSALS: list[tuple[str, dict[str, Any], grpc.StatusCode, str]] = [
    ("nothing", {"waveforms": wire.Waveforms()}, INVALID, "waveforms is empty"),
    ("no samples type", {"waveforms": raw(samples=b"1234")}, INVALID, "trace XX.STA..HHZ: sample_type"),
    ("cut samples", {"waveforms": raw(samples=b"12345", sample_type=1)}, INVALID, "trace XX.STA..HHZ: samples has 5"),
    ("unknown type", {"waveforms": raw(samples=b"1234", sample_type=77)}, INVALID, "trace XX.STA..HHZ: sample_type"),
    ("NaN", {"waveforms": sample([1.0, np.nan, np.inf])}, INVALID, "trace XX.STA..HHZ: 2 of 3 samples"),
    ("rate", {"waveforms": sample([1], sampling_rate_hz=0.0)}, INVALID, "sampling rate is 0"),
    ("NaN rate", {"waveforms": sample([1], sampling_rate_hz=float("nan"))}, INVALID, "sampling rate is nan"),
    ("id", {"waveforms": sample([1], id="STA")}, INVALID, "trace STA: the id"),
    ("no id", {"waveforms": sample([1], id="")}, INVALID, "the id"),
    ("huge", {"waveforms": sample([1e39, 0.0])}, INVALID, "amplitudes"),
    ("no bytes", {"waveforms": wire.Waveforms(miniseed=[b""])}, INVALID, "miniseed"),
    ("garbage", {"waveforms": wire.Waveforms(miniseed=[b"not a record" * 99])}, INVALID, "miniseed"),
    ("truncated", {"waveforms": wire.Waveforms(miniseed=[miniseed(example())[:-100]])}, INVALID, "truncated"),
    ("header only", {"waveforms": wire.Waveforms(miniseed=[miniseed(example())[:60]])}, INVALID, "miniseed"),
    ("model", {"model": wire.ModelSpec(name="nope")}, NOT_FOUND, "'nope'"),
    ("version", {"model": wire.ModelSpec(version=9)}, NOT_FOUND, "9"),
    ("negative version", {"model": wire.ModelSpec(version=-1)}, INVALID, "model.version is -1"),
    ("label", {"options": wire.Options(thresholds={"Pn": 0.5})}, INVALID, "threshold for 'Pn'"),
    ("threshold", {"options": wire.Options(thresholds={"P": 1.5})}, INVALID, "threshold for P is 1.5"),
    ("zero", {"options": wire.Options(thresholds={"P": 0})}, INVALID, "threshold for P is 0"),
    ("NaN threshold", {"options": wire.Options(thresholds={"P": float("nan")})}, INVALID, "threshold for P is nan"),
    ("hop", {"options": wire.Options(hop_samples=100_000)}, INVALID, "hop_samples is 100000"),
    ("negative hop", {"options": wire.Options(hop_samples=-5)}, INVALID, "hop_samples is -5"),
    ("stacking", {"options": wire.Options(stacking="sum")}, INVALID, "stacking is 'sum'"),
    ("resampling", {"options": wire.Options(resampling="fft")}, INVALID, "options.resampling is 'fft'"),
]


@pytest.mark.parametrize(("change", "code", "text"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_a_bad_request_is_refused_with_what_is_at_fault(
    stub: Stub, refused: Refused, change: dict[str, Any], code: grpc.StatusCode, text: str
) -> None:
    for method, request in ((stub.pick, wire.PickRequest), (stub.annotate, wire.AnnotateRequest)):
        if method is stub.pick or "thresholds" not in str(change):
            found, message = refused(method, request(**{**GOOD, **change}))
            assert found is code
            assert text in message


def test_a_trace_without_samples_has_no_picks(stub: Stub) -> None:
    assert not stub.pick(wire.PickRequest(waveforms=sample(np.zeros(0, np.int32))), timeout=30).picks
