"""A station-day with SeisBench and with seisserve: the same weights, file and processors; seconds, and picks compared.

Run with `make bench-peers`, which makes the environment that SeisBench wants. The weights are those of a SeisBench
weight set (NAME.json, NAME.pt beside it), which is imported for seisserve; `onset` is beside it as the fastest way to
picks that there is. SeisBench's seconds are reading the file and `classify`, without its start-up; ours are those of
the whole process, start-up and table included. Prints a table; with -o PATH it is in PATH.md, and in PATH.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measuring import Run, machine_line, markdown, picking, record, write, write_csv

from seisserve import bundle
from seisserve.runtimes.setup import processors

MATCH_S = 0.1  # picks of one phase that are nearer are the same


class Pick(NamedTuple):
    """A pick, from either side."""

    phase: str
    time_us: int
    probability: float


def ours(path: Path) -> list[Pick]:
    """The picks of a table."""
    with path.open(newline="") as file:
        return [
            Pick(row["phase"], _microseconds(row["time"]), float(row["probability"])) for row in csv.DictReader(file)
        ]


def theirs(listed: list[list[Any]]) -> list[Pick]:
    """The picks that `peers_seisbench.py` lists."""
    return [Pick(phase, _microseconds(time), float(value)) for _, phase, time, value in listed]


def _microseconds(time: str) -> int:
    return int(np.datetime64(time.rstrip("Z"), "us").astype(np.int64))


def compared(mine: list[Pick], other: list[Pick]) -> dict[str, Any]:
    """How many of the other's picks are among mine, and how far the matched ones are apart."""
    apart: list[float] = []
    for phase in sorted({pick.phase for pick in other}):
        times = np.sort([pick.time_us for pick in mine if pick.phase == phase])
        for pick in (pick for pick in other if pick.phase == phase):
            near = times[np.argmin(np.abs(times - pick.time_us))] if len(times) else None
            if near is not None and abs(near - pick.time_us) <= MATCH_S * 1e6:
                apart.append(abs(near - pick.time_us) / 1e6)
    return {
        "picks": len(mine),
        "picks_seisbench": len(other),
        "matched": len(apart),
        "apart_median_s": round(statistics.median(apart), 4) if apart else "",
        "apart_largest_s": round(max(apart), 4) if apart else "",
    }


def seisbench(python: Path, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What `peers_seisbench.py` says, run by SeisBench's own Python."""
    script = Path(__file__).with_name("peers_seisbench.py")
    command = [str(python), str(script), str(path), str(options.weights), "--network", options.network, "--picks",
               "--threads", str(processors()), "--repeats", str(options.runs)]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(ended.stdout[ended.stdout.index("{") :])
    return found


def imported(weights: Path, folder: Path) -> Path:
    """A repository with the weight set as the model `peer`."""
    target = folder / "models" / "peer" / "1"
    command = [sys.executable, "-m", "seisserve", "import", "seisbench", str(weights), "-o", str(target), "--force"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return target.parents[1]


def quantized(repository: Path, data: Path) -> None:
    """Add an int8 artifact of `peer`, through the gate: ranges from the train split, proof on the dev split."""
    target, folder = repository / "peer" / "1", repository.parent
    command = [sys.executable, "-m", "seisserve"]
    for split, more in (("train", ()), ("dev", ("--cuts", "3"))):
        cutting = ["windows", str(data), "--model", str(target), "--split", split, "-o", str(folder / f"{split}.npz")]
        subprocess.run([*command, *cutting, *more], check=True, stdout=sys.stderr)
    last = ["--calibration", str(folder / "train.npz"), "--windows", str(folder / "dev.npz")]
    subprocess.run([*command, "quantize", str(target), "--precision", "int8", *last], check=True, stdout=sys.stderr)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, help="NAME.json of a SeisBench weight set, NAME.pt beside it")
    parser.add_argument("--network", default="PhaseNet", help="class of seisbench.models")
    parser.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"), help="that has seisbench")
    parser.add_argument("--models", nargs="*", default=["onset"], help="shipped models to put beside it")
    parser.add_argument("--data", type=Path, help="labelled data set to quantize the same weights with")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--hours", type=float, default=24, help="fewer to try it out")
    parser.add_argument("-o", "--output", type=Path, help="PATH of PATH.csv and PATH.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        repository = imported(options.weights, folder)
        if options.data:
            quantized(repository, options.data)
        same = bundle.find("peer", repository)
        # SeisBench's windows begin with the record, ours at multiples of the hop since 1970: here they are the same.
        path = write(folder / "day.mseed", record(options.hours), grid=same.manifest.hop_samples)
        peer = seisbench(options.python, path, options)
        variants = [("peer", precision, ["--repository", str(repository)])
                    for precision in dict.fromkeys(one.precision for one in same.manifest.artifacts.values()
                                                   if one.format == "onnx")]  # fmt: skip
        for name in options.models:
            there = bundle.find(name).manifest.artifacts.values()
            variants += [(name, one, []) for one in dict.fromkeys(a.precision for a in there if a.format == "onnx")]
        measured: list[tuple[str, str, list[Run], list[Pick]]] = []
        for name, precision, extra in variants:
            arguments = ["--model", name, "--precision", precision, *extra]
            runs = [picking([path], folder / "picks.csv", arguments) for _ in range(options.runs)]
            measured.append((name, precision, runs, ours(folder / "picks.csv")))
    rows = rows_of(peer, measured, options)
    text = table(peer, rows, options)
    print(text)
    if options.output:
        write_csv(options.output.with_suffix(".csv"), rows)
        options.output.with_suffix(".md").write_text(text)


def rows_of(
    peer: dict[str, Any], measured: list[tuple[str, str, list[Run], list[Pick]]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row for each way to the picks. Ratios: SeisBench's seconds by ours."""
    reading, listed = peer["reading_seconds"], theirs(peer["listed"])
    default = peer["runs"][0]
    best = min(peer["runs"], key=lambda run: run["seconds"])
    common = {"hours": options.hours, "runs": options.runs, "weights": options.weights.name,
              "seisbench": peer["seisbench"], "torch": peer["torch"]}  # fmt: skip
    rows: list[dict[str, Any]] = []
    for what, run in (("SeisBench, defaults", default), (f"SeisBench, batch {best['batch_size']}", best)):
        seconds = [reading + run[key] for key in ("seconds", "fastest", "slowest")]
        rows.append({
            "what": what, "seconds": round(seconds[0], 3), "seconds_min": round(seconds[1], 3),
            "seconds_max": round(seconds[2], 3), "peak_mb": peer["largest_memory_mb"],
            "ratio_defaults": round((reading + default["seconds"]) / seconds[0], 2),
            "ratio_best": round((reading + best["seconds"]) / seconds[0], 2),
            **dict.fromkeys(compared([], []), ""), "picks": run["picks"],
        })  # fmt: skip
    for name, precision, runs, picks in measured:
        seconds = [run.seconds for run in runs]
        middle = statistics.median(seconds)
        label = f"seisserve, {'the same weights' if name == 'peer' else name}, {precision}"
        rows.append({
            "what": label, "seconds": round(middle, 3), "seconds_min": round(min(seconds), 3),
            "seconds_max": round(max(seconds), 3), "peak_mb": round(max(run.peak_mb for run in runs), 1),
            "ratio_defaults": round((reading + default["seconds"]) / middle, 2),
            "ratio_best": round((reading + best["seconds"]) / middle, 2),
            **compared(picks, listed),
        })  # fmt: skip
    return [{**row, **common} for row in rows]


def table(peer: dict[str, Any], rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table for people."""
    head = ["what", "seconds", "peak memory, MB", "SeisBench's defaults / this", "its best batch / this",
            f"picks; SeisBench's that are among them ({MATCH_S:g} s)", "apart, median / largest, s"]  # fmt: skip
    lines = []
    for row in rows:
        matched = f"{row['picks']}; {row['matched']} of {row['picks_seisbench']}" if row["matched"] != "" else ""
        apart = f"{row['apart_median_s']} / {row['apart_largest_s']}" if row["apart_median_s"] != "" else ""
        seconds = f"{row['seconds']:.2f} ({row['seconds_min']:.2f} to {row['seconds_max']:.2f})"
        memory, picks = str(row["peak_mb"]), matched or str(row["picks"])
        ratios = [f"{row['ratio_defaults']:.2f}", f"{row['ratio_best']:.2f}"]
        lines.append([row["what"], seconds, memory, *ratios, picks, apart])
    return (
        f"{options.hours:g} h of three components at 100 Hz, from the file; {options.network}, weights "
        f"{options.weights.name}. SeisBench {peer['seisbench']}, PyTorch {peer['torch']}, {peer['threads']} threads. "
        f"{machine_line(options.runs)}\n\n{markdown([head, *lines])}"
    )


if __name__ == "__main__":
    main()
