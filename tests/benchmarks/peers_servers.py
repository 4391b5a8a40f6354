"""What other model servers carry on loopback, beside ours: the same ONNX file, the same calls, in the same run.

    python tests/benchmarks/peers_servers.py [--environments .venv-peers] [--seconds 5] [--rounds 3]

Run with `make bench-peer-servers`. Each server has an environment of its own in that folder, which this script makes at
the versions below (`peer_servers/serve_NAME.py` is what runs there), onnxruntime in float32 at our version, one thread
a session, as many sessions as INSTANCES says, and dynamic batching where it has it. gRPC's V2 protocol with raw
contents, HTTP where a server has nothing else. Rounds alternate between servers; each is started for its round and
alone on the computer, and its answers must equal ours. Memory is that of all its processes after the load, pages that
they share counted once. Medians and ranges are printed; a server that cannot be installed or does not answer is in the
table with the reason. Linux only.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from peer_servers.callers import Plan
from server_load import CASES, Bare

from seisserve.bundle import Bundle, find, golden
from seisserve.runtime import processors
from seisserve.runtimes.setup import processor

HERE = Path(__file__).parent / "peer_servers"
NAME = "network"
INSTANCES = 2
MOST = 64  # windows of a call and of a batch
TOLERANCE = 1e-5
START_S = 120
STOP_S = 20
ONNXRUNTIME = f"onnxruntime=={version('onnxruntime')}"


class Server(NamedTuple):
    """A way to serve the file. environment: folder of its Python; empty: this one. requirements: the first one is the
    server itself."""

    title: str
    environment: str
    script: str
    protocol: str = "grpc"
    requirements: tuple[str, ...] = ()


class Failed(Exception):
    """A server that cannot be measured, with the reason in one line."""


OURS = Server("seisserve", "", "")
PEERS = {
    "triton": Server("Triton, Python backend", "pytriton", "serve_triton.py", "grpc", ("nvidia-pytriton==0.7.0",)),
    "pytriton": Server("PyTriton", "pytriton", "serve_pytriton.py", "grpc", ("nvidia-pytriton==0.7.0",)),
    "kserve": Server("KServe Python", "kserve", "serve_kserve.py", "grpc", ("kserve==0.21.0",)),
    # its worker processes do not start with the event loop of a later uvloop
    "mlserver": Server("MLServer", "mlserver", "serve_mlserver.py", "grpc", ("mlserver==1.7.1", "uvloop<0.22")),
    "bentoml": Server("BentoML (HTTP, raw)", "bentoml", "serve_bentoml.py", "http", ("bentoml==1.4.39",)),
}


def prepared(server: Server, environments: Path) -> Path:
    """The Python of the server's environment, which is made if it is not there or was made for other versions."""
    folder = environments / server.environment
    python, done, wanted = folder / "bin" / "python", folder / ".done", "\n".join([*server.requirements, ONNXRUNTIME])
    if not done.exists() or done.read_text() != wanted:
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", *wanted.splitlines()],
        ):
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode:
                raise Failed(f"not installed: {reason(ended.stderr)}")
        done.write_text(wanted)
    return python


def reason(said: str) -> str:
    """The last line that names an error, else the last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1][:160].replace("|", "/")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Running:
    """A server, with a folder of its own for what it keeps."""

    def __init__(self, server: Server, python: Path, onnx: Path, folder: Path) -> None:
        self.server, self.port = server, free_port()
        told = {"ONNX": str(onnx), "NAME": NAME, "PORT": str(self.port), "INSTANCES": str(INSTANCES), "MOST": str(MOST)}
        # what they keep goes to the folder, and BentoML tells nobody that it ran
        kept = {"TMPDIR": str(folder), "PYTRITON_HOME": str(folder), "BENTOML_HOME": str(folder)}
        quiet = {"BENTOML_DO_NOT_TRACK": "true", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [str(python), server.script]
        if server is OURS:
            command = [str(python), "-m", "seisserve", "serve", "--model_name", NAME, "--model_base_path",
                       str(onnx.parents[1]), "--port", str(self.port), "--rest_api_port", "0", "--threads",
                       str(INSTANCES), "--runtime", "onnxruntime", "--precision", "float32"]  # fmt: skip
        self._log, self._mark = folder / "log", f"TMPDIR={folder}".encode()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=HERE, env={**os.environ, **told, **kept, **quiet}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip

    def measured(self, plan: Plan) -> dict[str, Any]:
        """What the callers say."""
        command = [sys.executable, str(HERE / "callers.py"), json.dumps(asdict(plan))]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise Failed(reason(ended.stderr))
        found: dict[str, Any] = json.loads(ended.stdout)
        return found

    def wait(self, plan: Plan) -> None:
        """Until it answers the plan, and as we do."""
        end = time.monotonic() + START_S
        while True:
            try:
                self.measured(plan)
                return
            except Failed as failed:
                if "differ" in str(failed):
                    raise
                if self._process.poll() is not None:
                    said = self._log.read_text(errors="replace")
                    raise Failed(f"ended at its start: {reason(said)}") from failed
                if time.monotonic() > end:
                    raise Failed(f"no answer within {START_S} s: {failed}") from failed
                time.sleep(0.5)

    def memory_mb(self) -> float:
        """Of all its processes, in MB of 2**20 bytes."""
        total = 0
        for process in self._processes():
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += int(text.partition("\nPss:")[2].split()[0])
        return total / 1024

    def _processes(self) -> list[int]:
        """Those that it started, and those that these started: all have its folder in their environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(PermissionError, FileNotFoundError, ProcessLookupError):  # of others, or it has just ended
                if self._mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def stop(self) -> None:
        """Asked first; what is left after that is ended."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_S
        while self._processes() and time.monotonic() < end:
            self._process.poll()
            time.sleep(0.1)
        for process in self._processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()


@contextmanager
def running(server: Server, python: Path, onnx: Path) -> Iterator[Running]:
    """A server, stopped at the end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = Running(server, python, onnx, Path(folder))
        try:
            yield found
        finally:
            found.stop()


def examples(bundle: Bundle, folder: Path) -> str:
    """A file of golden windows and what the bare network makes of them."""
    windows, _ = golden(bundle.folder)
    windows = np.resize(windows, (MOST, *windows.shape[1:]))
    outputs = Bare(bundle, "float32").sessions[0].predict(bundle.manifest, {bundle.manifest.input.name: windows})
    path = folder / "examples.npz"
    np.savez(path, inputs=windows, outputs=outputs[bundle.manifest.output.name])
    return str(path)


def spread(values: list[float], digits: int = 0) -> str:
    """Median (smallest to largest)."""
    middle, least, largest = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least} to {largest})" if len(values) > 1 else middle


def row(server: Server, found: dict[str, list[float]]) -> str:
    """A line of the table."""
    cells = [f"{spread(found['1 caller p50'], 2)} / {spread(found['1 caller p99'], 2)}"]
    cells += [spread(found[f"{case} rate"]) for case in CASES if case != "1 caller"]
    return f"| {server.title} | {' | '.join(cells)} | {spread(found['memory'])} |"


def versions(servers: dict[str, Server], pythons: dict[str, Path]) -> str:
    """Of the servers that are installed."""
    found = {"seisserve": version("seisserve"), "onnxruntime": version("onnxruntime")}
    for name, python in pythons.items():
        package = servers[name].requirements[0].partition("==")[0]
        code = f"from importlib.metadata import version; print(version({package!r}))"
        found[package] = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return ", ".join(f"{package} {number}" for package, number in found.items())


@click.command()
@click.option("--model", default="phasenet", show_default=True)
@click.option("--environments", type=click.Path(path_type=Path), default=Path(".venv-peers"), show_default=True)
@click.option("--seconds", default=5.0, show_default=True, help="Of each case in each round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(PEERS)), help="These servers beside ours.")
def main(model: str, environments: Path, seconds: float, rounds: int, only: tuple[str, ...]) -> None:
    """Print a table."""
    bundle = find(model)
    _, onnx = bundle.artifact("onnx", "float32")
    onnx = onnx.resolve()
    peers = {name: PEERS[name] for name in only or PEERS}
    pythons: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for name, server in peers.items():
        click.echo(f"environment of {server.title}", err=True)
        try:
            pythons[name] = prepared(server, environments.absolute())
        except Failed as why:
            failed[name] = str(why)
    bare, rates = Bare(bundle, "float32"), []
    measured: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        path = examples(bundle, Path(folder))
        for number in range(rounds):
            rates.append(bare.rate(seconds))
            for name, server in {"seisserve": OURS, **peers}.items():
                if name in failed:
                    continue
                click.echo(f"round {number + 1} of {rounds}: {server.title}", err=True)
                try:
                    with running(server, pythons.get(name, Path(sys.executable)), onnx) as one:
                        found = measured[name]
                        plan = {"protocol": server.protocol, "port": one.port, "name": NAME, "examples": path,
                                "input": bundle.manifest.input.name, "tolerance": TOLERANCE}  # fmt: skip
                        one.wait(Plan(**plan, callers=INSTANCES, windows=MOST, seconds=0.5))
                        for case, (callers, windows) in CASES.items():
                            said = one.measured(Plan(**plan, callers=callers, windows=windows, seconds=seconds))
                            for key in ("rate", "p50", "p99", "worst"):
                                found[f"{case} {key}"].append(said[key])
                        found["memory"].append(one.memory_mb())
                except Failed as why:
                    failed[name] = str(why)
    if "seisserve" in failed:
        raise click.ClickException(f"our own server: {failed['seisserve']}")
    worst = max(
        max(values) for found in measured.values() for key, values in found.items() if key.endswith("worst")
    )  # fmt: skip
    click.echo(f"{processor()}, {processors()} processors; {model}, float32, {INSTANCES} sessions of one thread; "
               f"{versions(peers, pythons)}. {rounds} rounds of {seconds:g} s: medians (smallest to largest). "
               f"Answers differ by at most {worst:.1g}.\n"
               f"Bare sessions side by side, {bare.size} windows a call: {spread(rates)} windows/s\n")  # fmt: skip
    click.echo("| server | 1 caller, p50 / p99 ms | 8 callers, windows/s | 32 callers, windows/s "
               "| 2 callers of 64 windows, windows/s | resident MB |\n|" + " --- |" * 6)  # fmt: skip
    for name, server in {"seisserve": OURS, **peers}.items():
        if name in failed:
            click.echo(f"| {server.title} | {failed[name]} | | | | |")
        else:
            click.echo(row(server, measured[name]))


if __name__ == "__main__":
    main()
