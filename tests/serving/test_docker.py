"""docker/: what can be shown of the images without building them. Nothing here needs Docker."""

from __future__ import annotations

import fnmatch
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
import venv
import zipfile
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from ruamel.yaml import YAML
from tensorflow_serving.config import model_server_config_pb2

from seisserve_serving.metrics import PATHS
from seisserve_serving.server import Server
from seisserve_serving.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
HEALTHCHECK = DOCKER / "healthcheck.py"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

Instructions = list[tuple[str, str]]


def instructions(path: Path) -> list[Instructions]:
    """The stages of a Dockerfile, each its instructions in order; what precedes the first FROM comes first."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    stages: list[Instructions] = [[]]
    for line in re.sub(r"\\\n", " ", text).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            stages.append([])
        if name:
            stages[-1].append((name, rest.strip()))
    return stages


BEFORE, BUILD, FINAL = instructions(DOCKER / "cpu.Dockerfile")
GPU_BEFORE, GPU_BUILD, GPU_FINAL = instructions(DOCKER / "gpu.Dockerfile")
both = pytest.mark.parametrize("final", [FINAL, GPU_FINAL], ids=["cpu", "gpu"])
LISTEN, GRACE_S = Settings().listen, Settings().operation.grace_s


def values(stage: Instructions, name: str) -> list[str]:
    return [rest for found, rest in stage if found == name]


def ignored(path: str) -> bool:
    """As Docker reads .dockerignore: the last pattern that the path or a folder above it matches decides."""
    parts = Path(path).parts
    prefixes = ["/".join(parts[: k + 1]) for k in range(len(parts))]
    outside = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        candidates = [name for name in prefixes if name.count("/") == pattern.count("/")]
        if pattern.startswith("**/"):
            candidates, pattern = list(parts), pattern.removeprefix("**/")
        if any(fnmatch.fnmatchcase(name, pattern) for name in candidates):
            outside = not line.startswith("!")
    return outside


def environment(stage: Instructions) -> dict[str, str]:
    return dict(word.split("=", 1) for rest in values(stage, "ENV") for word in shlex.split(rest))


def copied(stage: Instructions) -> list[tuple[str, str]]:
    """(source, target) of each COPY from the checkout, and of each file of it that a RUN mounts."""
    pairs = []
    for rest in values(stage, "COPY"):
        *sources, target = rest.split()
        pairs += [(source, target) for source in sources]
    for rest in values(stage, "RUN"):
        for mount in re.findall(r"--mount=(\S+)", rest):
            options = dict(option.split("=") for option in mount.split(","))
            if "from" not in options:
                pairs.append((options["source"], options["target"]))
    return pairs


# The Dockerfile


def test_hadolint_finds_nothing() -> None:
    ended = subprocess.run(
        [BIN / "hadolint", "--no-color", *sorted(DOCKER.glob("*.Dockerfile"))],
        capture_output=True, text=True, timeout=60, check=False, cwd=DOCKER,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_base_image_is_an_argument_with_a_version() -> None:
    assert [name for name, _ in BEFORE] == ["ARG"]
    found = re.fullmatch(r"BASE_IMAGE=python:(\d+\.\d+)-slim", BEFORE[0][1])
    assert found
    assert f"Programming Language :: Python :: {found[1]}" in PROJECT["classifiers"]
    assert [values(stage, "FROM")[0].split(" AS ")[0] for stage in (BUILD, FINAL)] == ["${BASE_IMAGE}"] * 2


def test_the_gpu_image_is_built_alike_on_a_base_with_cuda_and_cudnn() -> None:
    assert [(name, rest.replace("BASE_IMAGE", "BUILD_IMAGE")) for name, rest in BUILD] == GPU_BUILD
    arguments = dict(rest.split("=", 1) for name, rest in GPU_BEFORE if name == "ARG")
    assert arguments.keys() == {"BUILD_IMAGE", "BASE_IMAGE"}
    assert arguments["BUILD_IMAGE"] == BEFORE[0][1].removeprefix("BASE_IMAGE=")
    found = re.fullmatch(r"nvidia/cuda:(\d+)\.\d+\.\d+-cudnn-runtime-ubuntu24\.04", arguments["BASE_IMAGE"])
    assert found and int(found[1]) == 13  # as the metadata of onnxruntime-gpu 1.31 have it
    assert values(GPU_FINAL, "FROM") == ["${BASE_IMAGE}"]
    assert json.loads(values(GPU_FINAL, "ENTRYPOINT")[0]) == [
        *json.loads(values(FINAL, "ENTRYPOINT")[0]), "--provider", "cuda",
    ]  # fmt: skip


@both
def test_the_user_is_a_number_and_not_root(final: Instructions) -> None:
    (user,) = values(final, "USER")
    uid, gid = map(int, user.split(":"))
    assert uid >= 10000 and gid >= 10000
    assert any(
        f"useradd --no-log-init --no-create-home --uid {uid} --gid {gid} " in run for run in values(final, "RUN")
    )
    after = final[final.index(("USER", user)) + 1 :]
    assert not {name for name, _ in after} & {"RUN", "COPY", "ADD"}


@both
def test_signals_reach_the_server_and_its_output_is_not_held_back(final: Instructions) -> None:
    """The exec form: no shell between Docker and the process."""
    assert all(isinstance(word, str) for word in json.loads(values(final, "ENTRYPOINT")[0]))
    assert json.loads(values(final, "CMD")[0]) == []
    assert environment(final)["PYTHONUNBUFFERED"] == "1"


@both
def test_onnxruntime_reports_to_nobody(final: Instructions) -> None:
    assert environment(final)["ORT_DISABLE_TELEMETRY"] == "1"


@both
def test_the_ports_are_those_of_the_server_and_of_the_health_check(final: Instructions) -> None:
    assert values(final, "EXPOSE") == [f"{LISTEN.port} {LISTEN.rest_api_port}"]
    *options, command = re.split(r"\s+(?=CMD )", values(final, "HEALTHCHECK")[0])
    assert options
    python, script, address = json.loads(command.removeprefix("CMD "))
    assert (python, address) == ("python", f"127.0.0.1:{LISTEN.port}")
    assert ("docker/healthcheck.py", script) in copied(final)


@pytest.mark.parametrize("source", [source for stage in (BUILD, GPU_FINAL) for source, _ in copied(stage)])
def test_what_is_copied_is_in_the_checkout_and_in_the_context(source: str) -> None:
    assert (ROOT / source).exists()
    assert not ignored(source)


@pytest.mark.parametrize(
    "path",
    [
        ".git/config", ".venv/bin/python", ".hypothesis/x", ".mypy_cache/x", "runs/phasenet/x", "tests/serving/x.py",
        "docs/server.md", "docker/compose.yaml", "configs/phasenet.toml", "dist/x.whl", "secret.env",
        "client/seisserve/__pycache__/x.pyc", "client/seisserve.egg-info/PKG-INFO",
    ],
)  # fmt: skip
def test_what_no_image_needs_stays_outside(path: str) -> None:
    assert ignored(path)


@pytest.mark.parametrize(
    ("final", "has", "has_not"),
    [(FINAL, "onnxruntime", "onnxruntime-gpu"), (GPU_FINAL, "onnxruntime-gpu", "onnxruntime")],
    ids=["cpu", "gpu"],
)
def test_the_image_gets_the_server_and_no_training_framework(final: Instructions, has: str, has_not: str) -> None:
    """Nor both builds of onnxruntime: they are one package under two names, and the later would lie over the other."""
    (install,) = [run for run in values(final, "RUN") if "pip install" in run]
    assert "--no-cache-dir --constraint /constraints.txt" in install
    (extra,) = re.findall(r'"\$1\[([\w-]+)\]"', install)
    todo, requirements = [extra], list(PROJECT["dependencies"])
    while todo:
        for line in PROJECT["optional-dependencies"][todo.pop()]:
            own = re.fullmatch(r"seisserve\[(.+)\]", line)
            todo += own[1].split(",") if own else []
            requirements += [] if own else [line]
    names = {re.split(r"[^\w-]", line)[0] for line in requirements}
    assert {has, "obspy", "grpcio-health-checking", "grpcio-reflection", "prometheus-client", "starlette"} <= names
    assert not names & {has_not, "tensorflow", "torch", "keras", "tf2onnx"}


def test_the_wheel_comes_out_of_exactly_what_the_build_stage_copies(tmp_path: Path) -> None:
    """The stage's own commands, in an environment of their own and a folder with nothing but what was copied."""
    python, context, wheels = tmp_path / "python", tmp_path / "build", tmp_path / "wheels"
    venv.create(python, with_pip=True)
    context.mkdir()

    def leave_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if ignored(str((Path(folder) / name).relative_to(ROOT)))]

    variables = {**os.environ, **environment(BUILD), "PATH": f"{python / 'bin'}:{os.environ['PATH']}"}
    for name, rest in BUILD:
        if name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, context / target, ignore=leave_out)
                else:
                    shutil.copy(ROOT / source, context / target)
        elif name == "RUN":
            ended = subprocess.run(
                ["/bin/sh", "-c", rest.replace(" /wheels ", f" {wheels} ")],
                cwd=context, env=variables, capture_output=True, text=True, timeout=280, check=False,
            )  # fmt: skip
            assert ended.returncode == 0, ended.stdout + ended.stderr
    (wheel,) = wheels.iterdir()  # what the final stage mounts, by this name
    assert fnmatch.fnmatch(wheel.name, "seisserve-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    here = [path for folder in ("client", "serving", "export", "training") for path in (ROOT / folder).rglob("*.py")]
    assert {"/".join(path.relative_to(ROOT).parts[1:]) for path in here} <= names
    for path in (ROOT / "models").glob("*/*/*.onnx"):
        assert f"seisserve/{path.relative_to(ROOT)}" in names


# The command line and the health check, for real


def ask(*arguments: str) -> tuple[int, str]:
    """Exit code and complaint of the health check."""
    ended = subprocess.run(
        [sys.executable, HEALTHCHECK, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert not ended.stdout
    return ended.returncode, ended.stderr.strip()


def test_the_containers_command_serves_is_healthy_and_stops(tmp_path: Path) -> None:
    command = json.loads(values(FINAL, "ENTRYPOINT")[0]) + json.loads(values(FINAL, "CMD")[0])
    assert Path(command[0]).name == command[0]
    with subprocess.Popen(
        [BIN / command[0], *command[1:], "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, **environment(FINAL), "HOME": "/dev/null"},  # its user has no home
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            found = re.search(r"serving .*phasenet.* on 0\.0\.0\.0:(\d+)$", process.stdout.readline().strip())
            assert found
            address = f"127.0.0.1:{found[1]}"
            assert ask(address) == (0, "")
            assert ask(address, "phasenet") == (0, "")
            code, complaint = ask(address, "no_such_model")
            assert code == 1
            assert "NOT_FOUND" in complaint
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert "telemetry" not in log  # onnxruntime warns if it is on and has no home to keep its identifier in
    code, complaint = ask(address)
    assert code == 1
    assert complaint.count("\n") == 0 and "UNAVAILABLE" in complaint


def test_the_health_check_asks_past_a_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert ask(server.address) == (0, "")


def test_a_server_that_does_not_serve_is_not_healthy() -> None:
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    started = grpc.server(futures.ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, started)
    address = f"127.0.0.1:{started.add_insecure_port('127.0.0.1:0')}"
    started.start()
    assert ask(address) == (1, f"{address}: NOT_SERVING")
    started.stop(None).wait(30)


# The compose file


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(YAML(typ="safe", pure=True).load(DOCKER / "compose.yaml")["services"])


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """Path in the container -> path in the checkout; all of them are mounted to be read only. Volumes that Docker
    keeps are left out."""
    parts = [volume.split(":") for volume in service["volumes"] if volume[0] == "."]
    assert [mode for *_, mode in parts] == ["ro"] * len(parts)
    return {target: (DOCKER / source).resolve() for source, target, _ in parts}


def test_the_compose_file_keeps_to_its_schema(tmp_path: Path) -> None:
    def check(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", path]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    ended = check(DOCKER / "compose.yaml")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DOCKER / "compose.yaml").read_text().replace("mem_limit:", "memory_limit:"))
    assert check(wrong).returncode == 1


def test_ports_are_open_to_this_machine_only_and_none_twice(services: dict[str, Any]) -> None:
    ports = [port.rsplit(":", 1) for service in services.values() for port in service["ports"]]
    outside = [host for host, _ in ports]
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", host) for host in outside)
    assert len(set(outside)) == len(outside)
    assert services["seisserve"]["ports"] == [
        f"127.0.0.1:{port}:{port}" for port in (LISTEN.port, LISTEN.rest_api_port)
    ]


def test_what_is_built_and_mounted_is_in_the_checkout(services: dict[str, Any]) -> None:
    build = services["seisserve"]["build"]
    assert (DOCKER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    assert mounts(services["seisserve"]) == {services["seisserve"]["command"][0]: ROOT / "models"}
    assert mounts(services["tensorflow-serving"]) == {
        "/models": ROOT / "models",
        "/config/models.config": DOCKER / "models.config",
        "/config/monitoring.config": DOCKER / "monitoring.config",
    }
    for service in services.values():
        assert all(path.exists() for path in mounts(service).values())


def test_every_service_is_restarted_checked_and_bounded(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["restart"] == "unless-stopped"
        assert service["mem_limit"]
        assert service["init"] is True
        assert ("healthcheck" in service) == (name != "seisserve")  # that one's is in its image
    assert int(services["seisserve"]["stop_grace_period"].removesuffix("s")) > GRACE_S


def test_tensorflow_serving_is_a_stated_version_that_reads_the_list(services: dict[str, Any]) -> None:
    service = services["tensorflow-serving"]
    assert re.fullmatch(r"\$\{TF_SERVING_IMAGE:-tensorflow/serving:\d+\.\d+\.\d+\}", service["image"])
    flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in service["command"])
    assert flags.keys() == {"model_config_file", "monitoring_config_file", "enable_serialization_as_tensor_content"}
    assert flags["model_config_file"] in mounts(service)
    assert flags["monitoring_config_file"] in mounts(service)


def test_prometheus_asks_both_where_they_answer(services: dict[str, Any]) -> None:
    service = services["prometheus"]
    assert re.fullmatch(r"\$\{PROMETHEUS_IMAGE:-prom/prometheus:v\d+\.\d+\.\d+\}", service["image"])
    flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in service["command"])
    there = mounts(service)
    assert there[flags["config.file"]] == DOCKER / "prometheus.yaml"
    asked = YAML(typ="safe", pure=True).load(DOCKER / "prometheus.yaml")
    beside = Path(flags["config.file"]).parent
    assert [there[str(beside / name)] for name in asked["rule_files"]] == [DOCKER / "alerts.yaml"]
    jobs = {job["job_name"]: job for job in asked["scrape_configs"]}
    assert {name: job["static_configs"][0]["targets"] for name, job in jobs.items()} == {
        "seisserve": [f"seisserve:{LISTEN.rest_api_port}"],
        "tensorflow-serving": ["tensorflow-serving:8501"],
    }
    assert {job["metrics_path"] for job in jobs.values()} == set(PATHS)
    assert f'path: "{jobs["tensorflow-serving"]["metrics_path"]}"' in (DOCKER / "monitoring.config").read_text()


def test_the_list_names_every_model_that_tensorflow_serving_can_serve(services: dict[str, Any]) -> None:
    """Read with TensorFlow Serving's own message."""
    text = (DOCKER / "models.config").read_text()
    found = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    folders = {path.parents[1].name for path in (ROOT / "models").glob("*/*/saved_model.pb")}
    assert {model.name: model.base_path for model in found} == {name: f"/models/{name}" for name in folders}
    assert {model.model_platform for model in found} == {"tensorflow"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="the image has bash, this machine has not")
@pytest.mark.parametrize(("state", "healthy"), [("AVAILABLE", True), ("LOADING", False), (None, False)])
def test_the_health_check_of_tensorflow_serving_tells_its_states(
    services: dict[str, Any], state: str | None, healthy: bool
) -> None:
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        """Answers as TensorFlow Serving does to /v1/models/NAME."""

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if state else 404)
            self.end_headers()
            status = {"version": "1", "state": state, "status": {"error_code": "OK", "error_message": ""}}
            answer = {"model_version_status": [status]} if state else {"error": "Could not find any versions of model"}
            self.wfile.write(json.dumps(answer, indent=1).encode())

        def log_message(self, *ignored: Any) -> None:
            pass

    kind, *command = services["tensorflow-serving"]["healthcheck"]["test"]
    assert kind == "CMD"
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as stand_in:
        thread = threading.Thread(target=stand_in.serve_forever)
        thread.start()
        command = [word.replace("/8501", f"/{stand_in.server_port}") for word in command]
        ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
        stand_in.shutdown()
        thread.join()
    assert (ended.returncode == 0) is healthy, ended.stderr
    assert asked == ["/v1/models/phasenet"]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode  # nothing listens now
