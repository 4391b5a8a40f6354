"""What other model servers carry on loopback, beside ours: the same ONNX file, the same calls, in the same run.

    python tests/benchmarks/peers_servers.py [--environments .venv-peers] [--seconds 2] [--rounds 3] [-o TABLE]
        [--keep ROUNDS.json]

Run with `make bench-peer-servers`. Each server has an environment of its own in that folder, which this script makes at
the versions below (`peer_servers/serve_NAME.py` is what runs there), onnxruntime at our version, one thread a session,
as many sessions as INSTANCES says. gRPC with raw contents, HTTP where a server has nothing else. Rounds alternate
between servers; each is started for its round and alone on the computer, and its answers must equal those of a bare
session. What other processes disturb is measured again. Memory is that of all its processes after the load. A server
that cannot be installed or does not answer is in the table with the reason, and rounds in which it failed stand below.
A machine that is never quiet for long is measured in several runs with the same ROUNDS.json; each adds to it. Linux
only.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
from measuring import machine, markdown, write_csv
from peer_servers.callers import Plan
from peer_servers.processes import INSTANCES, MOST, NAME, Failed, Running, Server, prepared, running
from server_load import CASES, Bare

from seisserve.bundle import Bundle, find, golden
from seisserve.runtime import OnnxRuntime
from seisserve.runtimes.openvino import OpenVinoRuntime

TOLERANCE = 1e-5
WARM_S = 0.5
ONNXRUNTIME = f"onnxruntime=={version('onnxruntime')}"
# whether more of it is better
FIGURES = {"1 caller p50": False, "1 caller p99": False} | {
    f"{case} rate": True for case in CASES if case != "1 caller"
}
MEMORY, OTHERS = "memory", "others"  # in MB; the share of the processors that went to other processes, in percent
MOST_OTHERS, TIMES = 10, 3  # such a share disturbs; how often to try
BASE = "seisserve V2"
LANES, TRITON = f"{INSTANCES} lanes, dynamic batching", ("nvidia-pytriton==0.7.0",)
SEVERAL, WORKERS = ("--workers", str(INSTANCES)), f"{INSTANCES} processes of one lane, dynamic batching"
SERVERS = {
    "seisserve": Server(
        "seisserve", LANES, protocols=("V2", "TFS", "V2+shm"), options=("--runtime", "onnxruntime", "--shared_memory")
    ),
    "int8": Server(
        "seisserve, int8", LANES, protocols=("V2", "V2+shm"),
        options=("--runtime", "onnxruntime", "--shared_memory"), precision="int8",
    ),
    "workers": Server(f"seisserve, {INSTANCES} workers", WORKERS, options=("--runtime", "onnxruntime", *SEVERAL)),
    "workers-int8": Server(
        f"seisserve, {INSTANCES} workers, int8", WORKERS, options=("--runtime", "onnxruntime", *SEVERAL),
        precision="int8",
    ),
    "openvino": Server(
        "seisserve, OpenVINO", LANES, requirements=("openvino",), options=("--runtime", "openvino")
    ),
    "bfloat16": Server(
        "seisserve, OpenVINO, bfloat16", LANES, requirements=("openvino",), options=("--runtime", "openvino"),
        precision="bfloat16",
    ),
    "workers-bfloat16": Server(
        f"seisserve, {INSTANCES} workers, OpenVINO, bfloat16", WORKERS, requirements=("openvino",),
        options=("--runtime", "openvino", *SEVERAL), precision="bfloat16",
    ),
    "triton": Server(
        "Triton, Python backend", f"{INSTANCES} instances (processes), dynamic batching", "serve_triton.py",
        ("V2", "V2+shm"),
        requirements=TRITON, environment="pytriton",
    ),
    "pytriton": Server(
        "PyTriton", f"{INSTANCES} functions in one process, dynamic batching", "serve_pytriton.py",
        requirements=TRITON, environment="pytriton",
    ),
    "kserve": Server(
        "KServe Python", f"{INSTANCES} sessions in threads, no batching", "serve_kserve.py",
        requirements=("kserve==0.21.0",), environment="kserve",
    ),
    # its worker processes do not start with the event loop of a later uvloop
    "mlserver": Server(
        "MLServer", f"{INSTANCES} processes, no batching (its own is slower)", "serve_mlserver.py",
        requirements=("mlserver==1.7.1", "uvloop<0.22"), environment="mlserver",
    ),
    "bentoml": Server(
        "BentoML", f"{INSTANCES} processes, no batching", "serve_bentoml.py", ("HTTP",), ("bentoml==1.4.39",), "bentoml"
    ),
    "plain": Server("grpcio alone, blocking", f"{INSTANCES} threads, no batching", "serve_plain.py"),
}  # fmt: skip
Measured = dict[str, dict[str, dict[str, float]]]  # by server and protocol; by round; by case and figure


def examples(bundle: Bundle, folder: Path, precision: str) -> str:
    """A file of golden windows and what the bare network makes of them."""
    windows, _ = golden(bundle.folder)
    windows = np.resize(windows, (MOST, *windows.shape[1:]))
    network = (OpenVinoRuntime if precision == "bfloat16" else OnnxRuntime)(bundle, 1, precision)
    outputs = network.predict(bundle.manifest, {bundle.manifest.input.name: windows})
    path = folder / f"{precision}.npz"
    np.savez(path, inputs=windows, outputs=outputs[bundle.manifest.output.name])
    return str(path)


def measure(one: Running, plan: Plan, seconds: float) -> dict[str, dict[str, float]]:
    """All cases of a round, by protocol. plan: large calls, until the server is there and warm. Raises Failed."""
    one.wait(plan)
    plan = replace(plan, cases=list(CASES.values()), seconds=seconds)
    found = {protocol: undisturbed(one, replace(plan, protocol=protocol)) for protocol in one.server.protocols}
    memory = one.memory_mb()
    return {protocol: {**figures, MEMORY: memory} for protocol, figures in found.items()}


def undisturbed(one: Running, plan: Plan) -> dict[str, float]:
    """What the callers say, while other processes leave the processors alone. Raises Failed."""
    for _ in range(TIMES):
        said = one.measured(plan)
        if 100 * one.others <= MOST_OTHERS:
            found = zip(CASES, said, strict=True)
            figures = {f"{case} {key}": value for case, values in found for key, value in values.items()}
            return {**figures, OTHERS: 100 * one.others}
    raise Failed(f"other processes took {one.others:.0%} of the processors")


def ratio(measured: Measured, row: str, figure: str) -> float:
    """How many times as fast as our V2 in float32: the median over the rounds that both have; nan without any."""
    ours, theirs = measured[BASE], measured[row]
    pairs = [(ours[number][figure], theirs[number][figure]) for number in ours.keys() & theirs.keys()]
    found = [their / our if FIGURES[figure] else our / their for our, their in pairs]
    return statistics.median(found) if found else float("nan")


def spread(values: list[float], digits: int = 0) -> str:
    """Median (smallest to largest)."""
    middle, least, largest = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least} to {largest})" if len(values) > 1 else middle


def line(measured: Measured, row: str) -> list[str]:
    """A line of the table, after the server's name, protocol and way."""
    rounds = list(measured[row].values())
    cells = []
    for figure, more in FIGURES.items():
        text = spread([one[figure] for one in rounds], 0 if more else 2)
        cells.append(text if row == BASE else f"{text} ×{ratio(measured, row, figure):.2f}")
    return [f"{cells[0]} / {cells[1]}", *cells[2:], spread([one[MEMORY] for one in rounds]), str(len(rounds))]


def table(measured: Measured, failed: dict[str, list[str]]) -> str:
    """For people."""
    head = ["server", "protocol", "computes in", "1 caller, p50 / p99 ms", "8 callers, windows/s",
            "32 callers, windows/s", "2 callers of 64 windows, windows/s", "memory, MB", "rounds"]  # fmt: skip
    lines, left_out = [], []
    for row, rounds in measured.items():
        name, protocol = row.split()
        server, reasons = SERVERS[name], failed.get(name, [])
        cells = line(measured, row) if rounds else [f"not measured: {(reasons or ['left out'])[-1]}", *[""] * 5]
        lines.append([server.title, protocol, server.computes, *cells])
        left_out += [f"\n{server.title} is not in the figures of {why}\n" for why in reasons if rounds]
    return markdown([head, *lines]) + "".join(dict.fromkeys(left_out))


def rows(measured: Measured, versions: dict[str, str], common: dict[str, Any]) -> list[dict[str, Any]]:
    """For programs: one for each server that was measured, protocol, case and figure."""
    found = []
    for row, rounds in measured.items():
        name, protocol = row.split()
        server = SERVERS[name]
        what = {"server": server.title, "version": versions.get(name, ""), "protocol": protocol,
                "precision": server.precision, "computes_in": server.computes}  # fmt: skip
        for figure in [*FIGURES, MEMORY, OTHERS] if rounds else []:
            values = [one[figure] for one in rounds.values()]
            case, _, key = figure.rpartition(" ")
            callers, windows = CASES.get(case, ("", ""))
            unit = {"rate": "windows/s", MEMORY: "MB", OTHERS: "%"}.get(key, "ms")
            found.append({
                **what, "callers": callers, "windows": windows, "figure": key, "unit": unit,
                "median": round(statistics.median(values), 3), "smallest": round(min(values), 3),
                "largest": round(max(values), 3),
                "times_seisserve": round(ratio(measured, row, figure), 3) if figure in FIGURES else "",
                "rounds": len(values), **common,
            })  # fmt: skip
    return found


def package_of(server: Server) -> str:
    """What its version is of."""
    if server.environment:
        return server.requirements[0].partition("==")[0]
    return "grpcio" if server.script else "seisserve"


def version_of(server: Server, python: Path) -> str:
    """As it is installed."""
    code = f"from importlib.metadata import version; print(version({package_of(server)!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@click.command()
@click.option("--model", default="phasenet", show_default=True)
@click.option("--environments", type=click.Path(path_type=Path), default=Path(".venv-peers"), show_default=True)
@click.option("--seconds", default=2.0, show_default=True, help="Of each case in each round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(SERVERS)), help="These servers beside ours.")
@click.option("--keep", type=click.Path(path_type=Path), help="File of the rounds so far; it is read, and added to.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Table to write, as .md and .csv.")
def main(
    model: str,
    environments: Path,
    seconds: float,
    rounds: int,
    only: tuple[str, ...],
    keep: Path | None,
    output: Path | None,
) -> None:
    """Print a table."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("stopped"))  # so that no server is left behind
    bundle = find(model)
    _, onnx = bundle.artifact("onnx", "float32")
    onnx = onnx.resolve()
    servers = {name: server for name, server in SERVERS.items() if name in (*(only or SERVERS), "seisserve")}
    pythons: dict[str, Path] = {}
    failed: dict[str, list[str]] = defaultdict(list)
    for name, server in servers.items():
        click.echo(f"environment of {server.title}", err=True)
        try:
            pythons[name] = prepared(server, environments.absolute(), ONNXRUNTIME)
        except Failed as why:
            failed[name].append(str(why))
    what = {"model": model, "seconds": seconds, **machine()}
    bare, rates = Bare(bundle, "float32"), {}
    measured: Measured = {f"{name} {protocol}": {} for name in servers for protocol in servers[name].protocols}
    if keep and keep.exists():
        kept = json.loads(keep.read_text())
        if kept["what"] != what:
            raise click.UsageError(f"{keep} is of {kept['what']}; this is {what}")
        rates, measured = kept["rates"], measured | kept["measured"]
    with tempfile.TemporaryDirectory() as folder:
        expected = {precision: examples(bundle, Path(folder), precision)
                    for precision in {server.precision for server in servers.values()}}  # fmt: skip
        for number in range(1, rounds + 1):
            now = str(time.time())
            rates[now] = bare.rate(seconds)
            for name, python in pythons.items():
                server = servers[name]
                click.echo(f"round {number} of {rounds}: {server.title}", err=True)
                plan = Plan(server.protocols[0], 0, NAME, bundle.manifest.input.name,
                            bundle.manifest.output.name, expected[server.precision],
                            [(INSTANCES, MOST)], WARM_S, TOLERANCE)  # fmt: skip
                try:
                    with running(server, python, onnx) as one:
                        for protocol, found in measure(one, replace(plan, port=one.port), seconds).items():
                            measured[f"{name} {protocol}"][now] = found
                except Failed as why:
                    failed[name].append(f"round {number}: {why}")
                if keep:
                    keep.write_text(json.dumps({"what": what, "rates": rates, "measured": measured}))
    versions = {name: version_of(servers[name], python) for name, python in pythons.items()}
    text = heading(what, measured, versions, f"{bare.size} windows a call, {spread(list(rates.values()))} windows/s")
    text += table(measured, failed)
    click.echo(text)
    common = {"model": model, "seconds": seconds, "bare_windows_s": round(statistics.median(rates.values()))}
    if output:
        output.with_suffix(".md").write_text(text)
        write_csv(output.with_suffix(".csv"), rows(measured, versions, common))
    if not measured[BASE]:
        raise click.ClickException("our own server was not measured")


def heading(what: dict[str, Any], measured: Measured, versions: dict[str, str], bare: str) -> str:
    """What stands above the table."""
    packages = {package_of(SERVERS[name]): number for name, number in versions.items()}
    listed = ", ".join(f"{package} {number}" for package, number in packages.items())
    others = [one[OTHERS] for all_rounds in measured.values() for one in all_rounds.values()]
    return (
        f"{what['model']}, the same ONNX file in float32 unless the line says int8 or bfloat16; onnxruntime "
        f"{what['onnxruntime']}, OpenVINO {what['openvino']}, one thread a session; {listed}. {what['cores']} cores of "
        f"{what['processor']}, {what['system']}, Python {what['python']}; the callers run on the same cores, other "
        f"processes took at most {max(others, default=0):.0f} % of them. Rounds of {what['seconds']:g} s, servers "
        f"taking turns: medians (smallest to largest). ×: how many times as fast as the first line in the same round, "
        f"the median; above 1 that server is ahead. Answers equal a bare session's within {TOLERANCE:g}. Bare sessions "
        f"side by side, {bare}.\n\n"
    )


if __name__ == "__main__":
    main()
