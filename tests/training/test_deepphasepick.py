"""DeepPhasePick: what its curves say, that they repeat, that the three networks learn, and that they convert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from seisserve_training import training  # noqa: E402
from seisserve_training.augment import Example  # noqa: E402
from seisserve_training.bundles import save  # noqa: E402
from seisserve_training.config import Augmentation, Config, Data, Network, Schedule  # noqa: E402
from seisserve_training.examples import Examples  # noqa: E402
from seisserve_training.models.deepphasepick import RUNS, MonteCarloStep, OnsetCurves, deepphasepick  # noqa: E402
from seisserve_training.synthetic import synthetic_event  # noqa: E402
from seisserve_training.tasks.onsets import ONSETS, STRIDE, onset_loss, onset_target  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own
WINDOW = 480


def config() -> Config:
    return Config(
        name="small",
        data=Data(synthetic_share=1.0, synthetic_events=40),
        network=Network(kind="deepphasepick", window_samples=WINDOW, filters=4),
        augmentation=Augmentation(superpose_noise=0),
        schedule=Schedule(batch_size=16),
    )


def waveforms(n: int = 3) -> np.ndarray:
    """Windows with P in the middle."""
    rng = np.random.default_rng(1)
    windows = []
    for _ in range(n):
        event = synthetic_event(rng, 3000)
        first = min(max(event.p_sample - WINDOW // 2, 0), 3000 - WINDOW)
        windows.append(event.waveform[first : first + WINDOW])
        windows[-1] = windows[-1] / np.abs(windows[-1]).max()
    return np.stack(windows).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    return deepphasepick(filters=4)


def test_curves_of_noise_p_and_s_add_up(network: keras.Model) -> None:
    curves = np.asarray(network(waveforms()))
    assert curves.shape == (3, WINDOW, 3)
    np.testing.assert_allclose(curves.sum(axis=2), 1, atol=1e-5)
    assert curves.min() >= -1e-6


@pytest.mark.parametrize("scale", [1e-14, 1e9])
def test_amplitude_changes_nothing(network: keras.Model, scale: float) -> None:
    expected = np.asarray(network(waveforms()))
    np.testing.assert_allclose(network(waveforms() * np.float32(scale)), expected, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 7.3, -1e-14, 1e9])
def test_a_dead_component_is_a_missing_one(network: keras.Model, value: float) -> None:
    dead, missing = waveforms(), waveforms()
    dead[:, :, 1], missing[:, :, 1] = value, 0
    np.testing.assert_allclose(network(dead), network(missing), atol=1e-5)
    assert np.isfinite(network(np.full((1, WINDOW, 3), value, np.float32))).all()


def test_the_same_window_has_the_same_answer_alone_and_among_others(network: keras.Model) -> None:
    together = np.asarray(network(waveforms()))
    np.testing.assert_array_equal(together, network(waveforms()))
    for number, window in enumerate(waveforms()):
        np.testing.assert_allclose(network(window[None])[0], together[number], atol=1e-5)


def test_while_training_dropout_is_random(network: keras.Model) -> None:
    one, two = (np.asarray(network(waveforms(), training=True)) for _ in range(2))
    assert one.shape == (3, WINDOW // STRIDE, 5)
    assert np.abs(one[..., 3:] - two[..., 3:]).max() > 1e-3


def test_served_runs_are_the_mean_of_single_runs_with_their_masks() -> None:
    features = np.random.default_rng(0).normal(size=(2, 7, 5)).astype(np.float32)
    layer = MonteCarloStep()
    layer(features)
    runs = [1 / (1 + np.exp(-(features * mask) @ np.asarray(layer.kernel))) for mask in np.asarray(layer.masks).T]
    assert len(runs) == RUNS
    np.testing.assert_allclose(layer(features), np.mean(runs, axis=0), atol=1e-6)


@pytest.mark.parametrize("onset", [150.0, 240.5, 301.3])
@pytest.mark.parametrize("spread", [4.0, 15.0])
def test_the_peak_is_the_onset_and_its_width_is_what_the_step_says(onset: float, spread: float) -> None:
    moments = STRIDE * np.arange(WINDOW // STRIDE) + 0.5
    step = 1 / (1 + np.exp(-(moments - onset) / spread))
    steps = np.stack([step, np.zeros_like(step)], axis=1)[None].astype(np.float32)
    p = np.asarray(OnsetCurves()([np.array([[0.1, 0.7, 0.2]], np.float32), steps]))[0, :, 1]
    assert abs(int(p.argmax()) - onset) <= 1
    assert p.max() == pytest.approx(0.7, abs=1e-5)
    # The slope of the logistic function is half its highest 1.763 spreads away; smoothing adds to that.
    assert (p > 0.35).sum() == pytest.approx(2 * np.hypot(1.763 * spread, 1.177 * 2), abs=2.5)


def example(p: tuple[float, ...], s: tuple[float, ...]) -> Example:
    return Example(np.zeros((WINDOW, 3), np.float32), p, s, np.ones(WINDOW, bool))


@pytest.mark.parametrize(
    ("p", "s", "expected"),
    [
        ((), (), (1, 0, 0, -1, -1)),
        ((250.0,), (), (0, 1, 0, 250, -1)),
        ((200.0,), (260.0,), (0, 0, 1, 200, 260)),  # the nearest to the middle gives the class, both are learnt
        ((-900.0,), (340.5,), (0, 0, 1, -1, 340.5)),
        ((100.0,), (), (0, 0, 0, 100, -1)),  # at the edge of the middle half: no class is asked for
        ((20.0,), (), (1, 0, 0, -1, -1)),
    ],
)
def test_the_target_is_the_onset_nearest_the_middle(
    p: tuple[float, ...], s: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    np.testing.assert_allclose(onset_target(example(p, s)), expected)


def test_what_is_not_sure_is_not_asked_for() -> None:
    doubtful = example((240.0,), ())
    doubtful.sure[230:250] = False
    assert onset_target(doubtful)[:3].sum() == 0


def test_the_loss_is_lowest_for_the_truth() -> None:
    target = np.array([[0, 1, 0, 200, -1], [1, 0, 0, -1, -1]], np.float32)
    moments = STRIDE * np.arange(WINDOW // STRIDE) + 0.5
    truth = np.full((2, WINDOW // STRIDE, 5), 0.5, np.float32)
    truth[:, :, :3] = target[:, None, :3]
    truth[0, :, 3] = moments >= 200
    late, wrong = truth.copy(), truth.copy()
    late[0, :, 3] = moments >= 220
    wrong[1, :, :3] = (0, 0, 1)
    elsewhere = truth.copy()
    elsewhere[1, :, 3:] = 0.9  # a window without onsets has no steps to learn
    losses = [float(onset_loss(output, target)) for output in (truth, late, wrong, elsewhere)]
    assert losses[0] == pytest.approx(0, abs=1e-4)
    assert losses[3] == pytest.approx(losses[0], abs=1e-6)
    assert min(losses[1:3]) > 0.1


def test_every_second_window_holds_an_onset_in_its_middle() -> None:
    examples = Examples([], config())
    pairs = [ONSETS.pair(examples, examples.generator(number)) for number in range(200)]
    classes = np.array([target[:3] for _, target in pairs])
    assert all(waveform.shape == (WINDOW, 3) for waveform, _ in pairs)
    assert 0.4 < classes[:, 1:].sum() / len(pairs) < 0.6
    assert classes[:, 1].sum() > 20 and classes[:, 2].sum() > 20


def test_one_batch_is_learnt_by_heart() -> None:
    keras.utils.set_random_seed(0)
    model, examples = training.network(config()), Examples([], config())
    waveform, target = next(iter(training.stream_of(examples, ONSETS, 0).take(1)))
    optimizer = keras.optimizers.Adam(1e-2)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = ONSETS.loss(model(waveform, training=True), target)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    losses = [float(step()) for _ in range(100)]
    assert losses[-1] < 0.2 * losses[0]
    curves, target = np.asarray(model(waveform, training=False)), target.numpy()
    rows = np.flatnonzero(target[:, 1])
    assert len(rows) > 2
    assert np.median(np.abs(curves[rows, :, 1].argmax(axis=1) - target[rows, 3])) < 10


def test_the_onnx_file_says_the_same(network: keras.Model, tmp_path: Path) -> None:
    onnxruntime, convert = pytest.importorskip("onnxruntime"), pytest.importorskip("seisserve_export.convert")
    manifest = training.contract(config())
    save(network, manifest, tmp_path)
    convert.convert(tmp_path, manifest, tmp_path / "model.onnx")  # refuses loops
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    windows = np.concatenate([waveforms(), waveforms(1) * np.float32(1e-14), np.zeros((1, WINDOW, 3), np.float32)])
    np.testing.assert_allclose(session.run(None, {"waveform": windows})[0], network(windows, training=False), atol=1e-4)


def test_every_onset_lies_in_the_middle_half_of_two_windows() -> None:
    manifest = training.contract(config())
    assert manifest.stacking == "max"
    kept = manifest.window_samples - 2 * manifest.blinding_samples
    assert kept == 2 * manifest.hop_samples == WINDOW // 2


def test_a_step_that_hardly_rises_is_no_onset() -> None:
    steps = np.linspace(0.5, 0.5001, WINDOW // STRIDE, dtype=np.float32)[None, :, None].repeat(2, axis=2)
    curves = np.asarray(OnsetCurves()([np.array([[0, 0.5, 0.5]], np.float32), steps]))
    assert curves[:, :, 1:].max() < 0.01
