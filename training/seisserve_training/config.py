"""Training configuration: one TOML file, checked when it is read, stored with the run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from seisserve.errors import UsageError

__all__ = ["Augmentation", "Config", "Data", "Network", "Schedule", "read"]

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Kind = Literal[
    "basicphaseae", "cred", "deepdenoiser", "deepphasepick", "dncnn", "eqtransformer", "gpd", "onset", "phasenet",
    "recovery",
]  # fmt: skip
WHOLE_STRIDES = {"onset": 256, "phasenet": 256, "recovery": 256}  # whose windows must be whole multiples of this


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to learn from.

    paths: data set folders in SeisBench's format, relative to the configuration file. weights: how often a trace of a
    label quality is drawn (1 if not listed; 0 leaves it out). label_shift_s: seconds added to the onsets of a source
    that is known to label early or late. incomplete: label qualities whose traces hold arrivals that nobody labelled:
    only the surroundings of their labels are learnt from. synthetic_share: windows made from synthetic events, of
    which `synthetic_events` are made at the start.
    """

    paths: tuple[str, ...] = ()
    weights: dict[str, float] = {}
    label_shift_s: dict[str, dict[str, float]] = {}
    incomplete: tuple[str, ...] = ()
    synthetic_share: Share = 0.0
    synthetic_events: Annotated[int, msgspec.Meta(ge=0)] = 0


class Augmentation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often each augmentation is applied; 0 switches it off. stretch: largest change of speed (log)."""

    stretch: Share = 0.0
    stack_events: Share = 0.3
    superpose_noise: Share = 0.5
    noise_windows: Share = 0.15
    false_positive_noise: Share = 0.1
    false_positive_noise_on_noise: Share = 0.4
    channel_dropout: Share = 0.2
    rotate: Share = 0.5
    high_pass: Share = 0.2


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
    """How long and how fast. The learning rate falls to zero over all epochs along a cosine, after a short warm-up.

    average: momentum of the running average of the weights, which is what is evaluated and kept. patience: epochs
    without a better dev score after which training stops.
    """

    epochs: Count = 20
    steps_per_epoch: Count = 500
    batch_size: Count = 32
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 2e-3
    average: Share = 0.998
    patience: Count = 10
    seed: int = 0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that decides what `seisserve train` makes; the same configuration and data give the same weights."""

    name: str
    summary: str = "Phase picker"
    sampling_rate_hz: Annotated[float, msgspec.Meta(gt=0)] = 100.0
    components: str = "ZNE"
    label_sigma_s: Annotated[float, msgspec.Meta(gt=0)] = 0.1
    data: Data = msgspec.field(default_factory=Data)
    augmentation: Augmentation = msgspec.field(default_factory=Augmentation)
    network: Network = msgspec.field(default_factory=Network)
    schedule: Schedule = msgspec.field(default_factory=Schedule)

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
