"""Properties of reading picks off a curve."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from client.waveforms import NS, START_NS, STATION, Array, manifest, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seisserve.manifest import Label, Manifest
from seisserve.picks import Pick, extract
from seisserve.segments import Segment
from seisserve.windows import Curve

INDEX = START_NS // 10_000_000


def curve_of(*stretches: Any, samples: Array | None = None, labels: tuple[str, ...] = ("P",)) -> Curve:
    """A curve whose segments lie a second apart; each stretch is [n] or [n, labels]."""
    values = [np.asarray(s, np.float32).reshape(len(s), len(labels)) for s in stretches]
    bounds = np.concatenate([[0], np.cumsum([len(v) for v in values])])
    parts = [
        Segment(
            STATION, INDEX + int(begin) + 100 * k, 0, 100.0,
            np.zeros((3, len(v)), np.int32) if samples is None else samples, (True, True, True),
        )
        for k, (begin, v) in enumerate(zip(bounds, values, strict=False))
    ]  # fmt: skip
    return Curve(parts, bounds, np.concatenate(values), labels)


def reader(threshold: float = 0.5, distance: int = 0, **changes: Any) -> Manifest:
    return manifest(("P",), threshold, minimum_pick_distance_s=distance / 100, **changes)


def places(picks: list[Pick]) -> list[float]:
    """Where the picks are, in samples after the beginning."""
    return [(pick.time_ns - START_NS) / 1e7 for pick in picks]


def twin(values: list[float], threshold: float, distance: int) -> list[int]:
    """Samples of the picks of one segment, in plain Python."""
    stretches: list[list[int]] = []
    for i, value in enumerate(values):
        if value >= np.float32(threshold / 2):
            if not stretches or stretches[-1][-1] != i - 1:
                stretches.append([])
            stretches[-1].append(i)
    peaks = [max(stretch, key=lambda i: (values[i], -i)) for stretch in stretches]
    peaks = [i for i in peaks if values[i] >= np.float32(threshold)]

    def beaten(i: int) -> bool:
        return any(
            abs(i - j) < distance and (values[j] > values[i] or (values[j] == values[i] and j < i))
            for j in peaks
            if j != i
        )

    return [i for i in peaks if not beaten(i)]


coarse = st.sampled_from([0.0, 0.1, 0.24, 0.25, 0.26, 0.3, 0.49, 0.5, 0.51, 0.8, 0.9])
curves = st.lists(
    arrays(np.float32, st.integers(1, 60), elements=coarse.map(lambda v: float(np.float32(v)))), min_size=1, max_size=3
)


@given(stretches=curves, threshold=st.sampled_from([0.5, 0.3, 0.9]), distance=st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_picks_are_those_of_the_plain_python_twin_and_none_joins_two_segments(
    stretches: list[Array], threshold: float, distance: int
) -> None:
    found = extract(curve_of(*stretches), reader(threshold, distance))
    begin, expected = 0, []
    for k, values in enumerate(stretches):
        for i in twin(values.tolist(), threshold, distance):
            expected.append((begin + 100 * k + i, values[i]))
        begin += len(values)
    assert len(found) == len(expected)
    for pick, place, (sample, value) in zip(found, places(found), expected, strict=True):
        assert abs(place - sample) <= 0.5
        assert pick.probability == value


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.4, 0.6, 0.3, 0.7, 0.2, 0], [4]),  # above half of the threshold it is still the same arrival
        ([0, 0.4, 0.6, 0.2, 0.7, 0.2, 0], [2, 4]),
        ([0, 0.49, 0.1, 0.3, 0.49, 0], []),
        ([0, 0.49, 0.1, 0.3, 0.5, 0], [4]),  # the threshold itself counts
    ],
)
def test_a_stretch_ends_below_half_of_the_threshold(values: list[float], expected: list[int]) -> None:
    assert [round(p) for p in places(extract(curve_of(values), reader()))] == expected


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, 1.0, 0.123456789])
def test_a_curve_of_float32_reaches_a_threshold_it_equals(threshold: float) -> None:
    value = np.float32(threshold)
    assert len(extract(curve_of([0, value, 0]), reader(threshold))) == 1
    assert not extract(curve_of([0, np.nextafter(value, np.float32(0)), 0]), reader(threshold))


def test_of_picks_that_are_too_near_the_highest_stays_and_neighbours_alone_decide() -> None:
    values = np.zeros(100)
    values[[10, 19, 28]] = 0.9, 0.8, 0.7
    assert places(extract(curve_of(values), reader(distance=10))) == [10]
    assert places(extract(curve_of(values), reader(distance=9))) == [10, 19, 28]
    values[[10, 19]] = 0.8
    assert places(extract(curve_of(values), reader(distance=10))) == [10]


def test_a_plateau_is_one_pick_on_it() -> None:
    for width in (2, 3, 10):
        values = np.zeros(50)
        values[20 : 20 + width] = 0.9
        (place,) = places(extract(curve_of(values), reader()))
        assert 20 <= place < 20 + width


@pytest.mark.parametrize("values", [[0.9, 0.1], [0.1, 0.9], [0.9], [0.9, 0.9]])
def test_a_peak_at_the_end_of_a_segment_is_a_pick_on_its_sample(values: list[float]) -> None:
    (place,) = places(extract(curve_of(values), reader()))
    assert place == values.index(0.9)


@given(centre=st.floats(40, 60), width=st.floats(2, 12), height=st.floats(0.55, 1))
@settings(max_examples=60, deadline=None)
def test_the_centre_and_width_of_a_gaussian_come_back(centre: float, width: float, height: float) -> None:
    values = height * np.exp(-0.5 * ((np.arange(100) - centre) / width) ** 2)
    (pick,) = extract(curve_of(values), reader())
    assert places([pick])[0] == pytest.approx(centre, abs=0.05)
    assert pick.uncertainty_s == pytest.approx(width / 100, abs=0.01)


def test_the_uncertainty_is_scaled_by_what_the_manifest_says() -> None:
    values = np.exp(-0.5 * ((np.arange(100) - 50) / 5) ** 2)
    plain, doubled = (
        extract(curve_of(values), reader(readings={"P": Label(threshold=0.5, uncertainty_scale=scale)}))[0]
        for scale in (1.0, 2.0)
    )
    assert doubled.uncertainty_s == pytest.approx(2 * plain.uncertainty_s, abs=2e-4)


def test_picks_of_all_labels_come_in_order_of_time() -> None:
    values = np.zeros((500, 2))
    values[[400, 100], 0] = 0.9
    values[[50, 250, 400], 1] = 0.8
    found = extract(curve_of(values, labels=("P", "S")), manifest())
    assert [(p.phase, place) for p, place in zip(found, places(found), strict=True)] == [
        ("S", 50), ("P", 100), ("S", 250), ("P", 400), ("S", 400),
    ]  # fmt: skip
    assert [p.time_ns for p in found] == sorted(p.time_ns for p in found)


@given(seed=seeds, louder=st.sampled_from([-20, 0, 20]), shift=st.sampled_from([0, 2**31 - 10_000, 2**50]))
@settings(max_examples=20, deadline=None)
def test_snr_is_power_after_over_power_before_whatever_the_offset(seed: int, louder: float, shift: int) -> None:
    samples = np.random.default_rng(seed).normal(0, 100, (3, 1000))
    samples[:, 600:] *= 10 ** (louder / 20)
    counts = samples.round().astype(np.int64)
    values = np.zeros(1000)
    values[600] = 0.9
    (pick,) = extract(curve_of(values, samples=counts), reader())
    (shifted,) = extract(curve_of(values, samples=counts + shift), reader())
    assert pick.snr_db == pytest.approx(louder, abs=2)
    assert shifted.snr_db == pytest.approx(pick.snr_db, abs=0.011)  # a step of its rounding


@pytest.mark.parametrize(("sample", "known"), [(519, False), (520, True), (800, True), (801, False)])
def test_snr_is_nan_where_the_segment_is_too_short_or_silent(sample: int, known: bool) -> None:
    values = np.zeros(1000)
    values[sample] = 0.9
    samples = np.random.default_rng(0).normal(size=(3, 1000))
    (pick,) = extract(curve_of(values, samples=samples), reader())
    assert math.isnan(pick.snr_db) != known
    assert math.isnan(extract(curve_of(values), reader())[0].snr_db)


def test_flags_tell_edges_fragments_and_missing_components() -> None:
    values = np.zeros(700)
    values[[40, 60, 350, 640, 660]] = 0.9
    model = reader(edge_samples=50)
    assert [p.flags for p in extract(curve_of(values), model)] == [("edge",), (), (), (), ("edge",)]
    curve = curve_of(values[:500])
    lame = curve._replace(segments=[curve.segments[0]._replace(live=(True, False, False))])
    missing = ("missing_N", "missing_E")
    assert [p.flags for p in extract(lame, model)] == [
        ("edge", "fragment", *missing), ("fragment", *missing), ("fragment", *missing),
    ]  # fmt: skip


@given(second=st.integers(0, 4_102_444_800), sample=st.integers(1, 98))
@settings(max_examples=50, deadline=None)
def test_the_time_of_an_impulse_is_exact_at_any_time(second: int, sample: int) -> None:
    values = np.zeros(100)
    values[sample] = 0.9
    curve = curve_of(values)
    moved = curve._replace(segments=[curve.segments[0]._replace(grid_index=second * 100)])
    assert extract(moved, reader())[0].time_ns == second * NS + sample * 10_000_000


def test_an_empty_curve_has_no_picks() -> None:
    assert extract(Curve([], np.zeros(1, int), np.zeros((0, 1), np.float32), ("P",)), reader()) == []
