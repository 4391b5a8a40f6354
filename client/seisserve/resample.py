"""Polyphase resampling onto absolute time, with finite filters.

Every output sample is a short weighted sum of the input samples around it, added up in a fixed order. A record that is
cut in two therefore gives the very same numbers away from the cut, which a Fourier resampler cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from seisserve.errors import UsageError

__all__ = ["NS", "Phase", "check_phase", "exact_rate", "extent", "needed", "resample"]

NS = 1_000_000_000
ZERO_CROSSINGS = 16  # half length of the filter, in samples of the lower of the two rates
ROLL_OFF = 0.9  # half amplitude at this share of the lower Nyquist frequency
KAISER_BETA = 8.0  # about 80 dB in the stop band
FINE = 32  # steps per input sample at which the minimum-phase filter is tabulated
FLOOR = 1e-5  # of the peak amplitude: the logarithm must stay finite between the side lobes
MOST_PHASES = 1024  # of the filter, one by one; beyond, places between two samples are rounded to as many
LONGEST_KEPT = 256  # input samples on either side, of filters whose phases are kept from call to call
BLOCK = 16_384  # outputs made at a time: block, input and sum stay in the cache

Phase = Literal["zero", "causal"]


def check_phase(phase: str) -> None:
    """Raises UsageError for a filter that does not exist."""
    if phase not in get_args(Phase):
        raise UsageError(f"phase is {phase!r}; it must be 'zero' or 'causal'")


@lru_cache(maxsize=256)  # a record of ten thousand pieces asks ten thousand times
def exact_rate(rate_hz: float) -> Fraction:
    """The sampling rate as the fraction of small integers that the header meant (33.333333 is 100/3)."""
    return Fraction(rate_hz).limit_denominator(1000)


def resample(
    samples: NDArray[np.number], start_ns: int | Fraction, rate_hz: float, target_hz: float, phase: Phase = "zero"
) -> tuple[NDArray[np.float64], int]:
    """Samples at whole multiples of the target interval since the epoch, and the number of the first of them.

    samples: [n] at `rate_hz`, the first at `start_ns`. Returns ([m] float64, index of the first output sample).
    The filter is a Kaiser-windowed sinc; its taps add up to one for every output, so an offset stays what it was.
    Beyond the ends the edge values are held. `phase="causal"` uses the minimum-phase filter of the same amplitude
    response: no energy precedes an onset, but everything comes later (docs/waveforms.md has the measured bias).
    """
    check_phase(phase)
    step, origin = _steps(start_ns, rate_hz, target_hz)
    count, first = extent(len(samples), start_ns, rate_hz, target_hz)
    if not count:
        return np.empty(0), first

    wider = max(step, Fraction(1))  # of the two intervals, in input samples
    half = _half(step)
    kernel = _kernel(float(1 / wider) * ROLL_OFF, half, phase)
    reach = _reach(step, phase)
    padded = np.pad(samples.astype(np.float64), reach, mode="edge")
    resampled = np.empty(count)
    phases, advance = step.denominator, step.numerator
    if phases > MOST_PHASES:
        return _quantised(padded, kernel, reach, first * step - origin, step, count), first
    for r in range(min(phases, count)):
        position = (first + r) * step - origin
        below = int(position // 1)
        taps = kernel(np.arange(-reach + 1, reach + 1, dtype=np.float64) - float(position - below))
        out = resampled[r::phases]
        out[:] = _weighted_sum(padded, taps / taps.sum(), below + 1, advance, len(out))
    return resampled, first


def extent(samples: int, start_ns: int | Fraction, rate_hz: float, target_hz: float) -> tuple[int, int]:
    """How many samples `resample` makes of so many, and the index of the first of them."""
    step, origin = _steps(start_ns, rate_hz, target_hz)
    first = -(-origin // step)
    last = (origin + samples - 1) // step
    return max(int(last - first) + 1, 0), int(first)


def needed(
    begin: int, end: int, samples: int, start_ns: int | Fraction, rate_hz: float, target_hz: float, phase: Phase
) -> tuple[int, int]:
    """Which of the input samples (from one to just before the other) decide the output samples from index `begin` to
    just before `end`: resampled alone they give these the very same values."""
    step, origin = _steps(start_ns, rate_hz, target_hz)
    reach = _reach(step, phase) + 1
    first, last = begin * step - origin, (end - 1) * step - origin
    return max(int(first // 1) - reach, 0), min(int(last // 1) + 1 + reach, samples)


def _steps(start_ns: int | Fraction, rate_hz: float, target_hz: float) -> tuple[Fraction, Fraction]:
    """Input samples for each output sample, and where the first input sample lies, in input samples since 1970."""
    source = exact_rate(rate_hz)
    return source / exact_rate(target_hz), Fraction(start_ns) / NS * source


def _half(step: Fraction) -> int:
    """Half the length of the zero-phase filter, in input samples."""
    return math.ceil(ZERO_CROSSINGS * max(step, Fraction(1)))


def _reach(step: Fraction, phase: Phase) -> int:
    """How far from an output sample input counts: the causal filter is as long, with all of it on one side."""
    return _half(step) if phase == "zero" else 2 * _half(step)


def _weighted_sum(
    padded: NDArray[np.float64], taps: NDArray[np.float64], start: int, advance: int, count: int
) -> NDArray[np.float64]:
    """out[k] = sum over j of taps[j] * padded[start + j + k * advance], one tap after the other: order is what
    makes the sum the same wherever the record was cut, so neither BLAS nor a pairwise sum will do.

    The taps add up to one, so they may as well weigh differences to the sample in the middle: a dead channel stays
    exactly constant (a network that normalises would make a signal of its rounding errors), an offset costs no digits.
    """
    out = np.zeros(count)
    used = np.flatnonzero(taps)
    for low in range(0, count, BLOCK):
        block = out[low : low + BLOCK]
        span = (len(block) - 1) * advance + 1
        begin = start + low * advance
        middle = padded[begin + len(taps) // 2 - 1 :][:span:advance].copy()
        difference = np.empty_like(block)
        for j in used.tolist():
            np.subtract(padded[begin + j :][:span:advance], middle, out=difference)
            difference *= taps[j]
            block += difference
        block += middle
    return out


def _quantised(
    padded: NDArray[np.float64],
    kernel: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    reach: int,
    start: Fraction,
    step: Fraction,
    count: int,
) -> NDArray[np.float64]:
    """Outputs for a rate such as 99.987 Hz, whose filter phases are too many to take one by one.

    Each output's place between two input samples is rounded down to 1/1024 of the interval, by exact arithmetic on
    absolute time: where the record was cut makes no difference.
    """
    # A long one is not worth keeping: it takes hundreds of megabytes, and less time than the record.
    table = _table(kernel, reach) if reach <= LONGEST_KEPT else _table.__wrapped__(kernel, reach)
    origin = int(start * MOST_PHASES * step.denominator)
    out = np.empty(count)
    for low in range(0, count, BLOCK):
        number = np.arange(low, min(low + BLOCK, count), dtype=np.int64)
        place = (origin + number * (MOST_PHASES * step.numerator)) // step.denominator
        below, phase = place // MOST_PHASES + 1, place % MOST_PHASES
        middle = padded[below + reach - 1]
        block = np.zeros(len(number))
        for j in range(table.shape[1]):
            block += table[phase, j] * (padded[below + j] - middle)
        out[low : low + BLOCK] = block + middle
    return out


@lru_cache(maxsize=4)
def _table(kernel: Callable[[NDArray[np.float64]], NDArray[np.float64]], reach: int) -> NDArray[np.float64]:
    """[phases, taps]: the filter for places between two samples, in steps of 1/1024 of the interval."""
    distance = np.arange(-reach + 1, reach + 1, dtype=np.float64)
    table = np.stack([kernel(distance - k / MOST_PHASES) for k in range(MOST_PHASES)])
    table /= table.sum(axis=1, keepdims=True)
    return table


@lru_cache(maxsize=16)  # a record that comes in packets asks with every one of them
def _kernel(cutoff: float, half: int, phase: Phase) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The filter as a function of distance: input time minus output time, in input samples.

    cutoff: in units of the input's Nyquist frequency. half: where the filter ends, in input samples.
    """

    def sinc(distance: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = 1 - (distance / half) ** 2
        window = np.where(inside > 0, np.i0(KAISER_BETA * np.sqrt(np.maximum(inside, 0))), 0)
        return np.asarray(np.sinc(cutoff * distance) * window)

    if phase == "zero":
        return sinc

    grid = np.arange(-half * FINE, half * FINE + 1) / FINE
    table = _minimum_phase(sinc(grid))

    def causal(distance: NDArray[np.float64]) -> NDArray[np.float64]:
        age = -distance * FINE  # only input at or before the output counts
        return np.where(age >= 0, np.interp(age, np.arange(len(table)), table), 0)

    return causal


def _minimum_phase(symmetric: NDArray[np.float64]) -> NDArray[np.float64]:
    """The impulse response of the same amplitude spectrum whose energy comes first (folded real cepstrum)."""
    size = 1 << (8 * len(symmetric) - 1).bit_length()
    amplitude = np.abs(np.fft.rfft(symmetric, size))
    cepstrum = np.fft.irfft(np.log(np.maximum(amplitude, amplitude.max() * FLOOR)), size)
    cepstrum[1 : size // 2] *= 2
    cepstrum[size // 2 + 1 :] = 0
    return np.asarray(np.fft.irfft(np.exp(np.fft.rfft(cepstrum)), size)[: len(symmetric)])
