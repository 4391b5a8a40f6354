"""Properties of cutting segments into windows and of stacking what the network says."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
from client.waveforms import START_NS, STATION, Array, manifest, part, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from seisserve.manifest import Manifest
from seisserve.picks import extract
from seisserve.pipeline import annotate
from seisserve.segments import Segment, segments
from seisserve.traces import Trace
from seisserve.transport import FakeTransport
from seisserve.windows import Windows, cut, stack


def segment(samples: Array, index: int = 0) -> Segment:
    return Segment(STATION, index, 0, 100.0, samples, (True,) * len(samples))


@st.composite
def models(draw: st.DrawFn, **changes: Any) -> Manifest:
    """Any window with any hop and blinding that loses no sample."""
    window = draw(st.integers(2, 40))
    blinding = draw(st.integers(0, (window - 1) // 2))
    fragments = draw(st.lists(st.integers(1, window - 1), max_size=3))
    return manifest(
        **{
            "labels": ("P",),
            "components": "Z",
            "window_samples": window,
            "blinding_samples": blinding,
            "hop_samples": draw(st.integers(1, window - 2 * blinding)),
            "fragment_windows": tuple(fragments),
            "stacking": draw(st.sampled_from(["mean", "max"])),
            **changes,
        }
    )


@st.composite
def strided(draw: st.DrawFn) -> Manifest:
    """Any model whose frames stand for several samples."""
    stride = draw(st.integers(2, 6))
    frames = draw(st.integers(1, 10))
    window = frames * stride
    blinding = draw(st.integers(0, (window - 1) // 2))
    fragments = draw(st.lists(st.integers(1, max(1, frames - 1)), max_size=2)) if frames > 1 else []
    return manifest(
        labels=("P",),
        components="Z",
        stride=stride,
        window_samples=window,
        blinding_samples=blinding,
        hop_samples=draw(st.integers(1, window - 2 * blinding)),
        fragment_windows=tuple(stride * n for n in fragments),
    )


@st.composite
def single_valued(draw: st.DrawFn) -> Manifest:
    """Any model that says one thing of each window."""
    window = draw(st.integers(2, 40))
    return manifest(
        labels=("P",),
        components="Z",
        single=True,
        window_samples=window,
        hop_samples=draw(st.integers(1, window // 2)),
        fragment_windows=tuple(draw(st.lists(st.integers(1, window - 1), max_size=2))),
    )


@st.composite
def parts(draw: st.DrawFn, components: int = 1) -> list[Segment]:
    """Segments in order of time, a gap of at least one sample apart, of small whole numbers."""
    rng = np.random.default_rng(draw(seeds))
    index = draw(st.integers(-100, 10**12))
    found = []
    for length in draw(st.lists(st.integers(1, 150), min_size=1, max_size=5)):
        found.append(segment(rng.integers(-1000, 1000, (components, length)), index))
        index += length + draw(st.integers(1, 50))
    return found


def window_of(windows: Windows, k: int) -> Array:
    """The raw samples [components, length] of one window, in plain Python."""
    start, length = int(windows.starts[k]), int(windows.lengths[k])
    number = int(np.searchsorted(windows.bounds, start, side="right")) - 1
    last = int(windows.bounds[number + 1]) - 1
    return np.stack([windows.samples[:, min(i, last)] for i in range(start, start + length)], axis=1)


def everything(windows: Windows, size: int = 4) -> list[Array]:
    """What a network that answers with its raw input gives, batch after batch."""
    return [
        np.stack([window_of(windows, k).T for k in range(rows.start, rows.stop)]).astype(np.float32)
        for rows in windows.batch_rows(size)
    ]


@given(model=models(), stretches=parts())
@settings(max_examples=80, deadline=None)
def test_cut_then_stack_with_an_identity_network_is_the_identity(model: Manifest, stretches: list[Segment]) -> None:
    windows = cut(stretches, model)
    curve = stack(windows, everything(windows), model)
    assert curve.values.dtype == np.float32
    np.testing.assert_array_equal(curve.bounds, np.cumsum([0] + [s.samples.shape[1] for s in stretches]))
    np.testing.assert_array_equal(curve.values[:, 0], np.concatenate([s.samples[0] for s in stretches]))


@given(model=models(), stretches=parts())
@settings(max_examples=60, deadline=None)
def test_windows_sit_on_the_absolute_grid_but_for_one_flush_with_each_end(
    model: Manifest, stretches: list[Segment]
) -> None:
    windows = cut(stretches, model)
    for k, piece in enumerate(stretches):
        begin, end = int(windows.bounds[k]), int(windows.bounds[k + 1])
        mine = (windows.starts >= begin) & (windows.starts < end)
        starts, lengths = windows.starts[mine] - begin, windows.lengths[mine]
        if end - begin < model.window_samples:
            shortest = min(n for n in (*model.fragment_windows, model.window_samples) if n >= end - begin)
            assert (starts.tolist(), lengths.tolist()) == ([0], [shortest])
            continue
        assert set(lengths.tolist()) == {model.window_samples}
        last = end - begin - model.window_samples
        grid = {s for s in range(last + 1) if (piece.grid_index + s) % model.hop_samples == 0}
        assert starts.tolist() == sorted(grid | {0, last})


def answers(windows: Windows, model: Manifest, size: int = 4) -> list[Array]:
    """What a network gives whose every number depends on its whole window and on the place in it."""
    given = []
    for batch in everything(windows, size):
        ramp = batch * np.arange(1, batch.shape[1] + 1)[:, None]
        if model.output.single:
            given.append(ramp.sum(axis=1))
        else:
            given.append(ramp.reshape(len(batch), -1, model.output.stride, 1).sum(axis=2))
    return given


@given(model=st.one_of(models(), strided(), single_valued()), stretches=parts())
@settings(max_examples=150, deadline=None)
def test_a_curve_changes_only_within_one_window_of_a_cut(model: Manifest, stretches: list[Segment]) -> None:
    whole = stretches[0]
    middle = whole.samples.shape[1] // 2
    sides = [
        segment(whole.samples[:, :middle], whole.grid_index),
        segment(whole.samples[:, middle:], whole.grid_index + middle),
    ]
    sides = [side for side in sides if side.samples.size]

    def values(stretches: list[Segment]) -> Array:
        windows = cut(stretches, model)
        return stack(windows, answers(windows, model), model).values[:, 0]

    far = np.abs(np.arange(whole.samples.shape[1]) - middle + 0.5) > model.window_samples
    np.testing.assert_array_equal(values([whole])[far], values(sides)[far])


@given(model=strided(), stretches=parts())
@settings(max_examples=60, deadline=None)
def test_frames_are_joined_by_straight_lines_between_their_middles(model: Manifest, stretches: list[Segment]) -> None:
    stride = model.output.stride
    windows = cut(stretches, model)
    outputs = answers(windows, model)
    lines = []
    for batch in outputs:
        middles = np.arange(batch.shape[1]) * stride + (stride - 1) / 2
        samples = np.arange(batch.shape[1] * stride)
        lines.append(np.stack([np.interp(samples, middles, row[:, 0]) for row in batch])[:, :, None])
    at_each_sample = manifest(
        ("P",),
        components="Z",
        window_samples=model.window_samples,
        blinding_samples=model.blinding_samples,
        hop_samples=model.hop_samples,
        fragment_windows=model.fragment_windows,
    )
    expected = stack(windows, [batch.astype(np.float32) for batch in lines], at_each_sample).values
    found = stack(windows, outputs, model).values
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@given(model=single_valued(), stretches=parts())
@settings(max_examples=60, deadline=None)
def test_single_values_stand_in_the_middle_of_their_windows_with_straight_lines_between(
    model: Manifest, stretches: list[Segment]
) -> None:
    windows = cut(stretches, model)
    outputs = answers(windows, model)
    value = dict(zip(windows.starts.tolist(), np.concatenate(outputs)[:, 0].tolist(), strict=True))
    length = dict(zip(windows.starts.tolist(), windows.lengths.tolist(), strict=True))
    found = stack(windows, outputs, model).values[:, 0]
    assert found.dtype == np.float32
    for k, piece in enumerate(stretches):
        begin, end = int(windows.bounds[k]), int(windows.bounds[k + 1])
        assert end - begin == piece.samples.shape[1]
        starts = sorted(start for start in value if begin <= start < end)
        middles = [start + length[start] // 2 for start in starts]
        expected = np.interp(np.arange(begin, end), middles, [value[start] for start in starts])
        np.testing.assert_allclose(found[begin:end], expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@given(model=st.one_of(strided(), single_valued()), stretches=parts(), size=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_batches_change_no_bit_of_a_curve(model: Manifest, stretches: list[Segment], size: int) -> None:
    windows = cut(stretches, model)
    values = [stack(windows, answers(windows, model, n), model).values for n in (size, 1000)]
    np.testing.assert_array_equal(values[0], values[1])


def test_a_gap_stands_between_single_values() -> None:
    model = manifest(("P",), components="Z", single=True, window_samples=10, hop_samples=5, fragment_windows=())
    windows = cut([segment(np.zeros((1, 30))), segment(np.zeros((1, 30)), 31)], model)
    late = np.repeat(windows.starts >= 30, 1).astype(np.float32)[:, None]
    np.testing.assert_array_equal(stack(windows, [late], model).values[:, 0], np.repeat([0, 1], 30))


@given(
    model=models(components="ZNE"),
    stretches=parts(components=3),
    size=st.integers(1, 7),
    dtype=st.sampled_from(["int32", "int64", "float32", "float64"]),
)
@settings(max_examples=40, deadline=None)
def test_batches_are_the_padded_windows_less_the_middle_of_their_range(
    model: Manifest, stretches: list[Segment], size: int, dtype: str
) -> None:
    windows = cut([s._replace(samples=s.samples.astype(dtype)) for s in stretches], model)
    batches = list(windows.batches(size))
    assert all(len(batch) <= size and batch.dtype == np.float32 for batch in batches)
    rows = [row for batch in batches for row in batch]
    assert len(rows) == len(windows)
    for k, row in enumerate(rows):
        raw = window_of(windows, k)
        middle = (raw.max(axis=1) + raw.min(axis=1)) / 2
        np.testing.assert_array_equal(row, (raw - middle[:, None]).T)


def test_a_windowless_model_computes_every_inner_sample_exactly_once() -> None:
    model = manifest(
        labels=("P",), components="Z", window_samples=16384, fragment_windows=(), blinding_samples=2048,
        hop_samples=12288,
    )  # fmt: skip
    length = 200_000
    windows = cut([segment(np.zeros((1, length), np.int32), 5_000_000_123)], model)
    times = np.zeros(length, int)
    for start in windows.starts[1:-1]:
        times[start + 2048 : start + 16384 - 2048] += 1
    inner = slice(int(windows.starts[1]) + 2048, int(windows.starts[-2]) + 16384 - 2048)
    assert inner.stop - inner.start > length - 2 * 16384
    np.testing.assert_array_equal(times[inner], 1)

    marks = [np.full((1, 16384, 1), k, np.float32) for k in range(len(windows))]
    curve = stack(windows, marks, model)
    clear = slice(int(windows.starts[0]) + 16384, int(windows.starts[-1]))
    np.testing.assert_array_equal(curve.values[clear] % 1, 0)


DAY = 8_640_000
DAY_MODEL = manifest(window_samples=3072, hop_samples=1536, fragment_windows=(512, 1024, 2048))


def day(codes: str, spread: str) -> list[Trace]:
    """A day at 100 Hz, without gaps or with ten thousand (of one sample each, in all components at once)."""
    rng = np.random.default_rng(0)
    gaps = {
        "none": np.zeros(0),
        "regular": np.linspace(0, DAY, 10_001)[1:],
        "random": rng.uniform(0, DAY, 10_000),
        "clustered": np.concatenate([rng.normal(c, DAY / 100, 2000) for c in rng.uniform(0, DAY, 5)]),
    }[spread]
    edges = np.unique([0, *np.clip(gaps.astype(int), 1, DAY - 1), DAY]).tolist()
    samples = np.zeros(DAY, np.int32)
    whole = [Trace(STATION + code, START_NS, 100.0, samples) for code in codes]
    return [part(t, a, b - (b < DAY)) for t in whole for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("spread", ["regular", "random", "clustered"])
def test_ten_thousand_gaps_a_day_cost_at_most_half_as_much_again(spread: str) -> None:
    work = [int(cut(segments(day("Z", s), 100, "Z")[0], DAY_MODEL).lengths.sum()) for s in ("none", spread)]
    print(f"\nten thousand {spread} gaps: {work[1] / work[0]:.3f} x the gapless day's work")
    assert work[1] <= 1.5 * work[0]


def test_a_day_of_single_values_every_tenth_sample() -> None:
    model = manifest(single=True, window_samples=400, hop_samples=10, fragment_windows=())
    windows = cut(segments(day("Z", "none"), 100, "ZNE")[0], model)
    outputs = np.random.default_rng(0).random((len(windows), 2), np.float32)
    begin = time.perf_counter()
    values = stack(windows, [outputs], model).values
    print(f"\nstacking {len(windows)} single values: {time.perf_counter() - begin:.2f} s")
    np.testing.assert_array_equal(values[windows.starts + 200], outputs)


def test_time_around_the_network_with_ten_thousand_gaps() -> None:
    transport = FakeTransport(lambda waveform: np.zeros((*waveform.shape[:2], 2), np.float32))
    for spread in ("none", "random"):
        traces = day("ZNE", spread)
        begin = time.perf_counter()
        curve, warnings = annotate(traces, DAY_MODEL, transport)
        assert extract(curve, DAY_MODEL) == warnings == []
        seconds = time.perf_counter() - begin
        print(f"\nday of three components, gaps: {spread}: {len(curve.segments)} segments, {seconds:.2f} s")


@given(model=st.one_of(models(), strided(), single_valued()), stretches=parts(), wrong=st.sampled_from([-1, 1]))
@settings(max_examples=20, deadline=None)
def test_an_answer_too_few_or_too_many_is_refused(model: Manifest, stretches: list[Segment], wrong: int) -> None:
    windows = cut(stretches, model)
    outputs = answers(windows, model, size=1)
    with pytest.raises((ValueError, IndexError)):
        stack(windows, outputs[:-1] if wrong < 0 else [*outputs, outputs[-1]], model)


def test_no_segments_make_no_windows_and_an_empty_curve() -> None:
    windows = cut([], manifest())
    assert len(windows) == 0
    assert list(windows.batches(4)) == []
    for model in (manifest(), manifest(stride=4, fragment_windows=()), manifest(single=True)):
        assert stack(windows, [], model).values.shape == (0, 2)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32", "float32", "float64"])
def test_extreme_and_constant_windows_make_finite_batches(dtype: str) -> None:
    kind = np.dtype(dtype)
    low, high = (np.iinfo(kind).min, np.iinfo(kind).max) if kind.kind in "iu" else (-8e37, 8e37)
    rows = [[low, high] * 50, [high] * 100, [low] * 100]
    windows = cut([segment(np.array(rows, kind))], manifest(window_samples=100, hop_samples=50, fragment_windows=()))
    (batch,) = windows.batches(4)
    assert np.isfinite(batch).all()
    assert not batch[:, :, 1:].any()
    assert batch[0, 1, 0] == pytest.approx(-batch[0, 0, 0], rel=1e-6)
