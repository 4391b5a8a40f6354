"""The gate: how far an artifact is from its SavedModel on the same windows, how fast, and whether that is allowed."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from seisserve.errors import BundleError
from seisserve.manifest import Manifest
from seisserve.picks import Pick, extract
from seisserve.runtime import onnxruntime_errors
from seisserve.segments import Segment
from seisserve.transport import Transport
from seisserve.windows import Curve, batch_size

__all__ = ["Bounds", "Report", "compare", "processor", "require", "speeds"]

MATCH_SAMPLES = 10.0  # picks of one phase nearer than this are the same arrival
EDGES = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, MATCH_SAMPLES)  # of the residual histogram, in samples
RUNS, ROUNDS = 3, 5  # calls in one measurement of speed, and how many of them alternate
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(ge=0)]


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far an artifact may be from the SavedModel; the defaults are those of float32.

    max_abs: of any probability; max_relative: over the largest output of the same window. picks_matched: share of all
    picks that the other one has too, within 10 samples. residual_p95_samples: of the picks that match.
    """

    max_abs: Positive = 1e-4
    max_relative: Positive = 1e-4
    picks_matched: Share = 1.0
    residual_p95_samples: Positive = 0.0


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the gate found on an artifact. Residuals are sizes, in samples to two digits, of the picks that match.

    picks: of the SavedModel, -1 where the task has none. histogram: matched picks between one of EDGES and the next.
    Speeds are windows per second of processor time, which one thread would reach. failures: a line for each bound
    that was broken, none if the artifact is good.
    """

    windows: int
    lengths: tuple[int, ...]
    max_abs: float
    max_relative: float
    picks: int
    picks_matched: float
    residual_median_samples: float
    residual_p95_samples: float
    residual_max_samples: float
    histogram: tuple[int, ...]
    size_bytes: int
    reference_size_bytes: int
    windows_per_second: float
    reference_windows_per_second: float
    processor: str
    failures: tuple[str, ...]

    @property
    def parity(self) -> dict[str, float]:
        """The figures that go into the manifest."""
        names = ["windows", "max_abs", "max_relative"]
        if self.picks >= 0:
            names += ["picks", "picks_matched", *(f"residual_{name}_samples" for name in ("median", "p95", "max"))]
        return {name: float(getattr(self, name)) for name in names}

    def text(self) -> str:
        """The report as a table and a histogram, for people."""
        rows = [
            ("windows", f"{self.windows} (of {', '.join(map(str, self.lengths))} samples)"),
            ("largest difference", f"{self.max_abs:.2g}, relative {self.max_relative:.2g}"),
        ]
        if self.picks >= 0:
            low, high = self.residual_median_samples, self.residual_p95_samples
            rows += [
                ("picks", f"{self.picks}, matched {self.picks_matched:.2%}"),
                ("residual, samples", f"median {low:g}, 95 % {high:g}, largest {self.residual_max_samples:g}"),
            ]
        rows += [
            ("size, kB", f"{self.size_bytes / 1e3:.0f}, SavedModel {self.reference_size_bytes / 1e3:.0f}"),
            (
                "windows/s, one thread",
                f"{self.windows_per_second:.0f}, SavedModel {self.reference_windows_per_second:.0f} ({self.processor})",
            ),
        ]
        lines = [f"{name:<22} {value}" for name, value in rows]
        if self.picks > 0:
            most = max(*self.histogram, 1)
            for low, high, count in zip(EDGES[:-1], EDGES[1:], self.histogram, strict=True):
                bar = "#" * -(-40 * count // most)
                lines.append(f"  {low:>4g} to {high:<4g} samples {count:>7} {bar}".rstrip())
        lines += [f"FAILED: {failure}" for failure in self.failures]
        return "\n".join(lines)


class _Run(NamedTuple):
    """Windows of one length, [n, length, components], and all outputs of both for them."""

    windows: NDArray[np.float32]
    expected: dict[str, NDArray[np.float32]]
    found: dict[str, NDArray[np.float32]]


def compare(
    reference: Transport,
    artifact: Transport,
    model: Manifest,
    windows: NDArray[np.float32],
    bounds: Bounds,
    *,
    size_bytes: int = 0,
    reference_size_bytes: int = 0,
    time_it: bool = True,
) -> Report:
    """Run both on the same windows, float32 [n, window_samples, components], and on the middle of them at each length
    that the manifest offers for fragments."""
    runs: list[_Run] = []
    failures: list[str] = []
    lengths = tuple(sorted({*model.fragment_windows, model.window_samples}))
    for length in lengths:
        first = (model.window_samples - length) // 2
        part = np.ascontiguousarray(windows[:, first : first + length])
        expected = _outputs(reference, model, part)
        try:
            found = _outputs(artifact, model, part)
        except onnxruntime_errors() as error:
            failures.append(f"windows of {length} samples cannot be run: {' '.join(str(error).split())}")
            continue
        have, want = ({name: (str(o.dtype), o.shape) for name, o in both.items()} for both in (found, expected))
        if have != want:
            failures.append(f"windows of {length} samples: outputs are {have}, the SavedModel's {want}")
            continue
        runs.append(_Run(part, expected, found))
    sizes = [_differences(run.expected[name], run.found[name]) for run in runs for name in run.expected]
    max_abs, max_relative = (float(np.max([size[k] for size in sizes], initial=0.0)) for k in (0, 1))
    picking = model.task == "picking" and model.output.stride == 1
    picks, matched, residuals = _pick_agreement(runs, model) if picking else (-1, 1.0, np.zeros(0))
    p95 = float(np.percentile(residuals, 95)) if len(residuals) else 0.0
    for name, value, bound in (
        ("largest difference", max_abs, float("inf") if model.gives_waveforms else bounds.max_abs),
        ("largest relative difference", max_relative, bounds.max_relative),
        ("95 % of the residuals, samples", p95, bounds.residual_p95_samples),
    ):
        if not value <= bound:
            failures.append(f"{name}: {value:.3g}, the bound is {bound:.3g}")
    if not matched >= bounds.picks_matched:
        failures.append(f"picks matched: {matched:.4f}, the bound is {bounds.picks_matched:.4f}")
    fast = speeds([artifact, reference], model, windows) if time_it and not failures else [0.0, 0.0]
    return Report(
        windows=len(windows),
        lengths=lengths,
        max_abs=max_abs,
        max_relative=max_relative,
        picks=picks,
        picks_matched=matched,
        residual_median_samples=float(np.median(residuals)) if len(residuals) else 0.0,
        residual_p95_samples=p95,
        residual_max_samples=float(residuals.max(initial=0.0)),
        histogram=tuple(np.histogram(residuals, EDGES)[0].tolist()),
        size_bytes=size_bytes,
        reference_size_bytes=reference_size_bytes,
        windows_per_second=fast[0],
        reference_windows_per_second=fast[1],
        processor=processor(),
        failures=tuple(failures),
    )


def require(report: Report, artifact: Path) -> None:
    """Delete the artifact and raise BundleError if it broke a bound."""
    if report.failures:
        artifact.unlink(missing_ok=True)
        raise BundleError(f"{artifact.name} is not as good as its SavedModel: {'; '.join(report.failures)}")


def speeds(transports: list[Transport], model: Manifest, windows: NDArray[np.float32]) -> list[float]:
    """Windows per second of processor time of each, the median of several runs that alternate."""
    size = batch_size(windows.shape[1])
    batch = np.resize(windows, (size, *windows.shape[1:]))
    for transport in transports:
        _outputs(transport, model, batch)
    rates = np.zeros((ROUNDS, len(transports)))
    for rate in rates:
        for number, transport in enumerate(transports):
            start = time.process_time()
            for _ in range(RUNS):
                _outputs(transport, model, batch)
            rate[number] = RUNS * size / (time.process_time() - start)
    return [round(rate, 1) for rate in np.median(rates, axis=0).tolist()]


def processor() -> str:
    """The name of this computer's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _outputs(transport: Transport, model: Manifest, windows: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """All outputs for all windows, in batches."""
    size = batch_size(windows.shape[1])
    batches = [windows[first : first + size] for first in range(0, len(windows), size)]
    parts = [transport.predict(model, {model.input.name: batch}) for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _differences(expected: NDArray[np.float32], found: NDArray[np.float32]) -> tuple[float, float]:
    """The largest difference, and the largest over the largest value of its window."""
    axes = tuple(range(1, expected.ndim))
    largest = np.abs(found.astype(np.float64) - expected).max(axis=axes)
    scale = np.abs(expected).max(axis=axes).astype(np.float64)
    relative = np.divide(largest, scale, out=np.where(largest > 0, np.inf, largest), where=scale > 0)
    return float(largest.max()), float(relative.max())


def _pick_agreement(runs: Iterable[_Run], model: Manifest) -> tuple[int, float, NDArray[np.float64]]:
    """Picks of the reference, share of all picks that match, and how far the matched ones lie apart, in samples."""
    count, both, total, residuals = 0, 0, 0, []
    for run in runs:
        expected, found = (
            _picks(run.windows, outputs[model.output.name], model) for outputs in (run.expected, run.found)
        )
        apart = list(_matched(expected, found, model))
        residuals += apart
        count, both, total = count + len(expected), both + len(apart), total + max(len(expected), len(found))
    return count, both / total if total else 1.0, np.round(residuals, 2)


def _picks(windows: NDArray[np.float32], outputs: NDArray[np.float32], model: Manifest) -> list[Pick]:
    """Picks of each window by itself; their trace_id is its number."""
    live = (True,) * len(model.components)
    segments = [
        Segment(str(number), 0, 0, model.sampling_rate_hz, window.T, live) for number, window in enumerate(windows)
    ]
    bounds = np.arange(len(windows) + 1) * outputs.shape[1]
    return extract(Curve(segments, bounds, outputs.reshape(-1, outputs.shape[2]), model.output.labels), model)


def _matched(expected: list[Pick], found: list[Pick], model: Manifest) -> Iterator[float]:
    """For each expected pick that has one in `found`, how far away it is. Each is used once."""
    places: dict[tuple[str, str], list[int]] = {}
    for pick in found:
        places.setdefault((pick.trace_id, pick.phase), []).append(pick.time_ns)
    for pick in expected:
        times = places.get((pick.trace_id, pick.phase), [])
        if not times:
            continue
        nearest = min(times, key=lambda time_ns, pick=pick: abs(time_ns - pick.time_ns))  # type: ignore[misc]
        apart = abs(nearest - pick.time_ns) * 1e-9 * model.sampling_rate_hz
        if apart <= MATCH_SAMPLES:
            times.remove(nearest)
            yield apart
