"""The gate: how far an artifact is from its SavedModel on the same windows, how fast, and whether that is allowed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from seisserve.detections import Detection, extract_detections
from seisserve.errors import BundleError
from seisserve.manifest import DETECTION, Manifest
from seisserve.picks import Pick, extract
from seisserve.runtime import onnxruntime_errors
from seisserve.runtimes.setup import processor
from seisserve.segments import Segment
from seisserve.transport import Transport
from seisserve.windows import Curve, Windows, batch_size, cut, stack

__all__ = [
    "BOUNDS", "Bounds", "Labelled", "Report", "compare", "pick_agreement", "require", "speeds",
    "waveform_agreement",
]  # fmt: skip

MATCH_SAMPLES = 10.0  # picks of one phase nearer than this are the same arrival
EDGES = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, MATCH_SAMPLES)  # of the residual histogram, in samples
TOLERANCES_S = (0.1, 0.5)  # of a pick from its label
RUNS, ROUNDS = 3, 5  # calls in one measurement of speed, and how many of them alternate
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(ge=0)]


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far an artifact may be from the SavedModel; the defaults are those of float32.

    max_abs: of any probability; max_relative: over the largest output of the same window. picks_matched: share of the
    picks of either that lie `margin` above the threshold and that the other one has too, within 10 samples.
    residual_median_samples, residual_p95_samples: of the picks that match. f1_fall: by how much F1 on labelled
    windows may fall. detections_matched: as of picks, where half of the two together is in both. Of waveforms, in 95 %
    of the windows that are changed: power_db, of the output's power; rms_share, the difference in the output.
    """

    max_abs: Positive = 1e-4
    max_relative: Positive = 1e-4
    margin: Share = 0.0
    picks_matched: Share = 1.0
    residual_median_samples: Positive = np.inf
    residual_p95_samples: Positive = 0.0
    f1_fall: Share = 0.0
    detections_matched: Share = 1.0
    power_db: Positive = 0.2
    rms_share: Positive = 0.01


_FEWER_BITS = Bounds(
    max_abs=np.inf, max_relative=np.inf, margin=0.1, picks_matched=0.99, residual_median_samples=0.5,
    residual_p95_samples=2.0, f1_fall=0.005, detections_matched=0.99,
)  # fmt: skip
BOUNDS = {"float32": Bounds()} | dict.fromkeys(("bfloat16", "float16", "weights8", "int8"), _FEWER_BITS)


class Labelled(NamedTuple):
    """Windows of one length that the manifest offers, float32 [n, length, components], and what is known of them.

    Networks that give one value for a window have longer ones, out of which theirs are cut as the pipeline does.

    onsets: [n, phases], in samples, NaN where there is no label; phases: their names. noise: [n], windows where every
    pick is false. None where nothing is known.
    """

    windows: NDArray[np.float32]
    onsets: NDArray[np.float64] | None = None
    phases: tuple[str, ...] = ()
    noise: NDArray[np.bool_] | None = None


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the gate found on an artifact. Residuals are sizes, in samples to two digits, of the picks that match.

    picks: of the SavedModel, -1 where the task has none. histogram: matched picks between one of EDGES and the next.
    f1: by phase and tolerance (`P 0.5 s`), of the SavedModel and of the artifact, where windows have labels.
    detections: of the SavedModel, -1 where the task has none. power_db, rms_share: of waveforms, else 0.
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
    f1: dict[str, tuple[float, float]] = {}
    detections: int = -1
    detections_matched: float = 1.0
    power_db: float = 0.0
    rms_share: float = 0.0
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
        if self.detections >= 0:
            names += ["detections", "detections_matched"]
        if self.power_db or self.rms_share:
            names += ["power_db", "rms_share"]
        changes = {f"f1_change {name}": round(found - before, 4) for name, (before, found) in self.f1.items()}
        return {name: float(getattr(self, name)) for name in names} | changes

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
        if self.detections >= 0:
            rows.append(("detections", f"{self.detections}, matched {self.detections_matched:.2%}"))
        rows += [
            (f"F1, {name}", f"{found:.4f}, SavedModel {before:.4f}, change {found - before:+.4f}")
            for name, (before, found) in self.f1.items()
        ]
        if self.power_db or self.rms_share:
            rows.append(("waveforms, 95 %", f"power {self.power_db:.3g} dB, difference {self.rms_share:.2%}"))
        rows.append(("size, kB", f"{self.size_bytes / 1e3:.0f}, SavedModel {self.reference_size_bytes / 1e3:.0f}"))
        if self.windows_per_second:
            before = self.reference_windows_per_second
            speed = f"{self.windows_per_second:.0f}, SavedModel {before:.0f} ({self.processor})"
            rows.append(("windows/s, one thread", speed))
        lines = [f"{name:<22} {value}" for name, value in rows]
        if self.picks > 0:
            most = max(*self.histogram, 1)
            for low, high, count in zip(EDGES[:-1], EDGES[1:], self.histogram, strict=True):
                bar = "#" * -(-40 * count // most)
                lines.append(f"  {low:>4g} to {high:<4g} samples {count:>7} {bar}".rstrip())
        lines += [f"FAILED: {failure}" for failure in self.failures]
        return "\n".join(lines)


class _Run(NamedTuple):
    """Windows of one length, [n, length, components], and all outputs of both for what is cut out of them."""

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
    labelled: Labelled | None = None,
    size_bytes: int = 0,
    reference_size_bytes: int = 0,
    time_it: bool = True,
) -> Report:
    """Run both on the same windows, float32 [n, window_samples, components], on the middle of them at each length
    that the manifest offers for fragments, and on `labelled`."""
    failures: list[str] = []
    parts = []
    for length in sorted({*model.fragment_windows, model.window_samples}):
        first = (model.window_samples - length) // 2
        parts.append(np.ascontiguousarray(windows[:, first : first + length]))
    runs = list(_runs(reference, artifact, model, parts, failures))
    known = list(_runs(reference, artifact, model, [labelled.windows], failures)) if labelled else []
    every = [*runs, *known]
    sizes = [_differences(run.expected[name], run.found[name]) for run in every for name in run.expected]
    max_abs, max_relative = (float(np.max([size[k] for size in sizes], initial=0.0)) for k in (0, 1))
    picks, matched, residuals = _pick_agreement(every, model, bounds.margin) if model.phases else (-1, 1.0, np.zeros(0))
    median, p95 = (float(np.percentile(residuals, q)) if len(residuals) else 0.0 for q in (50, 95))
    detections, detected = _detection_agreement(every, model, bounds.margin)
    power_db, rms_share = _waveform_agreement(every, model) if model.gives_waveforms else (0.0, 0.0)
    f1 = _f1(known[0], labelled, model) if known and labelled and labelled.onsets is not None else {}
    for name, value, bound in (
        ("largest difference", max_abs, np.inf if model.gives_waveforms else bounds.max_abs),
        ("largest relative difference", max_relative, bounds.max_relative),
        ("median of the residuals, samples", median, bounds.residual_median_samples),
        ("95 % of the residuals, samples", p95, bounds.residual_p95_samples),
        ("change of the output's power, dB", power_db, bounds.power_db),
        ("difference as a share of the output", rms_share, bounds.rms_share),
        *((f"fall of F1, {name}", round(before - found, 4), bounds.f1_fall) for name, (before, found) in f1.items()),
    ):
        if not value <= bound:
            failures.append(f"{name}: {value:.3g}, the bound is {bound:.3g}")
    for name, share, least in (
        ("picks", matched, bounds.picks_matched),
        ("detections", detected, bounds.detections_matched),
    ):
        if not share >= least:
            failures.append(f"{name} matched: {share:.4f}, the bound is {least:.4f}")
    fast = speeds([artifact, reference], model, windows) if time_it and not failures else [0.0, 0.0]
    return Report(
        windows=len(windows) + (len(labelled.windows) if labelled else 0),
        lengths=tuple(sorted({part.shape[1] for part in parts})),
        max_abs=max_abs,
        max_relative=max_relative,
        picks=picks,
        picks_matched=matched,
        residual_median_samples=median,
        residual_p95_samples=p95,
        residual_max_samples=float(residuals.max(initial=0.0)),
        histogram=tuple(np.histogram(residuals, EDGES)[0].tolist()),
        f1=f1,
        detections=detections,
        detections_matched=detected,
        power_db=power_db,
        rms_share=rms_share,
        size_bytes=size_bytes,
        reference_size_bytes=reference_size_bytes,
        windows_per_second=fast[0],
        reference_windows_per_second=fast[1],
        processor=processor(),
        failures=tuple(failures),
    )


def pick_agreement(
    reference: Transport, artifact: Transport, model: Manifest, windows: NDArray[np.float32], margin: float
) -> tuple[float, float]:
    """Share of picks that match, and 95 % of their residuals in samples, as `compare` finds them."""
    runs = [_Run(windows, *(_outputs(one, model, windows) for one in (reference, artifact)))]
    _, matched, residuals = _pick_agreement(runs, model, margin)
    return matched, float(np.percentile(residuals, 95)) if len(residuals) else 0.0


def waveform_agreement(
    reference: Transport, artifact: Transport, model: Manifest, windows: NDArray[np.float32]
) -> float:
    """The difference as a share of the output in 95 % of the windows that are changed, as `compare` finds it."""
    run = _Run(windows, *(_outputs(one, model, windows) for one in (reference, artifact)))
    return _waveform_agreement([run], model)[1]


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


def _outputs(transport: Transport, model: Manifest, windows: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """All outputs for all windows, in batches."""
    parts = [transport.predict(model, {model.input.name: batch}) for batch in _batches(windows, model)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _batches(windows: NDArray[np.float32], model: Manifest) -> Iterator[NDArray[np.float32]]:
    """What goes into the network: the windows, or those cut out of them if they are longer than its own."""
    if windows.shape[1] > model.window_samples:
        yield from _cut(windows, model).batches()
        return
    size = batch_size(windows.shape[1])
    for first in range(0, len(windows), size):
        yield windows[first : first + size]


def _cut(windows: NDArray[np.float32], model: Manifest) -> Windows:
    """Each of the windows as a segment by itself, whose trace_id is its number, and the network's windows on it."""
    live = (True,) * len(model.components)
    return cut(
        [Segment(str(n), 0, 0, model.sampling_rate_hz, window.T, live) for n, window in enumerate(windows)], model
    )


def _differences(expected: NDArray[np.float32], found: NDArray[np.float32]) -> tuple[float, float]:
    """The largest difference, and the largest over the largest value of its window."""
    axes = tuple(range(1, expected.ndim))
    largest = np.abs(found.astype(np.float64) - expected).max(axis=axes)
    scale = np.abs(expected).max(axis=axes).astype(np.float64)
    relative = np.divide(largest, scale, out=np.where(largest > 0, np.inf, largest), where=scale > 0)
    return float(largest.max()), float(relative.max())


def _runs(
    reference: Transport,
    artifact: Transport,
    model: Manifest,
    parts: Iterable[NDArray[np.float32]],
    failures: list[str],
) -> Iterator[_Run]:
    """Both on windows of one length after the other; what cannot be run or has another shape is a failure."""
    for part in parts:
        length = part.shape[1]
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
        yield _Run(part, expected, found)


def _pick_agreement(runs: Iterable[_Run], model: Manifest, margin: float) -> tuple[int, float, NDArray[np.float64]]:
    """Picks of the reference, share of all picks that match, and how far the matched ones lie apart, in samples.

    With a margin the picks are those that lie so far above the threshold, and may match any pick of the other.
    """
    count, both, total, residuals = 0, 0, 0, []
    strict = _raised(model, margin)
    for run in runs:
        expected, found = (_picks(run, outputs, model) for outputs in (run.expected, run.found))
        if not margin:
            apart = list(_matched(expected, found, model))
            residuals += apart
            count, both, total = count + len(expected), both + len(apart), total + max(len(expected), len(found))
            continue
        clear, clear_found = (_picks(run, outputs, strict) for outputs in (run.expected, run.found))
        apart = list(_matched(clear, found, model))
        back = list(_matched(clear_found, expected, model))
        residuals += apart
        count, both, total = count + len(clear), both + len(apart) + len(back), total + len(clear) + len(clear_found)
    return count, both / total if total else 1.0, np.round(residuals, 2)


def _raised(model: Manifest, margin: float) -> Manifest:
    """The manifest with its thresholds so much higher, but never beyond what a curve can reach."""
    labels = {
        name: msgspec.structs.replace(label, threshold=min(label.threshold + margin, 1.0))
        for name, label in model.labels.items()
    }
    return msgspec.structs.replace(model, labels=labels)


def _curve(run: _Run, outputs: dict[str, NDArray[np.float32]], model: Manifest) -> Curve:
    """The curve of each window by itself; the trace_id of a segment is its number."""
    return stack(_cut(run.windows, model), [outputs[model.output.name]], model)


def _picks(run: _Run, outputs: dict[str, NDArray[np.float32]], model: Manifest) -> list[Pick]:
    """Picks of each window by itself; their trace_id is its number."""
    return extract(_curve(run, outputs, model), model)


def _detection_agreement(runs: Iterable[_Run], model: Manifest, margin: float) -> tuple[int, float]:
    """Detections of the reference, and the share of those of both that match; -1 without the label."""
    if DETECTION not in model.labels:
        return -1, 1.0
    count, both, total = 0, 0, 0
    strict = _raised(model, margin)
    for run in runs:
        curves = [_curve(run, outputs, model) for outputs in (run.expected, run.found)]
        clear, every = ([extract_detections(curve, kind) for curve in curves] for kind in (strict, model))
        # At a higher threshold a detection may be much shorter, so the other's may be of either threshold.
        for ones, others in ((clear[0], clear[1] + every[1]), (clear[1], clear[0] + every[0])):
            both += sum(any(_overlap(one, other) for other in others) for one in ones)
            total += len(ones)
        count += len(clear[0])
    return count, both / total if total else 1.0


def _overlap(one: Detection, other: Detection) -> bool:
    """Whether half of what either covers is covered by both."""
    common = min(one.end_ns, other.end_ns) - max(one.start_ns, other.start_ns)
    whole = max(one.end_ns, other.end_ns) - min(one.start_ns, other.start_ns)
    return one.trace_id == other.trace_id and 2 * common >= whole


def _waveform_agreement(runs: Iterable[_Run], model: Manifest) -> tuple[float, float]:
    """Change of the output's power in dB, and the difference as a share of the output, in 95 % of the windows.

    Windows that both give back as they are count nothing: a recovery does so with all that is not clipped.
    """
    decibels, shares = [], []
    for run in runs:
        both = np.stack([outputs[model.output.name] for outputs in (run.expected, run.found)])
        expected, found = both[:, (both != run.windows).any(axis=(0, 2, 3))].astype(np.float64)
        power, power_found, apart = ((one**2).sum(axis=(1, 2)) for one in (expected, found, found - expected))
        alive = (power > 0) & (power_found > 0)
        decibels.append(np.abs(10 * np.log10(power_found[alive] / power[alive])))
        shares.append(np.where(apart > 0, np.inf, 0.0))
        shares[-1][power > 0] = np.sqrt(apart[power > 0] / power[power > 0])
    high, share = (np.concatenate(one) if one else np.zeros(0) for one in (decibels, shares))
    return tuple(float(np.percentile(one, 95)) if len(one) else 0.0 for one in (high, share))  # type: ignore[return-value]


def _f1(run: _Run, labelled: Labelled, model: Manifest) -> dict[str, tuple[float, float]]:
    """F1 of the reference and of the artifact, by phase and tolerance. On noise every pick is false."""
    assert labelled.onsets is not None
    scores = {}
    both = [_picks(run, outputs, model) for outputs in (run.expected, run.found)]
    noise = np.zeros(len(run.windows), bool) if labelled.noise is None else labelled.noise
    for column, phase in enumerate(labelled.phases):
        if phase not in model.phases:
            continue
        onsets = labelled.onsets[:, column]
        for tolerance in TOLERANCES_S:
            pair = []
            for picks in both:
                times: dict[int, list[float]] = {}
                for pick in picks:
                    if pick.phase == phase:
                        times.setdefault(int(pick.trace_id), []).append(pick.time_ns * 1e-9)
                counted = [number for number in range(len(onsets)) if noise[number] or np.isfinite(onsets[number])]
                picked = sum(len(times.get(number, [])) for number in counted)
                wanted = [number for number in counted if np.isfinite(onsets[number])]
                right = sum(
                    any(abs(time_s - onsets[n] / model.sampling_rate_hz) <= tolerance for time_s in times.get(n, []))
                    for n in wanted
                )
                pair.append(2 * right / max(picked + len(wanted), 1))
            scores[f"{phase} {tolerance:g} s"] = (round(pair[0], 4), round(pair[1], 4))
    return scores


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
