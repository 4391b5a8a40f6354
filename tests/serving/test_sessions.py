"""Sessions over a real connection, which breaks: no pick is lost, none comes twice, and all are those of the batch."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
import numpy as np
import obspy
import pytest
from client.waveforms import NS, START_NS, fake, manifest, pieces, record

from seisserve import Client, ServerError, Trace, UsageError, from_stream
from seisserve.errors import ModelNotFound
from seisserve.messages import to_message, to_waveforms
from seisserve.picks import Pick
from seisserve.pipeline import pick
from seisserve.proto import seismic_pb2 as wire
from seisserve.transport import FakeTransport
from seisserve_serving.lanes import Lanes
from seisserve_serving.models import Models
from seisserve_serving.server import Server
from seisserve_serving.session_api import Bounds, Sessions

SERVICE = "seisserve.v1.SeismicService"
MODEL = manifest(("P", "S"))
Requests = Iterable[wire.SessionRequest]


class Serving:
    """A server, and its sessions."""

    def __init__(self, models: Models, bounds: Bounds | None = None) -> None:
        self.sessions = Sessions(models, bounds)
        self.server = Server(models, port=0, sessions=self.sessions)
        self.server.start()
        self.port = int(self.server.address.rpartition(":")[2])

    def stop(self, grace_s: float = 0.0) -> bool:
        return self.server.stop(grace_s)


class Wire:
    """A connection that can be cut: forwards a port to another, until `cut`."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.cuts = 0
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._door.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as far:
            self._open += [near, far]
            back = threading.Thread(target=self._forward, args=(far, near), daemon=True)
            back.start()
            self._forward(near, far)
            back.join()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                target.sendall(content)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self.cuts += 1
        while self._open:
            with contextlib.suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self.cut()


def fake_models(transport: FakeTransport | None = None) -> Models:
    models = Models(Lanes(2))
    models.add(1, MODEL, transport or fake(2))
    return models


@pytest.fixture
def serving() -> Iterator[Serving]:
    started = Serving(fake_models())
    yield started
    started.stop()


@pytest.fixture
def line(serving: Serving) -> Iterator[Wire]:
    opened = Wire(serving.port)
    yield opened
    opened.close()


def packets_of(stations: int, seconds: float, length: int = 100, seed: int = 0) -> list[list[Trace]]:
    """Packets of many stations as they come: the components of each together, in order of time."""
    rows = []
    for number in range(stations):
        traces = [trace._replace(id=f"XX.S{number}..HH{trace.id[-1]}") for trace in record(seed + number, seconds)]
        cut = [pieces(trace, range(0, len(trace.samples), length)) for trace in traces]
        rows += [list(together) for together in zip(*cut, strict=True)]
    return sorted(rows, key=lambda together: together[0].start_ns)


def batch(packets: Iterable[list[Trace]], model: Any = MODEL, transport: Any = None) -> dict[str, list[str]]:
    groups: dict[str, list[Trace]] = {}
    for trace in itertools.chain.from_iterable(packets):
        groups.setdefault(trace.id[:-1], []).append(trace)
    found = {name: pick(group, model, transport or fake()).picks for name, group in sorted(groups.items())}
    return {name: [repr(one) for one in picks] for name, picks in found.items()}


def told(picks: Iterable[Pick]) -> dict[str, list[str]]:
    """By instrument, in the order in which they came."""
    found: dict[str, list[str]] = {}
    for one in picks:
        found.setdefault(one.trace_id, []).append(repr(one))
    return dict(sorted(found.items()))


def test_a_session_gives_the_picks_of_the_batch(serving: Serving) -> None:
    packets = packets_of(3, 30.0)
    found: list[Pick] = []
    with (
        Client(f"127.0.0.1:{serving.port}") as client,
        client.session(model="fake", wait_s=2.0, on_pick=found.append) as session,
    ):
        for together in packets:
            session.send(together)
    assert told(found) == batch(packets)
    assert (session.model, session.version, session.warnings, session.reconnected) == ("fake", 1, [], 0)
    assert {name: counts.received for name, counts in session.counts.items()} == dict.fromkeys(told(found), 9000)
    for name, mark in session.watermarks.items():
        assert START_NS + 29 * NS < mark < START_NS + 30 * NS, name


@pytest.mark.parametrize("seed", range(4))
def test_a_connection_that_breaks_loses_nothing_and_doubles_nothing(line: Wire, seed: int) -> None:
    rng = random.Random(seed)
    packets = packets_of(3, 30.0, seed=10 * seed)
    with Client(f"127.0.0.1:{line.port}") as client, client.session(model="fake", wait_s=2.0) as session:
        for together in packets:
            session.send(together)
            if rng.random() < 0.04:
                time.sleep(rng.random() * 0.05)
                line.cut()
        session.finish()
        found = list(session)
    assert told(found) == batch(packets)
    assert line.cuts > 1 and session.reconnected > 0


def test_another_server_goes_on_where_the_first_one_stopped(line: Wire, serving: Serving) -> None:
    """It has never heard of the session; the client has kept what the picks to come depend on."""
    packets = packets_of(2, 90.0, seed=3)
    other = Serving(fake_models())
    found: list[Pick] = []
    with (
        Client(f"127.0.0.1:{line.port}") as client,
        client.session(model="fake", wait_s=2.0, on_pick=found.append) as session,
    ):
        for number, together in enumerate(packets):
            session.send(together)
            if number == len(packets) * 2 // 3:
                wait_for(lambda: len(found) > 5)
                line.target = other.port
                serving.sessions.drain()
                line.cut()
    other.stop()
    assert told(found) == batch(packets)
    assert session.reconnected > 0


def wait_for(yes: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not yes():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_real_models_give_the_picks_of_the_batch(server: Server, models: Models) -> None:
    """Every shipped picker, from ObsPy's example as counts, in packets of two seconds."""
    stream = obspy.read()
    for trace in stream:
        trace.data = np.round(trace.data * 100).astype("int32")
    traces = from_stream(stream)
    cut = [pieces(trace, range(0, len(trace.samples), 200)) for trace in traces]
    pickers = [name for name, versions in models.served.items() if "picking" in versions[1].manifest.tasks]
    assert {"onset", "phasenet", "gpd", "eqtransformer"} <= set(pickers)
    with Client(server.address) as client:
        for name in pickers:
            with client.session(model=name, wait_s=1.0) as session:
                for together in zip(*cut, strict=True):
                    session.send(together)
                session.finish()
                found = list(session)
            expected = client.pick(traces, model=name)
            assert [repr(one) for one in found] == [repr(one) for one in expected]
            assert session.provenance == expected.provenance


# On the wire, for clients in other languages.


Open = Callable[[Iterator[wire.SessionRequest]], Any]
Method = Callable[[int], Open]


@pytest.fixture
def method() -> Iterator[Method]:
    """The bare method of the server at a port."""
    with contextlib.ExitStack() as channels:

        def made(port: int) -> Open:
            channel = channels.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
            call = channel.stream_stream(
                f"/{SERVICE}/Session",
                request_serializer=wire.SessionRequest.SerializeToString,
                response_deserializer=wire.SessionResponse.FromString,
            )
            return lambda requests: call(requests, timeout=30)

        yield made


def start(**fields: Any) -> wire.SessionRequest:
    seen = fields.pop("seen", 0)
    return wire.SessionRequest(start=wire.SessionStart(**fields), seen=seen)


def sent(number: int, traces: list[Trace], finish: bool = False, seen: int = 0) -> wire.SessionRequest:
    packets = wire.SessionPackets(number=number, waveforms=to_waveforms(traces), finish=finish)
    return wire.SessionRequest(packets=packets, seen=seen)


def test_packets_that_were_taken_are_passed_over_and_answers_that_were_not_seen_come_again(
    method: Method, serving: Serving
) -> None:
    packets = packets_of(1, 30.0, length=500)
    requests = [sent(number, together) for number, together in enumerate(packets, 1)]
    first = list(method(serving.port)(iter([start(wait_s=1.0), *requests])))
    token = first[0].started.resume_token
    assert first[-1].acknowledged == len(packets)
    numbered = [answer for answer in first if answer.number]
    assert [answer.number for answer in numbered] == list(range(1, len(numbered) + 1)) and numbered

    more = [start(resume_token=token, seen=numbered[0].number), *requests, sent(len(packets) + 1, [], finish=True)]
    second = list(method(serving.port)(iter(more)))
    assert second[0].started.resumed and second[0].acknowledged == len(packets)
    assert [answer.number for answer in second[1 : len(numbered)]] == [answer.number for answer in numbered[1:]]
    assert second[-1].finished and not first[-1].finished

    once = {answer.number: answer for answer in [*numbered, *second] if answer.number}
    found = [one for number in sorted(once) for one in once[number].picks]
    assert [one.time_ns for one in found] == [
        one.time_ns for one in pick(itertools.chain(*packets), MODEL, fake()).picks
    ]

    third = list(method(serving.port)(iter([start(resume_token=token, seen=second[-2].number)])))
    assert [answer.finished for answer in third] == [False, True]


def test_a_session_may_be_taken_over_from_a_connection_that_nobody_has_missed(method: Method, serving: Serving) -> None:
    idle = threading.Event()

    def stuck() -> Iterator[wire.SessionRequest]:
        yield start(wait_s=1.0)
        idle.wait(30)

    old = method(serving.port)(stuck())
    token = next(old).started.resume_token
    new = list(method(serving.port)(iter([start(resume_token=token), sent(1, record(0, 5.0), finish=True)])))
    assert new[-1].finished
    with pytest.raises(grpc.RpcError) as caught:
        list(old)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE and "another connection" in caught.value.details()
    idle.set()


def test_miniseed_counts_and_what_is_damaged_is_told_of(method: Method, serving: Serving) -> None:
    stream = obspy.read()
    for trace in stream:
        trace.data = np.round(trace.data * 100).astype("int32")
    content = io.BytesIO()
    stream.write(content, format="MSEED")
    bad = to_message(record(0, 5.0)[0])
    bad.sample_type = wire.Trace.SAMPLE_TYPE_UNSPECIFIED
    waveforms = wire.Waveforms(miniseed=[content.getvalue(), b"no records"], traces=[bad])
    request = wire.SessionRequest(packets=wire.SessionPackets(number=1, waveforms=waveforms, finish=True))
    answers = list(method(serving.port)(iter([start(), request])))
    warnings = [text for answer in answers for text in answer.warnings]
    assert len(warnings) == 2 and all(text.startswith("packets 1: ") for text in warnings)
    expected = pick(from_stream(stream), MODEL, fake()).picks
    assert [one.time_ns for answer in answers for one in answer.picks] == [one.time_ns for one in expected]


@pytest.mark.parametrize(
    ("requests", "code", "text"),
    [
        ([], "INVALID_ARGUMENT", "must have `start`"),
        ([sent(1, [])], "INVALID_ARGUMENT", "must have `start`"),
        ([start(), start()], "INVALID_ARGUMENT", "after the first"),
        ([start(), sent(2, [])], "INVALID_ARGUMENT", "packets.number is 2; expected 1"),
        ([start(wait_s=-1.0)], "INVALID_ARGUMENT", "wait_s"),
        ([start(idle_s=0.0)], "INVALID_ARGUMENT", "idle_s"),
        ([start(conflicts="last")], "INVALID_ARGUMENT", "conflicts"),
        ([start(instruments=0)], "INVALID_ARGUMENT", "instruments"),
        ([start(instruments=10_000)], "INVALID_ARGUMENT", "between 1 and 1000"),
        ([start(model=wire.ModelSpec(name="nobody"))], "NOT_FOUND", "nobody"),
        ([start(model=wire.ModelSpec(version=-1))], "INVALID_ARGUMENT", "version"),
        ([start(options=wire.Options(resampling="fast"))], "INVALID_ARGUMENT", "resampling"),
        ([start(options=wire.Options(thresholds={"X": 0.5}))], "INVALID_ARGUMENT", "threshold"),
        ([start(resume_token="nothing")], "NOT_FOUND", "resume_token"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    method: Method, serving: Serving, requests: list[wire.SessionRequest], code: str, text: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(method(serving.port)(iter(requests)))
    assert caught.value.code().name == code and text in caught.value.details()


def test_bytes_that_are_no_request_are_refused(serving: Serving) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{serving.port}") as channel:
        raw = channel.stream_stream(f"/{SERVICE}/Session")
        for bodies in ([b"\xff"], [start().SerializeToString(), b"\xff"]):
            with pytest.raises(grpc.RpcError) as caught:
                list(raw(iter(bodies), timeout=30))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "SessionRequest" in caught.value.details()


def test_the_number_of_sessions_is_bounded_and_broken_ones_are_forgotten_in_time(method: Method) -> None:
    serving = Serving(fake_models(), Bounds(sessions=1, resume_s=0.2))
    open_session = method(serving.port)
    list(open_session(iter([start()])))  # nothing came over it, so nothing is kept
    idle = threading.Event()

    def requests() -> Iterator[wire.SessionRequest]:
        yield start()
        yield sent(1, record(0, 5.0))
        idle.wait(30)

    first = open_session(requests())
    token = next(first).started.resume_token
    wait_for(lambda: next(first).acknowledged == 1)
    with pytest.raises(grpc.RpcError) as caught:
        list(open_session(iter([start()])))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]
    idle.set()
    list(first)
    wait_for(lambda: serving.sessions.open == 0)
    with pytest.raises(grpc.RpcError) as caught:
        list(open_session(iter([start(resume_token=token)])))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert next(iter(open_session(iter([start()])))).HasField("started")
    serving.stop()


def test_answers_that_nobody_confirms_stop_the_session_at_their_bound(method: Method) -> None:
    serving = Serving(fake_models(), Bounds(answers=3))
    packets = packets_of(1, 200.0, length=20)
    requests = [start(wait_s=0.0), *(sent(number, together) for number, together in enumerate(packets, 1))]
    answers: list[wire.SessionResponse] = []
    with pytest.raises(grpc.RpcError) as caught:
        answers.extend(method(serving.port)(iter(requests)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "`seen`" in caught.value.details()
    assert max(answer.number for answer in answers) == 3
    serving.stop()


def test_a_server_that_drains_says_so_with_the_token_and_the_session_can_still_be_resumed(
    method: Method, serving: Serving
) -> None:
    packets = packets_of(1, 20.0)
    idle = threading.Event()

    def requests() -> Iterator[wire.SessionRequest]:
        yield start(wait_s=1.0)
        for number, together in enumerate(packets, 1):
            yield sent(number, together)
        idle.wait(30)

    answers = method(serving.port)(requests())
    token = next(answers).started.resume_token
    taken = next(answer.acknowledged for answer in answers if answer.acknowledged == len(packets))
    serving.sessions.drain()
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    idle.set()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE and token in caught.value.details()
    resumed = next(iter(method(serving.port)(iter([start(resume_token=token)]))))
    assert resumed.acknowledged == taken


def test_a_version_that_is_withdrawn_ends_its_sessions_and_the_next_one_goes_on(line: Wire, serving: Serving) -> None:
    packets = packets_of(2, 60.0, seed=4)
    models = serving.sessions.models
    found: list[Pick] = []
    with (
        Client(f"127.0.0.1:{line.port}") as client,
        client.session(model="fake", wait_s=2.0, on_pick=found.append) as session,
    ):
        for number, together in enumerate(packets):
            session.send(together)
            if number == len(packets) // 2:
                models.add(2, MODEL, fake(2))
                withdrawn = models.withdraw("fake", 1)
                wait_for(lambda: session.version == 2)
    gc.collect()
    assert withdrawn.wait(30)
    assert told(found) == batch(packets)


def test_a_silent_instrument_is_told_of(serving: Serving) -> None:
    found = []
    with Client(f"127.0.0.1:{serving.port}") as client, client.session(model="fake", idle_s=1.0) as session:
        session.send(record(0, 20.0))
        wait_for(lambda: session.expired == ["XX.STA..HH"])
        found = session.new_picks()
        assert session.new_picks() == []
    assert told(found) == batch([record(0, 20.0)])


def test_windows_of_many_stations_are_computed_together(method: Method) -> None:
    counted: list[int] = []
    inner = fake().function

    def count(windows: Any) -> Any:
        counted.append(len(windows))
        return inner(windows)

    serving = Serving(fake_models(FakeTransport(count, 2)))
    together = [trace for row in packets_of(20, 10.0, length=1000) for trace in row]
    list(method(serving.port)(iter([start(wait_s=0.0), sent(1, together, finish=True)])))
    assert max(counted) > 20
    serving.stop()


def test_the_client_says_what_is_wrong(serving: Serving) -> None:
    with pytest.raises(UsageError, match="needs a server"):
        Client().session()
    with pytest.raises(ServerError, match="cannot reach"), Client("127.0.0.1:1") as nowhere:
        nowhere.session()
    with Client(f"127.0.0.1:{serving.port}") as client:
        with pytest.raises(ModelNotFound, match="nobody"):
            client.session(model="nobody")
        with pytest.raises(UsageError, match="wait_s"):
            client.session(model="fake", wait_s=-1.0)
        with client.session(model="fake") as session, pytest.raises(UsageError, match="expected an ObsPy Stream"):
            session.send([1])  # type: ignore[list-item]
        with pytest.raises(UsageError, match="finished"):
            session.send(record(0, 5.0))

        def complain(found: Pick) -> None:
            raise RuntimeError("no room for picks")

        with (
            pytest.raises(RuntimeError, match="no room for picks"),
            client.session(model="fake", on_pick=complain) as session,
        ):
            session.send(record(0, 20.0))


def test_a_server_that_is_gone_for_good_is_told_of() -> None:
    serving = Serving(fake_models())
    with Client(f"127.0.0.1:{serving.port}") as client:
        session = client.session(model="fake", retry_s=0.3)
        session.send(record(0, 5.0))
        serving.stop()
        with pytest.raises(ServerError, match="no connection for"):
            session.finish()
        session.close()
