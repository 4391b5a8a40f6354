"""From settings to a server: which models, on what, and the whole of it as a process with TLS, tokens and HTTP."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from client.small_bundles import repository
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving.papers import Papers
from serving.small_models import eventually

from seisserve.bundle import find
from seisserve.errors import BundleError, UsageError
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.runtimes.setup import Backend, Device
from seisserve.tensors import to_array, to_proto
from seisserve_serving.assembly import assemble, batching_of, channel_options, most_calls, setup_of, source_of
from seisserve_serving.calls import Call
from seisserve_serving.configs import ModelConfig
from seisserve_serving.errors import NotReady
from seisserve_serving.lanes import Batching
from seisserve_serving.server import Server
from seisserve_serving.settings import Batch, Compute, Limits, Repository, Settings, read

PREDICT = "/tensorflow.serving.PredictionService/Predict"
TOKEN, NEXT = "operator-0123456789abcdef", "another-0123456789abcdef"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


def settings(**flags: str) -> Settings:
    return read({"port": "0", "rest_api_port": "0", "threads": "1", **flags}, {}).settings


@contextmanager
def assembled(**flags: str) -> Iterator[Server]:
    server = assemble(settings(**flags))
    server.start()
    try:
        yield server
    finally:
        server.stop(grace_s=1)


def predict(channel: grpc.Channel, folder: Path, model: str, token: str | None = None) -> np.ndarray[Any, Any]:
    manifest = find("cred", folder).manifest
    request = wire.PredictRequest(model_spec=wire.ModelSpec(name=model))
    request.inputs[manifest.input.name].CopyFrom(to_proto(np.full((1, 600, 3), 700, np.float32)))
    call = channel.unary_unary(
        PREDICT, request_serializer=wire.PredictRequest.SerializeToString,
        response_deserializer=wire.PredictResponse.FromString,
    )  # fmt: skip
    metadata = None if token is None else [("authorization", f"Bearer {token}")]
    answer = call(request, timeout=30, metadata=metadata)
    return to_array(answer.outputs[manifest.output.name], "output")


def test_a_folder_a_file_and_one_model_are_ways_to_say_what_is_served(folder: Path, tmp_path: Path) -> None:
    with assembled(repository=str(folder)) as server:
        assert set(server.models.served) == {"eqtransformer", "cred", "deepdenoiser", "recovery"}
    config = tmp_path / "models.config"
    config.write_text(f'model_config_list {{ config {{ name: "mine" base_path: "{folder / "cred"}" }} }}')
    with assembled(model_config_file=str(config)) as server:
        assert set(server.models.served) == {"mine"}
    with (
        assembled(model_name="yours", model_base_path=str(folder / "cred")) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert set(server.models.served) == {"yours"}
        assert server.models.repository is not None
        assert server.models.repository.roots == [folder]  # a reload may not name a folder outside
        assert predict(channel, folder, "yours").shape[0] == 1


def test_how_often_is_looked_for_changes() -> None:
    assert source_of(Repository(repository="a", file_system_poll_wait_seconds=3.0)).poll_s == 3.0
    assert source_of(Repository(model_config_file="a", model_config_file_poll_wait_seconds=4.0)).poll_s == 4.0
    assert source_of(Repository(model_config_file="a")).poll_s == 0.0


def test_models_are_loaded_side_by_side_if_asked_to(folder: Path) -> None:
    with assembled(repository=str(folder), num_load_threads="4") as server:
        assert set(server.models.served) == {"eqtransformer", "cred", "deepdenoiser", "recovery"}
        assert not server.models.failed


@pytest.mark.parametrize("ahead", [False, True])
def test_a_label_may_name_a_version_that_is_not_there_only_if_that_is_allowed(folder: Path, ahead: bool) -> None:
    with assembled(repository=str(folder), allow_version_labels_for_unavailable_models=str(ahead)) as server:
        keeper = server.models.repository
        assert keeper is not None
        config = ModelConfig("cred", folder / "cred", labels={"stable": 1, "canary": 2})
        if not ahead:
            with pytest.raises(NotReady, match="'canary' of 'cred': version 2 is not available"):
                keeper.reload([config], Call())
            return
        keeper.reload([config], Call())
        assert server.models.get("cred", label="stable").version == 1
        with pytest.raises(NotReady):
            server.models.get("cred", label="canary")


def test_with_nothing_to_serve_it_says_why(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no model could be loaded"):
        assemble(settings(repository=str(tmp_path)))
    with pytest.raises(UsageError, match="no such folder"):
        assemble(settings(repository=str(tmp_path / "none")))


def test_batching_parameters_come_from_the_file_and_the_mode_from_the_setting(tmp_path: Path) -> None:
    file = tmp_path / "batching"
    file.write_text("max_batch_size { value: 8 } batch_timeout_micros { value: 500 }")
    assert batching_of(Batch()) == Batching()
    assert batching_of(Batch(batching_parameters_file=str(file), batch_mode="fixed")) == Batching(
        max_batch_size=8, batch_timeout_micros=500, mode="fixed"
    )
    assert batching_of(Batch(enable_batching=False)) == Batching(max_batch_size=1)


@pytest.mark.parametrize("mode", ["exact", "fixed"])
def test_the_batch_mode_holds_for_models_with_parameters_of_their_own(tmp_path: Path, mode: str) -> None:
    """A batch of one window is filled up to the three of the model's own file in fixed mode, and only then."""
    own = repository(tmp_path) / "cred" / "1"
    (own / "batching_params.pbtxt").write_text("max_batch_size { value: 3 } max_enqueued_batches { value: 5 }")
    flags = {"repository": str(tmp_path), "enable_per_model_batching_parameters": "true", "batch_mode": mode}
    with assembled(rest_api_port="-1", **flags) as server, grpc.insecure_channel(server.address) as channel:
        batching = {name: server.models.get(name).queue.batching for name in ("cred", "eqtransformer")}
        assert batching["cred"] == Batching(max_batch_size=3, max_enqueued_batches=5, mode=mode)
        assert batching["eqtransformer"] == Batching(mode=mode)
        predict(channel, tmp_path, "cred")

        def metrics() -> str:
            with urllib.request.urlopen(f"http://{server.beside[0].address}/metrics", timeout=30) as answer:
                return str(answer.read().decode())

        padding = f'seisserve_batch_padding_windows_sum{{model="cred"}} {2 if mode == "fixed" else 0}.0'
        eventually(lambda: padding in metrics())  # counted after the answer


def test_a_model_runs_as_the_settings_say(folder: Path) -> None:
    found = find("cred", folder)
    setup = setup_of(Compute(device_id=1, gpu_mem_limit_mb=512, cudnn_conv_algo_search="DEFAULT", threads=3), 3)(found)
    assert (setup.device, setup.backend, setup.lanes) == (Device(1, 512, "DEFAULT", False), None, 3)
    assert setup_of(Compute(provider=("cuda", "cpu")), 3)(found).providers == ("cuda", "cpu")
    assert setup_of(Compute(allow_spinning=True), 3)(found).device.allow_spinning
    there = setup_of(Compute(remote_backend="a:1", remote_backend_timeout_s=2.0), 3)(found)
    assert there.backend == Backend("a:1", 2.0)


def test_a_backend_computes_for_the_whole_server(folder: Path) -> None:
    with (
        assembled(repository=str(folder)) as backend,
        assembled(repository=str(folder), remote_backend=backend.address) as server,
        grpc.insecure_channel(backend.address) as there,
        grpc.insecure_channel(server.address) as here,
    ):
        np.testing.assert_array_equal(predict(here, folder, "cred"), predict(there, folder, "cred"))


def test_limits_of_the_channel_follow_the_settings() -> None:
    options = dict(channel_options(Limits(grpc_max_connection_idle_s=1.5, grpc_keepalive_s=0)))
    assert options["grpc.max_connection_idle_ms"] == 1500
    assert options["grpc.keepalive_time_ms"] == options["grpc.max_connection_age_ms"] == 2**31 - 1  # never
    assert most_calls(Limits(max_calls=5)) == 5
    assert most_calls(Limits()) >= 32


def test_calls_beyond_the_most_are_refused_at_once_with_pushback(folder: Path) -> None:
    with assembled(repository=str(folder), max_calls="1") as server, grpc.insecure_channel(server.address) as channel:
        stream = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        go_on = threading.Event()

        def questions() -> Iterator[bytes]:
            yield b""
            go_on.wait(30)

        held = stream(questions(), timeout=30)
        next(held)  # it is inside
        with pytest.raises(grpc.RpcError) as caught:
            predict(channel, folder, "cred")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
        go_on.set()
        assert list(held) == []
        assert predict(channel, folder, "cred").shape[0] == 1


def test_health_turns_when_a_model_goes_and_when_a_thread_has_died(folder: Path) -> None:
    flags = {"file_system_poll_wait_seconds": "0"}  # else the model would come again
    with assembled(repository=str(folder), **flags) as server, grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def status(name: str) -> Any:
            return health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30).status

        assert (status(""), status("cred"), status("recovery")) == (1, 1, 1)
        server.models.withdraw("cred", 1)
        assert (status(""), status("cred"), status("recovery")) == (1, 2, 1)
        server.models.lanes.close()
        server.update()
        assert (status(""), status("cred"), status("recovery")) == (2, 2, 2)


def test_the_whole_as_a_process(folder: Path, papers: Papers, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f"[[token]]\nname = 'operator'\ntoken = '{TOKEN}'\n")
    tokens.chmod(0o600)
    certificates = papers.file(tmp_path / "ssl", papers.server)
    config = tmp_path / "seisserve.toml"
    config.write_text(
        f"[repository]\nrepository = '{folder}'\n[listen]\nport = 0\nssl_config_file = '{certificates}'\n"
        f"[security]\ntokens_file = '{tokens}'\n[operation]\nlog_format = 'json'\n[compute]\nthreads = 1\nnice = 1\n"
    )
    command = [sys.executable, "-m", "seisserve", "serve", "--config", str(config), "-v"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address, http = (process.stdout.readline().strip().rpartition(" ")[2] for _ in range(2))
            client = ssl.create_default_context(cadata=papers.good)

            def get(path: str, token: str | None) -> int:
                header = {} if token is None else {"Authorization": f"Bearer {token}"}
                request = urllib.request.Request(f"https://{http}{path}", headers=header)
                try:
                    with urllib.request.urlopen(request, timeout=30, context=client) as answer:
                        return int(answer.status)
                except urllib.error.HTTPError as error:
                    with error:
                        return error.code

            credentials = grpc.ssl_channel_credentials(papers.good.encode())
            with grpc.secure_channel(address, credentials) as channel:
                grpc.channel_ready_future(channel).result(timeout=60)
                assert predict(channel, folder, "cred", TOKEN).shape[0] == 1
                with pytest.raises(grpc.RpcError) as caught:
                    predict(channel, folder, "cred")
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert get("/v1/models/cred", TOKEN) == 200
                assert get("/v1/models/cred", None) == 401
                assert get("/metrics", TOKEN) == 200
                assert get("/healthz", None) == 200
                tokens.write_text(f"[[token]]\nname = 'operator'\ntoken = '{NEXT}'\n")
                process.send_signal(signal.SIGHUP)
                end = time.monotonic() + 30
                while get("/v1/models/cred", NEXT) != 200:
                    assert time.monotonic() < end
                    time.sleep(0.05)
                assert get("/v1/models/cred", TOKEN) == 401
            process.terminate()
            _, log = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                process.kill()
    assert process.returncode == 0, log
    lines = [json.loads(line) for line in log.splitlines()]
    calls = [line for line in lines if line["message"] == "call"]
    assert {"OK", "UNAUTHENTICATED"} <= {line["code"] for line in calls}
    (predicted,) = [line for line in calls if line["method"] == PREDICT and line["code"] == "OK"]
    assert predicted["user"] == "operator"
    assert predicted["model"] == "cred"
    assert {"decode_s", "compute_s", "encode_s"} <= set(predicted)
    assert TOKEN not in log
    assert NEXT not in log


@pytest.mark.parametrize(
    ("flags", "code", "reason"),
    [
        (["--tokens_file", "none.toml"], 2, "none.toml: cannot be read"),
        (["--ssl_config_file", "none"], 2, "none: cannot be read"),
        (["--otlp_endpoint", "here"], 2, "must begin with http"),
        (["--cpu_affinity", "all"], 2, "cpu_affinity is 'all'"),
        (["--grpc_socket_path", "/no/such/folder/socket"], 2, "cannot listen on /no/such/folder/socket"),
        (["none"], 2, "none is not a model repository"),
    ],
)
def test_what_cannot_be_is_one_line_and_an_exit_code(flags: list[str], code: int, reason: str, folder: Path) -> None:
    where = [] if flags == ["none"] else [str(folder)]
    command = [sys.executable, "-m", "seisserve", "serve", "--port", "0", *where, *flags]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert told.returncode == code
    assert reason in told.stderr
    assert "Traceback" not in told.stderr
