"""Tuning: which runtime, artifact, number of lanes and length of a call is fastest for a model on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from statistics import median, quantiles
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve import runtime, tuned
from seisserve._version import __version__
from seisserve.bundle import Bundle, golden
from seisserve.errors import BundleError
from seisserve.extras import need
from seisserve.manifest import Manifest
from seisserve.runtimes.setup import Setup, processor, processors
from seisserve.transport import Transport
from seisserve.windows import BATCH_SAMPLES, batch_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Entrant", "Found", "candidates", "choice", "choose", "draw", "measure", "table", "tune"]

BATCHES = (16_384, 32_768, 131_072, 262_144)  # samples of a call, beside the default
FINAL_PAIRS = 12
FREE_SHARE = 0.8
SHORTEST_RUN_S, LONGEST_RUN_S = 0.05, 1.0

Clock = Callable[[], float]


class Entrant(NamedTuple):
    """A setup and the windows per second of each of its runs."""

    setup: Setup
    rates: list[float]

    @property
    def rate(self) -> float:
        """Windows per second, the median of its runs."""
        return median(self.rates)


class Found(NamedTuple):
    """What tuning found.

    entrants: all that were measured, the default first. gain: median ratio of challenger to default in runs that
    alternate; spread: range of its middle half. best: the challenger if its gain is more than the spread, else the
    default. left_out: setups that could not run, with the reason. share: of the processors, what the default's runs
    had; the rest went to other processes.
    """

    entrants: list[Entrant]
    best: Setup
    gain: float
    spread: float
    left_out: dict[str, str]
    share: float = 1.0

    @property
    def busy(self) -> bool:
        """Whether others were at work: fewer threads may then look better than they are."""
        return self.share < FREE_SHARE


def candidates(bundle: Bundle, precisions: Iterable[str] = ("float32",)) -> list[Setup]:
    """The setups to compare, the default first. Runtimes that are not installed and artifacts that are not here are
    none; TensorFlow has its own threads."""
    count = processors()
    default = Setup(lanes=count)
    # Of lengths that are the same number of windows one will do.
    window = bundle.manifest.window_samples
    lengths = {batch_size(window, samples): samples for samples in (*BATCHES, BATCH_SAMPLES)}.values()
    found = [default]
    for name, kind in runtime.RUNTIMES.items():
        there = {item.precision for item in bundle.manifest.artifacts.values() if item.format == kind.format}
        for precision in [one for one in precisions if one in there and runtime.installed(name)]:
            for lanes in [count] if name == "tensorflow" else sorted({1, max(1, count // 2), count}, reverse=True):
                found += [Setup(name, lanes, precision, batch_samples=samples) for samples in lengths]
    return list(dict.fromkeys(found))


def tune(
    bundle: Bundle,
    seconds: float,
    precisions: Iterable[str] = ("float32",),
    tell: Callable[[str], None] = lambda line: None,
) -> Found:
    """Measure a model in about that many seconds (loading not counted) and choose. Raises as `runtime.load` if the
    default cannot run; other setups that cannot are left out."""
    transports: dict[Setup, Transport] = {}
    loaded: dict[Setup, Transport] = {}
    left_out: dict[str, str] = {}
    windows, _ = golden(bundle.folder)
    for number, setup in enumerate(candidates(bundle, precisions)):
        same = setup._replace(batch_samples=0)  # one session serves calls of all lengths
        what = f"{setup.runtime} {setup.precision} with {setup.lanes} threads"
        if what in left_out:
            continue
        if same not in loaded:
            tell(f"loading {what}")
            try:
                loaded[same] = runtime.load(bundle, *setup)
            except BundleError as error:
                if not number:
                    raise
                left_out[what] = str(error)
                continue
        transports[setup] = loaded[same]

    default = next(iter(transports))
    shares: list[float] = []

    def run(setup: Setup, run_s: float) -> float:
        rate, used = measure(transports[setup], setup, bundle.manifest, windows, run_s)
        if setup == default:
            shares.append(used / transports[setup].lanes)
        return rate

    found = choose(list(transports), seconds, run, tell)
    return found._replace(left_out=left_out, share=min(1.0, median(shares)))


def choose(
    setups: list[Setup],
    seconds: float,
    run: Callable[[Setup, float], float],
    tell: Callable[[str], None] = lambda line: None,
) -> Found:
    """The best of the setups, of which the first is the default, in about that many seconds.

    run: windows per second of a setup in a run of about so many seconds. In rounds, in which the setups take turns,
    the slower half is left behind, until one challenger remains. It and the default then alternate: what disturbs the
    machine meanwhile disturbs both. The challenger is chosen if its median gain is more than the spread of the gains.
    """
    default, *others = setups
    rates: dict[Setup, list[float]] = {setup: [] for setup in setups}
    runs = 2 * len(setups) + 2 * FINAL_PAIRS
    run_s = min(max(seconds / runs, SHORTEST_RUN_S), LONGEST_RUN_S)
    while True:
        for setup in [default, *others]:
            rates[setup].append(run(setup, run_s))
        others.sort(key=lambda setup: median(rates[setup]), reverse=True)
        if len(others) <= 1:
            break
        others = others[: len(others) // 2]
        tell(f"{len(others)} left, the fastest {max(median(rates[setup]) for setup in others):.0f} windows/s")
    gains = []
    for _ in range(FINAL_PAIRS if others else 0):
        pair = [run(setup, run_s) for setup in (default, others[0])]
        for setup, rate in zip((default, others[0]), pair, strict=True):
            rates[setup].append(rate)
        gains.append(pair[1] / pair[0])
    low, middle, high = quantiles(gains, n=4, method="inclusive") if gains else (1.0, 1.0, 1.0)
    best = others[0] if others and middle - 1 > high - low else default
    return Found([Entrant(setup, rates[setup]) for setup in setups], best, middle, high - low, {})


def measure(
    transport: Transport,
    setup: Setup,
    model: Manifest,
    windows: NDArray[np.float32],
    run_s: float,
    clock: Clock = time.perf_counter,
    processor_clock: Clock = time.process_time,
) -> tuple[float, float]:
    """Windows per second in calls side by side for about that long (at least one call in each lane), and the processors
    that were at work on them, on average."""
    size = batch_size(model.window_samples, setup.batch_samples)
    batch = {model.input.name: np.resize(windows, (size, *windows.shape[1:]))}
    transport.predict(model, batch)  # the first call of a length is slower: memory, kernels
    lanes = transport.lanes

    def lane(until: float) -> int:
        done = 0
        while not done or clock() < until:
            transport.predict(model, batch)
            done += size
        return done

    with ThreadPoolExecutor(lanes) as pool:
        begin, begin_computing = clock(), processor_clock()
        done = sum(pool.map(lane, [begin + run_s] * lanes))
        elapsed = clock() - begin
        return done / elapsed, (processor_clock() - begin_computing) / elapsed


def choice(bundle: Bundle, found: Found, best: Setup) -> tuned.Choice:
    """What is to be kept for a setup among those that were measured."""
    rates = {entrant.setup: entrant.rate for entrant in found.entrants}
    artifact, _ = bundle.artifact(runtime.RUNTIMES[best.runtime].format, best.precision)
    return tuned.Choice(
        model=bundle.name,
        sha256=artifact.sha256,
        processor=processor(),
        processors=processors(),
        seisserve=__version__,
        runtime=best.runtime,
        lanes=best.lanes or processors(),
        precision=best.precision,
        batch_samples=best.batch_samples,
        windows_per_second=round(rates[best], 1),
        default_windows_per_second=round(rates[found.entrants[0].setup], 1),
    )


def table(found: Found, window_samples: int) -> list[str]:
    """All that was measured, the fastest first, as lines of text."""
    default = found.entrants[0]
    lines = [
        f"{'runtime':<12} {'precision':<9} {'threads':>7} {'windows a call':>14} {'windows/s':>9} {'ratio':>5} runs"
    ]
    for entrant in sorted(found.entrants, key=lambda one: one.rate, reverse=True):
        setup = entrant.setup
        mark = "default" if entrant is default else ""
        lines.append(
            f"{setup.runtime:<12} {setup.precision:<9} {setup.lanes or 0:>7} "
            f"{batch_size(window_samples, setup.batch_samples):>14} {entrant.rate:>9.0f} "
            f"{entrant.rate / default.rate:>5.2f} {len(entrant.rates):>4}  {mark}".rstrip()
        )
    return lines


def draw(found: Found, window_samples: int, title: str) -> Figure:
    """Windows per second against the windows of a call, a line for each runtime, precision and number of threads."""
    figure: Figure = need("matplotlib.figure", "obspy").Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    lines: dict[tuple[str, str, int | None], list[tuple[int, float]]] = {}
    for entrant in found.entrants:
        setup = entrant.setup
        point = (batch_size(window_samples, setup.batch_samples), entrant.rate)
        lines.setdefault((setup.runtime, setup.precision, setup.lanes), []).append(point)
    for (name, precision, lanes), points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=f"{name} {precision}, {lanes} threads")
    axes.axhline(found.entrants[0].rate, color="0.6", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlabel="windows in a call", ylabel="windows per second", title=title, ylim=(0, None))
    axes.legend(fontsize="small")
    return figure
