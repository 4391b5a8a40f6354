"""Examples: number i of the endless stream of training windows, a pure function of the seed and i."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seisserve_training import augment
from seisserve_training.augment import Example
from seisserve_training.config import Config
from seisserve_training.datasets import LabelledTrace
from seisserve_training.synthetic import synthetic_event, synthetic_noise

__all__ = ["Examples"]

AROUND_LABELS_S = 4.0  # of an incompletely labelled trace, that much about its labels is sure
AFTER_P_S, BEFORE_S_S = 0.5, 0.5  # an unlabelled S may follow that soon after P, an unlabelled P precede S


class Examples:
    """The pool of traces that training windows are made from on the fly.

    traces: labelled events and noise. Every window is a pure function of the generator: seeded with the window's number
    (`generator`), the stream is the same whatever the number of workers, and a run that was stopped goes on where it
    was.
    """

    def __init__(self, traces: Sequence[LabelledTrace], config: Config) -> None:
        self.config = config
        self.rate = config.sampling_rate_hz
        weight = config.data.weights
        self.noise = [trace.waveform.T for trace in traces if trace.row.noise]
        labelled = [trace for trace in traces if not trace.row.noise and weight.get(trace.row.quality, 1.0) > 0]
        self.events = [self._example(trace) for trace in labelled]
        chances = np.array([weight.get(trace.row.quality, 1.0) for trace in labelled])
        self.chance = np.cumsum(chances) / chances.sum() if len(chances) else chances
        self.synthetic = [self._synthetic(number) for number in range(config.data.synthetic_events)]
        if not self.noise:
            self.noise = [self._synthetic_noise(number) for number in range(config.data.synthetic_events // 4)]

    def generator(self, number: int) -> np.random.Generator:
        """The random generator of window number i: of the seed and i alone."""
        return np.random.default_rng((self.config.schedule.seed, number))

    def labelled_window(self, rng: np.random.Generator) -> Example:
        """An event or noise, with every augmentation that the configuration switches on."""
        switch = self.config.augmentation
        if self.noise and rng.random() < switch.noise_windows:
            example = self.noise_window(rng)
            if rng.random() < switch.false_positive_noise_on_noise:
                example = augment.false_positive_noise(example, rng, self.rate)
        else:
            example = self.event_window(rng)
            if rng.random() < switch.stack_events:
                example = augment.stack_event(example, self.event_window(rng), rng, self.rate)
            if self.noise and rng.random() < switch.superpose_noise:
                example = augment.superpose_noise(example, self.noise_window(rng).waveform, rng, self.rate)
            if rng.random() < switch.false_positive_noise:
                example = augment.false_positive_noise(example, rng, self.rate)
        if rng.random() < switch.channel_dropout:
            example = augment.channel_dropout(example, rng)
        return example

    def event_window(self, rng: np.random.Generator) -> Example:
        """An event somewhere in a window, as an instrument may see it; nothing is added to it."""
        if rng.random() < self.config.data.synthetic_share:
            example = self.synthetic[rng.integers(len(self.synthetic))]
        else:
            example = self.events[int(np.searchsorted(self.chance, rng.random(), side="right"))]
        example = augment.shift(example, rng, self.config.network.window_samples, self.config.augmentation.stretch)
        return self._instrument(example, rng)

    def noise_window(self, rng: np.random.Generator) -> Example:
        """A window of noise without onsets."""
        waveform = self.noise[rng.integers(len(self.noise))]
        example = Example(waveform, (), (), np.ones(len(waveform), bool))
        example = augment.shift(example, rng, self.config.network.window_samples, self.config.augmentation.stretch)
        return self._instrument(example, rng)

    def _instrument(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.random() < self.config.augmentation.rotate:
            example = augment.rotate_horizontals(example, rng)
        if rng.random() < self.config.augmentation.high_pass:
            example = augment.high_pass(example, rng, self.rate)
        return example

    def _example(self, trace: LabelledTrace) -> Example:
        row, length = trace.row, trace.waveform.shape[1]
        shift_s = self.config.data.label_shift_s.get(row.source, {})
        p = trace.p + shift_s.get("P", 0.0) * self.rate
        s = trace.s + shift_s.get("S", 0.0) * self.rate
        time = np.arange(length)
        sure = np.ones(length, bool)
        if np.isnan(s):
            sure &= time < p + AFTER_P_S * self.rate
        if np.isnan(p):
            sure &= time > s - BEFORE_S_S * self.rate
        if row.quality in self.config.data.incomplete:
            around = AROUND_LABELS_S * self.rate
            sure &= (time > np.nanmin([p, s]) - around) & (time < np.nanmax([p, s]) + around)
        onsets = [tuple([onset] if np.isfinite(onset) else []) for onset in (p, s)]
        return Example(trace.waveform.T, onsets[0], onsets[1], sure)

    def _synthetic(self, number: int) -> Example:
        rng = np.random.default_rng((self.config.schedule.seed, 1, number))
        event = synthetic_event(rng, 2 * self.config.network.window_samples, self.rate)
        return Example(
            event.waveform, (float(event.p_sample),), (float(event.s_sample),), np.ones(len(event.waveform), bool)
        )

    def _synthetic_noise(self, number: int) -> NDArray[np.float32]:
        rng = np.random.default_rng((self.config.schedule.seed, 2, number))
        return synthetic_noise(rng, 2 * self.config.network.window_samples, self.rate)
