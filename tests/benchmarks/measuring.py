"""What the benchmarks share: runs of `seisserve pick` in processes of their own, and tables of what was measured.

Linux only: the peak memory of a process stands in /proc. (What `getrusage` says of a child counts its parent, too.)
"""

from __future__ import annotations

import csv
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import obspy

from seisserve.runtimes.setup import processor, processors
from seisserve_training.synthetic import synthetic_event, synthetic_noise

RATE_HZ = 100.0
BLOCK_S = 600
DAY_S = 86_400
# The command as a user has it: start-up, reading, picking, writing. It says its own peak memory at the end.
CHILD = """
import os, sys
if cores := sys.argv.pop(1):
    os.sched_setaffinity(0, map(int, cores.split(",")))
from seisserve.cli import run
code = run(sys.argv[1:])
with open("/proc/self/status") as status:
    print("VmHWM", status.read().partition("VmHWM:")[2].split()[0], file=sys.stderr)
sys.exit(code)
"""


class Run(NamedTuple):
    """One run: seconds on the clock and of the processors, and the most memory that it held, in MB (2**20 bytes)."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def picking(inputs: Sequence[Path], table: Path, arguments: Sequence[str], cores: int | None = None) -> Run:
    """One run of `seisserve pick`, on so many processors (all that this process may use)."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    command = [sys.executable, "-c", CHILD, ",".join(map(str, allowed)), "pick", *map(str, inputs), "-o", str(table)]
    begin = time.perf_counter()
    process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[3:])} ended with {process.returncode}: {said}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, int(said.split()[-1]) / 1024)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median (smallest to largest)."""
    middle = f"{statistics.median(values):.{digits}f}"
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else middle


def machine() -> dict[str, str]:
    """The computer, and the versions of what counts."""
    system = f"{platform.system()} {platform.machine()}"
    found = {"processor": processor(), "cores": str(processors()), "system": system}
    found["python"] = platform.python_version()
    for name in ("seisserve", "onnxruntime", "openvino", "obspy", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine_line(runs: int) -> str:
    """The same as a sentence."""
    found = machine()
    versions = ", ".join(f"{name} {found[name]}" for name in ("seisserve", "onnxruntime", "openvino", "obspy", "numpy"))
    return (f"{found['cores']} cores of {found['processor']}, {found['system']}, Python {found['python']}, {versions}. "
            f"Medians of {runs} runs (smallest to largest).")  # fmt: skip


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows with what `machine` says in each."""
    full = [{**row, **machine()} for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(full[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(full)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]) + "\n"


def record(hours: float, seed: int = 0) -> np.ndarray:
    """[3, samples] int32: noise of changing colour with an event every ten minutes."""
    rng = np.random.default_rng(seed)
    samples = round(BLOCK_S * RATE_HZ)
    blocks = []
    for _ in range(max(1, round(hours * 3600 / BLOCK_S))):
        noise = synthetic_noise(rng, samples, RATE_HZ)
        block = noise / noise.std() * 300
        event = synthetic_event(rng, 6000, RATE_HZ).waveform
        begin = int(rng.integers(samples - 6000))
        block[begin : begin + 6000] += event / np.abs(event).max() * 10 ** rng.uniform(3, 5)
        blocks.append(block)
    return np.concatenate(blocks).T.astype(np.int32)


def write(
    path: Path, samples: np.ndarray, *, times: int = 1, gaps: int = 0, station: str = "DAY", grid: int = 1
) -> Path:
    """A miniSEED file (Steim2) of one station: the samples [3, n] so many times, one after the other; gaps of a second
    at random places, the same on all components. It begins at a multiple of `grid` samples since 1970."""
    first = -(-obspy.UTCDateTime(2024, 5, 1).ns // round(1e9 / RATE_HZ) // grid) * grid
    start = obspy.UTCDateTime(ns=first * round(1e9 / RATE_HZ))
    edges = np.sort(np.random.default_rng(1).choice(samples.shape[1] // 100 - 1, gaps, replace=False)) * 100
    begins = np.concatenate([[0], edges + 100])
    ends = np.concatenate([edges, [samples.shape[1]]])
    with path.open("wb") as file:
        for number in range(times):
            stream = obspy.Stream()
            for code, row in zip("ZNE", np.ascontiguousarray(samples), strict=True):
                for begin, end in zip(begins, ends, strict=True):
                    if end > begin:
                        header = {
                            "network": "XX", "station": station, "channel": f"HH{code}", "sampling_rate": RATE_HZ,
                            "starttime": start + (number * samples.shape[1] + begin) / RATE_HZ,
                        }  # fmt: skip
                        stream.append(obspy.Trace(row[begin:end], header))
            stream.write(file, format="MSEED", encoding="STEIM2", reclen=4096 if not gaps else 512)
    return path
