"""Properties of the polyphase resampler."""

from fractions import Fraction
from typing import Literal

import numpy as np
import pytest
from client.waveforms import NS, RATES, START_NS, Array, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from seisserve.resample import exact_rate, resample

PAIRS = [(rate, 100.0) for rate in RATES if rate != 100] + [(100.0, 20.0), (100.0, 62.5), (30.0, 100.0), (100.0, 40.0)]
PHASES: list[Literal["zero", "causal"]] = ["zero", "causal"]
CROSSINGS = 16  # the filter's half length in samples of the lower rate

pairs = st.sampled_from(PAIRS)
phases = st.sampled_from(PHASES)


def reach(rate: float, target: float, phase: Literal["zero", "causal"]) -> int:
    """Input samples on one side of an output that it can depend on."""
    return int(np.ceil(CROSSINGS * max(rate / target, 1))) * (2 if phase == "causal" else 1)


def sine(rate: float, target: float, frequency: float, phase: Literal["zero", "causal"]) -> tuple[Array, Array]:
    """Times and values of a resampled sine, away from the ends of the record."""
    n = int(40 * rate)
    samples, first = resample(np.sin(2 * np.pi * frequency * np.arange(n) / rate), 0, rate, target, phase)
    skip = int(reach(rate, target, phase) / rate * target) + 1
    return (first + np.arange(len(samples)))[skip:-skip] / target, samples[skip:-skip]


def amplitude_and_delay(rate: float, target: float, frequency: float, phase: Literal["zero", "causal"]) -> Array:
    """Amplitude, and how many seconds the sine came out later than it went in (below half a period)."""
    time, values = sine(rate, target, frequency, phase)
    waves = np.stack([np.sin(2 * np.pi * frequency * time), np.cos(2 * np.pi * frequency * time)], axis=1)
    (a, b), *_ = np.linalg.lstsq(waves, values, rcond=None)
    return np.array([np.hypot(a, b), -np.arctan2(b, a) / (2 * np.pi * frequency)])


@given(pair=pairs, start_us=st.integers(-(10**12), 4 * 10**15), n=st.integers(1, 300), phase=phases)
@settings(max_examples=60, deadline=None)
def test_outputs_are_the_whole_multiples_of_the_interval_inside_the_record(
    pair: tuple[float, float], start_us: int, n: int, phase: Literal["zero", "causal"]
) -> None:
    rate, target = pair
    samples, first = resample(np.ones(n), start_us * 1000, rate, target, phase)
    begin = Fraction(start_us, 10**6)
    end = begin + (n - 1) / exact_rate(rate)
    inside = range(-int(-begin * exact_rate(target) // 1), int(end * exact_rate(target) // 1) + 1)
    assert len(samples) == len(inside)
    assert not len(samples) or first == inside[0]


@given(pair=pairs, offset=st.floats(-(2.0**31), 2.0**31), n=st.integers(1, 300), phase=phases)
@settings(max_examples=30, deadline=None)
def test_a_constant_stays_what_it_was(
    pair: tuple[float, float], offset: float, n: int, phase: Literal["zero", "causal"]
) -> None:
    samples, _ = resample(np.full(n, offset), START_NS, *pair, phase)
    np.testing.assert_array_equal(samples, offset)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_sine_in_the_band_is_the_same_sine(pair: tuple[float, float]) -> None:
    for share in (0.01, 0.1, 0.3, 0.5, 0.7):
        frequency = share * min(pair) / 2
        time, values = sine(*pair, frequency, "zero")
        np.testing.assert_allclose(values, np.sin(2 * np.pi * frequency * time), atol=1e-3)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair[0] > pair[1]])
@pytest.mark.parametrize("phase", PHASES)
def test_what_lies_above_the_new_nyquist_frequency_is_gone(
    pair: tuple[float, float], phase: Literal["zero", "causal"]
) -> None:
    nyquist = pair[1] / 2
    shares = [s for s in (1.06, 1.1, 1.27, 1.5, 2.0, 3.1) if s * nyquist < pair[0] / 2]
    for share in shares:
        assert np.abs(sine(*pair, share * nyquist, phase)[1]).max() < 1e-3


@given(pair=pairs, seed=seeds, cut=st.integers(0, 400), start_us=st.integers(0, 4 * 10**15), phase=phases)
@settings(max_examples=60, deadline=None)
def test_a_cut_record_gives_the_same_bits_away_from_the_cut(
    pair: tuple[float, float], seed: int, cut: int, start_us: int, phase: Literal["zero", "causal"]
) -> None:
    rate, target = (200.0, pair[1]) if pair[0] == 30 else pair  # an interval of whole nanoseconds, to cut at
    data = np.random.default_rng(seed).normal(size=400)
    start_ns = start_us * 1000
    cut_ns = start_ns + int(cut * NS / exact_rate(rate))
    whole, first = resample(data, start_ns, rate, target, phase)
    head, head_first = resample(data[:cut], start_ns, rate, target, phase)
    tail, tail_first = resample(data[cut:], cut_ns, rate, target, phase)
    margin = int(reach(rate, target, phase) / rate * target) + 1
    assert not len(head) or head_first == first
    kept = max(len(head) - margin, 0)
    np.testing.assert_array_equal(head[:kept], whole[:kept])
    np.testing.assert_array_equal(tail[margin:], whole[tail_first - first :][: len(tail)][margin:])


@given(pair=pairs, seed=seeds, start_us=st.integers(0, 10**7))
@settings(max_examples=30, deadline=None)
def test_it_is_the_plain_sum_over_a_kaiser_windowed_sinc(pair: tuple[float, float], seed: int, start_us: int) -> None:
    rate, target = pair
    data = np.random.default_rng(seed).normal(size=60)
    samples, first = resample(data, start_us * 1000, rate, target)
    half = reach(rate, target, "zero")
    padded = np.pad(data, 3 * half, mode="edge")
    number = np.arange(-3 * half, len(data) + 3 * half)
    for k, value in enumerate(samples):
        distance = number - ((first + k) / target - start_us / 1e6) * rate
        shape = np.i0(8 * np.sqrt(np.maximum(1 - (distance / half) ** 2, 0))) * (np.abs(distance) < half - 1e-6)
        taps = shape * np.sinc(0.9 * min(target / rate, 1) * distance)
        assert value == pytest.approx(taps @ padded / taps.sum(), abs=1e-7)


@given(pair=pairs, at=st.integers(0, 299), start_us=st.integers(0, 4 * 10**15))
@settings(max_examples=40, deadline=None)
def test_the_causal_filter_answers_nothing_before_the_impulse(
    pair: tuple[float, float], at: int, start_us: int
) -> None:
    rate, target = pair
    data = np.zeros(300)
    data[at] = 1
    samples, first = resample(data, start_us * 1000, rate, target, "causal")
    earlier = [
        value
        for k, value in enumerate(samples)
        if (first + k) / exact_rate(target) < Fraction(start_us, 10**6) + at / exact_rate(rate)
    ]
    assert at == 0 or not np.any(earlier)


@pytest.mark.parametrize("pair", PAIRS)
def test_causal_and_zero_phase_have_the_same_amplitude_in_the_band(pair: tuple[float, float]) -> None:
    figures = []
    for share in (0.02, 0.1, 0.3, 0.5, 0.7):
        frequency = share * min(pair) / 2
        zero, causal = (amplitude_and_delay(*pair, frequency, phase) for phase in PHASES)
        assert zero[0] == pytest.approx(1, abs=1e-3)
        assert abs(zero[1]) < 1e-7
        assert causal[0] == pytest.approx(zero[0], rel=0.03)
        delay = causal[1] % (1 / frequency)
        assert 0 < delay < 10 / min(pair)
        figures.append(f"{share:g}: {delay * 1000:.1f} ms x{causal[0]:.4f}")
    print(f"\ncausal {pair[0]:g} -> {pair[1]:g} Hz, delay and amplitude by share of Nyquist: {', '.join(figures)}")


def test_phases_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="'zero' or 'causal'"):
        resample(np.ones(10), 0, 50, 100, "linear")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint8", "float32", "float64"])
def test_samples_of_any_type_give_float64_and_stay_as_they_were(dtype: str) -> None:
    data = np.arange(100).astype(dtype)
    before = data.copy()
    samples, _ = resample(data, 0, 50, 100)
    assert samples.dtype == np.float64
    np.testing.assert_array_equal(data, before)
    np.testing.assert_array_equal(samples, resample(data.astype(float), 0, 50, 100)[0])


def test_header_rates_are_the_fractions_that_were_meant() -> None:
    assert exact_rate(33.333333) == Fraction(100, 3)
    assert exact_rate(62.5) == Fraction(125, 2)
    assert exact_rate(99.9999999) == 100
