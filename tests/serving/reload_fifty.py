"""A child process: fifty reloads of a shipped model while it is called, and what the process then holds.

Prints the resident memory (MB) after the tenth and the last reload, that of one more copy of the model, and how many
of the transports that were loaded are still alive.
"""

from __future__ import annotations

import shutil
import sys
import threading
import weakref
from pathlib import Path

import numpy as np

from seisserve.bundle import shipped
from seisserve.memory import give_back
from seisserve.runtimes.setup import Setup
from seisserve_serving.calls import Call
from seisserve_serving.configs import ModelConfig, Specific
from seisserve_serving.lanes import Lanes
from seisserve_serving.loading import Loading
from seisserve_serving.models import Models
from seisserve_serving.predict import predict
from seisserve_serving.repository import Repository, Source

RELOADS = 50


def resident_mb() -> float:
    give_back()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main(root: Path, name: str) -> None:
    for version in (1, 2):
        folder = root / name / str(version)
        shutil.copytree(shipped() / name / "1", folder, ignore=shutil.ignore_patterns("variables", "*.pb"))
    models = Models(Lanes(2))
    keeper = Repository(models, Loading(lambda found: Setup(lanes=2)), Source(root, is_folder=True))
    keeper.wait()
    windows = np.random.default_rng(0).normal(0, 1e3, (4, *models.get(name).manifest.input.shape[1:]))
    inputs = {"waveform": windows.astype(np.float32)}
    over, failures = threading.Event(), []

    def work() -> None:
        while not over.wait(0.02):
            try:
                predict(models.get(name), inputs, "", [], Call()).result()
            except Exception as error:  # the test counts them
                failures.append(error)

    callers = [threading.Thread(target=work) for _ in range(2)]
    for caller in callers:
        caller.start()
    loaded, early = [], 0.0
    for number in range(1, RELOADS + 1):
        keeper.reload([ModelConfig(name, root / name, policy=Specific(frozenset({1 + number % 2})))], Call())
        loaded.append(weakref.ref(models.get(name).transport))
        if number == 10:
            early = resident_mb()
    over.set()
    for caller in callers:
        caller.join()
    late = resident_mb()
    keeper.reload([ModelConfig(name, root / name, policy=Specific(frozenset({1, 2})))], Call())
    two = resident_mb()
    alive = sum(transport() is not None for transport in loaded)
    print(f"{early:.1f} {late:.1f} {two - late:.1f} {alive} {len(failures)}")
    models.close()
    models.lanes.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
