"""How long SeisBench takes for a record, to be set beside our own figures from the same computer.

A script for an environment of its own (pip install seisbench), which has nothing of this project (`make bench-peers`
makes one, and sets the figures beside each other with peers.py):

    python peers_seisbench.py RECORD.mseed WEIGHTS.json --network PhaseNet [--threads 2] [--repeats 3]

Times `classify` from the stream in memory, with SeisBench's defaults and with batches of 16 to 256 windows, and reading
the file. Prints JSON: seconds (the median), number of picks and detections, and with --picks the picks of the defaults.
"""

import argparse
import json
import os
import re
import statistics
import time
from pathlib import Path

BATCHES = (16, 32, 64, 128, 256)


def peak_mb() -> int | None:
    """The most memory that this process has held (Linux), in MB."""
    status = Path("/proc/self/status")
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) // 1024 if status.exists() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="a file that ObsPy reads")
    parser.add_argument("weights", type=Path, help="NAME.json or NAME.json.vN, the .pt file beside it")
    parser.add_argument("--network", default="PhaseNet", help="class of seisbench.models")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES, help="sizes to try beside the default")
    parser.add_argument("--picks", action="store_true", help="list the picks too")
    parser.add_argument("--once", type=Path, metavar="CSV", help="classify once, as a user's script would, write picks")
    parser.add_argument("--batch", type=int, help="with --once: in place of the default")
    given = parser.parse_args()

    import obspy
    import seisbench
    import seisbench.models
    import torch

    torch.set_num_threads(given.threads)
    found = re.fullmatch(r"(.+)\.json(?:\.v(.+))?", given.weights.name)
    if found is None:
        parser.error(f"{given.weights} is not named NAME.json or NAME.json.vN")
    model = getattr(seisbench.models, given.network).load(
        given.weights.with_name(found[1]), version_str=found[2], map_location="cpu"
    )
    model.eval()
    if given.once:
        options = {} if given.batch is None else {"batch_size": given.batch}
        picks = model.classify(obspy.read(str(given.record)), **options).picks
        lines = [f"{pick.trace_id},{pick.phase},{pick.peak_time},{pick.peak_value}\n" for pick in picks]
        given.once.write_text("".join(lines))
        return
    start = time.perf_counter()
    stream = obspy.read(str(given.record))
    reading = time.perf_counter() - start
    runs = []
    for batch in (None, *given.batches):
        options = {} if batch is None else {"batch_size": batch}
        seconds = []
        for _ in range(given.repeats):
            start = time.perf_counter()
            output = model.classify(stream, **options)
            seconds.append(time.perf_counter() - start)
        picks = list(getattr(output, "picks", []))
        runs.append({
            "batch_size": batch or "default",
            "seconds": round(statistics.median(seconds), 3),
            "fastest": round(min(seconds), 3),
            "slowest": round(max(seconds), 3),
            "all_seconds": [round(one, 3) for one in seconds],
            "picks": len(picks),
            "detections": len(getattr(output, "detections", [])),
        })  # fmt: skip
        if batch is None and given.picks:
            listed = [
                [pick.trace_id, pick.phase, str(pick.peak_time), round(float(pick.peak_value), 4)] for pick in picks
            ]
    print(json.dumps({
        "record": given.record.name,
        "hours": round(sum(trace.stats.endtime - trace.stats.starttime for trace in stream) / 3600, 3),
        "traces": len(stream),
        "network": given.network,
        "weights": given.weights.name,
        "seisbench": seisbench.__version__,
        "torch": torch.__version__,
        "threads": given.threads,
        "reading_seconds": round(reading, 3),
        "largest_memory_mb": peak_mb(),
        "runs": runs,
        **({"listed": listed} if given.picks else {}),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
