"""Station-days, file to CSV: seconds and peak memory of `seisserve pick` with length, gaps, stations and processors.

Run with `make bench`. Every run is a process of its own, so that start-up and memory are what a user has; the cases
take turns. Prints a table; with -o PATH it is in PATH.md, every case in PATH.csv, and a picture in PATH.svg.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measuring import RATE_HZ, Run, machine_line, markdown, picking, record, write, write_csv

from seisserve import bundle
from seisserve.runtime import load
from seisserve.runtimes.setup import processors

GAPS = 10_000  # a day


class Case(NamedTuple):
    """What one number is for: `value` of what grows."""

    grows: str
    value: int
    inputs: list[Path]
    hours: float
    cores: int


def bare(model: str, hours: float) -> Run:
    """Seconds that the network alone takes for the windows of so many hours, all lanes busy."""
    found = bundle.find(model)
    transport = load(found)
    manifest = found.manifest
    samples = manifest.window_samples
    size = max(1, transport.batch_samples // samples)
    batch = np.random.default_rng(0).normal(size=(size, samples, len(manifest.components))).astype(np.float32)
    calls = max(1, round(hours * 3600 * RATE_HZ / manifest.hop_samples / size))
    with ThreadPoolExecutor(transport.lanes) as pool:
        begin, spent = time.perf_counter(), time.process_time()
        list(pool.map(lambda _: transport.predict(manifest, {manifest.input.name: batch}), range(calls)))
        return Run(time.perf_counter() - begin, time.process_time() - spent, float("nan"))


def cases(folder: Path, options: argparse.Namespace) -> list[Case]:
    """The files, and what to measure with them. The first is what the others are set beside."""
    samples, hours, cores = record(options.hours), options.hours, processors()
    days = {1, *options.days}
    lengths = {n: write(folder / f"days{n}.mseed", samples, times=n) for n in sorted(days)}
    found = [Case("days", n, [path], n * hours, cores) for n, path in lengths.items()]
    gaps = round(GAPS * hours / 24)
    found.append(Case("gaps", gaps, [write(folder / "gaps.mseed", samples, gaps=gaps)], hours, cores))
    files = [write(folder / f"s{k}.mseed", samples, station=f"S{k:02d}") for k in range(max(options.stations))]
    found += [Case("stations", n, files[:n], n * hours, cores) for n in options.stations]
    found += [Case("cores", n, [lengths[1]], hours, n) for n in range(1, cores)]
    return found


def rows_of(model: str, measured: list[tuple[Case, list[Run]]], network: list[Run]) -> list[dict[str, Any]]:
    """One row for each case, and one for the network alone."""
    base, first = measured[0][0], statistics.median(run.seconds for run in measured[0][1])
    rows = []
    for case, runs in [*measured, (base._replace(grows="network alone"), network)]:
        seconds = [run.seconds for run in runs]
        rows.append({
            "model": model,
            "grows": case.grows,
            "value": case.value,
            "hours": case.hours,
            "cores_used": case.cores,
            "runs": len(runs),
            "seconds": round(statistics.median(seconds), 3),
            "seconds_min": round(min(seconds), 3),
            "seconds_max": round(max(seconds), 3),
            "cpu_seconds": round(statistics.median(run.cpu_seconds for run in runs), 3),
            "peak_mb": "" if runs is network else round(max(run.peak_mb for run in runs), 1),
            "ratio": round(statistics.median(seconds) / first, 3),
        })  # fmt: skip
    return rows


def shown(row: dict[str, Any]) -> list[str]:
    """A row of the table for people."""
    value, hours = row["value"], row["hours"]
    what = {
        "days": f"{hours:g} h in one file",
        "gaps": f"{hours:g} h with {value:,} gaps of 1 s",
        "stations": f"{value} stations, a file of {hours / value:g} h each",
        "cores": f"{hours:g} h on {value} core{'s' * (value > 1)}",
        "network alone": f"the network alone, windows of {hours:g} h",
    }[row["grows"]]
    seconds = f"{row['seconds']:.2f} ({row['seconds_min']:.2f} to {row['seconds_max']:.2f})"
    memory = f"{row['peak_mb']:.0f}" if row["peak_mb"] != "" else ""
    return [row["model"], what, seconds, f"{row['cpu_seconds']:.2f}", memory, f"{row['ratio']:.2f}"]


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Seconds and peak memory with length, stations and processors."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "seisserve"  # the same figures, the same file
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    panels = [("days", "hours", "seconds", "hours in one file"), ("days", "hours", "peak_mb", "hours in one file"),
              ("stations", "value", "seconds", "stations"), ("cores", "cores_used", "seconds", "cores")]  # fmt: skip
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.2), layout="constrained")
    for axis, (grows, across, up, label) in zip(axes, panels, strict=True):
        for model in dict.fromkeys(row["model"] for row in rows):
            base = [row for row in rows if row["model"] == model and (row["grows"], row["value"]) == ("days", 1)]
            mine = [row for row in rows if row["model"] == model and row["grows"] == grows]
            if grows != "days":
                mine = sorted([*mine, *base], key=lambda row: row["cores_used" if grows == "cores" else "hours"])
            x = [row[across] for row in mine]
            axis.plot(x, [row[up] for row in mine], "o-", label=model)
            if up == "seconds":
                axis.fill_between(x, *([row[key] for row in mine] for key in ("seconds_min", "seconds_max")), alpha=0.2)
        axis.set(xlabel=label, ylabel={"seconds": "seconds, file to CSV", "peak_mb": "peak memory, MB"}[up])
        if up == "peak_mb":
            axis.axhline(400, color="grey", linestyle=":")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.update_datalim([(x[0], 0)])
        axis.autoscale_view()
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=["phasenet", "onset"])
    parser.add_argument("--hours", type=float, default=24, help="of a day: fewer to try it out")
    parser.add_argument("--days", type=int, nargs="*", default=[1, 3, 7])
    parser.add_argument("--stations", type=int, nargs="*", default=[2, 4])
    parser.add_argument("-o", "--output", type=Path, help="PATH of PATH.csv, PATH.md and PATH.svg")
    options = parser.parse_args()
    if not options.stations:
        options.stations = [1]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        every = cases(folder, options)
        measured: dict[str, list[tuple[Case, list[Run]]]] = {m: [(case, []) for case in every] for m in options.models}
        network: dict[str, list[Run]] = {model: [] for model in options.models}
        for _ in range(options.runs):
            for model in options.models:
                for case, runs in measured[model]:
                    arguments = ["--model", model, "--no-tuned"]
                    runs.append(picking(case.inputs, folder / "picks.csv", arguments, case.cores))
                network[model].append(bare(model, options.hours))
    rows = [row for model in options.models for row in rows_of(model, measured[model], network[model])]
    head = ["model", "input", "seconds, file to CSV", "processor seconds", "peak memory, MB", "ratio"]
    text = f"{machine_line(options.runs)}\n\n{markdown([head, *map(shown, rows)])}"
    print(text)
    if options.output:
        write_csv(options.output.with_suffix(".csv"), rows)
        options.output.with_suffix(".md").write_text(text)
        draw(options.output.with_suffix(".svg"), rows)


if __name__ == "__main__":
    main()
