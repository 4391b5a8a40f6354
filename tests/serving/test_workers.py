"""Several processes on one port: they answer as one does, one that dies is started again, all end together."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from client.small_bundles import repository
from client.waveforms import part, record
from serving.papers import Papers
from serving.processes import Process
from serving.small_models import eventually

from seisserve import Client, ServerError, UsageError
from seisserve.access import Access
from seisserve.proto import inference_wire_pb2 as v2
from seisserve.proto import seismic_pb2 as seismic
from seisserve.proto import tensorflow_serving_wire_pb2 as tfs
from seisserve.runtimes.setup import processors
from seisserve_serving import settings as settings_module
from seisserve_serving import workers as workers_module
from seisserve_serving.assembly import assemble
from seisserve_serving.settings import read

Refused = Callable[..., tuple[grpc.StatusCode, str]]
MODEL = "eqtransformer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def process(folder: Path) -> Iterator[Process]:
    with Process(str(folder), "--workers", "2", "--log_format", "json") as started:
        yield started
        os.kill(started.pid, signal.SIGTERM)
        assert started.wait(60) == 0
        log = started.stderr.read() if started.stderr else ""
        assert "Traceback" not in log
        assert {0, 1} <= {entry.get("worker") for entry in map(json.loads, log.splitlines())}


@pytest.fixture(scope="module")
def http(process: Process) -> list[str]:
    """The HTTP address of each worker."""
    assert process.stdout is not None
    return [process.stdout.readline().split()[-1] for _ in range(2)]


def own_channel(address: str, number: int) -> grpc.Channel:
    """A channel with a connection of its own: gRPC puts those with equal options on one."""
    return grpc.insecure_channel(address, options=[("seisserve.test", number)])


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that serve."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == process.pid and "spawn_main" in command:
                found.append(int(entry.name))
    return sorted(found)


def calls_of(address: str) -> float:
    """Calls that a worker has answered with OK."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("seisserve_requests_total") and 'code="OK"' in line and "Seismic" in line
    )


def picks_at(address: str, number: int = 0) -> str:
    """The picks of a record, by a client that has a connection of its own."""
    with Client(address) as client:
        return repr(list(client.pick(record(number), model=MODEL)))


def test_workers_share_the_calls_and_answer_as_one_process_does(
    process: Process, http: list[str], folder: Path
) -> None:
    expected = repr(list(Client(repository=folder).pick(record(), model=MODEL)))
    ping = "/seisserve.v1.SeismicService/GetModel"
    for number in range(64):  # of 64 connections all go to one worker once in 10**19 times
        with own_channel(process.address, number) as channel:
            call = channel.unary_unary(ping, request_serializer=seismic.GetModelRequest.SerializeToString)
            call(seismic.GetModelRequest(model=seismic.ModelSpec(name=MODEL)), timeout=30)
    eventually(lambda: sum(map(calls_of, http)) == 64)  # they are counted after they are answered
    assert all(calls_of(address) > 0 for address in http)
    assert {picks_at(process.address) for _ in range(4)} == {expected}


def test_models_are_not_changed_by_calls_that_reach_one_worker(folder: Path, refused: Refused) -> None:
    flags = {"repository": str(folder), "port": 0, "workers": 2, "allow_admin_without_token": True, "rest_api_port": 0}
    server = assemble(read(flags, {}).settings)
    server.start()
    try:
        with grpc.insecure_channel(server.address) as channel:
            change = channel.unary_unary(
                "/tensorflow.serving.ModelService/HandleReloadConfigRequest",
                request_serializer=tfs.ReloadConfigRequest.SerializeToString,
            )
            code, text = refused(change, tfs.ReloadConfigRequest())
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "file_system_poll_wait_seconds" in text
        assert server.models.lanes.count == max(processors() // 2, 1)
    finally:
        server.stop(1)
        server.models.lanes.close()


def test_a_worker_that_dies_is_started_again_and_the_others_go_on(
    process: Process, http: list[str], folder: Path
) -> None:
    """At the same ports, also those of HTTP that were free ones."""
    before = workers_of(process)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: len(now := workers_of(process)) == 2 and before[0] not in now)
    assert before[1] in workers_of(process)
    eventually(lambda: answers(process.address))
    assert picks_at(process.address) == repr(list(Client(repository=folder).pick(record(), model=MODEL)))
    eventually(lambda: all(map(is_reached, http)))


def is_reached(address: str) -> bool:
    """Whether something answers HTTP there."""
    try:
        urllib.request.urlopen(f"http://{address}/healthz", timeout=30).close()
    except urllib.error.URLError:
        return False
    return True


def test_workers_speak_tls_alone(folder: Path, tmp_path: Path) -> None:
    """All of them, over gRPC and HTTP."""
    papers = Papers(tmp_path)
    file = papers.file(tmp_path / "tls", papers.server)
    with Process(str(folder), "--workers", "2", "--ssl_config_file", str(file)) as process:
        assert process.stdout is not None
        http = [process.stdout.readline().split()[-1] for _ in range(2)]
        trusted = ssl.create_default_context(cadata=papers.good)
        for address in http:
            with urllib.request.urlopen(f"https://{address}/readyz", context=trusted, timeout=30) as answer:
                assert answer.status == 200
        access = Access(ca=str(tmp_path / "good.pem"))
        for number in range(16):
            with Client(process.address, access=access) as client:
                assert list(client.pick(record(number), model=MODEL))
        with Client(process.address) as client, pytest.raises(ServerError):
            client.pick(record(), model=MODEL)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_session_survives_the_death_of_every_worker(process: Process, folder: Path) -> None:
    traces = record(3, 60.0)
    expected = repr(list(Client(repository=folder).pick(traces, model=MODEL)))
    with Client(process.address) as client, client.session(model=MODEL) as session:
        for second in range(60):
            session.send([part(trace, 100 * second, 100 * (second + 1)) for trace in traces])
            if second == 30:
                for worker in workers_of(process):
                    os.kill(worker, signal.SIGKILL)
    assert repr(session.new_picks()) == expected


def answers(address: str) -> bool:
    """Whether 32 connections one after the other are all answered."""
    for number in range(32):
        with own_channel(address, 1000 + number) as channel:
            ready = channel.unary_unary(
                "/inference.GRPCInferenceService/ServerReady",
                request_serializer=v2.ServerReadyRequest.SerializeToString,
            )
            try:
                ready(v2.ServerReadyRequest(), timeout=10)
            except grpc.RpcError:
                return False
    return True


def test_workers_end_when_the_process_that_watches_over_them_is_gone(folder: Path) -> None:
    with Process(str(folder), "--workers", "2", "--rest_api_port", "0") as process:
        workers = workers_of(process)
        assert len(workers) == 2
        process.kill()
        process.wait(30)
        eventually(lambda: not any(map(is_there, workers)))


def is_there(process: int) -> bool:
    """Whether a process runs; one that nobody has waited for has no command line any more."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return False


def failed(*options: str) -> tuple[int, str]:
    """The exit code and error of a server that does not begin."""
    command = [sys.executable, "-m", "seisserve", "serve", "--workers", "2", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_a_port_that_is_taken_is_told_of_before_anything_is_loaded(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = failed(str(folder), "--port", str(port))
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in text
    assert "is served from" not in text


def test_models_that_cannot_be_loaded_are_told_of_as_by_one_process(tmp_path: Path) -> None:
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "manifest.json").write_text("{")
    code, text = failed(str(tmp_path), "--port", "0")
    assert code == 1
    assert re.search(r"^seisserve: .*broken", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"grpc_socket_path": "/tmp/s"}, "grpc_socket_path"),
        ({"host": "", "grpc_socket_path": "/tmp/s"}, "host"),
        ({"rest_api_port": 65535}, "rest_api_port"),
        ({"workers": 0}, "workers"),
    ],
)
def test_settings_that_workers_cannot_have_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read({"workers": 2, **flags}, {})


def test_the_last_http_port_may_be_the_highest_there_is() -> None:
    assert read({"workers": 2, "rest_api_port": 65534}, {}).settings.listen.rest_api_port == 65534


def test_other_systems_than_linux_have_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module.sys, "platform", "darwin")
    with pytest.raises(UsageError, match="only Linux"):
        read({"workers": 2}, {})
    assert read({"workers": 1}, {}).settings.operation.workers == 1


@pytest.mark.parametrize("together", [False, True])
def test_calls_are_answered_until_all_workers_have_stopped(folder: Path, together: bool) -> None:
    """Told to stop one by one, by the process that watches, or all at once, as systemd tells every process of a unit.
    After health says NOT_SERVING calls are still taken for drain_delay_s."""
    with Process(str(folder), "--workers", "2", "--rest_api_port", "0", "--drain_delay_s", "15") as process:
        assert answers(process.address)
        told = [process.pid, *(workers_of(process) if together else [])]
        for one in told:
            os.kill(one, signal.SIGTERM)
        time.sleep(1)  # by now the one that watches has told them, again or for the first time
        assert answers(process.address)
        assert process.wait(60) == 0


def test_reading_anew_ends_no_worker_that_is_still_loading(folder: Path) -> None:
    with Process(str(folder), "--workers", "2", "--rest_api_port", "0") as process:
        before = workers_of(process)
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: len(now := workers_of(process)) == 2 and before[0] not in now)
        again = workers_of(process)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            os.kill(process.pid, signal.SIGHUP)
            time.sleep(0.05)
        assert workers_of(process) == again
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0


def test_who_asks_twice_does_not_wait(folder: Path) -> None:
    with Process(str(folder), "--workers", "2", "--rest_api_port", "0", "--drain_delay_s", "300") as process:
        workers = workers_of(process)
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 1
        eventually(lambda: not any(map(is_there, workers)))


def test_a_worker_that_is_killed_before_it_is_ready_ends_the_server_with_the_reason(folder: Path) -> None:
    command = [sys.executable, "-m", "seisserve", "serve", str(folder), "--workers", "2", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: workers_of(process))
        os.kill(workers_of(process)[0], signal.SIGKILL)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "has ended with -9 before it was ready" in log


def test_a_worker_that_never_begins_again_ends_the_server(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(workers_module, "PAUSE_S", 0.0)
    settings = read({"repository": str(folder), "port": 0, "workers": 2, "rest_api_port": 0}, {}).settings
    worker = workers_module._Worker(0, settings)
    try:
        starts = set()
        until = time.monotonic() + 60
        beginning = True
        while beginning and time.monotonic() < until:
            starts.add(worker.process.pid)
            worker.process.kill()
            worker.process.join()
            beginning = worker.look()
        assert not beginning
        assert len(starts) == workers_module.MOST_FAILURES + 1
    finally:
        worker.kill()
