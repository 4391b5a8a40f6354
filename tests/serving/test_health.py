"""Health tells of every thread that the server cannot do without: those that compute, and the one that loads."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from serving.loopback import Loopback
from serving.small_models import add_bundle, end, eventually, served

from seisserve.proto import inference_wire_pb2 as v2
from seisserve_serving.front import Front
from seisserve_serving.grpc_server import GrpcServer
from seisserve_serving.health import handlers
from seisserve_serving.metrics import Metrics
from seisserve_serving.models import Models
from seisserve_serving.server import Server
from seisserve_serving.web import Web

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Site:
    """A server of one model with a repository and HTTP, and what its health says."""

    def __init__(self, folder: Path) -> None:
        add_bundle(folder / "picker", 1)
        self.models: Models = served(folder)
        self.front, self.metrics = Front(), Metrics()
        self.metrics.watch(self.front, self.models)
        self.web = Web(self.models, self.front, self.models.lanes, port=0, metrics=self.metrics.text)
        self.server = Server(self.models, self.front, port=0, beside=[self.web])
        self.server.start()
        self.channel = grpc.insecure_channel(self.server.address)

    def stop(self) -> None:
        self.channel.close()
        self.server.stop(grace_s=1)
        end(self.models)

    def health(self, service: str = "") -> Any:
        stub = health_pb2_grpc.HealthStub(self.channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status

    def live(self) -> bool:
        call = self.channel.unary_unary(
            "/inference.GRPCInferenceService/ServerLive",
            request_serializer=v2.ServerLiveRequest.SerializeToString,
            response_deserializer=v2.ServerLiveResponse.FromString,
        )
        return bool(call(v2.ServerLiveRequest(), timeout=30).live)

    def get(self, path: str) -> tuple[int, str]:
        answer = httpx.get(f"http://{self.web.address}{path}", timeout=30)
        return answer.status_code, answer.text


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    started = Site(tmp_path)
    yield started
    started.stop()


def die(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the thread of the repository end as a fault in it would."""
    keeper = site.models.repository
    assert keeper is not None
    monkeypatch.setattr(threading, "excepthook", lambda told: None)
    monkeypatch.setattr(keeper, "_pass", sys.exit)
    keeper._ask()
    eventually(lambda: not keeper.alive)


def test_a_repository_whose_thread_has_died_is_no_health_though_models_answer(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert (site.health(), site.health("picker"), site.live()) == (SERVING, SERVING, True)
    assert site.get("/healthz") == (200, "ok\n")
    assert "seisserve_repository_alive 1" in site.get("/metrics")[1]
    die(site, monkeypatch)
    with caplog.at_level(logging.ERROR):
        site.server.update()
    assert "not healthy any more: the thread that loads models has died" in caplog.text
    assert (site.health(), site.health("picker"), site.live()) == (NOT_SERVING, SERVING, False)
    assert site.get("/healthz") == (503, "the thread that loads models has died\n")
    assert site.get("/v2/health/live") == (503, '{"live":false}')
    assert site.get("/readyz") == (200, "ok\n")  # what is loaded can be called until the server is started anew
    assert "seisserve_repository_alive 0" in site.get("/metrics")[1]


def test_a_repository_that_was_closed_has_not_died(site: Site) -> None:
    site.models.close()
    site.server.update()
    assert site.health() == SERVING
    assert site.get("/healthz") == (200, "ok\n")


def test_a_lane_that_has_died_is_no_health_of_anything(site: Site) -> None:
    site.models.lanes.close()
    site.server.update()
    assert (site.health(), site.health("picker"), site.live()) == (NOT_SERVING, NOT_SERVING, False)
    for path in ("/healthz", "/readyz"):
        assert site.get(path) == (503, "a computing thread has died\n")


def test_watchers_may_go_while_the_status_changes() -> None:
    servicer = health.HealthServicer()
    over, wrong = threading.Event(), list[BaseException]()

    def change() -> None:
        try:
            while not over.is_set():
                servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        except BaseException as error:
            wrong.append(error)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        with Loopback(GrpcServer([]), handlers(servicer)) as loopback:
            watch = health_pb2_grpc.HealthStub(loopback.channel).Watch
            for _ in range(200):
                answers = watch(health_pb2.HealthCheckRequest(), timeout=30)
                assert next(answers).status == health_pb2.HealthCheckResponse.SERVING
                answers.cancel()
            eventually(lambda: not servicer._send_response_callbacks[""])
    finally:
        over.set()
        changing.join()
    assert not wrong and not servicer._send_response_callbacks[""]
