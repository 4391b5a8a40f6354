"""A teacher's curves are learnt beside the labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402
from msgspec.structs import replace  # noqa: E402

from seisserve.errors import BundleError, UsageError  # noqa: E402
from seisserve_training import bundles, training  # noqa: E402
from seisserve_training.config import Config, Data, FineTune, Network, Schedule, Teacher  # noqa: E402
from seisserve_training.models import ARCHITECTURES  # noqa: E402
from seisserve_training.teacher import teacher  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own


def tiny(kind: str = "phasenet", share: float | None = 0.5, window: int = 1024) -> Config:
    """A configuration that takes seconds."""
    return Config(
        name="tiny",
        data=Data(synthetic_share=1.0, synthetic_events=8),
        network=Network(kind=kind, window_samples=window, filters=2),  # type: ignore[arg-type]
        schedule=Schedule(epochs=1, steps_per_epoch=3, batch_size=2, seed=3),
        teacher=None if share is None else Teacher(bundle="teacher", share=share),
    )


def network() -> keras.Model:
    """The teacher: curves that vary."""
    keras.utils.set_random_seed(9)
    model = training.network(tiny(share=None))
    rng = np.random.default_rng(0)
    model.set_weights([value + np.abs(rng.normal(0, 0.3, value.shape)) for value in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundles of teachers; the usual one takes windows of 1,024 samples, and of 512."""
    folder = tmp_path_factory.mktemp("root")
    manifest = training.contract(tiny(share=None))
    bundles.write_bundle(network(), tiny(share=None), [], folder / "teacher")
    assert manifest.fragment_windows == (512,)
    return folder


def batch(samples: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Waveforms, and targets whose last half is not sure."""
    rng = np.random.default_rng(1)
    target = rng.dirichlet((1, 1, 1), (2, samples)).astype(np.float32)
    sure = np.zeros((2, samples, columns - 3), np.float32)
    sure[:, : samples // 2] = 1
    return rng.normal(0, 50, (2, samples, 3)).astype(np.float32), np.concatenate([target, sure], axis=2)


@pytest.mark.parametrize("samples", [1024, 512, 300])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_what_is_learnt_is_a_mean_of_labels_and_curves(
    root: Path, monkeypatch: pytest.MonkeyPatch, share: float, samples: int
) -> None:
    """A window that the teacher does not take is filled with its last sample, as in serving."""
    config = replace(tiny(share=share), network=Network(kind="gpd", window_samples=samples))
    task = ARCHITECTURES["phasenet"].learn
    monkeypatch.setitem(ARCHITECTURES, "gpd", ARCHITECTURES["gpd"]._replace(learn=task))  # windows of any length
    waveform, target = batch(samples, 4)
    window = 512 if samples <= 512 else 1024
    filled = np.pad(waveform, ((0, 0), (0, window - samples), (0, 0)), "edge")
    curves = np.asarray(network()(filled, training=False))[:, :samples]
    weight = np.where(target[..., 3:] == 1, share, 1.0)
    taught = np.asarray(teacher(config, root)(tf.constant(waveform), tf.constant(target)))
    np.testing.assert_allclose(taught[..., :3], (1 - weight) * target[..., :3] + weight * curves, atol=1e-5)
    assert (taught[..., 3] == 1).all()


def test_detection_stays_as_labelled(root: Path) -> None:
    _, target = batch(1024, 6)
    p, s = np.random.default_rng(2).random((2, 2, 1024)).astype(np.float32)
    mix = ARCHITECTURES["eqtransformer"].learn.mix
    assert mix is not None
    mixed = np.asarray(mix(tf.constant(target), p, s, 0.25))
    sure = target[..., 4] == 1
    np.testing.assert_array_equal(mixed[..., [0, 3]], target[..., [0, 3]])
    for column, curve in ((1, p), (2, s)):
        wanted = np.where(sure, 0.75 * target[..., column] + 0.25 * curve, curve)
        np.testing.assert_allclose(mixed[..., column], wanted, atol=1e-6)
    assert (mixed[..., 4:] == 1).all()


def test_the_card_names_who_taught_it_and_what_it_began_from() -> None:
    begun = FineTune(init_from="../../weights/phasenet/model.h5", keep=0.25)
    config = replace(tiny(), fine_tune=begun, teacher=Teacher(bundle="../models/onset/1", share=0.4))
    assert bundles.note(config) == (
        "Begun from the weights of phasenet/model.h5, of which 25% is kept; taught by onset/1, whose curves are 40% of "
        "its targets"
    )
    assert bundles.note(tiny(share=None)) == ""


def test_without_a_teacher_targets_stay_as_they_are() -> None:
    waveform, target = batch(1024, 4)
    assert teacher(tiny(share=None), Path())(waveform, target) is target


def test_a_taught_network_goes_on_where_it_was_stopped(
    root: Path, tmp_path: Path, stopped: Callable[..., None]
) -> None:
    config = replace(tiny(), schedule=Schedule(epochs=2, steps_per_epoch=3, batch_size=2, seed=3))
    straight = training.train(config, tmp_path / "straight", [], root).get_weights()
    alone = training.train(replace(config, teacher=None), tmp_path / "alone", [], root).get_weights()
    assert any(not np.array_equal(one, two) for one, two in zip(straight, alone, strict=True))
    stopped(config, tmp_path / "stopped", [], root)
    resumed = training.train(config, tmp_path / "stopped", [], root).get_weights()
    for one, two in zip(straight, resumed, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"teacher": Teacher(bundle="nowhere")}, "nowhere"),
        ({"sampling_rate_hz": 50.0}, "tiny is for ZNE at 100 Hz; this network for ZNE at 50 Hz"),
        ({"components": "Z"}, "tiny is for ZNE at 100 Hz; this network for Z at 100 Hz"),
        ({"network": Network(window_samples=2048)}, "tiny takes 1024 samples; the windows have 2048"),
        ({"network": Network(kind="recovery", window_samples=1024)}, "'recovery' learns no phases at every sample"),
        ({"network": Network(kind="gpd", window_samples=400)}, "'gpd' learns no phases at every sample"),
        ({"teacher": Teacher(bundle="points")}, "tiny has no curves of P and S, so it cannot teach them"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(root: Path, changed: dict[str, object], said: str) -> None:
    points = root / "points"
    if not points.exists():
        config = Config(name="tiny", data=tiny().data, network=Network(kind="gpd", window_samples=400))
        bundles.write_bundle(training.network(config), config, [], points)
    with pytest.raises((UsageError, BundleError), match=said):
        teacher(replace(tiny(), **changed), root)
