"""A server that is asked for three times what it can do, and what becomes of urgent calls when an archive wants it all.

    python tests/benchmarks/overload.py [--flood phasenet:16] [--flood eqtransformer:1] [--seconds 60] [--apart]

The peak is what callers get that wait for their answers. Then calls come at random times, three times as many windows
as that, each with a deadline, whether or not those before are answered. Callers are a process of their own on the same
processors: what they take, the server lacks, and to be refused costs a caller as much as to be answered. So the table
has what would be possible at most if each refusal cost no more than bare gRPC's, callers included. With --apart the
server has the first processor and the callers have the others; their part is not counted then. At last, callers of
archive priority send 64 windows a call, as many as are let in, and real-time calls of one window come twenty times a
second. Prints Markdown tables.
"""

from __future__ import annotations

import os
import threading
import time
from typing import NamedTuple

import click
import numpy as np
from load import CODES, BareGrpc, Calls, Group, Load, Served, bare_grpc, percentiles, rate, served

from seisserve.runtimes.setup import processor, processors

TIMES = 3
CONNECTIONS = 16
REALTIME_HZ = 20.0
# Calls of windows as a caller with a record sends them; those that carry little for what they cost; and the hardest,
# where three times the capacity in calls is more than half of what gRPC itself can carry.
FLOODS = ("phasenet:16", "eqtransformer:1", "phasenet:1")
OK, EXHAUSTED = 0, 8  # gRPC's numbers
SOON_S = 0.05  # a refusal must be there by then


class Watch(threading.Thread):
    """Reads the server's resident memory ten times a second; `mb` are (time, MB)."""

    def __init__(self, server: Served) -> None:
        super().__init__(daemon=True)
        self.server, self.over, self.mb = server, threading.Event(), [(time.monotonic(), server.memory_mb())]
        self.start()

    def run(self) -> None:
        while not self.over.wait(0.1):
            self.mb.append((time.monotonic(), self.server.memory_mb()))

    def until(self, share: float) -> float:
        """The most that was held in the first part of the time, MB."""
        end = self.mb[0][0] + share * (self.mb[-1][0] - self.mb[0][0])
        return max(mb for at, mb in self.mb if at <= end)


def settled(server: Served) -> dict[str, float]:
    """The server's metrics, once nothing is under way."""
    end = time.monotonic() + 30
    while (found := server.metrics())["seisserve_calls_under_way"] and time.monotonic() < end:
        time.sleep(0.1)
    return found


class Peak(NamedTuple):
    """What callers get that wait for their answers: windows a second, and processor seconds of a call."""

    rate: float
    cpu_s: float


def peak(server: Served, model: str, windows: int, seconds: float, apart: bool) -> Peak:
    """The best of several numbers of callers. apart: do not count their processor seconds."""
    found = []
    for callers in (4, 16, 32):
        before_s = server.cpu_s()
        load = Load(server.address, model, seconds, Group(callers=callers, windows=windows))
        calls = load.calls()
        cpu_s = (server.cpu_s() - before_s + (0.0 if apart else load.cpu_s)) / len(calls)
        found.append(Peak(rate(calls, load.begun, seconds, windows), cpu_s))
    return max(found)


def refusal_s(bare: BareGrpc, model: str, seconds: float, group: Group, apart: bool) -> float:
    """Processor seconds of a call that bare gRPC refuses. apart: of its side alone."""
    before_s = bare.cpu_s()
    load = Load(bare.address, model, seconds, group)
    calls = load.calls()
    return (bare.cpu_s() - before_s + (0.0 if apart else load.cpu_s)) / len(calls)


def flood(
    server: Served, bare: BareGrpc, model: str, windows: int, seconds: float, deadline_s: float, apart: bool
) -> list[str]:
    """The table's row of calls of so many windows."""
    top = peak(server, model, windows, max(seconds / 12, 1.5), apart)
    calls_per_s = TIMES * top.rate / windows
    group = Group(callers=CONNECTIONS, windows=windows, rate=calls_per_s, timeout_s=deadline_s)
    refused_s = refusal_s(bare, model, max(seconds / 12, 2), group, apart)
    most = ((1 if apart else processors()) - calls_per_s * refused_s) / (top.cpu_s - refused_s) * windows
    before, watch, cpu_s = settled(server), Watch(server), server.cpu_s()
    load = Load(server.address, model, seconds, group)
    calls = load.calls()
    watch.over.set()
    cpu_s = server.cpu_s() - cpu_s
    after = settled(server)

    def counted(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    good = rate(calls, load.begun, seconds, windows)
    refused = calls[calls["code"] == EXHAUSTED]
    computed = counted("seisserve_batch_windows_sum")
    answered = (counted("seisserve_requests_total:OK")) * windows
    pushed = refused["pushback"]
    return [
        model, str(windows), f"{top.rate:,.0f}", f"{len(calls) * windows / seconds:,.0f}", f"{good:,.0f}",
        f"{good / top.rate:.0%}", f"{min(most / top.rate, 1):.0%}",
        f"{1e3 * top.cpu_s:.2f}", f"{1e3 * refused_s:.2f}", f"{cpu_s / seconds:.2f} + {load.cpu_s / seconds:.2f}",
        statuses(calls), percentiles(refused["took"]),
        f"{np.mean(refused['took'] <= SOON_S):.1%}" if len(refused) else "-",
        f"{np.mean(pushed > 0):.0%}, {pushed.min():.0f} to {pushed.max():.0f}" if len(refused) else "-",
        percentiles(calls[calls["code"] == OK]["took"]),
        f"{counted('seisserve_dropped_total:expired'):,.0f}", f"{max(computed - answered, 0) / computed:.2%}",
        f"{watch.mb[0][1]:.0f} | {watch.until(1 / 6):.0f} | {watch.until(1):.0f}",
    ]  # fmt: skip


def statuses(calls: Calls) -> str:
    """How many calls ended how."""
    codes, numbers = np.unique(calls["code"], return_counts=True)
    return ", ".join(f"{CODES[int(code)]} {number:,}" for code, number in zip(codes, numbers, strict=True))


def urgent(server: Served, model: str, seconds: float) -> None:
    """Real-time calls alone, and beside an archive that wants everything."""
    realtime = Group(callers=2, rate=REALTIME_HZ, priority="realtime", timeout_s=5)
    click.echo(
        "\n| real-time calls of 1 window, 20 a second | statuses | p50 ms | p99 ms | max ms | archive windows/s |"
    )
    click.echo("| --- | --- | --- | --- | --- | --- |")
    for name, groups in {
        "alone": [],
        "8 archive callers": [Group(callers=8, windows=64, priority="archive", patient=True)],
        "128 archive callers, more than are let in": [Group(callers=128, windows=64, priority="archive", patient=True)],
    }.items():
        before = settled(server)
        load = Load(server.address, model, seconds, realtime, *groups)
        calls = load.calls()
        after = settled(server)
        own = calls[calls["group"] == 0]
        archive = rate(calls[calls["group"] == 1], load.begun, seconds, 64)
        click.echo(f"| {name} | {statuses(own)} | {percentiles(own['took'])} | {archive:,.0f} |")
    batches = after["seisserve_batch_seconds_count"] - before["seisserve_batch_seconds_count"]
    batch_s = (after["seisserve_batch_seconds_sum"] - before["seisserve_batch_seconds_sum"]) / batches
    click.echo(
        f"\nA real-time call's turn comes when a batch under way ends ({1e3 * batch_s:.0f} ms on average), whatever "
        "else waits."
    )


@click.command()
@click.option("--flood", "floods", multiple=True, default=FLOODS, show_default=True, help="MODEL:WINDOWS of a call.")
@click.option("--seconds", default=60.0, show_default=True, help="Of each flood.")
@click.option("--deadline", default=1.0, show_default=True, help="Seconds of each call of the flood.")
@click.option("--apart", is_flag=True, help="The first processor for the server, the others for the callers.")
@click.option("--option", "options", multiple=True, help="Of `seisserve serve`, as --option=--max_calls=200.")
def main(floods: tuple[str, ...], seconds: float, deadline: float, apart: bool, options: tuple[str, ...]) -> None:
    """Print what three times the capacity does."""
    where = ", the first for the server alone" if apart else ""
    click.echo(f"{processor()}, {processors()} processors{where}; floods of {seconds:g} s, deadline {deadline:g} s\n")
    click.echo(
        "| model | windows a call | peak, windows/s | offered | goodput | of peak | possible at most | processor ms of "
        "an answered call | of one that bare gRPC refuses | processors, server + callers | statuses | "
        "refused p50 ms | p99 | max | within 50 ms | with pushback, ms | answered p50 ms | p99 | max | "
        "expired in the queue | computed for nothing | memory before, MB | after a sixth | most |"
    )
    click.echo("|" + " --- |" * 24)
    if apart:
        options, others = ("--threads=1", *options), os.sched_getaffinity(0) - {0}
        os.sched_setaffinity(0, {0})  # what is started now stays there
    with served(*options) as server, bare_grpc("refuse") as bare:
        if apart:
            os.sched_setaffinity(0, others)
        for text in floods:
            model, _, count = text.partition(":")
            row = flood(server, bare, model, int(count), seconds, deadline, apart)
            click.echo("| " + " | ".join(row) + " |")
        urgent(server, floods[0].partition(":")[0], max(seconds / 3, 3))


if __name__ == "__main__":
    main()
