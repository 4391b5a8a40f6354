"""Augmentations: each is pure, moves onsets with their waves, and never asks for what cannot be seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seisserve_training import augment
from seisserve_training.augment import Example

RATE = 100.0
seeds = st.integers(0, 2**32 - 1)


def example(seed: int = 0, samples: int = 3000, p: float = 900.0, s: float = 1400.0) -> Example:
    """Quiet noise, and a wave train from each onset on."""
    rng = np.random.default_rng(seed)
    waveform = rng.normal(size=(samples, 3))
    for onset, strength in ((p, 50.0), (s, 150.0)):
        length = samples - int(onset)
        waveform[int(onset) :] += rng.normal(size=(length, 3)) * (strength * np.exp(-np.arange(length) / 300))[:, None]
    return Example(waveform.astype(np.float32), (p,), (s,), np.ones(samples, bool))


AUGMENTATIONS = {
    "shift": lambda e, rng: augment.shift(e, rng, 2048),
    "stretch": lambda e, rng: augment.shift(e, rng, 2048, 0.3),
    "stack_event": lambda e, rng: augment.stack_event(e, example(7, p=300.0, s=2200.0), rng, RATE),
    "superpose_noise": lambda e, rng: augment.superpose_noise(e, example(8).waveform, rng, RATE),
    "false_positive_noise": lambda e, rng: augment.false_positive_noise(e, rng, RATE),
    "channel_dropout": augment.channel_dropout,
    "rotate_horizontals": augment.rotate_horizontals,
    "centre": lambda e, rng: augment.centre(e, 2048),
    "gap": lambda e, rng: augment.gap(e, rng, RATE),
    "scale_amplitude": augment.scale_amplitude,
    "high_pass": lambda e, rng: augment.high_pass(e, rng, RATE),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_pure_finite_and_reproducible(name: str, seed: int) -> None:
    before = example()
    kept = before.waveform.copy(), before.sure.copy()
    one = AUGMENTATIONS[name](before, np.random.default_rng(seed))
    two = AUGMENTATIONS[name](before, np.random.default_rng(seed))
    np.testing.assert_array_equal(before.waveform, kept[0])
    np.testing.assert_array_equal(before.sure, kept[1])
    np.testing.assert_array_equal(one.waveform, two.waveform)
    assert one.p == two.p
    assert one.s == two.s
    assert np.isfinite(one.waveform).all()
    assert one.waveform.dtype == np.float32
    assert one.sure.shape == one.waveform.shape[:1]


@pytest.mark.parametrize("scale", [1e-14, 1e9])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_no_amplitude_is_too_small_or_too_large(name: str, scale: float) -> None:
    small = example()._replace(waveform=(example().waveform.astype(np.float64) * scale).astype(np.float32))
    for seed in range(5):
        out = AUGMENTATIONS[name](small, np.random.default_rng(seed)).waveform
        assert np.isfinite(out).all()
        assert np.abs(out).max() > 0


@given(seed=seeds, stretch=st.sampled_from([0.0, 0.3]))
@settings(max_examples=50, deadline=None)
def test_shift_moves_onsets_with_the_wave(seed: int, stretch: float) -> None:
    spike = example()
    waveform = np.zeros_like(spike.waveform)
    waveform[900:] = 1
    shifted = augment.shift(spike._replace(waveform=waveform), np.random.default_rng(seed), 2048, stretch)
    (p,), (s,) = shifted.p, shifted.s
    if 2 < p < 2045:
        assert shifted.waveform[int(p) - 2, 0] == 0
        assert shifted.waveform[int(p) + 2, 0] == 1
    speed = (s - p) / 500
    assert np.exp(-stretch) - 1e-6 <= speed <= np.exp(stretch) + 1e-6


def test_shifts_reach_every_place_of_the_window() -> None:
    places = [augment.shift(example(), np.random.default_rng(seed), 2048).p[0] for seed in range(300)]
    inside = [place for place in places if 0 <= place < 2048]
    assert len(inside) > 150
    assert np.histogram(inside, bins=8, range=(0, 2048))[0].min() > 5


@given(seed=seeds)
@settings(max_examples=50, deadline=None)
def test_stacked_events_both_stay_visible(seed: int) -> None:
    first, second = example(), example(7, p=300.0, s=2200.0)
    both = augment.stack_event(first, second, np.random.default_rng(seed), RATE)
    if both is first:
        return
    assert both.p == (900.0, 300.0)
    assert both.s == (1400.0, 2200.0)
    added = both.waveform - first.waveform
    for onset, own, over in ((900, first.waveform, added), (300, added, first.waveform)):
        assert own[onset : onset + 101].std() > 1.2 * over[onset - 100 : onset + 100].std()


@given(seed=seeds, p=st.integers(200, 2400), s_minus_p=st.integers(50, 500), loudness=st.floats(-3, 3))
@settings(max_examples=60, deadline=None)
def test_stacked_events_never_mask_one_another(seed: int, p: int, s_minus_p: int, loudness: float) -> None:
    first, second = example(), example(7, p=float(p), s=float(p + s_minus_p))
    second = second._replace(waveform=second.waveform * np.float32(10**loudness))
    both = augment.stack_event(first, second, np.random.default_rng(seed), RATE)
    if both is first:
        return
    added = both.waveform - first.waveform
    for event, own, over in ((first, first.waveform, added), (second, added, first.waveform)):
        for onset in map(int, event.p + event.s):
            under = over[max(onset - 100, 0) : onset + 100]
            assert own[onset : onset + 101].std() > 1.2 * under.std()


def test_centred_windows_have_the_first_onset_at_one_place() -> None:
    for p in (900.0, 1200.0, 300.0):
        window = augment.centre(example(p=p, s=2000.0), 1800, 1 / 3)
        assert window.p[0] == 600
        assert window.waveform.shape == (1800, 3)


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_scaling_keeps_the_shape(seed: int) -> None:
    before = example()
    after = augment.scale_amplitude(before, np.random.default_rng(seed)).waveform
    factor = after.max() / before.waveform.max()
    assert 0.03 < factor < 32
    np.testing.assert_allclose(after, before.waveform * factor, rtol=1e-5)


@given(st.lists(st.one_of(st.floats(-2, 9), st.just(float("nan"))), min_size=1, max_size=300))
@settings(max_examples=60, deadline=None)
def test_resampling_weights_are_positive_and_keep_the_mean(values: list[float]) -> None:
    weights = augment.resampling_weights(np.array(values))
    assert (weights > 0).all()
    assert abs(weights.mean() - 1) < 1e-9
    np.testing.assert_array_equal(weights[np.isnan(values)], 1)


def test_resampled_magnitudes_are_uniform() -> None:
    magnitudes = np.random.default_rng(0).exponential(0.8, 20_000)
    magnitudes = magnitudes[magnitudes < 3]
    weights = augment.resampling_weights(magnitudes)
    within = np.clip(magnitudes, *np.quantile(magnitudes, [0.01, 0.99]))
    plain, _ = np.histogram(within, bins=10)
    evened, _ = np.histogram(within, bins=10, weights=weights)
    assert plain.max() / plain.min() > 8
    assert evened.max() / evened.min() < 1.5


@given(seed=seeds)
@settings(max_examples=50, deadline=None)
def test_superposed_noise_never_buries_an_onset(seed: int) -> None:
    noise = np.random.default_rng(3).normal(size=(3000, 3)).astype(np.float32)
    before = example()
    added = augment.superpose_noise(before, noise, np.random.default_rng(seed), RATE).waveform - before.waveform
    for onset in (900, 1400):
        assert before.waveform[onset : onset + 101].std() > 1.3 * added.std()


@given(seed=seeds)
@settings(max_examples=100, deadline=None)
def test_faults_take_away_the_onsets_they_hide(seed: int) -> None:
    before = example()
    after = augment.false_positive_noise(before, np.random.default_rng(seed), RATE)
    changed = np.flatnonzero((after.waveform != before.waveform).any(axis=1))
    for phase, onset in (("p", 900), ("s", 1400)):
        if getattr(after, phase):
            continue
        assert changed.min() <= onset + 1
        assert changed.max() >= onset - 1


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_channel_dropout_leaves_at_least_one_component_as_it_was(seed: int) -> None:
    before = example()
    after = augment.channel_dropout(before, np.random.default_rng(seed)).waveform
    alive = [k for k in range(3) if after[:, k].any()]
    assert 1 <= len(alive) <= 2
    np.testing.assert_array_equal(after[:, alive], before.waveform[:, alive])


def test_rotation_keeps_the_vertical_apart() -> None:
    before = example()
    before.waveform[:, 0] = 0
    after = augment.rotate_horizontals(before, np.random.default_rng(1)).waveform
    assert not after[:, 0].any()
    assert after[:, 1:].any()


def test_high_pass_is_causal() -> None:
    quiet = np.zeros((1000, 3), np.float32)
    quiet[500:] = 1
    before = Example(quiet, (500.0,), (), np.ones(1000, bool))
    after = augment.high_pass(before, np.random.default_rng(0), RATE).waveform
    assert not after[:500].any()
    assert after[500].all()
