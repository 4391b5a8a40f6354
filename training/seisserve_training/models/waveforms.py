"""How networks are served that give waveforms back."""

from __future__ import annotations

from seisserve.manifest import Output
from seisserve_training.config import Network
from seisserve_training.models.architecture import Serving

__all__ = ["half_overlap"]


def half_overlap(network: Network, components: int) -> Serving:
    """Windows that overlap by half; their ends, a twelfth each, see one side only and do not count."""
    window = network.window_samples
    return Serving(
        window_samples=window,
        hop_samples=window // 2,
        blinding_samples=window // 12,
        outputs=(Output(name="waveform", shape=(-1, window, components), labels=tuple("ZNE"[:components])),),
        thresholds={},
    )
