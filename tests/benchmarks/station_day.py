"""One station-day, file to CSV: seconds and peak memory of `seisserve pick`, gapless and with ten thousand gaps.

Run with `make bench`. Prints a Markdown table; docs/performance.md keeps the last one. Every run is a process of its
own, so that start-up and memory are what a user has.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import obspy

from seisserve import bundle
from seisserve.runtime import load, processors
from seisserve_training.synthetic import synthetic_event, synthetic_noise

RATE_HZ, HOURS = 100.0, 24
BLOCK_S = 600


def day(seed: int = 0) -> np.ndarray:
    """[3, samples] int32: noise of changing colour with an event every ten minutes."""
    rng = np.random.default_rng(seed)
    samples = round(BLOCK_S * RATE_HZ)
    blocks = []
    for _ in range(HOURS * 3600 // BLOCK_S):
        noise = synthetic_noise(rng, samples, RATE_HZ)
        block = noise / noise.std() * 300
        event = synthetic_event(rng, 6000, RATE_HZ).waveform
        begin = int(rng.integers(samples - 6000))
        block[begin : begin + 6000] += event / np.abs(event).max() * 10 ** rng.uniform(3, 5)
        blocks.append(block)
    return np.concatenate(blocks).T.astype(np.int32)


def write(path: Path, samples: np.ndarray, gaps: int = 0) -> None:
    """A miniSEED file (Steim2) of one station; gaps of one second at random places, the same on all components."""
    start = obspy.UTCDateTime(2024, 5, 1)
    edges = np.sort(np.random.default_rng(1).choice(samples.shape[1] // 100 - 1, gaps, replace=False)) * 100
    begins = np.concatenate([[0], edges + 100])
    ends = np.concatenate([edges, [samples.shape[1]]])
    stream = obspy.Stream()
    for code, row in zip("ZNE", np.ascontiguousarray(samples), strict=True):
        for begin, end in zip(begins, ends, strict=True):
            if end > begin:
                header = {
                    "network": "XX", "station": "DAY", "channel": f"HH{code}", "sampling_rate": RATE_HZ,
                    "starttime": start + begin / RATE_HZ,
                }  # fmt: skip
                stream.append(obspy.Trace(row[begin:end], header))
    stream.write(str(path), format="MSEED", encoding="STEIM2", reclen=4096 if not gaps else 512)


def timed(path: Path, arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak memory in MB of one run of the command."""
    command = [sys.executable, "-m", "seisserve", "pick", str(path), "-o", str(path.with_suffix(".csv")), *arguments]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seconds, usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20)


def bare(model: str, windows: int) -> float:
    """Seconds that the network alone takes for so many windows, all lanes busy."""
    from concurrent.futures import ThreadPoolExecutor

    found = bundle.find(model)
    transport = load(found)
    shape = (32, found.manifest.window_samples, len(found.manifest.components))
    batch = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with ThreadPoolExecutor(transport.lanes) as pool:
        begin = time.perf_counter()
        list(
            pool.map(
                lambda _: transport.predict(found.manifest, {found.manifest.input.name: batch}), range(windows // 32)
            )
        )
        return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model", default="phasenet")
    options = parser.parse_args()
    hop = bundle.find(options.model).manifest.hop_samples
    windows = round(HOURS * 3600 * RATE_HZ / hop)
    with tempfile.TemporaryDirectory() as folder:
        samples = day()
        files = {"24 h, no gap": Path(folder, "day.mseed"), "24 h, 10,000 gaps of 1 s": Path(folder, "gaps.mseed")}
        write(files["24 h, no gap"], samples)
        write(files["24 h, 10,000 gaps of 1 s"], samples, gaps=10_000)
        print(f"{options.model}, {processors()} cores, {platform.processor() or platform.machine()}, "
              f"Python {platform.python_version()}; median of {options.runs} runs (smallest to largest)\n")  # fmt: skip
        print("| input | seconds, file to CSV | peak memory, MB | ratio |\n| --- | --- | --- | --- |")
        first = 0.0
        for name, path in files.items():
            runs = [timed(path, ["--model", options.model]) for _ in range(options.runs)]
            seconds = [run[0] for run in runs]
            middle = statistics.median(seconds)
            first = first or middle
            print(f"| {name} ({path.stat().st_size / 1e6:.0f} MB) "
                  f"| {middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) "
                  f"| {max(run[1] for run in runs):.0f} | {middle / first:.2f} |", flush=True)  # fmt: skip
        network = statistics.median(bare(options.model, windows) for _ in range(options.runs))
        print(f"| the network alone, {windows} windows | {network:.2f} | | {network / first:.2f} |")


if __name__ == "__main__":
    main()
