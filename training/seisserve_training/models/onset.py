"""`onset`: PhaseNet's body without a window."""

from __future__ import annotations

import keras

from seisserve_training.models.layers import StandardiseLocally
from seisserve_training.models.phasenet import body

__all__ = ["BLINDING", "WINDOW", "onset"]

WINDOW = 16_384  # samples at a time when served; any multiple of 256 will do
BLINDING = 2_048  # context at each end of a window; what lies further away hardly moves the normalisation


def onset(components: int = 3, classes: int = 3, filters: int = 8, dropout: float = 0.0) -> keras.Model:
    """PhaseNet's U-Net (Zhu and Beroza 2019) behind a running normalisation in place of one over the window.

    Input `waveform` [n, samples, components] in raw counts, samples a multiple of 256; output `probability`
    [n, samples, classes]. A sample's answer depends on its surroundings and not on a window, so records are served in
    long windows that overlap by their context only: every sample is computed once, and nothing is stacked.
    """
    waveform = keras.Input((None, components), name="waveform")
    x = StandardiseLocally(name="standardise")(waveform)
    return keras.Model(waveform, body(x, classes, filters, dropout), name="onset")
