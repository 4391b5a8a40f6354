"""What the tests of the waveform code share: models, records, cuts, and a network that looks at its whole window."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from seisserve.manifest import Label, Manifest, Output, Tensor
from seisserve.traces import Trace
from seisserve.transport import FakeTransport

NS = 1_000_000_000
START_NS = 1_700_000_000 * NS
STATION = "XX.STA..HH"
RATES = (20.0, 40.0, 50.0, 62.5, 100.0, 200.0, 250.0, 500.0)

Array = NDArray[Any]
seeds = st.integers(0, 2**32 - 1)


def manifest(
    labels: tuple[str, ...] = ("P", "S"),
    threshold: float = 0.3,
    readings: dict[str, Label] | None = None,
    stride: int = 1,
    single: bool = False,
    **changes: Any,
) -> Manifest:
    """A picking model at 100 Hz with windows of 600 samples, half overlapping, and whatever is to be different.

    stride: samples that a frame of the output stands for; single: one value for each window instead.
    """
    fields: dict[str, Any] = {
        "name": "fake",
        "task": "picking",
        "summary": "a network for tests",
        "licence": "MIT",
        "citation": "none",
        "sampling_rate_hz": 100.0,
        "components": "ZNE",
        "window_samples": 600,
        "fragment_windows": (100, 300),
        "hop_samples": 300,
        "labels": readings or {label: Label(threshold=threshold) for label in labels},
        **changes,
    }
    window = fields["window_samples"]
    shape = (-1, len(labels)) if single else (-1, window // stride, len(labels))
    return Manifest(
        input=Tensor(name="waveform", shape=(-1, window, len(fields["components"]))),
        outputs=(Output(name="probability", shape=shape, labels=labels, stride=stride),),
        **fields,
    )


def network(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, samples, components] -> [n, samples, 2]: short over long energy of the first and of the last component.

    Every value depends on the whole window (its largest amplitude) and on the place in it (a taper), never on the
    other windows of the batch: sample by sample, the sums are made in one fixed order.
    """
    peak = np.abs(waveform).max(axis=(1, 2), keepdims=True)
    scaled = waveform / np.where(peak > 0, peak, np.float32(1))
    energy = np.zeros_like(scaled)
    energy[:, 1:] = np.diff(scaled, axis=1) ** 2
    short, long = _box(energy, 4), _box(energy, 6)
    length = waveform.shape[1]
    taper = 1 - 0.2 * np.abs(np.linspace(-1, 1, length, dtype=np.float32))
    ratio = short / (short + np.float32(0.5) * long + np.float32(0.01)) * taper[:, None]
    return np.stack([ratio[:, :, 0], ratio[:, :, -1]], axis=2)


def _box(values: NDArray[np.float32], doublings: int) -> NDArray[np.float32]:
    for step in (1 << k for k in range(doublings)):
        shifted = np.zeros_like(values)
        shifted[:, step:] = values[:, :-step]
        values = values + shifted
    return values


def fake(lanes: int = 1) -> FakeTransport:
    return FakeTransport(network, lanes)


def record(
    seed: int = 0,
    seconds: float = 60.0,
    rate_hz: float = 100.0,
    codes: str = "ZNE",
    dtype: str = "int32",
    start_ns: int = START_NS,
) -> list[Trace]:
    """Noise with an event about every five seconds, the same for all rates of one seed; one trace for each code."""
    rng = np.random.default_rng(seed)
    onsets = np.arange(2.0, seconds, 5.0) + rng.uniform(0, 3, len(np.arange(2.0, seconds, 5.0)))
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    traces = []
    for code in codes:
        samples = rng.normal(0, 10, len(time))
        for onset in onsets + rng.uniform(0, 0.5):
            age = np.maximum(time - onset, 0)
            samples += 2000 * rng.uniform(0.5, 2) * np.exp(-2 * age) * np.sin(2 * np.pi * 6 * age)
        traces.append(Trace(STATION + code, start_ns, rate_hz, samples.astype(dtype)))
    return traces


def part(trace: Trace, begin: int, end: int) -> Trace:
    """Samples begin to end of a trace, at their own time."""
    start = trace.start_ns + round(begin * NS / Fraction(trace.sampling_rate_hz).limit_denominator(1000))
    return trace._replace(start_ns=start, samples=trace.samples[begin:end])


def pieces(trace: Trace, cuts: Iterable[int]) -> list[Trace]:
    """The trace cut before each of these samples."""
    edges = [0, *sorted(set(cuts) - {0, len(trace.samples)}), len(trace.samples)]
    return [part(trace, begin, end) for begin, end in itertools.pairwise(edges)]
