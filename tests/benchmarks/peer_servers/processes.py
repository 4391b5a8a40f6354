"""The servers of `peers_servers.py` as processes: their environments, start, memory, stop. Linux only."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peer_servers.callers import Plan

from seisserve.runtime import processors

HERE = Path(__file__).parent
NAME = "network"
INSTANCES = 2
MOST = 64  # windows of a call and of a batch
START_S = 120
STOP_S = 20


@dataclass(frozen=True)
class Server:
    """A way to serve the file.

    computes: in words. script: in this folder; empty for `seisserve serve`. protocols: as in `Plan`. requirements: of
    its environment, the server itself first. environment: the folder of that; empty for this Python. options and
    precision: of `seisserve serve`.
    """

    title: str
    computes: str
    script: str = ""
    protocols: tuple[str, ...] = ("V2",)
    requirements: tuple[str, ...] = ()
    environment: str = ""
    options: tuple[str, ...] = ()
    precision: str = "float32"


class Failed(Exception):
    """A server that cannot be measured, with the reason in one line."""


def prepared(server: Server, environments: Path, common: str) -> Path:
    """The Python of the server's environment, which is made if it is not there or was made for other versions.

    common: the requirement of them all. Raises Failed.
    """
    if not server.environment:
        for module in server.requirements:
            if importlib.util.find_spec(module) is None:
                raise Failed(f"{module} is not installed beside seisserve")
        return Path(sys.executable)
    folder = environments / server.environment
    python, done, wanted = folder / "bin" / "python", folder / ".done", "\n".join([*server.requirements, common])
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
    """One that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Running:
    """A server, with a folder of its own for what it keeps. others: the share of all processors that went to others
    while it was measured last."""

    others = 0.0

    def __init__(self, server: Server, python: Path, onnx: Path, folder: Path) -> None:
        self.server, self.port = server, free_port()
        told = {"ONNX": str(onnx), "NAME": NAME, "PORT": str(self.port), "INSTANCES": str(INSTANCES), "MOST": str(MOST)}
        # what they keep goes to the folder, and BentoML tells nobody that it ran
        kept = {"TMPDIR": str(folder), "PYTRITON_HOME": str(folder), "BENTOML_HOME": str(folder)}
        quiet = {"BENTOML_DO_NOT_TRACK": "true", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [str(python), server.script]
        if not server.script:
            command = [str(python), "-m", "seisserve", "serve", "--model_name", NAME, "--model_base_path",
                       str(onnx.parents[1]), "--port", str(self.port), "--rest_api_port", "0", "--threads",
                       str(INSTANCES), "--precision", server.precision, *server.options]  # fmt: skip
        self._log, self._mark = folder / "log", f"TMPDIR={folder}".encode()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=HERE, env={**os.environ, **told, **kept, **quiet}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip

    def measured(self, plan: Plan) -> list[dict[str, Any]]:
        """What the callers say of each case. Raises Failed."""
        command = [sys.executable, str(HERE / "callers.py"), json.dumps(asdict(plan))]
        begin, others_s = time.monotonic(), self._others_s()
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise Failed(reason(ended.stderr))
        took_s = (time.monotonic() - begin) * processors()
        self.others = max(self._others_s() - others_s, 0.0) / took_s  # the ticks are coarse
        found: list[dict[str, Any]] = json.loads(ended.stdout)
        return found

    def wait(self, plan: Plan) -> None:
        """Until it answers the plan, and as the bare network does. Raises Failed."""
        end = time.monotonic() + START_S
        why = Failed("nobody listens")
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise Failed(f"ended at its start: {reason(self._log.read_text(errors='replace'))}")
            if self._listens():
                try:
                    self.measured(plan)
                    return
                except Failed as failed:  # it listens before its model is ready
                    if "differ" in str(failed):
                        raise
                    why = failed
            time.sleep(0.1)
        raise Failed(f"no answer within {START_S} s: {why}") from why

    def _listens(self) -> bool:
        with socket.socket() as caller:
            return caller.connect_ex(("127.0.0.1", self.port)) == 0

    def memory_mb(self) -> float:
        """Of all its processes, in MB of 2**20 bytes; pages that they share count once."""
        total = 0
        for process in self._processes():
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += int(text.partition("\nPss:")[2].split()[0])
        return total / 1024

    def _others_s(self) -> float:
        """Seconds that processors have worked for others than this server and its callers, since the system began."""
        columns = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, interrupts, soft, stolen = map(int, columns[:8])
        ticks = user + nice + system + interrupts + soft + stolen
        for process in self._processes():
            of_process = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks -= int(of_process[11]) + int(of_process[12])
        return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])

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
