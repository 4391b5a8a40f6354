"""A station-day with SeisBench and with seisserve: the same weights, file and processors; seconds, and picks compared.

Run with `make bench-peers`, which makes the environment that SeisBench wants. The weights are those of a SeisBench
weight set (NAME.json, NAME.pt beside it), which is imported for seisserve; `onset` is beside it as the fastest way to
picks that there is. Two times are compared, like with like: that of a whole process, from its start to the table of
picks, and that of each further file. For SeisBench that is reading and `classify` in a process that runs already; for
seisserve a third of what three more files take. Prints a table; with -o PATH it is in PATH.md, and in PATH.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measuring import machine_line, markdown, picking, record, write, write_csv

from seisserve import bundle, runtime
from seisserve.runtimes.openvino import computes_bfloat16
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


def seisbench_process(python: Path, path: Path, options: argparse.Namespace, batch: int | None, table: Path) -> float:
    """Seconds of a process of SeisBench's Python that picks one file, start-up included."""
    script = Path(__file__).with_name("peers_seisbench.py")
    command = [str(python), str(script), str(path), str(options.weights), "--network", options.network,
               "--threads", str(processors()), "--once", str(table)]  # fmt: skip
    begin = time.perf_counter()
    subprocess.run([*command, *(["--batch", str(batch)] if batch else [])], check=True, capture_output=True)
    return time.perf_counter() - begin


def imported(weights: Path, folder: Path) -> Path:
    """A repository with the weight set as the model `peer`."""
    target = folder / "models" / "peer" / "1"
    command = [sys.executable, "-m", "seisserve", "import", "seisbench", str(weights), "-o", str(target), "--force"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return target.parents[1]


def quantized(repository: Path, data: Path) -> None:
    """Add artifacts of `peer` in fewer bits, through the gate: ranges from the train split, proof on the dev split."""
    target, folder = repository / "peer" / "1", repository.parent
    command = [sys.executable, "-m", "seisserve"]
    for split, more in (("train", ()), ("dev", ("--cuts", "3"))):
        cutting = ["windows", str(data), "--model", str(target), "--split", split, "-o", str(folder / f"{split}.npz")]
        subprocess.run([*command, *cutting, *more], check=True, stdout=sys.stderr)
    judged = ["--windows", str(folder / "dev.npz")]
    # One layer more in float than the search finds on the train split: F1 on dev needs it.
    calibrated = [*judged, "--calibration", str(folder / "train.npz"), "--float-ends", "3", "3"]
    with_bfloat16 = runtime.installed("openvino") and computes_bfloat16()
    for precision, more in (("int8", calibrated), *([("bfloat16", judged)] if with_bfloat16 else [])):
        subprocess.run([*command, "quantize", str(target), "--precision", precision, *more], check=True,
                       stdout=sys.stderr)  # fmt: skip


class Way(NamedTuple):
    """A way to the picks, and what was measured: the seconds of whole processes and of each further file."""

    label: str
    process: list[float]
    further: list[float]
    peak_mb: float
    picks: list[Pick]
    count: int


def ways(name: str, repository: Path | None) -> list[tuple[str, list[str]]]:
    """Each runtime and precision that a model can be run with here: label and arguments of `seisserve pick`."""
    there = bundle.find(name, repository).manifest.artifacts.values()
    found = []
    for kind in ("onnxruntime", "openvino"):
        for precision in dict.fromkeys(one.precision for one in there if one.format == "onnx"):
            if runtime.installed(kind) and (kind == "openvino" or precision != "bfloat16"):
                arguments = ["--model", name, "--runtime", kind, "--precision", precision]
                where = ["--repository", str(repository)] if repository else []
                found.append((f"{'the same weights' if repository else name}, {kind}, {precision}", arguments + where))
    return found


def measured(paths: list[Path], label: str, arguments: list[str], table: Path, runs: int) -> Way:
    """One file, and all of them."""
    one, every = [], []
    for _ in range(runs):
        every.append(picking(paths, table, arguments))
        one.append(picking(paths[:1], table, arguments))
    further = [(b.seconds - a.seconds) / (len(paths) - 1) for a, b in zip(one, every, strict=True)]
    picks = ours(table)
    seconds = [run.seconds for run in one]
    return Way(f"seisserve, {label}", seconds, further, max(run.peak_mb for run in every), picks, len(picks))


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
        samples = record(options.hours)
        paths = [
            write(folder / f"{code}.mseed", samples, station=code, grid=same.manifest.hop_samples)
            for code in ("DAY", "DAY2", "DAY3", "DAY4")
        ]
        peer = seisbench(options.python, paths[0], options)
        found = peers(peer, paths[0], folder, options)
        for name, where in (("peer", repository), *((name, None) for name in options.models)):
            for label, arguments in ways(name, where):
                found.append(measured(paths, label, arguments, folder / "picks.csv", options.runs))
                print(found[-1].label, statistics.median(found[-1].process), file=sys.stderr)
    rows = rows_of(peer, found, options)
    text = table(peer, rows, options)
    print(text)
    if options.output:
        write_csv(options.output.with_suffix(".csv"), rows)
        options.output.with_suffix(".md").write_text(text)


def peers(peer: dict[str, Any], path: Path, folder: Path, options: argparse.Namespace) -> list[Way]:
    """SeisBench as it comes, and with the batch that is the fastest here."""
    best = min(peer["runs"], key=lambda run: run["seconds"])
    found = []
    for label, run, batch in (
        ("SeisBench, defaults", peer["runs"][0], None),
        (f"SeisBench, batch {best['batch_size']}", best, best["batch_size"]),
    ):
        process = [
            seisbench_process(options.python, path, options, batch, folder / "theirs.csv") for _ in range(options.runs)
        ]
        further = [peer["reading_seconds"] + seconds for seconds in run["all_seconds"]]
        found.append(Way(label, process, further, peer["largest_memory_mb"], [], run["picks"]))
    return found


def rows_of(peer: dict[str, Any], found: list[Way], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each way to the picks. Ratios: SeisBench's seconds by ours."""
    listed = theirs(peer["listed"])
    common = {"hours": options.hours, "runs": options.runs, "weights": options.weights.name,
              "seisbench": peer["seisbench"], "torch": peer["torch"]}  # fmt: skip
    rows: list[dict[str, Any]] = []
    for way in found:
        row: dict[str, Any] = {"what": way.label, "peak_mb": round(way.peak_mb, 1)}
        for kind in ("process", "further"):
            seconds = getattr(way, kind)
            middle = statistics.median(seconds)
            row |= {f"{kind}_seconds": round(middle, 3), f"{kind}_min": round(min(seconds), 3),
                    f"{kind}_max": round(max(seconds), 3)}  # fmt: skip
            for peer_way, against in zip(found[:2], ("defaults", "best"), strict=True):
                row[f"{kind}_ratio_{against}"] = round(statistics.median(getattr(peer_way, kind)) / middle, 2)
        row |= compared(way.picks, listed) if way.picks else {**dict.fromkeys(compared([], []), ""), "picks": way.count}
        rows.append(row | common)
    return rows


def table(peer: dict[str, Any], rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table for people."""
    head = ["what", "whole process, s", "SeisBench's defaults, best / this", "each further file, s",
            "SeisBench's defaults, best / this", "peak memory, MB",
            f"picks; SeisBench's that are among them ({MATCH_S:g} s)", "apart, median / largest, s"]  # fmt: skip
    lines = []
    for row in rows:
        matched = f"{row['picks']}; {row['matched']} of {row['picks_seisbench']}" if row["matched"] != "" else ""
        apart = f"{row['apart_median_s']} / {row['apart_largest_s']}" if row["apart_median_s"] != "" else ""
        timed = []
        for kind in ("process", "further"):
            timed.append(f"{row[f'{kind}_seconds']:.2f} ({row[f'{kind}_min']:.2f} to {row[f'{kind}_max']:.2f})")
            timed.append(f"{row[f'{kind}_ratio_defaults']:.2f}, {row[f'{kind}_ratio_best']:.2f}")
        lines.append([row["what"], *timed, str(row["peak_mb"]), matched or str(row["picks"]), apart])
    return (
        f"{options.hours:g} h of three components at 100 Hz, from the file; {options.network}, weights "
        f"{options.weights.name}. SeisBench {peer['seisbench']}, PyTorch {peer['torch']}, {peer['threads']} threads. "
        f"{machine_line(options.runs)}\n\n{markdown([head, *lines])}"
    )


if __name__ == "__main__":
    main()
