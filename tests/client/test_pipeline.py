"""Properties of the whole path, traces to picks, with a network that looks at its whole window."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import numpy as np
import pytest
from client.waveforms import NS, RATES, START_NS, Array, fake, manifest, network, part, pieces, record, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from seisserve.errors import WaveformError
from seisserve.manifest import Manifest
from seisserve.picks import Pick
from seisserve.pipeline import annotate, pick, predict
from seisserve.segments import segments
from seisserve.traces import Trace
from seisserve.transport import FakeTransport
from seisserve.windows import Curve, cut, stack

HALF = manifest()
MAX = manifest(stacking="max", hop_samples=200, blinding_samples=100)
WINDOWLESS = manifest(window_samples=600, blinding_samples=150, hop_samples=300)
MODELS = [HALF, MAX, WINDOWLESS]
SECONDS = 60
REACH_S = 1.5  # how far along the curve a pick looks: its stretch, its width, its rivals

rates = st.sampled_from(RATES)
dtypes = st.sampled_from(["int32", "float32"])
models = st.sampled_from(MODELS)


@cache
def whole(rate: float, dtype: str) -> list[Trace]:
    return record(1, SECONDS, rate, dtype=dtype)


@cache
def whole_answer(rate: float, dtype: str, k: int) -> tuple[Curve, list[Pick]]:
    traces = whole(rate, dtype)
    return annotate(traces, MODELS[k], fake())[0], pick(traces, MODELS[k], fake()).picks


def bits(picks: list[Pick]) -> list[str]:
    """Every digit of the picks; unlike the picks themselves, equal also where the SNR is NaN."""
    return [repr(p) for p in picks]


def far(picks: list[Pick], holes: list[tuple[float, float]], margin_s: float) -> list[Pick]:
    """Picks that are `margin_s` away from all holes (seconds after the beginning) and from the ends of the record."""
    ends = [(-np.inf, 0.0), (float(SECONDS), np.inf)]
    seconds = [(p.time_ns - START_NS) / NS for p in picks]
    return [
        p
        for p, s in zip(picks, seconds, strict=True)
        if all(s < begin - margin_s or s > end + margin_s for begin, end in [*holes, *ends])
    ]


def by_time(curve: Curve) -> dict[int, Array]:
    return {
        s.grid_index + i: row
        for s, begin in zip(curve.segments, curve.bounds, strict=False)
        for i, row in enumerate(curve.values[begin : begin + s.samples.shape[1]])
    }


@given(data=st.data(), rate=rates, dtype=dtypes, model=models)
@settings(max_examples=50, deadline=None)
def test_cutting_anywhere_changes_no_pick(data: st.DataObject, rate: float, dtype: str, model: Manifest) -> None:
    broken = []
    for item in whole(rate, dtype):
        broken += pieces(item, data.draw(st.lists(st.integers(1, len(item.samples) - 1), max_size=4)))
    picks, warnings = pick(data.draw(st.permutations(broken)), model, fake())
    assert bits(picks) == bits(whole_answer(rate, dtype, MODELS.index(model))[1])
    assert len(picks) > 10
    assert not warnings


@given(data=st.data(), rate=rates, dtype=dtypes, model=models)
@settings(max_examples=50, deadline=None)
def test_losing_a_piece_changes_no_pick_a_window_away(
    data: st.DataObject, rate: float, dtype: str, model: Manifest
) -> None:
    begin = data.draw(st.floats(0, SECONDS - 1))
    end = data.draw(st.sampled_from([begin + 0.5, begin + 5, 0, SECONDS]))  # a gap, or a later start, or an earlier end
    begin, end = min(begin, end), min(max(begin, end), SECONDS)
    lame = data.draw(st.sets(st.sampled_from("ZNE"), min_size=1))
    broken = []
    for item in whole(rate, dtype):
        first, last = round(begin * rate), max(round(end * rate), round(begin * rate) + 1)
        sides = [part(item, 0, first), part(item, last, len(item.samples))]
        broken += sides if item.id[-1] in lame else [item]
    filters = 0 if rate == 100 else 16 / min(rate, 100)
    margin = model.window_samples / 100 + filters + 2 / min(rate, 100)
    holes = [(begin, max(end, begin + 1 / rate))]
    curve, expected = whole_answer(rate, dtype, MODELS.index(model))

    found = pick(data.draw(st.permutations(broken)), model, fake()).picks
    assert bits(far(found, holes, margin + REACH_S)) == bits(far(expected, holes, margin + REACH_S))

    cut_curve, _ = annotate(broken, model, fake())
    values, index = by_time(cut_curve), START_NS // 10_000_000
    for k, row in enumerate(curve.values):
        seconds = (curve.segments[0].grid_index + k - index) / 100
        inside = margin < seconds < SECONDS - margin
        if inside and (seconds < begin - margin or seconds > holes[0][1] + margin):
            assert np.array_equal(values[curve.segments[0].grid_index + k], row)


@given(size=st.integers(1, 40), lanes=st.integers(1, 4), model=models)
@settings(max_examples=20, deadline=None)
def test_batches_and_lanes_change_nothing(size: int, lanes: int, model: Manifest) -> None:
    parts, _ = segments([part(t, 0, 3000) for t in whole(100.0, "int32")], 100, "ZNE")
    parts += segments([part(t, 3100, 3350) for t in whole(100.0, "int32")], 100, "ZNE")[0]
    windows = cut(parts, model)
    expected = stack(windows, predict(windows, model, fake(), 1), model)
    found = stack(windows, predict(windows, model, fake(lanes), size), model)
    np.testing.assert_array_equal(found.values, expected.values)


def test_answers_come_in_order_however_long_each_takes() -> None:
    def slow_first(waveform: Array) -> Array:
        time.sleep(0.02 if waveform[0, 0, 0] > 0 else 0)
        return network(waveform)

    (parts, _) = segments(whole(100.0, "int32"), 100, "ZNE")
    windows = cut(parts, HALF)
    expected = list(predict(windows, HALF, fake(), 2))
    found = list(predict(windows, HALF, FakeTransport(slow_first, lanes=3), 2))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("lanes", [1, 3])
def test_what_goes_wrong_in_the_transport_reaches_the_caller(lanes: int) -> None:
    def broken(waveform: Array) -> Array:
        raise RuntimeError("no network today")

    windows = cut(segments(whole(100.0, "int32"), 100, "ZNE")[0], HALF)
    with pytest.raises(RuntimeError, match="no network today"):
        list(predict(windows, HALF, FakeTransport(broken, lanes), 2))


@given(seed=seeds, gap=st.integers(1, 3), model=models)
@settings(max_examples=20, deadline=None)
def test_nothing_crosses_a_gap(seed: int, gap: int, model: Manifest) -> None:
    traces = whole(100.0, "int32")
    noise = np.random.default_rng(seed).integers(-(10**6), 10**6, 2000).astype(np.int32)
    first, second = [[part(t, 0, 2000) for t in traces], [part(t, 2000 + gap, 4000) for t in traces]]
    other = [t._replace(samples=noise) for t in first]
    before, _ = annotate([*first, *second], model, fake())
    after, _ = annotate([*other, *second], model, fake())
    assert len(before.segments) == 2
    np.testing.assert_array_equal(after.values[2000:], before.values[2000:])
    assert not np.array_equal(after.values[:2000], before.values[:2000])


def test_picks_tell_edges_fragments_and_missing_components() -> None:
    z, _, e = whole(100.0, "int32")
    model = manifest(edge_samples=100)
    found = pick([part(z, 0, 3000), part(e, 0, 3000), part(z, 3100, 3500)], model, fake()).picks
    end = {p: (p.time_ns - START_NS) / NS for p in found}
    assert {p.flags for p in found if end[p] > 30} <= {
        (*edge, "fragment", "missing_N", "missing_E") for edge in [(), ("edge",)]
    }
    assert {p.flags for p in found if 1 < end[p] < 29} == {("missing_N",)}
    assert all(("edge" in p.flags) == (end[p] < 1 or end[p] >= 29) for p in found if end[p] < 30)
    assert any(end[p] > 30 for p in found)


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_records_that_conflict_cost_the_overlap_and_a_warning(data: st.DataObject) -> None:
    traces = whole(100.0, "int32")
    spoiled = [part(t, 2500, 2600)._replace(samples=part(t, 2500, 2600).samples + 1) for t in traces]
    result = pick(data.draw(st.permutations([*traces, *traces, *spoiled])), HALF, fake())
    lost = pick([p for t in traces for p in (part(t, 0, 2500), part(t, 2600, 6000))], HALF, fake())
    assert bits(result.picks) == bits(lost.picks)
    assert sorted(w.split(":")[0] for w in result.warnings) == [f"XX.STA..HH{c}" for c in "ENZ"]


@given(shift=st.integers(-(2**31) + 10**6, 2**31 - 10**6), dtype=st.sampled_from(["int32", "int64"]))
@settings(max_examples=20, deadline=None)
def test_a_huge_offset_costs_no_bit_of_a_small_signal(shift: int, dtype: str) -> None:
    traces = whole(100.0, "int32")
    lift = shift if dtype == "int32" else shift << 18
    moved = [t._replace(samples=(t.samples.astype(np.int64) + lift).astype(dtype)) for t in traces]
    assert bits(pick(moved, HALF, fake()).picks) == bits(pick(traces, HALF, fake()).picks)


@pytest.mark.parametrize("scale", [1e-14, 1e-3, 1e9, 2.0**-80, 2.0**80])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_amplitudes_in_any_unit_give_the_same_picks(scale: float, dtype: str) -> None:
    traces = [t._replace(samples=t.samples / 2000) for t in whole(100.0, "float32")]
    scaled = [t._replace(samples=(t.samples.astype(np.float64) * scale).astype(dtype)) for t in traces]
    expected, found = (pick(t, HALF, fake()).picks for t in (traces, scaled))
    assert [p.phase for p in found] == [p.phase for p in expected]
    for a, b in zip(found, expected, strict=True):
        assert abs(a.time_ns - b.time_ns) <= 20_000
        assert a.probability == pytest.approx(b.probability, rel=1e-4)
        assert a.snr_db == pytest.approx(b.snr_db, abs=0.02, nan_ok=True)


@pytest.mark.parametrize("value", [0, 5, -(2**31), 2**31 - 1, 0.1])
@pytest.mark.parametrize("rate", [50.0, 100.0])
def test_a_dead_channel_is_no_trouble(value: float, rate: float) -> None:
    dead = [t._replace(samples=np.full(len(t.samples), value)) for t in whole(rate, "int32")]
    curve, _ = annotate(dead, HALF, fake())
    assert np.isfinite(curve.values).all()
    assert pick(dead, HALF, fake()).picks == []


@given(second=st.integers(0, 4_102_444_000), us=st.integers(0, 9_999), at=st.integers(650, 2350))
@settings(max_examples=40, deadline=None)
def test_the_pick_of_an_impulse_has_its_time_to_the_microsecond(second: int, us: int, at: int) -> None:
    def impulse(waveform: Array) -> Array:
        return (waveform[:, :, :1] > waveform[:, :, :1].min(axis=1, keepdims=True) + 500).astype(np.float32)

    start_ns = second * NS + us * 1000  # between two samples of the grid
    samples = np.zeros(3000, np.int32)
    samples[at] = 1000
    traces = [Trace("XX.STA..HHZ", start_ns, 100.0, samples)]
    model = manifest(("P",), stacking="max")
    (found,) = pick(traces, model, FakeTransport(impulse)).picks
    assert found.time_ns == start_ns + at * 10_000_000


@given(rate=rates, dtype=dtypes)
@settings(max_examples=10, deadline=None)
def test_the_caller_s_arrays_are_left_alone(rate: float, dtype: str) -> None:
    traces = [t._replace(samples=t.samples.copy()) for t in whole(rate, dtype)]
    for item in traces:
        item.samples.flags.writeable = False
    pick([*traces, part(traces[0], 10, 500)], HALF, fake())
    for item, before in zip(traces, whole(rate, dtype), strict=True):
        np.testing.assert_array_equal(item.samples, before.samples)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": np.array([0, np.nan, 1, np.inf, np.nan])}, "trace XX.STA..HHN: 3 of 5 samples"),
        ({"samples": np.zeros((1, 5))}, "trace XX.STA..HHN: samples have shape"),
        ({"sampling_rate_hz": 0.0}, "trace XX.STA..HHN: sampling rate"),
    ],
)
def test_a_bad_trace_is_named(change: dict[str, Any], message: str) -> None:
    traces = [t._replace(**change) if t.id.endswith("N") else t for t in whole(100.0, "float32")]
    with pytest.raises(WaveformError, match=message):
        pick(traces, HALF, fake())


def test_no_traces_give_no_picks() -> None:
    assert pick([], HALF, fake()) == ([], [])
