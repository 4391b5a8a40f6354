"""A session in real time: how late a pick is after the last sample that it needs, and how many stations there may be.

    python tests/benchmarks/realtime.py --model phasenet --stations 200
    python tests/benchmarks/realtime.py --model phasenet --largest

The server is a process of its own, this one sends: each station a packet of one second of three components once a
second, at a time of its own within the second. A minute or more comes in one packet first, so that windows are full.
Latency is from the moment in which the packet with the last sample that a pick needs is sent until the pick is here;
which packet that is, the same code tells from the same packets beforehand. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seisserve import Client, Trace, bundle, runtime
from seisserve.picks import Pick
from seisserve.realtime import Realtime, Settings
from seisserve.runtimes.setup import Setup
from seisserve_training.synthetic import synthetic_event, synthetic_noise

RATE_HZ, NS = 100.0, 1_000_000_000
START_NS = 1_714_521_600 * NS
TEMPLATES = 20  # different stations; the others are the same under other names
EVENT_S = 20  # there is one as often
BOUND_S = 2.0
WAIT_S = 5.0


class Template(NamedTuple):
    """The packets of a station: three traces each, the first one long; and by (phase, time) the number of the packet
    after which a pick is there."""

    packets: list[list[Trace]]
    offset_s: float  # of its packets within the second
    needed: dict[tuple[str, int], int]


def template(seed: int, model: str, before_s: int, seconds: int) -> Template:
    """Noise with an event every twenty seconds, and what the picker makes of it packet by packet."""
    rng = np.random.default_rng(seed)
    samples = round((before_s + seconds) * RATE_HZ)
    noise = synthetic_noise(rng, samples, RATE_HZ)
    record = noise / noise.std() * 300
    for begin in range(0, samples - 6000, round(EVENT_S * RATE_HZ)):
        event = synthetic_event(rng, 3000, RATE_HZ).waveform
        place = begin + int(rng.integers(500))
        record[place : place + 3000] += event / np.abs(event).max() * 10 ** rng.uniform(3, 5)
    rows = record.T.astype(np.int32)
    offset = int(rng.integers(100))
    edges = [0, *range(round(before_s * RATE_HZ) + offset, samples + 1, 100)]
    packets = [
        [
            Trace(f"XX.T..HH{code}", START_NS + begin * NS // 100, RATE_HZ, row[begin:end])
            for code, row in zip("ZNE", rows, strict=True)
        ]
        for begin, end in itertools.pairwise(edges)
    ]
    manifest, transport = runtime.prepare(bundle.find(model), Setup())
    core, needed = Realtime(manifest, Settings(wait_s=WAIT_S)), {}
    for number, packet in enumerate(packets):
        core.push(packet, 0.0)
        needed |= {(pick.phase, pick.time_ns): number for pick in core.work(transport).picks}
    return Template(packets, offset / RATE_HZ, needed)


class Run(NamedTuple):
    """What one run gave. behind_s: how late the last packets went out, at most: this process could not keep up."""

    latencies_s: np.ndarray
    behind_s: float
    wanted: int
    server_cpu: float


def run(address: str, pid: int, model: str, templates: list[Template], stations: int) -> Run:
    """All stations in one session, in real time."""
    sent: dict[tuple[str, int], float] = {}  # station and packet
    came: list[tuple[Pick, float]] = []
    due = [(each.offset_s, number, 1) for number in range(stations) for each in [templates[number % len(templates)]]]
    heapq.heapify(due)
    with Client(address) as client:
        session = client.session(model=model, wait_s=WAIT_S, on_pick=lambda pick: came.append((pick, time.monotonic())))
        for number in range(stations):
            session.send(_packet(templates, number, 0))
        while len(session.watermarks) < stations or session._waiting:
            time.sleep(0.05)
        before, behind_s, cpu_s, begin_s = len(came), 0.0, _cpu_s(pid), time.monotonic()
        while due:
            pause_s = begin_s + due[0][0] - time.monotonic()
            time.sleep(max(pause_s, 0.01))  # what is due within ten milliseconds goes together
            behind_s = max(behind_s, -pause_s)
            now_s = time.monotonic()
            traces: list[Trace] = []
            while due and due[0][0] <= now_s - begin_s:
                at_s, number, packet = heapq.heappop(due)
                traces += _packet(templates, number, packet)
                sent[f"XX.S{number}..HH", packet] = now_s
                if packet + 1 < len(templates[number % len(templates)].packets):
                    heapq.heappush(due, (at_s + 1, number, packet + 1))
            session.send(traces)
        lasted_s = time.monotonic() - begin_s
        cpu = (_cpu_s(pid) - cpu_s) / lasted_s
        time.sleep(BOUND_S)  # what comes later than that counts as that late
        until_s, found = time.monotonic(), {(p.trace_id, p.phase, p.time_ns): at_s for p, at_s in came[before:]}
        session.close()
    latencies = []
    for number in range(stations):
        name = f"XX.S{number}..HH"
        for (phase, time_ns), packet in templates[number % len(templates)].needed.items():
            if packet:
                latencies.append(found.get((name, phase, time_ns), until_s + BOUND_S) - sent[name, packet])
    return Run(np.array(latencies), behind_s, len(latencies), cpu)


def _packet(templates: list[Template], number: int, packet: int) -> list[Trace]:
    traces = templates[number % len(templates)].packets[packet]
    return [trace._replace(id=f"XX.S{number}..HH{trace.id[-1]}") for trace in traces]


def _cpu_s(pid: int) -> float:
    """Processor seconds of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid: int) -> float:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024  # type: ignore[index]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="phasenet")
    parser.add_argument("--stations", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=40, help="of real time, for each number of stations")
    parser.add_argument("--largest", action="store_true", help=f"the most stations with a p99 under {BOUND_S:g} s")
    options = parser.parse_args()
    model = bundle.find(options.model).manifest
    before_s = math.ceil(2 * model.window_samples / model.sampling_rate_hz)
    templates = [template(seed, options.model, before_s, options.seconds) for seed in range(TEMPLATES)]

    command = [sys.executable, "-m", "seisserve", "serve", "--port", "0", "--rest_api_port", "0"]
    command += ["--max_instruments", "100000"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    found = re.search(r"serving .* on (\S+)$", server.stdout.readline().strip())
    assert found, "the server did not start"
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, model {options.model}\n")
    print("| stations | picks | p50, ms | p99, ms | largest, ms | sender behind, ms | server, cores | server, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")

    def p99_s(stations: int) -> float:
        result = run(found[1], server.pid, options.model, templates, stations)
        p50, p99, most = (float(np.quantile(result.latencies_s, share)) for share in (0.5, 0.99, 1.0))
        print(
            f"| {stations} | {result.wanted} | {1000 * p50:.0f} | {1000 * p99:.0f} | {1000 * most:.0f} | "
            f"{1000 * result.behind_s:.0f} | {result.server_cpu:.2f} | {_memory_mb(server.pid):.0f} |",
            flush=True,
        )
        return p99

    try:
        low, high = options.stations, 0
        late = p99_s(low) >= BOUND_S
        while options.largest and not late and not high:  # twice as many until it is too much, then between the two
            late = p99_s(2 * low) >= BOUND_S
            low, high = (low, 2 * low) if late else (2 * low, 0)
            late = False
        while high and high - low > low // 8:
            middle = (low + high) // 2
            low, high = (low, middle) if p99_s(middle) >= BOUND_S else (middle, high)
        if options.largest:
            print(f"\nlargest number of stations with p99 under {BOUND_S:g} s: {low}")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
