"""Further artifacts of a bundle, in fewer bits: made, compared with the SavedModel, and listed if they are good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args
from zipfile import BadZipFile

import msgspec
import numpy as np
from numpy.typing import NDArray

from seisserve import manifest as manifests
from seisserve.bundle import Bundle, digest, golden, read
from seisserve.errors import BundleError, UsageError
from seisserve.extras import need
from seisserve.manifest import Artifact, Manifest
from seisserve.runtime import golden_error, load
from seisserve.runtimes.onnx import OnnxRuntime
from seisserve.runtimes.openvino import OpenVinoRuntime, computes_bfloat16
from seisserve.transport import Arrays, Transport
from seisserve.windows import BATCH_SAMPLES, batch_size
from seisserve_export import card
from seisserve_export.convert import OPSET, check_operators, fold_narrow, free_lengths, to_clean_onnx
from seisserve_export.gate import (
    BOUNDS,
    Bounds,
    Labelled,
    Report,
    compare,
    pick_agreement,
    require,
    speeds,
    waveform_agreement,
)
from seisserve_export.quantize import (
    DENSE,
    Ends,
    Method,
    Ranges,
    calibrate,
    equalise,
    layers,
    least_ends,
    quantize,
    search,
    store,
)

if TYPE_CHECKING:
    import onnx

__all__ = ["PRECISIONS", "GraphRuntime", "Made", "add_artifact", "made_up_windows", "read_labelled", "study"]

Precision = Literal["bfloat16", "float16", "int8", "weights8"]
PRECISIONS = get_args(Precision)
GOOD = (0.995, 1.0)  # share of matched picks, and 95 % of the residuals in samples, that the search for ends stops at
GOOD_SHARE = 0.008  # of waveforms: the difference as a share of the output
FOR_RANGES, FOR_SEARCH, FOR_WAVEFORMS = 384, 1024, 256  # windows at most


class Made(NamedTuple):
    """What became of an artifact: the gate's report, its speed and that of float32 in one run (0 where it failed), and
    its float ends."""

    report: Report
    windows_per_second: float
    float32_per_second: float
    ends: Ends | None

    def text(self) -> str:
        """The report, for people."""
        lines = [self.report.text()]
        if self.float32_per_second:
            ratio = self.windows_per_second / self.float32_per_second
            lines.append(f"{'against float32 ONNX':<22} {ratio:.2f} times as fast")
        if self.ends is not None:
            lines.append(f"{'float layers':<22} first {self.ends.first}, last {self.ends.last}")
        return "\n".join(lines)


class GraphRuntime:
    """A graph on onnxruntime, one call at a time; a transport."""

    lanes, batch_samples = 1, BATCH_SAMPLES

    def __init__(self, graph: onnx.ModelProto, model: Manifest) -> None:
        ort = need("onnxruntime", "export")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._outputs = {output.name: model.onnx_output(output.name) for output in model.outputs}

    def predict(self, model: Manifest, inputs: Arrays) -> Arrays:
        """Outputs by name."""
        found = self._session.run(list(self._outputs.values()), dict(inputs))
        return dict(zip(self._outputs, found, strict=True))


def add_artifact(
    folder: Path,
    precision: Precision,
    *,
    calibration: NDArray[np.float32] | None = None,
    labelled: Labelled | None = None,
    ends: Ends | None = None,
    dense: bool = False,
    method: Method = "percentile",
    bounds: Bounds | None = None,
    failed: Callable[[Made], None] | None = None,
) -> Made:
    """Make `model.PRECISION.onnx` of the bundle in `folder`, prove it, and write manifest and card.

    calibration: real windows that ranges and, where `ends` are not given, float layers are chosen by, never those of
    `labelled`, which it is judged on; float32 [n, length, components] of a length that the manifest offers; made-up
    ones if there are none. Raises BundleError if it breaks a bound or is neither faster nor smaller than float32; then
    there is no such file, and the manifest is as it was; `failed` hears of what breaks a bound. dense: of int8, store
    the weights of LSTM and MatMul as int8 too.
    """
    bundle = read(folder)
    model = bundle.manifest
    if precision == "bfloat16" and not computes_bfloat16():
        raise UsageError("this processor computes no bfloat16 (AMX or AVX512-BF16), so it cannot be judged here")
    _check(model, calibration, "calibration")
    _check(model, labelled.windows if labelled else None, "windows")
    plain, path = bundle.artifact("onnx")[0], folder / f"model.{precision}.onnx"
    if precision == "int8":
        windows = made_up_windows(model) if calibration is None else calibration
        graph, ends = _int8(bundle, windows, ends, method)
        graph = store(graph, "weights8", DENSE) if dense else graph
    else:
        graph, ends = store(need("onnx", "export").load(str(folder / plain.file)), precision), None
    check_operators(graph)
    earlier = path.read_bytes() if path.exists() else None
    need("onnx", "export").save(graph, str(path))
    sha256, size = digest(path)
    artifact = Artifact(file=path.name, format="onnx", precision=precision, opset=OPSET, sha256=sha256, size_bytes=size)
    others = {name: item for name, item in model.artifacts.items() if name != precision}
    bundle = bundle._replace(manifest=msgspec.structs.replace(model, artifacts=others | {precision: artifact}))
    # onnxruntime would compute bfloat16 in float32.
    runtime = (OpenVinoRuntime if precision == "bfloat16" else OnnxRuntime)(bundle, 1, precision)
    tested, _ = golden(folder)
    report = compare(
        load(bundle, "tensorflow"), runtime, model, tested, bounds or BOUNDS[precision], labelled=labelled,
        size_bytes=size, reference_size_bytes=bundle.artifact("saved_model")[0].size_bytes,
    )  # fmt: skip
    if failed and report.failures:
        failed(Made(report, 0, 0, ends))
    try:
        require(report, path)
        fast, fast32 = speeds([runtime, OnnxRuntime(bundle, 1)], model, tested)
        if fast < fast32 and size >= plain.size_bytes:
            path.unlink()
            raise BundleError(
                f"{path.name} is of no use here: {fast:.0f} windows/s and {size} bytes, float32 {fast32:.0f} and "
                f"{plain.size_bytes}"
            )
    except BundleError:
        if earlier is not None:
            path.write_bytes(earlier)  # the manifest lists it still
        raise
    parity = report.parity | {"golden": golden_error(bundle, runtime)}
    measured = {"parity": parity, "processor": report.processor, "windows_per_second": fast}
    artifacts = {
        name: msgspec.structs.replace(item, windows_per_second=fast32, processor=report.processor)
        if item == plain
        else item
        for name, item in others.items()
    }
    artifacts[precision] = msgspec.structs.replace(artifact, **measured, edge_only=fast < fast32)
    manifests.write(folder, msgspec.structs.replace(model, artifacts=artifacts))
    card.write(folder)
    return Made(report, fast, fast32, ends)


def _int8(
    bundle: Bundle, windows: NDArray[np.float32], ends: Ends | None, method: Method
) -> tuple[onnx.ModelProto, Ends]:
    """The int8 graph; which layers stay float is searched for unless it is given."""
    model = bundle.manifest
    for_ranges, rest = _parted(windows, model)
    clean = to_clean_onnx(bundle.folder, model)
    even = equalised(clean, model, for_ranges)
    ranges, names = calibrate(even, _batches(for_ranges), method), layers(even)
    if not names:
        raise BundleError(f"{bundle.folder}: the network has no convolution that can be quantized")
    if ends is None:
        ends = _search(even, ranges, model, rest)
    if ends.first + ends.last >= len(names):
        raise UsageError(f"{ends.first} and {ends.last} float layers leave nothing to quantize: there are {len(names)}")
    return quantize(even, ranges, ends), ends


def equalised(clean: onnx.ModelProto, model: Manifest, windows: NDArray[np.float32]) -> onnx.ModelProto:
    """A graph as `to_clean_onnx` gives it, equalised, folded and free."""
    free = need("onnx", "export").ModelProto()
    free.CopyFrom(clean)
    even = equalise(clean, _batches(windows), free=free_lengths(free, model))
    return free_lengths(fold_narrow(even, model), model)


def _search(graph: onnx.ModelProto, ranges: Ranges, model: Manifest, windows: NDArray[np.float32]) -> Ends:
    """The ends that keep picks or waveforms; of networks that only detect, the least."""
    names, reference, margin = len(layers(graph)), GraphRuntime(graph, model), BOUNDS["int8"].margin

    def picks(ends: Ends) -> tuple[float, float]:
        return pick_agreement(reference, GraphRuntime(quantize(graph, ranges, ends), model), model, windows, margin)

    def waveforms(ends: Ends) -> tuple[float, float]:
        artifact = GraphRuntime(quantize(graph, ranges, ends), model)
        return 1.0, waveform_agreement(reference, artifact, model, windows[:FOR_WAVEFORMS])

    if model.gives_waveforms:
        return search(names, waveforms, (1.0, GOOD_SHARE))[0]
    return search(names, picks, GOOD)[0] if model.phases else least_ends(names)


def study(folder: Path, calibration: NDArray[np.float32], labelled: Labelled) -> str:
    """What each step does to picks and speed, as a Markdown table; and each convolution alone in int8."""
    bundle = read(folder)
    model = bundle.manifest
    for_ranges, rest = _parted(calibration, model)
    clean = to_clean_onnx(folder, model)
    copy = need("onnx", "export").ModelProto()
    copy.CopyFrom(clean)
    plain = free_lengths(copy, model)
    folded = free_lengths(fold_narrow(clean, model), model)
    even = equalised(clean, model, for_ranges)
    names, none = layers(folded), Ends(0, 0)
    ranges = {
        (kind, method): calibrate(graph, _batches(for_ranges), method)
        for kind, graph in (("folded", folded), ("even", even))
        for method in get_args(Method)
    }
    best = _search(even, ranges["even", "percentile"], model, rest)
    made = {"float32, not folded": plain, "float32": folded}
    made["int8 as it comes (min-max, not folded)"] = quantize(
        plain, calibrate(plain, _batches(for_ranges), "minmax"), none
    )
    for method in get_args(Method):
        made[f"int8, {method}"] = quantize(folded, ranges["folded", method], none)
    for method in get_args(Method):
        made[f"int8, {method}, first and last layer float"] = quantize(folded, ranges["folded", method], Ends(1, 1))
    for method in get_args(Method):
        made[f"int8, {method}, equalised, first and last float"] = quantize(even, ranges["even", method], Ends(1, 1))
    for first, last in ((2, 1), (3, 2), (4, 1), best, (6, 4)):
        if first + last < len(names):
            made[f"int8, percentile, equalised, first {first} and last {last} float"] = quantize(
                even, ranges["even", "percentile"], Ends(first, last)
            )
    made |= {f"float32 with weights in {kind}": store(folded, kind) for kind in ("float16", "weights8")}
    runtimes: dict[str, Transport] = {name: GraphRuntime(graph, model) for name, graph in made.items()}
    tested, _ = golden(folder)
    rates = speeds(list(runtimes.values()), model, tested)
    per_second = dict(zip(runtimes, rates, strict=True))
    lines = [
        f"`{model.name}`, {len(labelled.windows):,} windows of the dev split; speed is of one thread against float32 "
        f"({per_second['float32']:.0f} windows/s), in one run.\n",
        "| graph | kB | picks matched | residual: median, 95 % (samples) | F1 change | speed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    reference = runtimes["float32"]

    def row(name: str, runtime: Transport, size: int, speed: str) -> str:
        found = compare(reference, runtime, model, tested[:1], _ANY, labelled=labelled, time_it=False)
        residuals = f"{found.residual_median_samples:.2f}, {found.residual_p95_samples:.2f}"
        changes = ", ".join(f"{key} {after - before:+.4f}" for key, (before, after) in found.f1.items())
        return f"| {name} | {size / 1e3:.0f} | {found.picks_matched:.2%} | {residuals} | {changes} | {speed} |"

    for name, runtime in runtimes.items():
        speed = f"{per_second[name] / per_second['float32']:.2f}"
        lines.append(row(name, runtime, made[name].ByteSize(), speed))
    lines += ["\nOne convolution alone in int8 (percentile, not equalised), in order:\n", *lines[1:3]]
    for number, name in enumerate(names):
        graph = quantize(folded, ranges["folded", "percentile"], Ends(number, len(names) - number - 1))
        lines.append(row(f"{number + 1}: {name}", GraphRuntime(graph, model), graph.ByteSize(), "-"))
    return "\n".join(lines) + "\n"


_ANY = Bounds(
    max_abs=np.inf, max_relative=np.inf, margin=BOUNDS["int8"].margin, picks_matched=0, residual_median_samples=np.inf,
    residual_p95_samples=np.inf, f1_fall=1, detections_matched=0, power_db=np.inf, rms_share=np.inf,
)  # fmt: skip


def made_up_windows(model: Manifest) -> NDArray[np.float32]:
    """Windows to calibrate on where there are no real ones: noise and an onset in noise, mixed at ratios of 0.01 to
    100, moved in time."""
    from seisserve_export.bundles import golden_windows

    noise, onset = golden_windows(model)[:2]
    rng = np.random.default_rng(0)
    shifts = rng.integers(len(noise), size=(64, 2))
    ratios = np.geomspace(0.01, 100, len(shifts))
    mixed = [
        np.roll(noise, shift, axis=0) + np.float32(ratio) * np.roll(onset, other, axis=0)
        for (shift, other), ratio in zip(shifts, ratios, strict=True)
    ]
    return np.stack(mixed).astype(np.float32)


def read_labelled(path: Path) -> Labelled:
    """Windows in an .npz file as `seisserve windows` writes them: `input`, and what there is of `onsets`, `phases` and
    `noise`. Raises UsageError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "input" not in arrays.files:
                raise UsageError(f"{path} has no array `input`; it has {', '.join(arrays.files) or 'none'}")
            onsets, noise = (arrays[name] if name in arrays.files else None for name in ("onsets", "noise"))
            phases = tuple(str(name) for name in arrays["phases"]) if "phases" in arrays.files else ()
            found = Labelled(arrays["input"], onsets, phases, noise)
    except (OSError, ValueError, TypeError, BadZipFile) as error:
        raise UsageError(f"{path}: not an .npz file with windows ({error})") from error
    n = len(found.windows)
    if onsets is not None and onsets.shape != (n, len(phases)):
        raise UsageError(f"{path}: onsets are {list(onsets.shape)}; expected {[n, len(phases)]}, windows and phases")
    if noise is not None and (noise.dtype != bool or noise.shape != (n,)):
        raise UsageError(f"{path}: noise is {noise.dtype} {list(noise.shape)}; expected bool {[n]}")
    return found


def _check(model: Manifest, windows: NDArray[np.float32] | None, where: str) -> None:
    if windows is None:
        return
    lengths = sorted({*model.fragment_windows, model.window_samples})
    if (
        windows.dtype != np.float32
        or windows.ndim != 3
        or windows.shape[2] != len(model.components)
        or not len(windows)
    ):
        wanted = f"float32 [n, samples, {len(model.components)}]"
        raise UsageError(f"{where}: {windows.dtype} {list(windows.shape)}; {model.name} takes {wanted}")
    if model.output.single:
        # One value for a window says no time: what picks are compared on is cut as the pipeline does.
        if windows.shape[1] < 2 * model.window_samples:
            raise UsageError(
                f"{where}: windows of {windows.shape[1]} samples; {model.name} gives one value for "
                f"{model.window_samples} samples, and takes {2 * model.window_samples} or more to cut them out of"
            )
    elif windows.shape[1] not in lengths:
        raise UsageError(f"{where}: windows of {windows.shape[1]} samples; {model.name} takes {lengths}")
    if not np.isfinite(windows).all():
        raise UsageError(f"{where}: not all values are finite")


def _parted(windows: NDArray[np.float32], model: Manifest) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Windows for the ranges, as the network takes them, and others for the search, drawn at random; at least half of
    them are others."""
    order = np.random.default_rng(0).permutation(len(windows))
    edge = min(FOR_RANGES, (len(windows) + 1) // 2)
    for_ranges = windows[order[:edge]]
    length = model.window_samples
    if windows.shape[1] > length:
        whole = windows.shape[1] // length * length
        for_ranges = for_ranges[:, :whole].reshape(-1, length, windows.shape[2])
    return for_ranges, windows[order[edge : edge + FOR_SEARCH]] if len(windows) > 1 else windows


def _batches(windows: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    size = batch_size(windows.shape[1])
    for first in range(0, len(windows), size):
        yield windows[first : first + size]
