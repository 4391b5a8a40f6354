"""Training configuration: one TOML file, checked when it is read, stored with the run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from seisserve.errors import UsageError

__all__ = ["Augmentation", "Config", "Data", "FineTune", "Network", "Schedule", "Teacher", "read"]

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Kind = Literal[
    "basicphaseae", "cred", "deepdenoiser", "deepphasepick", "dncnn", "eqtransformer", "gpd", "onset", "phasenet",
    "recovery",
]  # fmt: skip
# Networks whose windows must be whole multiples of this.
WHOLE_STRIDES = {"cred": 50, "deepphasepick": 32, "onset": 256, "phasenet": 256, "recovery": 256}


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to learn from.

    paths: data set folders in SeisBench's format, relative to the configuration file. weights: how often a trace of a
    label quality is drawn (1 if not listed; 0 never). without: sources that are left out, of dev too. label_shift_s:
    seconds added to the onsets of a source that is known to label early or late. incomplete: label qualities whose
    traces hold arrivals that nobody labelled: only the surroundings of their labels are learnt from. balance: draw
    traces so that all kinds of them come equally often: "class" (P only, S only, both labelled), "magnitude" (SNR where
    there is none) or "snr". synthetic_share: windows made from synthetic events, of which `synthetic_events` are made
    at the start. in_memory: whether waveforms are read once, or when they are wanted; "auto" reads what is under 4 GB
    once.
    """

    paths: tuple[str, ...] = ()
    weights: dict[str, float] = {}
    without: tuple[str, ...] = ()
    label_shift_s: dict[str, dict[str, float]] = {}
    incomplete: tuple[str, ...] = ()
    balance: Literal["none", "class", "magnitude", "snr"] = "none"
    in_memory: bool | Literal["auto"] = "auto"
    synthetic_share: Share = 0.0
    synthetic_events: Annotated[int, msgspec.Meta(ge=0)] = 0


class Augmentation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often each augmentation is applied; 0 switches it off.

    shift: windows lie at random about their event; without it the first onset is always at the same place of the
    window. precomputed_shifts: each trace has that many windows, drawn once from the seed, in place of ever new ones
    (0). stretch: largest change of speed (log). clean_events: of high SNR, as denoisers leave them: zero before P and
    with hardly any noise, so that pickers know such waveforms too.
    """

    shift: bool = True
    precomputed_shifts: Annotated[int, msgspec.Meta(ge=0)] = 0
    stretch: Share = 0.0
    stack_events: Share = 0.3
    superpose_noise: Share = 0.5
    noise_windows: Share = 0.15
    false_positive_noise: Share = 0.1
    false_positive_noise_on_noise: Share = 0.4
    channel_dropout: Share = 0.2
    rotate: Share = 0.5
    high_pass: Share = 0.2
    scale_amplitude: Share = 0.0
    clean_events: Share = 0.0


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which network, and its sizes. window_samples: of the training windows (`onset` is served in longer ones)."""

    kind: Kind = "phasenet"
    window_samples: Count = 3072
    filters: Count = 8
    dropout: Share = 0.0

    def __post_init__(self) -> None:
        stride = WHOLE_STRIDES.get(self.kind, 1)
        if self.window_samples % stride:
            raise ValueError(f"network.window_samples is {self.window_samples}; it must be a multiple of {stride}")


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long and how fast.

    The learning rate rises linearly over `warm_up_steps` (200, or a twentieth of a short run), then falls over all
    epochs: along a "cosine" to zero, "exponential"ly to `decay_to` of itself, or not at all ("constant").
    average: momentum of the running average of the weights, which is what is evaluated and kept. patience: epochs
    without a better dev score after which training stops. seeds: train once from each of these in place of `seed`; the
    best on dev becomes the bundle. tensorboard: write loss, learning rate and dev scores for TensorBoard, too.
    """

    epochs: Count = 20
    steps_per_epoch: Count = 500
    batch_size: Count = 32
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 2e-3
    average: Share = 0.998
    decay: Literal["cosine", "constant", "exponential"] = "cosine"
    decay_to: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.01
    warm_up_steps: Annotated[int, msgspec.Meta(ge=0)] | None = None
    patience: Count = 10
    seed: int = 0
    seeds: tuple[int, ...] = ()
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"schedule.seeds names a seed twice: {list(self.seeds)}")


class FineTune(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Begin from another network's weights in place of random ones.

    init_from: a bundle, the folder of a finished run, or a file of published weights that the network can read;
    relative to the configuration file. layers: what to copy, as the number of first layers with weights or as
    beginnings of layer names (empty: everything of the same name and shape). freeze: beginnings of the names of layers
    that stay as they are. keep: how far the trained weights go back to those they began from, in the end: a share of
    the latter in a mean of both (Wortsman et al. 2022, doi:10.1109/CVPR52688.2022.00780), which costs little on the
    data that was trained on and helps on other data.
    """

    init_from: str
    layers: Count | tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    keep: Share = 0.0


class Teacher(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Another picker, whose curves are learnt beside the labels.

    bundle: relative to the configuration file. share: of its curves in what is learnt, the rest are the labels; where
    those are not sure it is the teacher alone.
    """

    bundle: str
    share: Share = 0.5


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that decides what `seisserve train` makes; the same configuration and data give the same weights.

    thresholds: by label, in place of those that dev would choose.
    """

    name: str
    summary: str = "Phase picker"
    sampling_rate_hz: Annotated[float, msgspec.Meta(gt=0)] = 100.0
    components: str = "ZNE"
    label_shape: Literal["gaussian", "triangle", "box", "step"] = "gaussian"
    label_sigma_s: Annotated[float, msgspec.Meta(gt=0)] = 0.1  # of a triangle or box: half its width
    thresholds: dict[str, Annotated[float, msgspec.Meta(gt=0, le=1)]] = {}
    data: Data = msgspec.field(default_factory=Data)
    augmentation: Augmentation = msgspec.field(default_factory=Augmentation)
    network: Network = msgspec.field(default_factory=Network)
    schedule: Schedule = msgspec.field(default_factory=Schedule)
    fine_tune: FineTune | None = None
    teacher: Teacher | None = None

    def __post_init__(self) -> None:
        if not self.data.paths and self.data.synthetic_share < 1:
            raise ValueError("data.paths is empty: name a data set, or set data.synthetic_share to 1")
        if self.data.synthetic_share and not self.data.synthetic_events:
            raise ValueError("data.synthetic_share is set but data.synthetic_events is 0")

    @property
    def sha256(self) -> str:
        """Digest of the whole configuration, defaults included."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


def read(path: Path) -> Config:
    """The configuration in a TOML file. Raises UsageError that names the key at fault."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Config)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: {error}") from error
