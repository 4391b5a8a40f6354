"""Point picking: the probability of noise, P and S at the centre of a short window."""

from __future__ import annotations

import numpy as np

from seisserve_training.augment import Example
from seisserve_training.examples import Examples
from seisserve_training.labels import target
from seisserve_training.tasks.phases import cross_entropy, phase_scores
from seisserve_training.tasks.task import Pair, Task

__all__ = ["POINT_PICKING", "WINDOW"]

WINDOW = 400  # samples
CENTRE = WINDOW // 2
OFF_CENTRE_S = 0.1  # an onset that far from the centre still counts as there
NEAR_S = 2.0  # half of the windows without an onset at their centre have one that near, if there is any
ATTEMPTS = 20  # draws until there is a window of the wanted kind


def pair(examples: Examples, rng: np.random.Generator) -> Pair:
    """float32 [400, components] and [4]: N, P, S at the centre, and whether that is sure.

    A third of the windows have P at their centre, a third S; in the rest an onset lies off the centre or nowhere. They
    are cut out of longer ones (`network.window_samples`) that have been through all augmentations. A target falls off
    with the distance of the onset from the centre as the curves of other pickers do, so that the served curve has a
    peak and no plateau.
    """
    kind = rng.integers(3)
    for _ in range(ATTEMPTS):
        example = examples.labelled_window(rng)
        places = _places(example, int(kind), rng, examples.rate)
        if places:
            break
    else:
        places = [int(rng.integers(CENTRE, len(example.waveform) - CENTRE + 1))]
    centre = places[rng.integers(len(places))]
    sigma = examples.config.label_sigma_s * examples.rate
    waveform = example.waveform[centre - CENTRE : centre - CENTRE + WINDOW]
    return np.ascontiguousarray(waveform), target(example, sigma, examples.config.label_shape)[centre]


def _places(example: Example, kind: int, rng: np.random.Generator, rate_hz: float) -> list[int]:
    """Where windows of a kind (0 other, 1 P, 2 S) may have their centre in a longer one."""
    last = len(example.waveform) - CENTRE
    if kind:
        onsets, reach = (example.p, example.s)[kind - 1], OFF_CENTRE_S * rate_hz
    elif example.p + example.s and rng.random() < 0.5:
        onsets, reach = example.p + example.s, NEAR_S * rate_hz
    else:
        return [int(rng.integers(CENTRE, last + 1))]
    moved = [round(onset + rng.uniform(-reach, reach)) for onset in onsets]
    return [place for place in moved if CENTRE <= place <= last and example.sure[place]]


POINT_PICKING = Task(pair, cross_entropy, phase_scores)
