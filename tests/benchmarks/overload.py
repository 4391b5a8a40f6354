"""A server that is asked for three times what it can do, and what becomes of urgent calls when an archive wants it all.

    python tests/benchmarks/overload.py [--flood phasenet:16] [--flood eqtransformer:1] [--seconds 60]

The peak is what callers get that wait for their answers. Then calls come at random times, three times as many windows
as that, each with a deadline, whether or not those before are answered. Callers are a process of their own on the same
processors: what they take, the server lacks; `bare gRPC` is what a server that gives back the bytes answers of that
same load, beside which nothing is computed. At last, callers of archive priority send 64 windows a call, as many as are
let in, and real-time calls of one window come twenty times a second. Prints Markdown tables.
"""

from __future__ import annotations

import threading
import time

import click
import numpy as np
from load import CODES, Calls, Group, Load, Served, echo, percentiles, rate, served

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


def peak(address: str, model: str, windows: int, seconds: float) -> float:
    """Windows a second of callers that wait for their answers; the best of several numbers of them."""
    best = 0.0
    for callers in (4, 16, 32):
        load = Load(address, model, seconds, Group(callers=callers, windows=windows))
        best = max(best, rate(load.calls(), load.begun, seconds, windows))
    return best


def flood(server: Served, bare: str, model: str, windows: int, seconds: float, deadline_s: float) -> list[str]:
    """The table's row of calls of so many windows."""
    top = peak(server.address, model, windows, max(seconds / 12, 1.5))
    group = Group(callers=CONNECTIONS, windows=windows, rate=TIMES * top / windows, timeout_s=deadline_s)
    load = Load(bare, model, max(seconds / 6, 2), group)
    echoed = rate(load.calls(), load.begun, max(seconds / 6, 2), windows)
    before, watch = settled(server), Watch(server)
    load = Load(server.address, model, seconds, group)
    calls = load.calls()
    watch.over.set()
    after = settled(server)

    def counted(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    good = rate(calls, load.begun, seconds, windows)
    refused = calls[calls["code"] == EXHAUSTED]
    computed = counted("seisserve_batch_windows_sum")
    answered = (counted("seisserve_requests_total:OK")) * windows
    pushed = refused["pushback"]
    return [
        model, str(windows), f"{top:,.0f}", f"{len(calls) * windows / seconds:,.0f}", f"{echoed:,.0f}", f"{good:,.0f}",
        f"{good / top:.0%}", statuses(calls), percentiles(refused["took"]),
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
@click.option("--option", "options", multiple=True, help="Of `seisserve serve`, as --option=--max_calls=200.")
def main(floods: tuple[str, ...], seconds: float, deadline: float, options: tuple[str, ...]) -> None:
    """Print what three times the capacity does."""
    click.echo(f"{processor()}, {processors()} processors; floods of {seconds:g} s, deadline {deadline:g} s\n")
    click.echo(
        "| model | windows a call | peak, windows/s | offered | bare gRPC | goodput | of peak | statuses | "
        "refused p50 ms | p99 | max | within 50 ms | with pushback, ms | answered p50 ms | p99 | max | "
        "expired in the queue | computed for nothing | memory before, MB | after a sixth | most |"
    )
    click.echo("|" + " --- |" * 21)
    with served(*options) as server, echo() as bare:
        for text in floods:
            model, _, count = text.partition(":")
            row = flood(server, bare, model, int(count), seconds, deadline)
            click.echo("| " + " | ".join(row) + " |")
        urgent(server, floods[0].partition(":")[0], max(seconds / 3, 3))


if __name__ == "__main__":
    main()
