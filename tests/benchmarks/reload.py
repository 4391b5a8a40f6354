"""Reloads, a stop and a crash of a server that is called all the time.

    python tests/benchmarks/reload.py [--model phasenet] [--reloads 50] [--seconds 20]

Two versions of a copy of the model take turns: HandleReloadConfigRequest, again and again, while callers call; then
SIGTERM while they call; then SIGKILL, with a supervisor that starts the server again on the same port. The server is
one process: what restarts it is the container's restart policy (docs/server.md). Prints Markdown tables.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from pathlib import Path

import click
import grpc
import numpy as np
from load import CODES, LIMITS, Calls, Group, Load, Served, percentiles, start

from seisserve.bundle import shipped
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.runtimes.setup import processor, processors

RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
CALLERS = Group(callers=4, pause_s=0.005)
UNAVAILABLE = 14  # gRPC's number


def statuses(calls: Calls) -> str:
    """How many calls ended how."""
    codes, numbers = np.unique(calls["code"], return_counts=True)
    return ", ".join(f"{CODES[int(code)]} {number:,}" for code, number in zip(codes, numbers, strict=True))


def reloads(server: Served, root: Path, model: str, count: int, seconds: float) -> None:
    """Steady calls, then as many reloads as that under the same calls."""
    click.echo("| | calls | p50 ms | p99 ms | max ms | resident MB at the end |\n| --- | --- | --- | --- | --- | --- |")
    load = Load(server.address, model, seconds, CALLERS)
    steady = load.calls()
    click.echo(f"| steady | {statuses(steady)} | {percentiles(steady['took'])} | {server.memory_mb():.0f} |")
    load = Load(server.address, model, 1.5 * seconds, CALLERS)
    early, took = 0.0, []
    with grpc.insecure_channel(server.address, options=LIMITS) as channel:
        method = channel.unary_unary(
            RELOAD, request_serializer=wire.ReloadConfigRequest.SerializeToString,
            response_deserializer=wire.ReloadConfigResponse.FromString,
        )  # fmt: skip
        for number in range(count):
            begin = time.monotonic()
            request = wire.ReloadConfigRequest()
            one = request.config.model_config_list.config.add(
                name=model, base_path=str(root / model), model_platform="tensorflow"
            )
            one.model_version_policy.specific.versions.append(1 + (number + 1) % 2)
            answer = method(request, timeout=60)
            if answer.status.error_code:
                raise click.ClickException(f"reload {number} failed: {answer.status.error_message}")
            took.append(time.monotonic() - begin)
            if number == count // 5:
                early = server.memory_mb()
            time.sleep(max(seconds / count - took[-1], 0))
    ended = time.monotonic()
    during = load.calls()
    during = during[during["sent"] < ended]
    name = f"{count} reloads (each {1e3 * float(np.median(took)):.0f} ms), {early:.0f} MB after {count // 5}"
    click.echo(f"| {name} | {statuses(during)} | {percentiles(during['took'])} | {server.memory_mb():.0f} |")
    ratio = np.percentile(during["took"], 99) / np.percentile(steady["took"], 99)
    failed = np.count_nonzero(during["code"]) + np.count_nonzero(steady["code"])
    click.echo(f"\nFailed calls: {failed}. p99 while reloading is {ratio:.2f} times the steady one.\n")


def stop(server: Served, model: str) -> None:
    """SIGTERM while 16 callers call: what was accepted is answered."""
    before = server.metrics()
    load = Load(server.address, model, 4.0, Group(callers=16, pause_s=0.005))
    time.sleep(max(load.begun + 2 - time.monotonic(), 0))
    told = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(60)
    gone = time.monotonic()
    calls = load.calls()
    under_way = calls[(calls["sent"] < told) & (calls["sent"] + calls["took"] > told)]
    click.echo(f"SIGTERM under load: {len(under_way)} calls were under way: {statuses(under_way)}; calls after it: "
               f"{statuses(calls[calls['sent'] >= told])}; the process ended with {code} after {gone - told:.1f} s. "
               f"(Before: {before['seisserve_requests_total']:,.0f} calls.)\n")  # fmt: skip


def crash(folder: Path, model: str) -> None:
    """SIGKILL while callers call, and the server started anew."""
    server = start(str(folder))
    port = int(server.address.rpartition(":")[2])
    load = Load(server.address, model, 20.0, Group(callers=4, pause_s=0.05, timeout_s=2))
    time.sleep(max(load.begun + 2 - time.monotonic(), 0))
    killed = time.monotonic()
    server.process.kill()
    server.process.wait(60)
    server = start(str(folder), port=port)
    serving = time.monotonic()
    calls = load.calls()
    server.process.terminate()
    server.process.wait(60)
    failed = calls[calls["code"] != 0]
    after = calls[(calls["sent"] > killed) & (calls["code"] == 0)]
    first = f"{after['sent'].min() - killed:.1f} s" if len(after) else "never"
    click.echo(f"SIGKILL under load: failed calls: {statuses(failed)}, the longest after {failed['took'].max():.2f} s; "
               f"the server listens again after {serving - killed:.1f} s, the first call that is answered begins after "
               f"{first}.")  # fmt: skip


@click.command()
@click.option("--model", default="phasenet", show_default=True)
@click.option("--reloads", "count", default=50, show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="For all reloads together, at least.")
def main(model: str, count: int, seconds: float) -> None:
    """Print what callers notice."""
    click.echo(f"{processor()}, {processors()} processors; {model}; {CALLERS.callers} callers of one window\n")
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        for version in (1, 2):
            shutil.copytree(shipped() / model / "1", root / model / str(version))
        # the polling of the folder would load versions of its own accord
        server = start(str(root), "--file_system_poll_wait_seconds", "0", "--allow_admin_without_token")
        try:
            reloads(server, root, model, count, seconds)
            stop(server, model)
        finally:
            server.process.kill()
            server.process.wait(60)
        crash(root, model)


if __name__ == "__main__":
    main()
