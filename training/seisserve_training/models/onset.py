"""`onset`: PhaseNet's body without a window."""

from __future__ import annotations

import keras
from keras import ops

from seisserve.manifest import Output
from seisserve_training.config import Network
from seisserve_training.labels import PHASES
from seisserve_training.models.architecture import Architecture, Serving
from seisserve_training.models.layers import StandardiseLocally
from seisserve_training.models.phasenet import CITATION, FRAGMENTS, body, load_published
from seisserve_training.tasks.phases import PHASE_PICKING

__all__ = ["BLINDING", "ONSET", "WINDOW", "onset"]

WINDOW = 16_384  # samples at a time when served; any multiple of 256 will do
BLINDING = 2_048  # context at each end of a window; what lies further away hardly moves the normalisation


def onset(components: int = 3, classes: int = 3, filters: int = 8, dropout: float = 0.0) -> keras.Model:
    """PhaseNet's U-Net (Zhu and Beroza 2019) behind a running normalisation in place of one over the window.

    Input `waveform` [n, samples, components] in raw counts, samples a multiple of 256; output `probability`
    [n, samples, classes]. A sample's answer depends on its surroundings and not on a window, so records are served in
    long windows that overlap by their context only: every sample is computed once, and nothing is stacked.
    """
    waveform = keras.Input((None, components), name="waveform")
    x = ops.expand_dims(StandardiseLocally(name="standardise")(waveform), 1)
    return keras.Model(waveform, body(x, classes, filters, dropout), name="onset")


def build(network: Network, components: int) -> keras.Model:
    """The network of a configuration."""
    return onset(components, len(PHASES), network.filters, network.dropout)


def serve(network: Network, components: int) -> Serving:
    """Long windows that overlap by their context only, whatever the length of the training windows."""
    return Serving(
        window_samples=WINDOW,
        hop_samples=WINDOW - 2 * BLINDING,
        blinding_samples=BLINDING,
        fragment_windows=tuple(size for size in FRAGMENTS if size < WINDOW),
        outputs=(Output(name="probability", shape=(-1, WINDOW, len(PHASES)), labels=PHASES),),
        thresholds={"P": 0.3, "S": 0.3},
    )


ONSET = Architecture("picking", CITATION, build, serve, PHASE_PICKING, load_published)
