"""Properties of turning traces into gapless segments."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from client.waveforms import NS, RATES, START_NS, STATION, Array, part, pieces, record, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from seisserve.errors import UsageError, WaveformError
from seisserve.segments import Segment, by_instrument, segments
from seisserve.traces import Trace

N = 1000
INDEX = START_NS // 10_000_000  # of the first sample, at 100 Hz


def trace(samples: Any, code: str = "Z", at: float = 0, rate: float = 100.0) -> Trace:
    """A trace that starts `at` samples after the beginning of all records."""
    return Trace(STATION + code, START_NS + round(at * NS / rate), rate, np.asarray(samples))


def noise(n: int = N, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-1000, 1000, n).astype(np.int32)


def same(some: list[Segment], others: list[Segment]) -> bool:
    return len(some) == len(others) and all(
        a._replace(samples=b.samples) == b and np.array_equal(a.samples, b.samples)
        for a, b in zip(some, others, strict=True)
    )


def spans(found: list[Segment]) -> list[tuple[int, int]]:
    """First sample and the one after the last, counted from the beginning of all records."""
    return [(s.grid_index - INDEX, s.grid_index - INDEX + s.samples.shape[1]) for s in found]


@given(data=st.data(), rate=st.sampled_from(RATES), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_pieces_in_any_order_doubled_or_overlapping_make_what_the_whole_makes(
    data: st.DataObject, rate: float, seed: int
) -> None:
    whole = record(seed, 8, rate)
    n = len(whole[0].samples)
    broken = []
    for item in whole:
        cuts = data.draw(st.lists(st.integers(1, n - 1), max_size=4))
        broken += pieces(item, cuts)
        begin, end = sorted(data.draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))
        broken += [part(item, begin, end + 1)] * data.draw(st.integers(0, 2))
    shuffled = data.draw(st.permutations(broken))
    expected, _ = segments(whole, 100, "ZNE")
    found, warnings = segments(shuffled, 100, "ZNE")
    assert not warnings
    assert same(found, expected)


@given(lost=st.integers(1, 400), seed=seeds)
@settings(max_examples=20, deadline=None)
def test_nothing_is_filled_in_where_samples_are_missing(lost: int, seed: int) -> None:
    samples = noise(seed=seed)
    found, warnings = segments([trace(samples[:300]), trace(samples[300 + lost :], at=300 + lost)], 100, "Z")
    assert spans(found) == [(0, 300), (300 + lost, N)]
    np.testing.assert_array_equal(found[1].samples[0], samples[300 + lost :])
    assert not warnings


@pytest.mark.parametrize("order", [1, -1])
def test_of_overlaps_that_conflict_just_the_overlap_goes_with_a_warning(order: int) -> None:
    first, second = noise(600), noise(600, seed=1) % 3  # here and there the two agree by chance
    second[:200:5] = first[400::5]
    found, warnings = segments([trace(first), trace(second, at=400)][::order], 100, "Z")
    assert spans(found) == [(0, 400), (600, 1000)]
    np.testing.assert_array_equal(found[0].samples[0], first[:400])
    np.testing.assert_array_equal(found[1].samples[0], second[200:])
    assert warnings == ["XX.STA..HHZ: overlapping records disagree; 2 s were dropped"]


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_a_conflict_takes_no_other_overlap_with_it(data: st.DataObject) -> None:
    samples = noise()
    wrong = trace(samples[100:200] + 1, at=100)
    good = [trace(samples), trace(samples[150:], at=150), trace(samples[50:400], at=50), trace(samples)]
    found, warnings = segments(data.draw(st.permutations([wrong, *good])), 100, "Z")
    assert spans(found) == [(0, 100), (200, N)]
    assert len(warnings) == 1
    np.testing.assert_array_equal(found[1].samples[0], samples[200:])


def test_each_side_of_a_conflict_keeps_its_own_times() -> None:
    later = trace(noise(500, seed=1), at=400)._replace(start_ns=START_NS + 4 * NS + 3_000_000)
    found, _ = segments([trace(noise(500)), later], 100, "Z")
    assert [s.time_ns(0) for s in found] == [START_NS, START_NS + 5 * NS + 3_000_000]


@pytest.mark.parametrize(
    ("codes", "used", "unused"),
    [
        ("ZNE", "ZNE", ""),
        ("Z12", "Z12", ""),
        ("123", "312", ""),
        ("ZNE12", "ZNE", "12"),
        ("3ZNE", "ZNE", "3"),
        ("ZN2", "ZN2", ""),
        ("Z", "Z--", ""),
        ("1", "-1-", ""),
        ("E", "--E", ""),
        ("ZNEF", "ZNE", "F"),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_component_codes_have_slots_of_their_own(codes: str, used: str, unused: str, order: int) -> None:
    values = {code: number for number, code in enumerate("ZNE123F", start=1)}
    traces = [trace(np.full(10, values[code]), code) for code in codes[::order]]
    ((found,), warnings) = segments(traces, 100, "ZNE")
    assert found.samples[:, 0].tolist() == [values.get(code, 0) for code in used]
    assert found.live == tuple(code != "-" for code in used)
    assert [w.split(":")[0] for w in warnings] == [f"XX.STA..HH{code}" for code in unused]


def test_a_model_of_one_component_takes_its_own_only() -> None:
    ((found,), warnings) = segments([trace([1, 1], "Z"), trace([2, 2], "N")], 100, "Z")
    assert found.samples.tolist() == [[1, 1]]
    assert len(warnings) == 1
    assert "takes Z" in warnings[0]


def test_a_gap_in_one_component_makes_segments_with_and_without_it() -> None:
    z, n, e = (noise(seed=k) for k in range(3))
    traces = [trace(z), trace(n[:300], "N"), trace(n[500:], "N", at=500), trace(e, "E")]
    found, _ = segments(traces, 100, "ZNE")
    assert spans(found) == [(0, 300), (300, 500), (500, N)]
    assert [s.live for s in found] == [(True,) * 3, (True, False, True), (True,) * 3]
    assert not found[1].samples[1].any()
    np.testing.assert_array_equal(found[1].samples[2], e[300:500])


def test_records_of_several_rates_meet_at_the_model_s() -> None:
    fast, slow = (record(3, 8, rate, "Z")[0] for rate in (200.0, 50.0))
    traces = [part(fast, 0, 600), part(slow, 200, 400)]  # 0 to 3 s, 4 to 8 s
    found, warnings = segments(traces, 100, "Z")
    assert not warnings
    assert spans(found) == [(0, 300), (400, 799)]  # at 50 Hz the last sample was taken at 7.98 s
    alone = [segments([item], 100, "Z")[0][0] for item in traces]
    assert same(found, alone)


def test_a_record_of_another_rate_elsewhere_changes_no_segment() -> None:
    (whole,) = record(0, 4, 200.0, "Z")
    gap = [part(whole, 0, 401), part(whole, 402, 800)]  # one sample is missing, none at 100 Hz
    before, _ = segments(gap, 100, "Z")
    after, _ = segments([*gap, trace(noise(50), at=2000)], 100, "Z")
    assert len(before) == 2
    assert same(after[:2], [s._replace(samples=s.samples.astype(np.float64)) for s in before])


def test_rates_that_mean_the_same_are_the_same() -> None:
    samples = noise()
    found, _ = segments([trace(samples[:500]), trace(samples[500:], at=500, rate=100 + 1e-9)], 100, "Z")
    assert spans(found) == [(0, N)]


@given(
    rate=st.sampled_from([1.0, 30.0, 62.5, 75.0, 100.0, 128.0, 100 / 3]),
    start_us=st.integers(0, 4_102_444_800 * 10**6),
    sample=st.integers(0, 10**7),
    share=st.floats(-0.5, 0.5),
)
@settings(max_examples=100, deadline=None)
def test_times_are_exact_to_the_microsecond_from_1970_to_2100(
    rate: float, start_us: int, sample: int, share: float
) -> None:
    ((found,), _) = segments([Trace(STATION + "Z", start_us * 1000, rate, np.zeros(1))], rate, "Z")
    exact = start_us + (sample + Fraction(share)) * 10**6 / Fraction(rate).limit_denominator(1000)
    time = found.time_ns(sample, share)
    assert time % 1000 == 0
    assert abs(time // 1000 - exact) <= (Fraction(501, 1000) if 10**6 * 4 % rate == 0 else 1)


@given(cut=st.integers(1, 199), start_us=st.integers(0, 10**7), rate=st.sampled_from([30.0, 75.0, 100 / 3, 120.0]))
@settings(max_examples=40, deadline=None)
def test_an_interval_of_no_whole_nanoseconds_survives_a_cut(cut: int, start_us: int, rate: float) -> None:
    whole = Trace(STATION + "Z", START_NS + start_us * 1000, rate, noise(200))
    ((left,), _) = segments([whole], 100, "Z")
    right, _ = segments([part(whole, cut, 200)], 100, "Z")
    clear = right[0].samples[0, 60:] if right else np.zeros(0)
    np.testing.assert_array_equal(clear, left.samples[0, left.samples.shape[1] - len(clear) :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": np.array([1, np.nan, np.inf])}, "trace XX.STA..HHZ: 2 of 3 samples are NaN or infinite"),
        ({"samples": np.array([1e38])}, "amplitudes exceed"),
        ({"samples": np.zeros((2, 3))}, r"shape \(2, 3\)"),
        ({"samples": np.zeros(3, complex)}, "complex128; expected integers or floats"),
        ({"samples": np.array(["a"])}, "expected integers or floats"),
        ({"samples": np.zeros(3, bool)}, "expected integers or floats"),
        ({"id": "XX.STA.HHZ"}, "must be NET.STA.LOC.CHA"),
        ({"id": "XX.STA.."}, "end in the component"),
        ({"id": ""}, "must be NET.STA.LOC.CHA"),
        ({"sampling_rate_hz": 0.0}, "sampling rate is 0.0"),
        ({"sampling_rate_hz": -100.0}, "sampling rate is -100.0"),
        ({"sampling_rate_hz": 1e-6}, "sampling rate is 1e-06"),
        ({"sampling_rate_hz": float("nan")}, "sampling rate is nan"),
        ({"sampling_rate_hz": float("inf")}, "sampling rate is inf"),
        ({"start_ns": (1 << 63) - 1}, "start_ns is 9223372036854775807, .* between the years 1681 and 2259"),
        ({"start_ns": -(1 << 63)}, "start_ns is -9223372036854775808, .* between the years 1681 and 2259"),
        ({"samples": np.zeros(9_000_000), "sampling_rate_hz": 0.001}, "start_ns is .* between the years 1681 and 2259"),
    ],
)
def test_what_a_network_can_make_no_sense_of_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WaveformError, match=message):
        segments([trace(np.zeros(5), "N"), trace(np.zeros(3))._replace(**change)], 100, "ZNE")


def test_phases_that_do_not_exist_are_refused_also_where_nothing_is_resampled() -> None:
    with pytest.raises(UsageError, match="'zero' or 'causal'"):
        segments([trace(np.zeros(5))], 100, "Z", "linear")  # type: ignore[arg-type]


def test_no_traces_and_empty_traces_make_no_segments() -> None:
    assert segments([], 100, "ZNE") == ([], [])
    assert segments([trace(np.zeros(0))], 100, "ZNE") == ([], [])


def test_instruments_are_grouped_by_band_and_instrument_code() -> None:
    ids = ["XX.B..HHZ", "XX.A..HHZ", "XX.A..HHN", "XX.A..BHZ", "XX.A.00.HHZ", "XX.A..HH1"]
    groups = by_instrument([Trace(name, 0, 100.0, np.zeros(1)) for name in ids])
    assert {key: [t.id[-1] for t in group] for key, group in groups.items()} == {
        "XX.A..BH": ["Z"], "XX.A..HH": ["Z", "N", "1"], "XX.A.00.HH": ["Z"], "XX.B..HH": ["Z"],
    }  # fmt: skip
    assert list(groups) == sorted(groups)
