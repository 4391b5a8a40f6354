"""Chains on a server: Process of SeismicService, and the client that uses it, against this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import obspy
import pytest
from client.small_bundles import repository
from client.waveforms import START_NS, part, record
from hypothesis import given, settings
from hypothesis import strategies as st

from seisserve import Client, UsageError, WaveformError, pipeline
from seisserve import chain as chains
from seisserve.messages import from_message, to_waveforms
from seisserve.proto import seismic_pb2 as wire
from seisserve.remote import Remote
from seisserve.results import Processed
from seisserve.traces import Trace
from seisserve_serving.front import Arrival, Front
from seisserve_serving.repository import load
from seisserve_serving.server import Server

Refused = Callable[..., tuple[grpc.StatusCode, str]]
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
USUAL = wire.ModelSpec()
STAGES = ("recover", "denoise", "pick", "detect")
PICKER = "eqtransformer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def came() -> list[Arrival]:
    """Every call that has come to the server."""
    return []


@pytest.fixture(scope="module")
def address(folder: Path, came: list[Arrival]) -> Iterator[str]:
    front = Front(guards=[lambda arrival, call: came.append(arrival)])
    server = Server(load(folder, "onnxruntime", 2), front, port=0)
    server.start()
    yield server.address
    server.stop(grace_s=1)


@pytest.fixture(scope="module")
def process(address: str) -> Iterator[Callable[..., wire.ProcessResponse]]:
    with grpc.insecure_channel(address) as channel:
        yield channel.unary_unary(
            "/seisserve.v1.SeismicService/Process",
            request_serializer=wire.ProcessRequest.SerializeToString,
            response_deserializer=wire.ProcessResponse.FromString,
        )


@pytest.fixture(scope="module")
def here(folder: Path) -> Client:
    return Client(repository=folder)


@pytest.fixture(scope="module")
def there(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def stations(rate_hz: float = 100.0, seconds: float = 30.0) -> list[Trace]:
    """Two stations, one with a gap in one of its components."""
    z, n, e = record(5, seconds, rate_hz)
    length = len(z.samples)
    other = [trace._replace(id=trace.id.replace("STA", "A")) for trace in record(6, 20, rate_hz, "Z12")]
    return [part(z, 0, length // 2), part(z, length // 2 + 9, length), n, e, *other]


def everything(result: Processed) -> Any:
    """All of a result, exactly."""
    found: list[Any] = [result.warnings, [str(error) for error in result.errors]]
    for table in (result.picks, result.detections):
        found.append(None if table is None else (repr(list(table)), table.model, table.version, table.provenance))
    for made in (result.recovered, result.denoised):
        traces = None if made is None else [(*t[:3], t.samples.dtype.str, t.samples.tobytes()) for t in made]
        found.append(made and (traces, made.model, made.version, made.provenance))
    return found


@given(
    names=st.sets(st.sampled_from(STAGES), min_size=1),
    return_waveforms=st.booleans(),
    rate=st.sampled_from([100.0, 50.0, 250.0]),
    options=st.sampled_from([{}, {"hop_samples": 150}, {"stacking": "max"}, {"resampling": "causal"}]),
)
@settings(max_examples=25, deadline=None)
def test_a_server_and_this_process_give_the_same_bit_for_bit(
    here: Client, there: Client, names: set[str], return_waveforms: bool, rate: float, options: dict[str, Any]
) -> None:
    asked = dict.fromkeys(names, True) | ({"pick": PICKER} if "pick" in names else {})
    if not names & {"pick", "detect"}:
        options = {key: value for key, value in options.items() if key == "resampling"}
    expected, found = (
        client.process(stations(rate), **asked, **options, return_waveforms=return_waveforms)  # type: ignore[arg-type]
        for client in (here, there)
    )
    assert everything(found) == everything(expected)
    assert (expected.picks is not None) == ("pick" in names) and (expected.detections is not None) == (
        "detect" in names
    )


def test_shipped_models_give_the_same_on_both_sides(server: Server) -> None:
    stream = obspy.read()
    for trace in stream:
        trace.data = np.round(trace.data * 100).astype(np.int32)
    stages: dict[str, Any] = dict.fromkeys(STAGES, True)
    with Client() as ours, Client(server.address) as theirs:
        expected, found = (client.process(stream, **stages, return_waveforms=True) for client in (ours, theirs))
    assert everything(found) == everything(expected)
    assert expected.picks is not None and expected.detections
    onsets = {pick.phase: pick.time_ns for pick in expected.picks}
    origin = obspy.UTCDateTime(2009, 8, 24, 0, 20, 7).ns
    assert onsets["P"] == pytest.approx(origin + 700_000_000, abs=200_000_000)
    assert onsets["S"] == pytest.approx(origin + 1_700_000_000, abs=200_000_000)


def test_thresholds_are_the_same_on_both_sides(here: Client, there: Client) -> None:
    limits = {"P": 0.3, "S": 0.7, "detection": 0.6}  # none of which is a float32
    plain = here.process(stations(), pick=PICKER, detect=True)
    expected, found = (c.process(stations(), pick=PICKER, detect=True, thresholds=limits) for c in (here, there))
    assert everything(found) == everything(expected)
    assert everything(expected) != everything(plain)


def test_a_stage_alone_is_the_call_of_that_name(here: Client, there: Client) -> None:
    for client in (here, there):
        assert repr(list(client.process(stations(), pick=PICKER).picks or [])) == repr(
            list(client.pick(stations(), model=PICKER))
        )
        alone = client.process(stations(), denoise=True).denoised
        made = client.restore(stations(), model="deepdenoiser")
        assert alone is not None
        assert (alone.model, alone.version, alone.provenance) == (made.model, made.version, made.provenance)
        assert repr(alone) == repr(made.traces())
        assert {trace.id for trace in alone.to_stream()} == {trace.id for trace in alone}


def test_a_chain_is_one_call_while_it_fits_and_windows_when_it_does_not(
    here: Client, there: Client, came: list[Arrival]
) -> None:
    def methods() -> set[str]:
        return {arrival.method.rpartition("/")[2] for arrival in came}

    stages: dict[str, Any] = {"recover": True, "denoise": True, "pick": PICKER}
    there.process(stations(), **stages)  # has the models
    came.clear()
    there.process(stations(), **stages, return_waveforms=True)
    assert [arrival.method for arrival in came] == ["/seisserve.v1.SeismicService/Process"] * 2
    for rate, copies in ((100.0, 32), (20.0, 90), (500.0, 8)):  # too long as they are, or once they are made
        traces = [trace._replace(samples=np.tile(trace.samples, copies)) for trace in record(1, 60, rate)]
        came.clear()
        found = there.process(traces, **stages, return_waveforms=True)
        assert methods() == {"Predict"}
        assert everything(found) == everything(here.process(traces, **stages, return_waveforms=True))


def test_what_cannot_be_used_is_an_error_of_its_own_instrument(here: Client, there: Client) -> None:
    bad = [trace._replace(id=trace.id.replace("STA", "BAD")) for trace in record(0, 10, dtype="float64")]
    bad[1].samples[3] = np.nan
    for client in (here, there):
        found = client.process([*bad, *stations()], denoise=True, pick=PICKER, on_error="skip", return_waveforms=True)
        (error,) = found.errors
        assert "BAD..HHN: 1 of 1000 samples are NaN" in str(error)
        assert found.picks is not None and found.denoised is not None
        assert found.picks.errors == found.denoised.errors == found.errors
        assert {pick.trace_id for pick in found.picks} == {"XX.A..HH", "XX.STA..HH"}
        assert {trace.id[:-1] for trace in found.denoised} == {"XX.A..HH", "XX.STA..HH"}
        with pytest.raises(WaveformError, match="1 of 1000 samples are NaN"):
            client.process([*bad, *stations()], pick=PICKER)


def test_a_server_of_another_version_leaves_the_chain_to_the_client(
    here: Client, there: Client, came: list[Arrival], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: dict[str, Any] = {"denoise": True, "pick": PICKER}
    expected = everything(here.process(stations(), **stages))
    call = Remote.call

    def newer(self: Remote, method: str, request: Any, response_type: Any, **options: Any) -> Any:
        response = call(self, method, request, response_type, **options)
        if response_type is wire.ProcessResponse:
            response.stages[0].provenance = "another version"
        return response

    there.process(stations(), **stages)  # has the models
    monkeypatch.setattr(Remote, "call", newer)
    came.clear()
    assert everything(there.process(stations(), **stages)) == expected
    assert {arrival.method.rpartition("/")[2] for arrival in came} == {"Process", "Predict"}


def test_waveforms_that_a_stage_spoils_are_an_error_of_the_same_kind_on_both_sides(here: Client, there: Client) -> None:
    traces = record(0, 10)
    huge = [t._replace(samples=t.samples * (8e37 / np.abs(t.samples).max())) for t in traces]  # recovery doubles them
    for client in (here, there):
        with pytest.raises(WaveformError, match=r"HHZ: amplitudes exceed"):
            client.process(huge, recover=True, pick=PICKER)
        found = client.process([*huge, *stations()[-3:]], recover=True, pick=PICKER, on_error="skip")
        assert len(found.errors) == 1
        assert found.picks


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "no stage is asked for"),
    ({"pick": "cred"}, "'cred' is for detection; for picking there is eqtransformer"),
    ({"recover": "deepdenoiser"}, "'deepdenoiser' is for denoising; for recovery there is recovery"),
    ({"denoise": "nope"}, "nope"),
    ({"denoise": True, "thresholds": {"P": 0.5}}, "thresholds: for picking and detection"),
    ({"detect": True, "thresholds": {"P": 0.5}}, "threshold for 'P'"),
    ({"detect": True, "hop_samples": 9999}, "hop_samples is 9999"),
]


@pytest.mark.parametrize(("options", "text"), WRONG)
def test_a_wrong_call_is_refused_before_any_work(
    here: Client, there: Client, options: dict[str, Any], text: str
) -> None:
    for client in (here, there):
        with pytest.raises(UsageError, match=text):
            client.process(stations(), **options)


def test_the_response_has_each_stage_with_its_model_and_provenance(process: Any, here: Client) -> None:
    request = wire.ProcessRequest(
        waveforms=to_waveforms(stations()), recover=USUAL, denoise=USUAL, pick=wire.ModelSpec(name=PICKER, version=1),
        detect=wire.ModelSpec(name="cred"),
    )  # fmt: skip
    response = process(request, timeout=30)
    models = ["recovery", "deepdenoiser", PICKER, "cred"]
    assert [stage.name for stage in response.stages] == list(STAGES)
    assert [(stage.model.name, stage.model.version) for stage in response.stages] == [(name, 1) for name in models]
    manifests = {stage: here.model(name).manifest for stage, name in zip(chains.STAGES, models, strict=True)}
    assert [stage.provenance for stage in response.stages] == list(chains.provenances(manifests).values())
    assert response.stages[0].provenance == pipeline.provenance(manifests["recover"])
    assert not any(stage.traces for stage in response.stages)
    assert response.picks and response.detections
    request.return_waveforms = True
    again = process(request, timeout=30)
    assert (again.picks, again.detections) == (response.picks, response.detections)
    for stage, name, dtype in zip(again.stages, models, ("<f8", "<f4"), strict=False):
        made = [from_message(trace) for trace in stage.traces]
        assert {trace.samples.dtype.str for trace in made} == {dtype}
        assert {trace.id for trace in made} == {trace.id for trace in stations()}
        assert stage.model.name == name
    assert [len(stage.traces) for stage in again.stages[2:]] == [0, 0]


def test_waveforms_of_the_last_stage_come_without_asking(process: Any) -> None:
    request = wire.ProcessRequest(waveforms=to_waveforms(stations()), recover=USUAL, denoise=USUAL)
    assert [bool(stage.traces) for stage in process(request, timeout=30).stages] == [False, True]


GOOD = to_waveforms(record(0, 10))
REFUSALS: list[tuple[str, dict[str, Any], grpc.StatusCode, str]] = [
    ("nothing", {}, INVALID, "no stage is asked for; there is recover, denoise, pick, detect"),
    ("no waveforms", {"detect": USUAL, "waveforms": wire.Waveforms()}, INVALID, "waveforms is empty"),
    ("no model", {"denoise": wire.ModelSpec(name="nope")}, NOT_FOUND, "'nope'"),
    ("no version", {"detect": wire.ModelSpec(version=7)}, NOT_FOUND, "7"),
    ("negative version", {"detect": wire.ModelSpec(version=-7)}, INVALID, "model.version is -7"),
    ("task", {"recover": wire.ModelSpec(name="cred")}, INVALID, "for recovery there is recovery"),
    ("hop", {"detect": USUAL, "options": wire.Options(hop_samples=9999)}, INVALID, "hop_samples is 9999"),
    ("no reader", {"denoise": USUAL, "options": wire.Options(stacking="max")}, INVALID, "stacking: for picking and"),
    ("stacking", {"detect": USUAL, "options": wire.Options(stacking="sum")}, INVALID, "stacking is 'sum'"),
    ("label", {"detect": USUAL, "options": wire.Options(thresholds={"P": 0.5})}, INVALID, "threshold for 'P'"),
    ("resampling", {"detect": USUAL, "options": wire.Options(resampling="fft")}, INVALID, "options.resampling"),
    (
        "NaN", {"denoise": USUAL, "waveforms": to_waveforms([Trace("A.B.C.HHZ", START_NS, 100.0, np.array([np.nan]))])},
        INVALID, "trace A.B.C.HHZ: 1 of 1 samples",
    ),
    (
        "too long", {"detect": USUAL, "waveforms": to_waveforms([Trace("A.B.C.HHZ", 0, 0.001, np.zeros(9999))])},
        grpc.StatusCode.RESOURCE_EXHAUSTED, "1e+09 samples at the model's 100 Hz",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code", "text"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_a_bad_request_is_refused_with_what_is_at_fault(
    process: Any, refused: Refused, change: dict[str, Any], code: grpc.StatusCode, text: str
) -> None:
    found, message = refused(process, wire.ProcessRequest(**{"waveforms": GOOD, **change}))
    assert found is code
    assert text in message
