"""The edge folder on one core: size of the files, start-up, processor time for a minute of data, and peak memory.

Prints a Markdown table; docs/edge.md keeps the last one. Linux only: it pins the picker to one core, and reads its
memory from /proc. `--cpp` takes the compiled picker of cpp/, which is then measured too.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from seisserve import bundle
from seisserve_export.edge_export import export_edge

RATE_HZ = 100.0
MINUTES = (5, 65)  # the difference is an hour, without start-up


def record(minutes: int) -> bytes:
    """Interleaved float32 of three components: noise, and a burst every minute."""
    rng = np.random.default_rng(0)
    samples = round(minutes * 60 * RATE_HZ)
    waves = rng.normal(0, 100, (samples, 3))
    time_s = np.arange(samples) / RATE_HZ % 60
    waves += (3000 * np.exp(-time_s / 4) * np.sin(2 * np.pi * 5 * time_s))[:, None] * rng.uniform(0.3, 1, 3)
    return waves.astype("<f4").tobytes()


def measured(command: list[str], samples: bytes, core: int) -> tuple[float, float, int]:
    """Seconds of processor time, peak memory in MB and number of picks of one run on one core."""
    options = ["--stdin", "--rate", f"{RATE_HZ:g}", "--start", "2024-05-01T00:00:00Z"]
    with tempfile.TemporaryFile() as table:
        process = subprocess.Popen([*command, *options], stdin=subprocess.PIPE, stdout=table)
        os.sched_setaffinity(process.pid, {core})
        assert process.stdin is not None
        process.stdin.write(samples)
        process.stdin.flush()
        # A process's resource usage counts what its parent had before it became another program; its status does not.
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.stdin.close()
        _, ended, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(ended)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        table.seek(0)
        picks = len(table.read().splitlines()) - 1
    return usage.ru_utime + usage.ru_stime, int(status.partition("VmHWM:")[2].split()[0]) / 1024, picks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["phasenet", "onset"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cpp", type=Path, help="the compiled picker")
    options = parser.parse_args()
    core = min(os.sched_getaffinity(0))
    records = {minutes: record(minutes) for minutes in MINUTES}
    print(f"One core of {platform.processor() or platform.machine()}, Python {platform.python_version()}; "
          f"median of {options.runs} runs (smallest to largest)\n")  # fmt: skip
    print("| model | picker | model.onnx / model.ort, kB | start-up and 5 min, CPU s | a minute of data, CPU ms "
          "| peak memory of 5 / 65 min, MB |\n| --- | --- | --- | --- | --- | --- |")  # fmt: skip
    with tempfile.TemporaryDirectory() as root:
        for name in options.models:
            folder = Path(root, name)
            export_edge(bundle.find(name), folder)
            sizes = " / ".join(f"{(folder / file).stat().st_size / 1e3:.0f}" for file in ("model.onnx", "model.ort"))
            pickers = {"picker.py": [sys.executable, "-I", str(folder / "picker.py")]}
            if options.cpp:
                pickers["C++"] = [str(options.cpp), str(folder)]
            for label, command in pickers.items():
                runs = [[measured(command, records[n], core) for n in MINUTES] for _ in range(options.runs)]
                start = statistics.median(short[0] for short, _ in runs)
                minute = sorted((long[0] - short[0]) / (MINUTES[1] - MINUTES[0]) * 1e3 for short, long in runs)
                memory = " / ".join(f"{max(run[k][1] for run in runs):.0f}" for k in (0, 1))
                print(f"| {name} | {label} | {sizes} | {start:.2f} "
                      f"| {statistics.median(minute):.1f} ({minute[0]:.1f} to {minute[-1]:.1f}) | {memory} |",
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
