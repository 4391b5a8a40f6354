"""Networks with made-up numbers, and windows, of which SeisBench's own classes made seisbench_recorded.npz.

Nothing here needs TensorFlow or PyTorch. The record was made with SeisBench 0.12.6 and PyTorch 2.14 in float32: the
class of each case with its arguments, `load_state_dict` of `numbers`, and of `windows` what `annotate` does to one:
`annotate_batch_pre`, the network, `annotate_batch_post` without blinding. The `pnw_filtered` windows were cut from a
record that ObsPy had filtered as a whole.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Case(NamedTuple):
    """kind: class of seisbench.models. samples: of its window."""

    kind: str
    samples: int
    arguments: dict[str, Any]


CASES = {
    "phasenet": Case("PhaseNet", 3001, {"phases": "PSN", "component_order": "ENZ"}),
    "phasenet_peak": Case(
        "PhaseNet", 3001,
        {"phases": "NPS", "norm": "std", "norm_detrend": True, "norm_amp_per_comp": True, "sampling_rate": 50},
    ),
    "phasenet_vertical": Case(
        "PhaseNet", 3001, {"phases": "NP", "classes": 2, "in_channels": 1, "component_order": "Z", "norm": "peak"}
    ),
    "light": Case("PhaseNetLight", 3001, {"phases": "PSN"}),
    "variable": Case(
        "VariableLengthPhaseNet", 1000,
        {"in_samples": 1000, "norm": "std", "norm_axis": [-1, -2], "output_activation": "sigmoid", "phases": "PSN"},
    ),
    "gpd": Case("GPD", 400, {"phases": "PSN", "component_order": "NEZ"}),
    "gpd_original": Case("GPD", 400, {"phases": "PSN", "original_compatible": True}),
    "autoencoder": Case("BasicPhaseAE", 600, {"phases": "NPS", "component_order": "ENZ"}),
    "cred": Case("CRED", 3000, {"in_samples": 3000, "component_order": "ENZ"}),
    "cred_original": Case("CRED", 3000, {"in_samples": 3000, "original_compatible": True}),
    "deepdenoiser": Case("DeepDenoiser", 3000, {"sampling_rate": 100}),
    "eqtransformer": Case("EQTransformer", 6000, {"phases": "PS", "component_order": "ENZ", "norm": "peak"}),
    "eqtransformer_short": Case("EQTransformer", 5000, {"phases": "PS", "in_samples": 5000, "lstm_blocks": 1}),
    "eqtransformer_original": Case("EQTransformer", 6000, {"phases": "PS", "original_compatible": "non-conservative"}),
    "eqtransformer_conservative": Case("EQTransformer", 6000, {"phases": "PS", "original_compatible": "conservative"}),
}  # fmt: skip
KEPT = 150  # samples of each curve that are recorded


def windows(samples: int) -> Array:
    """float32 [3, samples, 3] of whole counts: an onset in noise with an offset; with a ramp; with a dead component."""
    rng = np.random.default_rng(7)
    x, time = rng.normal(size=(3, samples, 3)), np.arange(samples)
    for number in range(3):
        after = time - int(samples * (0.25 + 0.15 * number))
        wave = 15 * np.sin(0.4 * after) * np.exp(-after.clip(0) / 80) * (after >= 0)
        x[number] += wave[:, None] * rng.uniform(0.3, 1, 3)
    x = x * [3.0, 200.0, 1e4] + [0.0, 50.0, -3e3]
    x[1] += np.linspace(-1e3, 1e3, samples)[:, None]
    x[2, :, 1] = 0
    return np.round(x).astype(np.float32)


def numbers(shapes: dict[str, list[int]]) -> dict[str, Array]:
    """Made-up arrays of these shapes, such that signals neither vanish nor grow from layer to layer."""
    rng = np.random.default_rng(2022)
    made: dict[str, Array] = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            made[name] = np.array(100, np.int64)
        elif name.endswith("running_var"):
            made[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) == 1 and name.endswith("weight"):
            made[name] = rng.uniform(0.7, 1.3, shape).astype(np.float32)
        elif len(shape) == 1:
            made[name] = rng.normal(size=shape, scale=0.1).astype(np.float32)
        else:
            inputs = np.prod(shape[1:]) if len(shape) > 2 or name.endswith("weight") else shape[0]
            made[name] = (rng.normal(size=shape) * np.sqrt(2 / inputs)).astype(np.float32)
    return made


def kept(samples: int) -> Array:
    """Which samples of a curve are recorded."""
    return np.linspace(0, samples - 1, min(KEPT, samples)).astype(int)
