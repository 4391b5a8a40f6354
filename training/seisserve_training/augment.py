"""Augmentations of Zhu, Mousavi and Beroza (2020, Advances in Geophysics 61), one pure function each.

Each takes an Example and the random generator, and returns a new Example. Onsets that an augmentation hides are taken
away or marked as unsure, so that the network is never asked for what cannot be seen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

__all__ = [
    "Example",
    "centre",
    "channel_dropout",
    "clip",
    "false_positive_noise",
    "gap",
    "high_pass",
    "mix",
    "resampling_weights",
    "rotate_horizontals",
    "scale_amplitude",
    "shift",
    "stack_event",
    "superpose_noise",
]

Array = NDArray[np.float32]
NEAR_ONSET = 30  # samples before an onset that may already belong to it
SHORTEST_NOISE = 100  # samples that must lie before the first onset to be mirrored


class Example(NamedTuple):
    """A window on its way to the network.

    waveform: float32 [samples, components] (Z, N, E); p, s: onsets in samples, which may lie outside the window;
    sure: bool [samples], where the labels can be relied on (elsewhere the loss does not look).
    """

    waveform: Array
    p: tuple[float, ...]
    s: tuple[float, ...]
    sure: NDArray[np.bool_]


def shift(example: Example, rng: np.random.Generator, samples: int, stretch: float = 0.0) -> Example:
    """A window of `samples` at a random place: an onset lies anywhere in it, four times in five.

    stretch: time runs faster or slower by up to this share (log-uniform), which also moves frequencies and S-P times.
    Where the window begins before the trace, the noise before the first onset is mirrored, again and again, so that
    late onsets are as common as early ones; beyond the end the last value is held, as serving does with fragments.
    """
    length = len(example.waveform)
    speed = float(np.exp(rng.uniform(-stretch, stretch))) if stretch else 1.0
    span = samples * speed
    onsets = example.p + example.s
    quiet = min(onsets, default=float(length)) - NEAR_ONSET
    if onsets and rng.random() < 0.8:
        start = float(onsets[rng.integers(len(onsets))]) - span * rng.uniform(0.01, 0.99)
    else:
        start = rng.uniform(min(0.0, length - span), max(0.0, length - span))
    if length > span:
        start = min(start, length - 0.95 * span)
    if quiet < SHORTEST_NOISE:
        start = max(start, -0.05 * span)
    return _window(example, start if stretch else float(round(start)), samples, speed)


def centre(example: Example, samples: int, place: float = 1 / 3) -> Example:
    """A window of `samples` with the first onset always at the same place of it, for comparison with `shift`.

    place: share of the window before that onset. Noise begins with the trace.
    """
    onsets = example.p + example.s
    return _window(example, float(round(min(onsets) - place * samples)) if onsets else 0.0, samples, 1.0)


def _window(example: Example, start: float, samples: int, speed: float) -> Example:
    length = len(example.waveform)
    quiet = min(example.p + example.s, default=float(length)) - NEAR_ONSET
    at = start + speed * np.arange(samples)
    if quiet >= SHORTEST_NOISE:
        at = np.where(at < 0, quiet - np.abs(-at % (2 * quiet) - quiet), at)
    inside = np.clip(at, 0, length - 1)
    below = np.minimum(inside.astype(np.int64), length - 2)
    weight = (inside - below).astype(np.float32)[:, None]
    waveform = example.waveform[below] * (1 - weight) + example.waveform[below + 1] * weight
    sure = example.sure[np.round(inside).astype(np.int64)]

    def moved(times: tuple[float, ...]) -> tuple[float, ...]:
        return tuple((time - start) / speed for time in times)

    return Example(waveform, moved(example.p), moved(example.s), sure)


def stack_event(example: Example, other: Example, rng: np.random.Generator, rate_hz: float) -> Example:
    """Two events in one window, at a random amplitude ratio at which each stays visible above the other.

    The example comes back as it was if no ratio leaves all onsets visible.
    """
    ratio = float(np.exp(rng.uniform(np.log(0.05), np.log(20))))
    scaled = other.waveform * (ratio * _peak(example.waveform) / (_peak(other.waveform) or 1.0))
    if not (
        _visible(example, scaled, rate_hz) and _visible(other._replace(waveform=scaled), example.waveform, rate_hz)
    ):
        return example
    return Example(example.waveform + scaled, example.p + other.p, example.s + other.s, example.sure & other.sure)


def superpose_noise(
    example: Example, noise: Array, rng: np.random.Generator, rate_hz: float, lowest_snr: float = 1.5
) -> Example:
    """Noise [samples, components] added at a random level that leaves every onset at least `lowest_snr` above it."""
    strength = _rms(noise)
    if not strength:
        return example
    onsets = _inside(example.p + example.s, len(example.waveform))
    if onsets:
        weakest = min(_onset_amplitude(example.waveform, onset, rate_hz) for onset in onsets)
        level = weakest / float(np.exp(rng.uniform(np.log(lowest_snr), np.log(100))))
    else:
        level = _rms(example.waveform) * float(10 ** rng.uniform(-1.5, 1))
    return example._replace(waveform=example.waveform + noise * np.float32(level / strength))


def false_positive_noise(example: Example, rng: np.random.Generator, rate_hz: float) -> Example:
    """One of the faults that pickers take for arrivals: a gap, a step, spikes, a repeated or pulsed stretch."""
    kind = rng.integers(5)
    return (gap, _step, _spikes, _repeat, _pulse)[kind](example, rng, rate_hz)


def channel_dropout(example: Example, rng: np.random.Generator) -> Example:
    """One or two components set to zero, as a dead or missing channel is served."""
    keep = ((0,), (0,), (0, 1), (0, 2), (1, 2), (1,))[rng.integers(6)]
    waveform = np.zeros_like(example.waveform)
    waveform[:, keep] = example.waveform[:, keep]
    return example._replace(waveform=waveform)


def scale_amplitude(example: Example, rng: np.random.Generator) -> Example:
    """The whole window times a factor between a thirtieth and thirty, for networks that see amplitudes."""
    return example._replace(waveform=example.waveform * np.float32(10 ** rng.uniform(-1.5, 1.5)))


def rotate_horizontals(example: Example, rng: np.random.Generator) -> Example:
    """A sensor turned by a random angle, with a random polarity and unequal gains."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    gains = np.diag(10 ** rng.uniform(-0.2, 0.2, 3)) * rng.choice([-1, 1])
    return example._replace(waveform=(example.waveform @ (turn @ gains).astype(np.float32)).astype(np.float32))


def high_pass(example: Example, rng: np.random.Generator, rate_hz: float) -> Example:
    """A first-order instrument corner between 0.05 and 3 Hz (causal: onsets stay where they are)."""
    pole = float(np.exp(-2 * np.pi * np.exp(rng.uniform(np.log(0.05), np.log(3))) / rate_hz))
    first = example.waveform[:1]
    return example._replace(
        waveform=np.asarray(lfilter([1, -1], [1, -pole], example.waveform - first, axis=0), np.float32)
    )


def mix(clean: Array, noise: Array, snr_db: float) -> tuple[Array, Array]:
    """A semi-synthetic recording and what it should become: clean + noise, clean; both [samples, components].

    snr_db: energy of the clean waveform over that of the noise, all components together, 10 log10. The noise is scaled
    to it, about zero; without a signal it stays as it is, and without noise the signal does.
    """
    noise = noise - noise.mean(axis=0, dtype=np.float64)
    signal_size, noise_size = _size(clean), _size(noise)
    scale = signal_size / noise_size * 10 ** (-snr_db / 20) if signal_size and noise_size else 1.0
    return np.asarray(clean + noise * scale, np.float32), np.asarray(clean, np.float32)


def clip(waveform: Array, level: float, offset: float = 0.0) -> Array:
    """The waveform [samples, components] as a digitiser whose range ends at `level` records it.

    level: of the waveform's highest amplitude, above 0; offset: of the range's middle, in units of the level, which
    makes one side clip earlier than the other.
    """
    limit = _peak(waveform) * level
    return np.clip(waveform, np.float32(limit * (offset - 1)), np.float32(limit * (offset + 1)))


def gap(example: Example, rng: np.random.Generator, rate_hz: float) -> Example:
    """Samples lost: zero, the last value held, or everything before (or after) it held, as at the end of a record."""
    length = len(example.waveform)
    begin = int(rng.integers(1, length - 1))
    end = min(length, begin + int(np.exp(rng.uniform(np.log(0.05), np.log(15))) * rate_hz) + 1)
    style = rng.integers(4)
    if style == 2:
        begin, end = 0, begin
    elif style == 3:
        end = length
    waveform = example.waveform.copy()
    waveform[begin:end] = 0 if style == 0 else example.waveform[end] if style == 2 else example.waveform[begin - 1]
    return _hide(example._replace(waveform=waveform), begin, end, rate_hz)


def _step(example: Example, rng: np.random.Generator, rate_hz: float) -> Example:
    """A jump of the offset, which stays or decays as a high-pass lets it."""
    length = len(example.waveform)
    begin = int(rng.integers(length))
    decay = np.exp(rng.uniform(np.log(0.2), np.log(100))) * rate_hz
    shape = np.exp(-np.arange(length - begin) / decay)[:, None] * rng.uniform(-1, 1, 3) * _level(example, rng)
    waveform = example.waveform.copy()
    waveform[begin:] += shape.astype(np.float32)
    return example._replace(waveform=waveform)


def _spikes(example: Example, rng: np.random.Generator, rate_hz: float) -> Example:
    """Up to eight spikes of one to three samples on one or all components."""
    waveform = example.waveform.copy()
    on = rng.random(3) < 0.6
    for _ in range(int(rng.integers(1, 9))):
        begin = int(rng.integers(len(waveform)))
        waveform[begin : begin + int(rng.integers(1, 4))] += (rng.uniform(-1, 1, 3) * on * _level(example, rng)).astype(
            np.float32
        )
    return example._replace(waveform=waveform)


def _repeat(example: Example, rng: np.random.Generator, rate_hz: float) -> Example:
    """A stretch sent again by telemetry in place of what followed it."""
    length = len(example.waveform)
    size = min(int(rng.uniform(0.5, 5) * rate_hz), length // 3)
    begin = int(rng.integers(0, length - 2 * size))
    waveform = example.waveform.copy()
    waveform[begin + size : begin + 2 * size] = example.waveform[begin : begin + size]
    return _hide(example._replace(waveform=waveform), begin + size, begin + 2 * size, rate_hz)


def _pulse(example: Example, rng: np.random.Generator, rate_hz: float) -> Example:
    """A calibration pulse: a box or a ringing sine with sharp ends."""
    length = len(example.waveform)
    size = min(int(rng.uniform(0.2, 8) * rate_hz), length // 2)
    begin = int(rng.integers(0, length - size))
    time = np.arange(size) / rate_hz
    box = np.ones(size) if rng.random() < 0.5 else np.sin(2 * np.pi * rng.uniform(0.5, 20) * time)
    waveform = example.waveform.copy()
    waveform[begin : begin + size] += (box[:, None] * rng.uniform(-1, 1, 3) * _level(example, rng)).astype(np.float32)
    return example._replace(waveform=waveform)


def _hide(example: Example, begin: int, end: int, rate_hz: float) -> Example:
    """Without the onsets between begin and end; those whose wave was cut into are unsure."""
    sure = example.sure.copy()
    margin = int(0.5 * rate_hz)
    for onset in _inside(example.p + example.s, len(sure)):
        if begin - margin < onset < begin or end <= onset < end + margin:
            sure[max(int(onset) - margin, 0) : int(onset) + margin] = False

    def seen(onsets: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(onset for onset in onsets if not begin <= onset < end)

    return Example(example.waveform, seen(example.p), seen(example.s), sure)


def resampling_weights(values: NDArray[np.float64], bins: int = 10, most: float = 20.0) -> NDArray[np.float64]:
    """How often to draw each trace so that its values (magnitudes, SNR) are uniform over bins; the mean is one.

    values: [n], NaN where unknown; those keep their share. bins: equally wide, from the 1 to the 99 % quantile. most:
    the largest weight before the mean is set, lest a few traces be seen over and over.
    """
    weights = np.ones(len(values))
    known = np.isfinite(values)
    if not known.any():
        return weights
    low, high = np.quantile(values[known], [0.01, 0.99])
    number = (
        np.digitize(values[known], np.linspace(low, high, bins + 1)[1:-1]) if high > low else np.zeros(known.sum(), int)
    )
    counts = np.bincount(number, minlength=bins)
    wanted = known.sum() / np.count_nonzero(counts)
    found = np.minimum(wanted / counts[number], most)
    weights[known] = found / found.mean()
    return weights


def _visible(example: Example, over: Array, rate_hz: float) -> bool:
    """Whether each onset inside the window stands 1.5 times above the other waveform around it."""
    second = int(rate_hz)
    for onset in _inside(example.p + example.s, len(example.waveform)):
        at = int(onset)
        if _onset_amplitude(example.waveform, onset, rate_hz) < 1.5 * _rms(over[max(at - second, 0) : at + second]):
            return False
    return True


def _onset_amplitude(waveform: Array, onset: float, rate_hz: float) -> float:
    """Rms in the second after the onset, [samples, components]."""
    return _rms(waveform[int(onset) : int(onset + rate_hz) + 1])


def _inside(onsets: tuple[float, ...], length: int) -> list[float]:
    return [onset for onset in onsets if 0 <= onset < length]


def _rms(waveform: Array) -> float:
    """Root mean square about each component's mean; scaled first, since squares of 1e-30 do not fit float32."""
    peak = _peak(waveform)
    return peak * float(np.std(waveform / np.float32(peak), axis=0, dtype=np.float64).mean()) if peak else 0.0


def _size(waveform: NDArray[np.floating]) -> float:
    """Square root of the mean square, scaled first."""
    peak = float(np.abs(waveform).max()) if waveform.size else 0.0
    return peak * float(np.sqrt(np.mean(np.square(waveform / peak, dtype=np.float64)))) if peak else 0.0


def _peak(waveform: Array) -> float:
    return float(np.abs(waveform).max()) if waveform.size else 0.0


def _level(example: Example, rng: np.random.Generator) -> float:
    """An amplitude from the background of the window to three hundred times that."""
    return _rms(example.waveform) * float(10 ** rng.uniform(0, 2.5))
