"""The training loop: it learns, it resumes where it was, and the same configuration gives the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from seisserve import bundle, runtime  # noqa: E402
from seisserve.errors import UsageError  # noqa: E402
from seisserve_training import config as configs  # noqa: E402
from seisserve_training import training  # noqa: E402
from seisserve_training.bundles import write_bundle  # noqa: E402
from seisserve_training.config import Augmentation, Config, Data, Network, Schedule  # noqa: E402
from seisserve_training.datasets import LabelledTrace  # noqa: E402
from seisserve_training.examples import Examples  # noqa: E402
from seisserve_training.synthetic import write_dataset  # noqa: E402
from seisserve_training.tasks.phases import PHASE_PICKING  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own


def tiny(**schedule: float) -> Config:
    """A configuration that takes seconds."""
    return Config(
        name="tiny",
        data=Data(paths=("made",), synthetic_share=0.5, synthetic_events=30),
        network=Network(window_samples=1024, filters=4),
        augmentation=Augmentation(stretch=0.1),
        schedule=Schedule(**{"epochs": 2, "steps_per_epoch": 6, "batch_size": 8, "seed": 3, **schedule}),
    )


def window_of(examples: Examples, number: int) -> np.ndarray:
    """The waveform of window number i."""
    return PHASE_PICKING.pair(examples, examples.generator(number))[0]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledTrace]:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "made", 60, seed=5)
    return training.load(tiny(), folder)


def test_examples_are_a_pure_function_of_seed_and_number(traces: list[LabelledTrace]) -> None:
    one, two = Examples(traces, tiny()), Examples(traces, tiny())
    other = Examples(traces, tiny(seed=4))
    for number in (0, 17, 123456789):
        np.testing.assert_array_equal(window_of(one, number), window_of(two, number))
        assert not np.array_equal(window_of(one, number), window_of(other, number))
        assert window_of(one, number).shape == (1024, 3)


def test_the_stream_goes_on_anywhere(traces: list[LabelledTrace]) -> None:
    examples = Examples(traces, tiny())
    whole = [batch[0].numpy() for batch in training.stream_of(examples, PHASE_PICKING, 0).take(3)]
    later = [batch[0].numpy() for batch in training.stream_of(examples, PHASE_PICKING, 16).take(1)]
    np.testing.assert_array_equal(whole[2], later[0])


def test_same_configuration_same_weights_stopped_or_not(
    traces: list[LabelledTrace], tmp_path: Path, stopped: Callable[..., None]
) -> None:
    straight = training.train(tiny(), tmp_path / "straight", traces).get_weights()
    stopped(tiny(), tmp_path / "stopped", traces)
    resumed = training.train(tiny(), tmp_path / "stopped", traces).get_weights()
    for one, two in zip(straight, resumed, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (tmp_path / "straight" / "history.png").stat().st_size > 1000
    assert len((tmp_path / "straight" / "history.csv").read_text().splitlines()) == 3


def test_training_stops_early_without_progress(traces: list[LabelledTrace], tmp_path: Path) -> None:
    config = tiny(epochs=30, steps_per_epoch=1, batch_size=1, patience=1, learning_rate=1e-12)
    training.train(config, tmp_path, traces)
    assert len((tmp_path / "history.csv").read_text().splitlines()) < 10


def test_one_batch_is_learnt_by_heart(traces: list[LabelledTrace]) -> None:
    import keras

    keras.utils.set_random_seed(0)
    config = tiny()
    model = training.network(config)
    waveform, target = next(iter(training.stream_of(Examples(traces, config), PHASE_PICKING, 0).take(1)))
    optimizer = keras.optimizers.Adam(1e-2)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = PHASE_PICKING.loss(model(waveform, training=True), target)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    losses = [float(step()) for _ in range(80)]
    assert losses[-1] < 0.2 * losses[0]


def test_made_up_events_alone_teach_more_than_the_base_rates(tmp_path: Path) -> None:
    config = Config(
        name="made",
        data=Data(synthetic_share=1.0, synthetic_events=150),
        network=Network(window_samples=1024),
        augmentation=Augmentation(superpose_noise=0, stack_events=0, channel_dropout=0, false_positive_noise=0),
        schedule=Schedule(epochs=2, steps_per_epoch=100, batch_size=16, seed=0, average=0.9, learning_rate=5e-3),
    )
    model = training.train(config, tmp_path, [])
    unseen = Examples([], msgspec.structs.replace(config, schedule=Schedule(seed=99)))
    waveform, target = next(iter(training.stream_of(unseen, PHASE_PICKING, 0).batch(4).take(1)))
    waveform, target = tf.concat(list(waveform), 0), tf.concat(list(target), 0)
    rates = tf.reduce_mean(target[..., :3], axis=(0, 1), keepdims=True) * tf.ones_like(target[..., :3])
    assert float(PHASE_PICKING.loss(model(waveform, training=False), target)) < 0.8 * float(
        PHASE_PICKING.loss(rates, target)
    )


def test_the_bundle_is_what_was_trained(traces: list[LabelledTrace], tmp_path: Path) -> None:
    config = tiny()
    model = training.train(config, tmp_path / "run", traces)
    write_bundle(model, config, traces, tmp_path / "bundle")
    found = bundle.read(tmp_path / "bundle")
    transport = runtime.load(found, "tensorflow")  # checks digest and golden outputs
    assert found.manifest.training is not None
    assert found.manifest.training.config_sha256 == config.sha256
    rng = np.random.default_rng(0)
    for samples in (1024, 512):
        windows = rng.normal(size=(3, samples, 3)).astype(np.float32)
        served = transport.predict(found.manifest, {"waveform": windows})["probability"]
        np.testing.assert_allclose(served, model(windows, training=False), atol=1e-6)
        np.testing.assert_allclose(served.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('name = "x"\nmodle = 1\n', "modle"),
        ('name = "x"\n[schedule]\nepoch = 3\n[data]\npaths = ["a"]\n', "epoch"),
        ('name = "x"\n[schedule]\nepochs = "many"\n[data]\npaths = ["a"]\n', "epochs"),
        ('name = "x"\n[augmentation]\nrotate = 1.5\n[data]\npaths = ["a"]\n', "rotate"),
        ('name = "x"\n', "data.paths"),
        ('name = "x"\n[data]\npaths = ["a"]\n[network]\nwindow_samples = 3000\n', "window_samples"),
        ("name = ", "x.toml"),
    ],
)
def test_configurations_with_mistakes_are_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(UsageError, match=named):
        configs.read(tmp_path / "x.toml")


def test_the_shipped_configurations_are_read() -> None:
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.toml")):
        assert configs.read(path).name
        assert msgspec.json.decode(msgspec.json.encode(configs.read(path)), type=Config) == configs.read(path)


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    config = tiny(epochs=10, steps_per_epoch=100)
    rates = [training.learning_rate(config, step) for step in range(1000)]
    assert rates[0] < rates[25] < rates[49]
    assert rates[-1] < 1e-4 * config.schedule.learning_rate
    assert max(rates) <= config.schedule.learning_rate


def test_the_test_split_is_never_loaded(traces: list[LabelledTrace]) -> None:
    assert {trace.row.split for trace in traces} <= {"train", "dev"}
