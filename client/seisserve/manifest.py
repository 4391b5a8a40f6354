"""The manifest: what a bundle says about itself. Every other part reads models through it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from seisserve.errors import BundleError, UsageError

__all__ = ["Artifact", "Label", "Manifest", "Metric", "Output", "Source", "Tensor", "Training", "read", "write"]

SCHEMA = 1
Positive = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A tensor of the signature; -1 in the shape is the free batch axis."""

    name: str
    dtype: Literal["float32"] = "float32"
    shape: tuple[int, ...]


class Output(Tensor, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An output: its labels (or components), and how many input samples one output sample stands for."""

    labels: tuple[str, ...]
    stride: Positive = 1


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How picks of one label are read off its curve, and where these numbers were chosen."""

    threshold: Annotated[float, msgspec.Meta(gt=0, le=1)]
    uncertainty_scale: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    chosen_on: str = "default"


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One form of the network: a file (or the SavedModel's files), its digest, and what the gate measured on it.

    parity: figures against the SavedModel on the same windows (largest differences, share of picks matched,
    residuals in samples). windows_per_second: of one thread on `processor`.
    """

    file: str
    format: Literal["saved_model", "onnx"]
    precision: Literal["float32", "float16", "int8"] = "float32"
    opset: int | None = None
    sha256: str
    size_bytes: int
    parity: dict[str, float] = {}
    windows_per_second: float | None = None
    processor: str | None = None


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
    """Picks against labels of one phase in one source (`all` for the whole split). Intervals are 95 %, bootstrap."""

    data_set: str
    split: str
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


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The contract of a bundle: what goes in, what comes out, and how to read it.

    window_samples: length of a window. fragment_windows: shorter lengths that the network also takes, for segments
    shorter than a window. hop_samples: from one window to the next. blinding_samples: at each end of a window, not
    used inside a segment. edge_samples: picks closer than that to the end of a segment are flagged.
    """

    schema: Literal[1] = 1
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    task: Literal["picking", "detection", "denoising", "recovery"]
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
    golden_tolerance: Annotated[float, msgspec.Meta(gt=0)] = 1e-4
    artifacts: dict[str, Artifact] = {}
    training: Training | None = None
    metrics: tuple[Metric, ...] = ()
    false_picks_per_hour: dict[str, float] = {}

    def __post_init__(self) -> None:
        if self.hop_samples + 2 * self.blinding_samples > self.window_samples:
            raise ValueError(
                f"hop_samples {self.hop_samples} and twice blinding_samples {self.blinding_samples} exceed "
                f"window_samples {self.window_samples}: samples would be lost"
            )
        if len(set(self.components)) < len(self.components):
            raise ValueError(f"components {self.components!r} name one of them twice")
        if any(length >= self.window_samples for length in self.fragment_windows):
            raise ValueError(f"fragment_windows {self.fragment_windows} must be below {self.window_samples}")
        unknown = set(self.labels) - set(self.outputs[0].labels)
        if unknown:
            raise ValueError(f"labels {sorted(unknown)} are not among the output's {list(self.outputs[0].labels)}")

    @property
    def output(self) -> Output:
        """The first output: what picks, detections or waveforms are read from."""
        return self.outputs[0]

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
                raise UsageError(f"threshold for {label!r}: {self.name} picks {', '.join(labels)}")
            if not 0 < threshold <= 1:
                raise UsageError(f"threshold for {label} is {threshold}; it must lie above 0 and be at most 1")
            labels[label] = msgspec.structs.replace(labels[label], threshold=float(threshold))
        if hop_samples is not None and not 1 <= hop_samples <= self.window_samples - 2 * self.blinding_samples:
            most = self.window_samples - 2 * self.blinding_samples
            raise UsageError(f"hop_samples is {hop_samples}; {self.name} takes 1 to {most}")
        if stacking not in (None, "mean", "max"):
            raise UsageError(f"stacking is {stacking!r}; it must be 'mean' or 'max'")
        changes = {"labels": labels, "hop_samples": hop_samples, "stacking": stacking}
        return msgspec.structs.replace(self, **{key: value for key, value in changes.items() if value is not None})


def decode(text: str | bytes, where: str) -> Manifest:
    """A manifest from JSON. Raises BundleError that names the key at fault."""
    try:
        return msgspec.json.decode(text, type=Manifest)
    except msgspec.DecodeError as error:
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
