"""What sessions tell the metrics of a whole server: packets by outcome, ages, latencies, stations that have left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from client.small_bundles import repository
from prometheus_client.parser import text_string_to_metric_families

from seisserve import Client
from seisserve.traces import Trace
from seisserve_serving.assembly import assemble
from seisserve_serving.server import Server
from seisserve_serving.settings import read

NS = 10**9
MODEL = "eqtransformer"
Labels = dict[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"))


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    started = assemble(read({"port": "0", "repository": str(folder), "threads": "1"}, {}).settings)
    started.start()
    yield started
    started.stop(grace_s=5)


def metrics(server: Server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = httpx.get(f"http://{server.beside[0].address}/metrics", timeout=30).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(server: Server, name: str, **labels: str) -> float | None:
    return metrics(server).get((name, frozenset(labels.items())))


def packets(server: Server) -> dict[str, float]:
    return {dict(key)["outcome"]: n for (name, key), n in metrics(server).items() if name == "seisserve_packets_total"}


def eventually(what: Any) -> None:
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def three(start_ns: int, seconds: float, station: str = "S1", seed: int = 0) -> list[Trace]:
    """Components of one station, with an arrival on N that the small model picks as P."""
    rng = np.random.default_rng(seed)
    count = round(100 * seconds)
    made = []
    for code in "ZNE":
        samples = rng.normal(0, 10, count).astype(np.int32)
        if code == "N":
            samples[count // 2 : count // 2 + 30] = 5000
        made.append(Trace(f"XX.{station}..HH{code}", start_ns, 100.0, samples))
    return made


def cut(traces: list[Trace], low_s: float, high_s: float) -> list[Trace]:
    low, high = round(100 * low_s), round(100 * high_s)
    return [t._replace(start_ns=t.start_ns + round(low_s * NS), samples=t.samples[low:high]) for t in traces]


def test_packets_are_counted_by_what_became_of_them(server: Server) -> None:
    begin = time.time_ns() - 100 * NS
    whole = three(begin, 60)
    with Client(server.address) as client, client.session(model=MODEL, wait_s=5.0) as session:
        session.send(cut(whole, 0, 10))
        eventually(lambda: packets(server) == {"new": 3})
        session.send(cut(whole, 0, 10))  # all of it for the second time
        eventually(lambda: packets(server) == {"new": 3, "duplicate": 3})
        session.send(cut(whole, 5, 15))  # half of it
        eventually(lambda: packets(server) == {"new": 6, "duplicate": 3})
        session.send(cut(whole, 30, 40))  # 15 to 25 s is a gap from now on
        session.send(cut(whole, 20, 24))
        eventually(lambda: packets(server) == {"new": 9, "duplicate": 3, "late": 3})
        session.send([Trace("XX.S1..HHZ", begin + 40 * NS, 100.0, np.full(10, np.nan))])
        session.send([Trace("XX.S1..HHZ", time.time_ns() + 3600 * NS, 100.0, np.zeros(10, np.int32))])
        eventually(lambda: packets(server) == {"new": 9, "duplicate": 3, "late": 3, "refused": 2})
        eventually(lambda: len(session.warnings) == 2)


def test_the_age_of_a_station_rises_and_ends_with_its_session(server: Server) -> None:
    begin = time.time_ns() - 60 * NS
    station = "XX.S1..HH"

    def age() -> float | None:
        return value(server, "seisserve_data_latency_seconds", station=station)

    assert value(server, "seisserve_stations") == 0
    with Client(server.address) as client, client.session(model=MODEL, wait_s=5.0, idle_s=5.0) as session:
        session.send(three(begin, 30))
        eventually(lambda: (age() or 0) >= 30)
        assert value(server, "seisserve_stations") == 1
        session.send([Trace(f"{station}Z", time.time_ns() + 7200 * NS, 100.0, np.zeros(10, np.int32))])  # a wrong date
        eventually(lambda: value(server, "seisserve_packets_total", outcome="refused") == 1)
        assert (age() or 0) >= 30
        eventually(lambda: session.expired == [station])
        assert value(server, "seisserve_stations") == 0
        assert (age() or 0) >= 31  # it is silent, which somebody should see
    assert age() is None
    assert value(server, "seisserve_sessions") == 0


def test_pick_latency_is_from_the_last_packet_that_was_needed(server: Server) -> None:
    begin = time.time_ns() - 200 * NS
    whole = three(begin, 100)
    with Client(server.address) as client, client.session(model=MODEL, wait_s=1.0) as session:
        session.send(cut(whole, 0, 40))
        eventually(lambda: session.watermarks)
        time.sleep(1.0)  # the pick at 50 s needs what comes now; this second is not of the server
        sent_s = time.monotonic()
        session.send(cut(whole, 40, 100))
        session.finish()
        found = list(session)
        took_s = time.monotonic() - sent_s
    assert found
    key = {"model": MODEL}
    number = value(server, "seisserve_pick_latency_seconds_count", **key)
    total = value(server, "seisserve_pick_latency_seconds_sum", **key)
    assert number == len(found) == value(server, "seisserve_picks_total", phase="P", model=MODEL)
    assert total is not None
    assert 0 < total <= number * took_s
    station = {"station": "XX.S1..HH"}
    assert value(server, "seisserve_station_pick_latency_seconds_count", **station) == number
    assert value(server, "seisserve_station_pick_latency_seconds_sum", **station) == pytest.approx(total)


def test_picks_that_come_because_a_station_is_silent_have_no_latency(server: Server) -> None:
    begin = time.time_ns() - 100 * NS
    with Client(server.address) as client, client.session(model=MODEL, wait_s=60.0, idle_s=5.0) as session:
        session.send(cut(three(begin, 20), 0, 11))  # within a window of its end
        eventually(lambda: session.expired)
        assert session.new_picks()
    assert value(server, "seisserve_pick_latency_seconds_count", model=MODEL) in (None, 0)
