"""Targets: probabilities that add up, centred on the onset."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seisserve_training.augment import Example
from seisserve_training.labels import box, gaussian, steps, target, triangle

onsets = st.lists(st.floats(-100, 1100), max_size=4).map(tuple)


@given(p=onsets, s=onsets)
def test_probabilities_add_up_to_one(p: tuple[float, ...], s: tuple[float, ...]) -> None:
    example = Example(np.zeros((1000, 3), np.float32), p, s, np.ones(1000, bool))
    made = target(example, 10.0)
    assert made.shape == (1000, 4)
    np.testing.assert_allclose(made[:, :3].sum(axis=1), 1, atol=1e-6)
    assert made.min() >= -1e-6


@given(st.floats(50, 950))
def test_centre_of_mass_is_the_onset(onset: float) -> None:
    curve = gaussian([onset], 1000, 10.0).astype(np.float64)
    assert abs((curve * np.arange(1000)).sum() / curve.sum() - onset) < 0.01
    assert curve.max() > 0.998


def test_unsure_samples_are_marked() -> None:
    sure = np.ones(100, bool)
    sure[40:60] = False
    made = target(Example(np.zeros((100, 3), np.float32), (10.0,), (), sure), 3.0)
    np.testing.assert_array_equal(made[:, 3], sure)


@given(st.sampled_from(["gaussian", "triangle", "box", "step"]), onsets, onsets)
def test_every_shape_gives_probabilities(shape: str, p: tuple[float, ...], s: tuple[float, ...]) -> None:
    made = target(Example(np.zeros((1000, 3), np.float32), p, s, np.ones(1000, bool)), 10.0, shape)
    np.testing.assert_allclose(made[:, :3].sum(axis=1), 1, atol=1e-6)
    assert made.min() >= -1e-6


@given(st.floats(50, 950))
def test_triangles_and_boxes_are_centred_and_as_wide_as_said(onset: float) -> None:
    time = np.arange(1000)
    for shape, area in ((triangle, 10.0), (box, 20.0)):
        curve = shape([onset], 1000, 10.0).astype(np.float64)
        assert abs((curve * time).sum() / curve.sum() - onset) < 0.51
        assert not curve[np.abs(time - onset) > 10].any()
        assert abs(curve.sum() - area) <= 1.01


def test_a_step_says_which_phase_came_last() -> None:
    p, s = steps((10.0, 50.0), (30.0,), 80)
    assert [p[k] for k in (9, 10, 29, 30, 49, 50, 79)] == [0, 1, 1, 0, 0, 1, 1]
    assert [s[k] for k in (9, 10, 29, 30, 49, 50, 79)] == [0, 0, 0, 1, 1, 0, 0]
