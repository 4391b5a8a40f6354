"""The networks: shapes, and that neither amplitude nor offset nor (for `onset`) the window changes what they say."""

from __future__ import annotations

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from seisserve_training.models.layers import Standardise, StandardiseLocally  # noqa: E402
from seisserve_training.models.onset import onset  # noqa: E402
from seisserve_training.models.phasenet import phasenet  # noqa: E402
from seisserve_training.synthetic import synthetic_event  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own
NETWORKS = {"phasenet": phasenet, "onset": onset}


def waveforms(samples: int = 4096, n: int = 2) -> np.ndarray:
    rng = np.random.default_rng(1)
    events = [synthetic_event(rng, samples).waveform for _ in range(n)]
    return np.stack([event / np.abs(event).max() for event in events]).astype(np.float32)


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def network(request: pytest.FixtureRequest) -> keras.Model:
    keras.utils.set_random_seed(0)
    return NETWORKS[request.param]()


@pytest.mark.parametrize("samples", [256, 512, 3072, 16384])
def test_every_sample_gets_probabilities_that_add_up(network: keras.Model, samples: int) -> None:
    probability = np.asarray(network(np.random.default_rng(0).normal(size=(2, samples, 3)).astype(np.float32)))
    assert probability.shape == (2, samples, 3)
    np.testing.assert_allclose(probability.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-14, 1e9, 1e30])
def test_amplitude_changes_nothing(network: keras.Model, scale: float) -> None:
    expected = np.asarray(network(waveforms()))
    np.testing.assert_allclose(network(waveforms() * np.float32(scale)), expected, atol=2e-4)


@pytest.mark.parametrize("value", [0.0, 7.3, -1e-20, 1e20])
def test_a_dead_component_is_a_missing_one(network: keras.Model, value: float) -> None:
    dead, missing = waveforms(), waveforms()
    dead[:, :, 1], missing[:, :, 1] = value, 0
    np.testing.assert_allclose(network(dead), network(missing), atol=1e-6)
    assert np.isfinite(network(np.full((1, 512, 3), value, np.float32))).all()


def test_windows_do_not_know_one_another(network: keras.Model) -> None:
    both = np.asarray(network(waveforms(n=3)))
    for k, window in enumerate(waveforms(n=3)):
        np.testing.assert_allclose(network(window[None])[0], both[k], atol=1e-5)


def test_standardised_windows_have_mean_zero_and_deviation_one() -> None:
    out = np.asarray(Standardise()(waveforms() * 1e4 + 1e5))
    np.testing.assert_allclose(out.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(out.std(axis=1), 1, atol=1e-3)


def test_local_standardising_makes_quiet_and_loud_stretches_alike() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(1, 16384, 3)) * np.where(np.arange(16384) < 8192, 1, 1000)[None, :, None]
    out = np.asarray(StandardiseLocally()(noise.astype(np.float32)))[0]
    for part in (out[1024:4096], out[12288:-1024]):
        np.testing.assert_allclose(part.std(axis=0), 1, atol=0.05)


def test_what_is_far_away_does_not_matter_to_onset() -> None:
    keras.utils.set_random_seed(0)
    network, far = onset(), 6144
    one = waveforms(16384, n=1) / 2
    two = one.copy()
    two[:, : 16384 - 2 * far] = 0.3 * np.random.default_rng(5).normal(size=(1, 16384 - 2 * far, 3)).clip(-3, 3)
    for same in (one, two):
        same[0, 0], same[0, 1] = 1, -1  # the same range, hence the same rounding
    np.testing.assert_allclose(network(one)[:, -far:], network(two)[:, -far:], atol=1e-5)
