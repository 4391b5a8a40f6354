"""The manifest: what a bundle says about itself. Every other part reads models through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
import numpy as np

from seisserve.errors import BundleError, UsageError

__all__ = [
    "DETECTION", "Artifact", "Figure", "Label", "Manifest", "Metric", "Output", "Source", "Task", "Tensor", "Training",
    "check_task", "read", "write",
]  # fmt: skip

SCHEMA = 1
DETECTION = "detection"  # the label that means: an earthquake is in here. Every other label is a phase
Task = Literal["picking", "detection", "denoising", "recovery"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
# In the bundle's own folder, or (of a SavedModel) that folder itself.
File = Annotated[str, msgspec.Meta(pattern=r"^(\.|[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})\Z")]


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A tensor of the signature; -1 in the shape is the free batch axis."""

    name: str
    dtype: Literal["float32"] = "float32"
    shape: tuple[int, ...]


class Output(Tensor, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An output: its labels (or components), and how many input samples one output sample stands for.

    shape: [-1, frames, labels], each frame for `stride` samples; or [-1, labels], one value for the sample in the
    middle of the window (window_samples // 2), from networks that classify a window as a whole.
    """

    labels: tuple[str, ...]
    stride: Positive = 1

    @property
    def single(self) -> bool:
        """Whether a window has one value for each label, rather than a curve."""
        return len(self.shape) == 2

    def window_shape(self, samples: int) -> tuple[int, ...]:
        """Shape of the output for one window of that many samples."""
        return (len(self.labels),) if self.single else (samples // self.stride, len(self.labels))


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How picks of one label are read off its curve, and where these numbers were chosen.

    threshold: on the curve as it is. calibration: (height of the peak, share of such picks that are right), both
    rising, straight lines between: what a pick states as its probability; if empty, the height itself.
    """

    threshold: Annotated[float, msgspec.Meta(gt=0, le=1)]
    uncertainty_scale: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    calibration: tuple[tuple[Share, Share], ...] = ()
    chosen_on: str = "default"

    def __post_init__(self) -> None:
        for (height, share), (next_height, next_share) in pairwise(self.calibration):
            if next_height <= height or next_share < share:
                raise ValueError(
                    f"calibration has {[height, share]} before {[next_height, next_share]}; heights must rise, and "
                    "the shares with them must not fall"
                )

    def calibrated(self, height: float) -> float:
        """The probability that a pick with a peak of that height is right."""
        if not self.calibration:
            return height
        heights, shares = zip(*self.calibration, strict=True)
        return float(np.float32(np.interp(height, heights, shares)))  # what a message or a table holds, too


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One form of the network: a file (or the SavedModel's files), its digest, and what the gate measured on it.

    parity: figures against the SavedModel on the same windows (largest differences, share of picks matched, residuals
    in samples; `golden`: the largest difference from the golden outputs, of waveforms as a share).
    windows_per_second: of one thread on `processor`, with onnxruntime (bfloat16: OpenVINO). edge_only: slower than
    float32 there, so only for where its size matters or other processors run it.
    """

    file: File
    format: Literal["saved_model", "onnx"]
    precision: Literal["float32", "bfloat16", "float16", "int8", "weights8"] = "float32"
    opset: int | None = None
    sha256: str
    size_bytes: int
    parity: dict[str, float] = {}
    windows_per_second: float | None = None
    processor: str | None = None
    edge_only: bool = False


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A data set, or one part of it, that the network was trained on."""

    name: str
    licence: str
    traces: int


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the network came to be."""

    sources: tuple[Source, ...]
    config_sha256: str
    seed: int
    code_version: str
    windows_seen: int = 0
    note: str = ""


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Picks against labels of one phase in one source (`all` for the whole split). Intervals are 95 %, bootstrap.

    method: whose picks, a baseline or a published network; empty for this model's.
    """

    data_set: str
    split: str
    method: str = ""
    source: str
    phase: str
    tolerance_s: float
    labels: int
    precision: float
    recall: float
    f1: float
    f1_interval: tuple[float, float]
    residual_bias_s: float | None = None
    residual_mae_s: float | None = None
    residual_std_s: float | None = None


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Anything else that was measured: detections, denoised and recovered waveforms, picks on noise.

    method: as of a Metric. interval: 95 %. n: events, traces or waveforms that it comes from. unit: `dB`, `%`, ...,
    empty for a plain ratio.
    """

    data_set: str
    split: str
    source: str
    method: str = ""
    quantity: str
    value: float
    interval: tuple[float, float] | None = None
    n: int
    unit: str = ""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The contract of a bundle: what goes in, what comes out, and how to read it.

    window_samples: length of a window. fragment_windows: shorter lengths that the network also takes, for segments
    shorter than a window. hop_samples: from one window to the next. blinding_samples: at each end of a window, not
    used inside a segment. edge_samples: picks closer than that to the end of a segment are flagged.
    detection_gap_s: detections with a shorter gap between them are one. minimum_detection_s: of those, shorter ones go.
    """

    schema: Literal[1] = 1
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    task: Task
    summary: str
    licence: str
    citation: str
    sampling_rate_hz: Annotated[float, msgspec.Meta(gt=0)]
    components: Annotated[str, msgspec.Meta(pattern=r"^[ZNE]{1,3}$")]
    window_samples: Positive
    fragment_windows: tuple[Positive, ...] = ()
    hop_samples: Positive
    stacking: Literal["mean", "max"] = "mean"
    blinding_samples: Annotated[int, msgspec.Meta(ge=0)] = 0
    edge_samples: Annotated[int, msgspec.Meta(ge=0)] = 0
    input: Tensor
    outputs: Annotated[tuple[Output, ...], msgspec.Meta(min_length=1)]
    labels: dict[str, Label] = {}
    minimum_pick_distance_s: Annotated[float, msgspec.Meta(ge=0)] = 0.5
    detection_gap_s: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    minimum_detection_s: Annotated[float, msgspec.Meta(ge=0)] = 0.5
    golden_tolerance: Annotated[float, msgspec.Meta(gt=0)] = 1e-4
    artifacts: dict[str, Artifact] = {}
    training: Training | None = None
    metrics: tuple[Metric, ...] = ()
    false_picks_per_hour: dict[str, float] = {}
    figures: tuple[Figure, ...] = ()

    def __post_init__(self) -> None:
        for output in self.outputs:
            self._check_output(output)
        if self.output.single and (self.blinding_samples or self.hop_samples > self.longest_hop):
            raise ValueError(
                f"hop_samples {self.hop_samples} and blinding_samples {self.blinding_samples}: with one value for a "
                f"window the hop is at most {self.longest_hop} (half the window), and there is nothing to blind"
            )
        if self.hop_samples + 2 * self.blinding_samples > self.window_samples:
            raise ValueError(
                f"hop_samples {self.hop_samples} and twice blinding_samples {self.blinding_samples} exceed "
                f"window_samples {self.window_samples}: samples would be lost"
            )
        if len(set(self.components)) < len(self.components):
            raise ValueError(f"components {self.components!r} name one of them twice")
        if any(length >= self.window_samples for length in self.fragment_windows):
            raise ValueError(f"fragment_windows {self.fragment_windows} must be below {self.window_samples}")
        if self.gives_waveforms:
            self._check_waveforms()
        unknown = set(self.labels) - set(self.outputs[0].labels)
        if unknown:
            raise ValueError(f"labels {sorted(unknown)} are not among the output's {list(self.outputs[0].labels)}")

    def _check_output(self, output: Output) -> None:
        expected = (-1, *output.window_shape(self.window_samples))
        if output.shape != expected:
            raise ValueError(f"outputs: {output.name!r} has shape {list(output.shape)}; expected {list(expected)}")
        if len(set(output.labels)) < len(output.labels):
            raise ValueError(f"outputs: {output.name!r} has labels {list(output.labels)}; each must be there once")
        for length in (self.window_samples, *self.fragment_windows):
            if not output.single and length % output.stride:
                raise ValueError(
                    f"outputs: {output.name!r} has stride {output.stride}; {length} samples (window_samples, "
                    "fragment_windows) are no whole multiple of it"
                )

    def _check_waveforms(self) -> None:
        output = self.output
        if output.single or output.stride != 1 or output.labels != tuple(self.components):
            raise ValueError(
                f"outputs: {output.name!r} has labels {list(output.labels)} and stride {output.stride}; waveforms have "
                f"one value for each sample and component, {list(self.components)}"
            )
        if self.stacking != "mean" or self.labels:
            raise ValueError("stacking must be 'mean', and labels empty: the model gives waveforms")

    @property
    def gives_waveforms(self) -> bool:
        """Whether the output is samples, in units of the input, rather than probabilities."""
        return self.task in ("denoising", "recovery")

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All that the model can be used for: a picker may have a detection label, too."""
        if self.gives_waveforms:
            return (self.task,)
        can: dict[Task, bool] = {"picking": bool(self.phases), "detection": DETECTION in self.labels}
        return tuple(task for task, yes in can.items() if yes)

    def onnx_output(self, name: str) -> str:
        """What an output is called in an ONNX file, where no output may have the name of the input."""
        return f"{name}_out" if name == self.input.name else name

    @property
    def output(self) -> Output:
        """The first output: what picks, detections or waveforms are read from."""
        return self.outputs[0]

    @property
    def phases(self) -> dict[str, Label]:
        """The labels that are arrivals."""
        return {name: label for name, label in self.labels.items() if name != DETECTION}

    @property
    def longest_hop(self) -> int:
        """With a longer one samples would be lost, or where a record was cut would matter more than a window away."""
        if self.output.single:
            return max(1, self.window_samples // 2)
        return self.window_samples - 2 * self.blinding_samples

    def with_options(
        self,
        thresholds: dict[str, float] | None = None,
        hop_samples: int | None = None,
        stacking: str | None = None,
    ) -> Manifest:
        """This manifest with some of its defaults replaced. Raises UsageError for what it cannot take."""
        labels = dict(self.labels)
        for label, threshold in (thresholds or {}).items():
            if label not in labels:
                raise UsageError(f"threshold for {label!r}: {self.name} has {', '.join(labels) or 'none'}")
            if not 0 < threshold <= 1:
                raise UsageError(f"threshold for {label} is {threshold}; it must lie above 0 and be at most 1")
            labels[label] = msgspec.structs.replace(labels[label], threshold=float(threshold))
        if hop_samples is not None and not 1 <= hop_samples <= self.longest_hop:
            raise UsageError(f"hop_samples is {hop_samples}; {self.name} takes 1 to {self.longest_hop}")
        if stacking not in (None, "mean", "max"):
            raise UsageError(f"stacking is {stacking!r}; it must be 'mean' or 'max'")
        if stacking == "max" and self.gives_waveforms:
            raise UsageError(f"stacking is 'max'; {self.name} gives waveforms, which can only be averaged: 'mean'")
        changes = {"labels": labels, "hop_samples": hop_samples, "stacking": stacking}
        return msgspec.structs.replace(self, **{key: value for key, value in changes.items() if value is not None})


def check_task(model: Manifest, task: Task, others: Callable[[], Iterable[Manifest]]) -> None:
    """Raises UsageError if the model is not for that task; it names those of the others that are."""
    if task not in get_args(Task):
        raise UsageError(f"task is {task!r}; it must be one of {', '.join(get_args(Task))}")
    if task not in model.tasks:
        fitting = [other.name for other in others() if task in other.tasks]
        is_for = " and ".join(model.tasks) or "none of the tasks"
        there = f"there is {', '.join(fitting)}" if fitting else "there is none"
        raise UsageError(f"model {model.name!r} is for {is_for}; for {task} {there}")


def decode(text: str | bytes, where: str) -> Manifest:
    """A manifest from JSON. Raises BundleError that names the key at fault."""
    try:
        return msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where}: {error}") from error


def read(folder: Path) -> Manifest:
    """The manifest of a bundle folder."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no manifest.json")
    return decode(path.read_bytes(), str(path))


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into its bundle folder."""
    (folder / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
