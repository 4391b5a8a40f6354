"""What the server carries on loopback, beside what the bare runtime and bare gRPC do in the same run.

    python tests/benchmarks/server_load.py [--model phasenet] [--precision float32] [--seconds 5] [--rounds 3]

One caller with one window a call (p50, p99); 8 and 32 such callers; two callers with 64 windows a call. Callers are a
process of their own on the same processors (`load`). The bare rate is that of as many onnxruntime sessions of one
thread as there are processors, side by side, on the batches of the server. The two echoes give back the bytes of the
same requests: one on our gRPC server, one on grpcio's asyncio server. Rounds of all cases alternate; medians and ranges
are printed, and the processor time of the server for each call.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from contextlib import ExitStack

import click
import numpy as np
from load import BareGrpc, Group, Load, Served, bare_grpc, rate, served, spread

from seisserve.bundle import Bundle, find
from seisserve.runtime import OnnxRuntime, processors
from seisserve.runtimes.setup import processor
from seisserve.windows import batch_size

CASES = {"1 caller": (1, 1), "8 callers": (8, 1), "32 callers": (32, 1), "2 callers of 64 windows": (2, 64)}


class Bare:
    """Sessions side by side, without a server."""

    def __init__(self, bundle: Bundle, precision: str) -> None:
        shape = (batch_size(bundle.manifest.window_samples), *bundle.manifest.input.shape[1:])
        batch = np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)
        self.manifest, self.size, self.inputs = bundle.manifest, len(batch), {bundle.manifest.input.name: batch}
        self.sessions = [OnnxRuntime(bundle, 1, precision) for _ in range(processors())]

    def rate(self, seconds: float) -> float:
        """Windows a second."""
        done = [0] * len(self.sessions)
        end = time.perf_counter() + seconds

        def work(number: int) -> None:
            while time.perf_counter() < end:
                self.sessions[number].predict(self.manifest, self.inputs)
                done[number] += self.size

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(done))]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(done) / (time.perf_counter() - begin)


@click.command()
@click.option("--model", default="phasenet", show_default=True)
@click.option("--precision", default="float32", show_default=True)
@click.option("--seconds", default=5.0, show_default=True, help="Of each case in each round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--server", help="HOST:PORT of a server that runs already, in place of one of our own.")
def main(model: str, precision: str, seconds: float, rounds: int, server: str | None) -> None:
    """Print windows per second and latencies."""
    bare = Bare(find(model), precision)
    bare_rates: list[float] = []
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    latencies: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    costs: dict[tuple[str, str], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        places: dict[str, Served | BareGrpc] = (
            {} if server else {"seisserve": stack.enter_context(served("--precision", precision))}
        )
        places["bare echo"] = stack.enter_context(bare_grpc("echo"))
        places["bare asyncio echo"] = stack.enter_context(bare_grpc("asyncio"))
        addresses = {place: one.address for place, one in places.items()} | ({server: server} if server else {})
        if not server and (several := processors()) > 1:
            own = served("--precision", precision, "--workers", str(several))
            addresses[f"seisserve, {several} workers"] = stack.enter_context(own).address
        for _ in range(rounds):
            bare_rates.append(bare.rate(seconds))
            for case, (callers, windows) in CASES.items():
                for place, where in addresses.items():
                    before_s = places[place].cpu_s() if place in places else 0.0
                    load = Load(where, model, seconds, Group(callers=callers, windows=windows))
                    calls = load.calls()
                    if place in places:
                        costs[place, case].append(1e3 * (places[place].cpu_s() - before_s) / len(calls))
                    if failed := np.count_nonzero(calls["code"]):
                        raise click.ClickException(f"{place}, {case}: {failed} of {len(calls)} calls failed")
                    rates[place, case].append(rate(calls, load.begun, seconds, windows))
                    latencies[place, case].append([1e3 * value for value in np.percentile(calls["took"], (50, 99))])
    click.echo(f"{processor()}, {processors()} processors; {model} {precision}; {rounds} rounds of {seconds:g} s")
    base = statistics.median(bare_rates)
    click.echo(f"Bare sessions side by side, {bare.size} windows a call: {spread(bare_rates)} windows/s\n")
    click.echo(
        "| server | case | p50 ms | p99 ms | windows/s | of bare sessions | processor ms a call |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for (place, case), found in rates.items():
        p50, p99 = (statistics.median(column) for column in zip(*latencies[place, case], strict=True))
        share = f"{statistics.median(found) / base:.0%}"
        cost = f"{statistics.median(costs[place, case]):.2f}" if costs[place, case] else "-"
        click.echo(f"| {place} | {case} | {p50:.2f} | {p99:.2f} | {spread(found)} | {share} | {cost} |")


if __name__ == "__main__":
    main()
