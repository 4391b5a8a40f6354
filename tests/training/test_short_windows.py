"""The pickers of short windows: shapes, sizes, what they are taught, and that their bundles can be read and picked."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from seisserve import bundle, runtime  # noqa: E402
from seisserve.segments import Segment  # noqa: E402
from seisserve.windows import cut, stack  # noqa: E402
from seisserve_training import augment, training  # noqa: E402
from seisserve_training import config as configs  # noqa: E402
from seisserve_training.augment import Example  # noqa: E402
from seisserve_training.bundles import write_bundle  # noqa: E402
from seisserve_training.config import Augmentation, Config, Data, Network, Schedule  # noqa: E402
from seisserve_training.examples import Examples  # noqa: E402
from seisserve_training.models import ARCHITECTURES  # noqa: E402
from seisserve_training.models.basicphaseae import basicphaseae  # noqa: E402
from seisserve_training.models.gpd import gpd  # noqa: E402
from seisserve_training.synthetic import synthetic_event  # noqa: E402
from seisserve_training.tasks.point import POINT_PICKING  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own
NETWORKS = {"basicphaseae": (basicphaseae, 600, (600, 3)), "gpd": (gpd, 400, (3,))}
SHIPPED = Path(__file__).parents[2] / "configs"


def tiny(kind: str) -> Config:
    window = {"basicphaseae": 600, "gpd": 1200}[kind]
    return Config(
        name=kind,
        data=Data(synthetic_share=1.0, synthetic_events=40),
        network=Network(kind=kind, window_samples=window, filters=4),  # type: ignore[arg-type]
        augmentation=Augmentation(stretch=0.1, false_positive_noise=0.5),
        schedule=Schedule(epochs=1, steps_per_epoch=5, batch_size=8, seed=3),
    )


def waveforms(samples: int, n: int = 3) -> np.ndarray:
    rng = np.random.default_rng(1)
    events = [synthetic_event(rng, samples).waveform for _ in range(n)]
    return np.stack([event / np.abs(event).max() for event in events]).astype(np.float32)


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def network(kind: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    return NETWORKS[kind][0](filters=4)


def test_probabilities_add_up(kind: str, network: keras.Model) -> None:
    _, samples, shape = NETWORKS[kind]
    probability = np.asarray(network(waveforms(samples)))
    assert probability.shape == (3, *shape)
    np.testing.assert_allclose(probability.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-14, 1e9])
def test_amplitude_changes_nothing(kind: str, network: keras.Model, scale: float) -> None:
    windows = waveforms(NETWORKS[kind][1])
    np.testing.assert_allclose(network(windows * np.float32(scale)), network(windows), atol=2e-4)


@pytest.mark.parametrize("value", [7.3, -1e-20, 1e20])
def test_a_dead_component_is_a_missing_one(kind: str, network: keras.Model, value: float) -> None:
    dead, missing = waveforms(NETWORKS[kind][1]), waveforms(NETWORKS[kind][1])
    dead[:, :, 1], missing[:, :, 1] = value, 0
    np.testing.assert_allclose(network(dead), network(missing), atol=1e-6)


def test_the_published_sizes_can_be_had() -> None:
    assert gpd(filters=32).count_params() == pytest.approx(1_742_003, rel=0.001)
    assert [layer.shape for layer in gpd(filters=32).get_layer("dense0").get_weights()] == [(6400, 200)]
    kernels = [layer.filters for layer in basicphaseae().layers if isinstance(layer, keras.layers.Conv2D)]
    assert kernels == [12, 24, 36, 48, 48, 24, 12, 3]


def test_windows_of_another_length_are_refused() -> None:
    for name, samples in (("basicphaseae", 608), ("gpd", 399)):
        with pytest.raises(ValueError, match=f"window_samples is {samples}"):
            ARCHITECTURES[name].build(Network(kind=name, window_samples=samples), 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("samples", [30, 400, 600, 3072])
def test_faults_fit_into_short_windows(samples: int) -> None:
    example = Example(waveforms(3072)[0][:samples], (samples / 2,), (), np.ones(samples, bool))
    for seed in range(60):
        found = augment.false_positive_noise(example, np.random.default_rng(seed), 100.0)
        assert found.waveform.shape == example.waveform.shape
        assert np.isfinite(found.waveform).all()


def test_a_third_of_the_points_is_p_and_a_third_s() -> None:
    examples = Examples([], tiny("gpd"))
    pairs = [POINT_PICKING.pair(examples, examples.generator(number)) for number in range(600)]
    again = POINT_PICKING.pair(examples, examples.generator(17))
    np.testing.assert_array_equal(again[0], pairs[17][0])
    assert {waveform.shape for waveform, _ in pairs} == {(400, 3)}
    targets = np.stack([target for _, target in pairs])
    np.testing.assert_allclose(targets[:, :3].sum(axis=1), 1, atol=1e-6)
    largest = targets[targets[:, 3] == 1, :3].argmax(axis=1)
    np.testing.assert_allclose(np.bincount(largest, minlength=3) / len(largest), 1 / 3, atol=0.08)


def test_the_target_is_what_lies_at_the_centre() -> None:
    """On events without noise nothing is above the rounding of the filters before P."""
    config = msgspec.structs.replace(
        tiny("gpd"),
        augmentation=Augmentation(
            stack_events=0, superpose_noise=0, noise_windows=0, false_positive_noise=0, channel_dropout=0, rotate=0,
            high_pass=0,
        ),
    )  # fmt: skip
    examples = Examples([], config)
    quiet = np.zeros((4000, 3), np.float32)
    examples.synthetic = [Example(quiet.copy(), (2000.0,), (2600.0,), np.ones(4000, bool))]
    examples.synthetic[0].waveform[2000:2600] = 1
    examples.synthetic[0].waveform[2600:] = 5
    for number in range(200):
        waveform, target = POINT_PICKING.pair(examples, examples.generator(number))
        steps = np.flatnonzero(np.diff(waveform[:, 0]))
        centred = [(place, waveform[place + 1, 0]) for place in steps.tolist() if abs(place - 199) <= 11]
        expected = {0: 0} if not centred else {0: 1 if centred[0][1] < 3 else 2}
        assert target[1:3].max() < 0.6 if not centred else target[1:3].argmax() + 1 == expected[0]


def test_bundles_pick(kind: str, tmp_path: Path) -> None:
    config = tiny(kind)
    model = training.train(config, tmp_path / "run", [])
    write_bundle(model, config, [], tmp_path / "bundle")
    found = bundle.read(tmp_path / "bundle")
    transport = runtime.load(found, "tensorflow")  # checks digest and golden outputs
    manifest = found.manifest
    segment = Segment("", 1000, 0, 100.0, waveforms(2000, 1)[0].T, (True,) * 3)
    windows = cut([segment], manifest)
    outputs = [transport.predict(manifest, {"waveform": batch})["probability"] for batch in windows.batches()]
    curve = stack(windows, outputs, manifest)
    assert curve.values.shape == (2000, 3)
    np.testing.assert_allclose(curve.values.sum(axis=1), 1, atol=1e-5)
    if kind == "gpd":  # at every tenth sample what the window about it gives
        centred = np.stack([segment.samples[:, k - 200 : k + 200].T for k in (1000, 1010, 1020)])
        np.testing.assert_allclose(curve.values[[1000, 1010, 1020]], model(centred, training=False), atol=1e-5)


def test_the_shipped_sizes_stay_below_3_mb(kind: str) -> None:
    model = training.network(configs.read(SHIPPED / f"{kind}.toml"))
    assert 2 * 4 * model.count_params() < 2.5e6  # once in the SavedModel, once in the ONNX file
