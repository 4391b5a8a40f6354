"""Clean events, mixtures of known ratio, and clipping: exact targets, and no amplitude too small or too large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_opening, gaussian_filter1d

from seisserve.errors import UsageError
from seisserve_training import augment
from seisserve_training.clean import clean_event, onset_snr_db
from seisserve_training.clipping import clipped
from seisserve_training.config import Augmentation, Config, Data, Network
from seisserve_training.datasets import LabelledTrace, Row
from seisserve_training.examples import Examples

seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([1e-14, 1.0, 1e9])
P = 1000.0


def event(seed: int = 0, strength: float = 100.0, scale: float = 1.0, noise: bool = False) -> LabelledTrace:
    """Noise of deviation one about 5, and a wave train from P on, [3, 4000]; N is not there."""
    rng = np.random.default_rng(seed)
    waveform = rng.normal(size=(3, 4000)) + 5
    waveform[:, int(P) :] += rng.normal(size=(3, 3000)) * strength * np.exp(-np.arange(3000) / 600)
    waveform[1] = 0
    row = Row(Path("x"), "x", "train", "made", "none", "exact", noise, P, np.nan, 100.0, "ZNE", "ZE")
    return LabelledTrace(row, (waveform * scale).astype(np.float32), (True, False, True), P, np.nan)


@given(seed=seeds, scale=scales)
@settings(max_examples=20, deadline=None)
def test_clean_events_are_silent_before_p_and_as_they_were_after_it(seed: int, scale: float) -> None:
    trace = event(seed, scale=scale)
    kept = trace.waveform.copy()
    clean = clean_event(trace, 100.0)
    assert clean is not None
    np.testing.assert_array_equal(trace.waveform, kept)
    assert not clean[:, : int(P) - 50].any()
    assert not clean[1].any()
    offset = trace.waveform[:, : int(P) - 50].mean(axis=1, keepdims=True, dtype=np.float64)
    after = (trace.waveform - offset)[:, int(P) : -200]
    np.testing.assert_allclose(clean[[0, 2], int(P) : -200], after[[0, 2]], rtol=1e-5)
    assert abs(clean[:, -1]).max() == 0


def test_weak_noise_and_clipped_records_are_not_clean() -> None:
    assert clean_event(event(strength=1.0), 100.0) is None
    assert clean_event(event(noise=True), 100.0) is None
    trace = event()
    trace = trace._replace(waveform=gaussian_filter1d(trace.waveform, 4, axis=1))  # slow: clipped in runs
    assert clean_event(trace, 100.0) is not None
    assert clean_event(trace._replace(waveform=augment.clip(trace.waveform.T, 0.5).T), 100.0) is None


@pytest.mark.parametrize("p", [np.nan, 40.0, 3990.0])
def test_without_room_there_is_no_ratio(p: float) -> None:
    assert np.isnan(onset_snr_db(event().waveform, p, 100.0))


def test_the_ratio_is_that_of_the_energies() -> None:
    waveform = np.random.default_rng(0).normal(size=(3, 4000)).astype(np.float32)
    waveform[:, 1000:] *= 100
    for scale in (1e-30, 1.0, 1e30):
        assert onset_snr_db(waveform * np.float32(scale), 1000.0, 100.0) == pytest.approx(40, abs=1)


@given(seed=seeds, scale=scales, ratio=st.floats(-20, 30))
@settings(max_examples=30, deadline=None)
def test_mixtures_have_the_ratio_they_were_asked_for(seed: int, scale: float, ratio: float) -> None:
    rng = np.random.default_rng(seed)
    clean = (rng.normal(size=(500, 3)) * scale).astype(np.float32)
    noise = (rng.normal(size=(500, 3)) + 9).astype(np.float32)
    kept = clean.copy(), noise.copy()
    noisy, target = augment.mix(clean, noise, ratio)
    for now, before in zip((clean, noise, target), (*kept, clean), strict=True):
        np.testing.assert_array_equal(now, before)
    added = noisy.astype(np.float64) - clean
    assert 10 * np.log10(np.square(clean, dtype=np.float64).sum() / np.square(added).sum()) == pytest.approx(
        ratio, abs=0.1
    )


def test_noise_alone_becomes_nothing() -> None:
    noise = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    noisy, clean = augment.mix(np.zeros((500, 3), np.float32), noise, 0.0)
    np.testing.assert_allclose(noisy, noise - noise.mean(axis=0), atol=1e-6)
    assert not clean.any()
    np.testing.assert_array_equal(augment.mix(noise, np.zeros_like(noise), 0.0)[0], noise)


@given(seed=seeds, scale=scales, level=st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_clipping_changes_what_exceeds_the_level_and_nothing_else(seed: int, scale: float, level: float) -> None:
    before = (np.random.default_rng(seed).normal(size=(500, 3)) * scale).astype(np.float32)
    kept = before.copy()
    after = augment.clip(before, level)
    np.testing.assert_array_equal(before, kept)
    limit = np.float32(np.abs(before).max() * level)
    inside = np.abs(before) <= limit
    np.testing.assert_array_equal(after[inside], before[inside])
    np.testing.assert_allclose(after[~inside], np.sign(before[~inside]) * limit, rtol=1e-6)
    assert after.dtype == np.float32


@given(seed=seeds, scale=scales, level=st.floats(0.1, 0.8))
@settings(max_examples=30, deadline=None)
def test_clipped_runs_are_found_on_both_sides(seed: int, scale: float, level: float) -> None:
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    wave = np.stack([np.sin(2 * np.pi * np.arange(1000) / period + phase) for period in (20.3, 40.3)]) * scale
    cut = np.clip(wave, -level * scale, level * scale)
    sign = clipped(cut)
    assert not (sign * wave < 0).any()
    assert (sign > 0).any() and (sign < 0).any()
    np.testing.assert_allclose(cut[sign != 0], np.sign(wave[sign != 0]) * level * scale, rtol=2e-4)
    top, bottom = (binary_opening(side * wave > level * scale, np.ones((1, 3))) for side in (1, -1))
    assert (sign[top] == 1).all() and (sign[bottom] == -1).all()
    assert ((sign != 0) >= (np.abs(wave) > 1.001 * level * scale)).all()  # once the level is known, every sample at it


def test_waves_that_are_not_clipped_are_left_alone() -> None:
    time = np.arange(3000)
    for period in (4, 10, 30, 100):
        assert not clipped(np.sin(2 * np.pi * time / period + 0.3) * np.exp(-time / 1000))[None].any()
    assert not clipped(np.random.default_rng(0).normal(size=(3, 3000))).any()
    assert not clipped(np.zeros((3, 100))).any()
    assert not clipped(np.full((3, 100), 7.0)).any()


def test_a_plateau_is_level_and_at_the_end_of_the_range() -> None:
    wave = np.sin(2 * np.pi * np.arange(400) / 40)
    cut = np.minimum(wave, 0.5)
    noisy = np.where(cut < wave, cut * (1 + 1e-5 * np.random.default_rng(0).normal(size=400)), cut)
    np.testing.assert_array_equal(clipped(noisy) != 0, cut < wave)
    higher = cut.copy()
    higher[-1] = 0.6
    assert not (clipped(higher) > 0).any()
    assert not clipped(np.array([[0, 1, 1, 0, -1, -1, 0.5]])).any()


def test_the_level_is_known_from_three_samples_or_two_of_two_and_then_every_sample_at_it_counts() -> None:
    def found(*samples: float) -> list[int]:
        return clipped(np.array([samples])).tolist()[0]

    assert found(0, 1, 1, 1, 0, 1, -1) == [0, 1, 1, 1, 0, 1, 0]
    assert found(0, 1, 1, 0, 1, 1, 0, 1, -1) == [0, 1, 1, 0, 1, 1, 0, 1, 0]
    assert found(0, 1, 1, 0, 1, 0, 1, -1) == [0] * 8
    assert found(1, 1, 0, -1, -1, 0, -1, -1) == [0, 0, 0, -1, -1, 0, -1, -1]


def learnt(traces: list[LabelledTrace]) -> Examples:
    """Windows of events as denoisers leave them, and of nothing else."""
    switches = dict.fromkeys(("noise_windows", "channel_dropout", "rotate", "high_pass"), 0.0)
    config = Config(
        name="x", data=Data(paths=("made",)), network=Network(window_samples=1024),
        augmentation=Augmentation(clean_events=1.0, **switches),
    )  # fmt: skip
    return Examples(traces, config)


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_pickers_may_learn_from_events_as_denoisers_leave_them(seed: int) -> None:
    strong = event(seed)._replace(s=P + 400)
    window = learnt([event(strength=1.0), strong]).labelled_window(np.random.default_rng(seed))
    time = np.arange(len(window.waveform))
    for onset in window.p:
        assert not window.waveform[time < onset - 51].any()
        assert window.waveform[time > onset].any()
    assert window.sure.all()
    assert len(window.s) <= 1


def test_what_was_not_labelled_is_not_learnt_there() -> None:
    window = learnt([event()]).labelled_window(np.random.default_rng(1))
    (onset,) = window.p
    assert not window.sure[int(onset) + 100 :].any()
    assert window.sure[: int(onset)].all()


def test_hardly_any_noise_is_added_to_them() -> None:
    hiss = event(noise=True)._replace(p=np.nan)
    examples, share = learnt([event(), hiss]), []
    for seed in range(20):
        window = examples.labelled_window(np.random.default_rng(seed))
        if window.p and window.p[0] > 200:
            before = window.waveform[: int(window.p[0]) - 60]
            share.append(float(np.abs(before).max() / np.abs(window.waveform).max()))
    assert 0 < max(share) < 0.2
    assert min(share) == 0


def test_without_clean_events_that_is_said() -> None:
    with pytest.raises(UsageError, match=r"augmentation\.clean_events"):
        learnt([event(strength=1.0)]).labelled_window(np.random.default_rng(1))
