"""Examples: number i of the endless stream of training windows, a pure function of the seed and i."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from seisserve.errors import UsageError
from seisserve_training import augment
from seisserve_training.augment import Example
from seisserve_training.clean import clean_event
from seisserve_training.config import Config
from seisserve_training.datasets import Dataset, LabelledTrace, Row, rows_of
from seisserve_training.synthetic import synthetic_event, synthetic_noise, synthetic_signal

__all__ = ["KEPT_TRACES", "Examples", "balance"]

T = TypeVar("T")
KEPT_TRACES = 2048  # of events and of noise each are kept in memory where waveforms are read when they are wanted
AROUND_LABELS_S = 4.0  # of an incompletely labelled trace, that much about its labels is sure
SYNTHETIC_S = 20.0  # at least that long are synthetic records, however short the window
RECORDED, SYNTHETIC, NOISE = 10, 11, 12  # kinds of traces, whose fixed windows have random generators of their own
SOME_NOISE, LITTLE_NOISE = 0.5, 30.0  # how often what a denoiser leaves has noise, and the least ratio of onsets to it
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
        self.traces = traces
        weight = config.data.weights
        rows = rows_of(traces)
        noise = [number for number, row in enumerate(rows) if row.noise]
        labelled = [number for number, row in enumerate(rows) if not row.noise and weight.get(row.quality, 1.0) > 0]
        lazy = isinstance(traces, Dataset)
        self.noise = _pool(lambda number: traces[noise[number]].waveform.T, len(noise), lazy)
        self.events = _pool(lambda number: self._example(traces[labelled[number]]), len(labelled), lazy)
        chances = np.array([weight.get(rows[number].quality, 1.0) for number in labelled])
        chances = chances * balance([rows[number] for number in labelled], config.data.balance)
        self.chance = np.cumsum(chances) / chances.sum() if len(chances) else chances
        self.synthetic = [self._synthetic(number) for number in range(config.data.synthetic_events)]
        if not self.noise:
            self.noise = _pool(self._synthetic_noise, config.data.synthetic_events // 4, False)

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
        elif switch.clean_events and rng.random() < switch.clean_events:
            example = self.denoised_window(rng)
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
        if rng.random() < switch.scale_amplitude:
            example = augment.scale_amplitude(example, rng)
        return example

    def event_window(self, rng: np.random.Generator) -> Example:
        """An event somewhere in a window, as an instrument may see it; nothing is added to it."""
        if rng.random() < self.config.data.synthetic_share:
            kind, number = SYNTHETIC, int(rng.integers(len(self.synthetic)))
            example = self.synthetic[number]
        else:
            kind, number = RECORDED, int(np.searchsorted(self.chance, rng.random(), side="right"))
            example = self.events[number]
        return self._instrument(self._window(example, rng, kind, number), rng)

    def clean_window(self, rng: np.random.Generator) -> Example:
        """An event that stands far above its noise, somewhere in a window; zero before P. Nothing is added to it."""
        synthetic, recorded = self.clean
        made = not recorded or rng.random() < self.config.data.synthetic_share
        pool = synthetic if made else recorded
        if not pool:
            raise UsageError("the data has no event with a high signal-to-noise ratio: add data.synthetic_events")
        example = pool[rng.integers(len(pool))]
        example = augment.shift(example, rng, self.config.network.window_samples, self.config.augmentation.stretch)
        return self._instrument(example, rng)

    def denoised_window(self, rng: np.random.Generator) -> Example:
        """A labelled event as a denoiser leaves it, somewhere in a window: alone, or with noise far below onsets."""
        if not self.denoised:
            raise UsageError(
                "the data has no event with a high signal-to-noise ratio: set augmentation.clean_events to 0"
            )
        example = self.denoised[int(rng.integers(len(self.denoised)))]
        example = augment.shift(example, rng, self.config.network.window_samples, self.config.augmentation.stretch)
        example = self._instrument(example, rng)
        if self.noise and rng.random() < SOME_NOISE:
            noise = self.noise_window(rng).waveform
            example = augment.superpose_noise(example, noise, rng, self.rate, lowest_snr=LITTLE_NOISE)
        return example

    @cached_property
    def denoised(self) -> list[Example]:
        """Recorded events without noise, with their labels, found when first asked for."""
        weight = self.config.data.weights
        return [
            self._example(trace)._replace(waveform=event.T)
            for trace, event in self._clean_events()
            if weight.get(trace.row.quality, 1.0) > 0
        ]

    @cached_property
    def clean(self) -> tuple[list[Example], list[Example]]:
        """Synthetic and recorded events without noise, found when first asked for."""
        samples = self._synthetic_samples
        synthetic = []
        for number in range(self.config.data.synthetic_events):
            rng = np.random.default_rng((self.config.schedule.seed, 3, number))
            event = synthetic_signal(rng, samples, self.rate)
            onsets = (float(event.p_sample),), (float(event.s_sample),)
            synthetic.append(Example(event.waveform, *onsets, np.ones(samples, bool)))
        recorded = [
            Example(event.T, (trace.p,), (), np.ones(event.shape[1], bool)) for trace, event in self._clean_events()
        ]
        return synthetic, recorded

    def _clean_events(self) -> Iterator[tuple[LabelledTrace, NDArray[np.float32]]]:
        """Recorded events that stand far above their noise, and what is left of each without it."""
        for trace in self.traces:
            event = clean_event(trace, self.rate)
            if event is not None:
                yield trace, event

    def noise_window(self, rng: np.random.Generator) -> Example:
        """A window of noise without onsets."""
        number = int(rng.integers(len(self.noise)))
        waveform = self.noise[number]
        example = Example(waveform, (), (), np.ones(len(waveform), bool))
        return self._instrument(self._window(example, rng, NOISE, number), rng)

    def _window(self, example: Example, rng: np.random.Generator, kind: int, number: int) -> Example:
        """A window of trace `number` of its kind: at random, at one of few places that the seed knows, or at one."""
        switch, samples = self.config.augmentation, self.config.network.window_samples
        if not switch.shift:
            return augment.centre(example, samples)
        if switch.precomputed_shifts:
            which = int(rng.integers(switch.precomputed_shifts))
            rng = np.random.default_rng((self.config.schedule.seed, kind, number, which))
        return augment.shift(example, rng, samples, switch.stretch)

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

    @property
    def _synthetic_samples(self) -> int:
        return max(2 * self.config.network.window_samples, round(SYNTHETIC_S * self.rate))

    def _synthetic(self, number: int) -> Example:
        rng = np.random.default_rng((self.config.schedule.seed, 1, number))
        event = synthetic_event(rng, self._synthetic_samples, self.rate)
        return Example(
            event.waveform, (float(event.p_sample),), (float(event.s_sample),), np.ones(len(event.waveform), bool)
        )

    def _synthetic_noise(self, number: int) -> NDArray[np.float32]:
        rng = np.random.default_rng((self.config.schedule.seed, 2, number))
        return synthetic_noise(rng, self._synthetic_samples, self.rate)


def balance(rows: Sequence[Row], kind: str) -> NDArray[np.float64]:
    """How often to draw each trace (mean 1) under `data.balance`: "none", "class", "magnitude" or "snr"."""
    if kind == "none" or not rows:
        return np.ones(len(rows))
    snr = np.array([row.snr_db for row in rows])
    if kind == "snr":
        return augment.resampling_weights(snr)
    if kind == "magnitude":
        magnitude = np.array([row.magnitude for row in rows])
        known = np.isfinite(magnitude)
        weights = np.ones(len(rows))
        for part, values in ((known, magnitude), (~known, snr)):
            if part.any():
                weights[part] = augment.resampling_weights(values[part])
        return weights
    classes = np.array([2 * bool(np.isfinite(row.p)) + bool(np.isfinite(row.s)) for row in rows])
    counts = np.bincount(classes, minlength=4)
    return np.asarray(len(rows) / np.count_nonzero(counts) / counts[classes], np.float64)


class _Wanted(Sequence[T]):
    """Values made when they are wanted; the last KEPT_TRACES are kept."""

    def __init__(self, make: Callable[[int], T], length: int) -> None:
        self._make, self._length = lru_cache(KEPT_TRACES)(make), length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        return self._make(int(number))


def _pool(make: Callable[[int], T], length: int, lazy: bool) -> Sequence[T]:
    return _Wanted(make, length) if lazy else [make(number) for number in range(length)]
