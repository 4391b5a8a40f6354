"""CRED: its spectrogram, what it says and what it does not depend on, that it learns, and that it converts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402
import msgspec  # noqa: E402

from seisserve.transport import FakeTransport  # noqa: E402
from seisserve_training import training  # noqa: E402
from seisserve_training.augment import Example  # noqa: E402
from seisserve_training.bundles import save  # noqa: E402
from seisserve_training.config import Augmentation, Config, Data, Network, Schedule  # noqa: E402
from seisserve_training.examples import Examples  # noqa: E402
from seisserve_training.labels import detection_box  # noqa: E402
from seisserve_training.models.cred import FRAME, HOP, LOUDEST, LogSpectrogram, cred  # noqa: E402
from seisserve_training.synthetic import synthetic_event, write_dataset  # noqa: E402
from seisserve_training.tasks.detection import DETECTION, STRIDE, detection_loss, detection_scores  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own
WINDOW = 1000


def config(**changes: object) -> Config:
    made = Config(
        name="small",
        data=Data(synthetic_share=1.0, synthetic_events=40),
        network=Network(kind="cred", window_samples=WINDOW, filters=4),
        augmentation=Augmentation(superpose_noise=0),
        schedule=Schedule(batch_size=8),
    )
    return msgspec.structs.replace(made, **changes)


def waveforms(n: int = 3) -> np.ndarray:
    rng = np.random.default_rng(1)
    events = [synthetic_event(rng, WINDOW).waveform for _ in range(n)]
    return np.stack([event / np.abs(event).max() for event in events]).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    return cred(window_samples=WINDOW, filters=4)


def test_a_frame_for_every_half_second(network: keras.Model) -> None:
    probability = np.asarray(network(waveforms()))
    assert probability.shape == (3, WINDOW // STRIDE, 1)
    assert 0 <= probability.min() <= probability.max() <= 1
    output = training.contract(config()).output
    assert output.shape == (-1, WINDOW // STRIDE, 1) and output.stride == STRIDE


@pytest.mark.parametrize("scale", [1e-14, 1e9])
def test_amplitude_changes_nothing(network: keras.Model, scale: float) -> None:
    np.testing.assert_allclose(network(waveforms() * np.float32(scale)), network(waveforms()), atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 7.3, -1e-14, 1e9])
def test_a_dead_component_is_a_missing_one(network: keras.Model, value: float) -> None:
    dead, missing = waveforms(), waveforms()
    dead[:, :, 1], missing[:, :, 1] = value, 0
    np.testing.assert_allclose(network(dead), network(missing), atol=1e-5)
    assert np.isfinite(network(np.full((1, WINDOW, 3), value, np.float32))).all()


def test_windows_do_not_know_one_another(network: keras.Model) -> None:
    together = np.asarray(network(waveforms()))
    for number, window in enumerate(waveforms()):
        np.testing.assert_allclose(network(window[None])[0], together[number], atol=1e-5)


def test_the_spectrogram_is_that_of_the_fourier_transform() -> None:
    waveform = np.random.default_rng(0).normal(size=(2, WINDOW, 3)).astype(np.float32)
    found = np.asarray(LogSpectrogram()(waveform))
    hann = np.hanning(FRAME)
    for k in (5, 20):
        first = k * HOP + HOP // 2 - FRAME // 2 + 1
        frame = waveform[:, first : first + FRAME] * hann[None, :, None]
        power = np.abs(np.fft.rfft(frame, axis=1)) ** 2 / (hann**2).sum()
        np.testing.assert_allclose(found[:, k], np.log(1 + LOUDEST * power), atol=1e-3)


def test_the_box_ends_with_the_coda() -> None:
    sure = np.ones(WINDOW, bool)
    box, still = detection_box(Example(np.zeros((WINDOW, 3), np.float32), (200.0,), (300.0,), sure), 100.0)
    assert np.flatnonzero(box).tolist() == list(range(200, 441))
    assert still.all()


@pytest.mark.parametrize(("p", "s"), [((200.0,), ()), ((), (200.0,)), ((200.0, 600.0), (300.0,))])
def test_without_one_of_its_onsets_the_end_of_an_event_is_not_known(p: tuple[float, ...], s: tuple[float, ...]) -> None:
    box, sure = detection_box(Example(np.zeros((WINDOW, 3), np.float32), p, s, np.ones(WINDOW, bool)), 100.0)
    assert not box[sure].any()
    assert sure[:150].all() and not sure[150:].any()


def test_frames_that_are_not_sure_do_not_count() -> None:
    target = np.array([[[1, 1], [0, 1], [1, 0]]], np.float32)
    right, wrong = np.array([[[1], [0], [0]]], np.float32), np.array([[[0], [0], [0]]], np.float32)
    assert float(detection_loss(right, target)) == pytest.approx(0, abs=1e-4)
    assert float(detection_loss(wrong, target)) > 1


def test_scores_count_events_and_false_alarms(tmp_path: Path) -> None:
    write_dataset(tmp_path / "made", 20, seed=3, noise_share=0.5, dev_share=1.0, test_share=0.0)
    settings = config(data=Data(paths=("made",)))
    dev = training.load(settings, tmp_path)
    events = sum(not trace.row.noise for trace in dev)

    def score(value: float) -> float:
        said = FakeTransport(lambda windows: np.full((len(windows), WINDOW // STRIDE, 1), value, np.float32))
        return detection_scores(dev, training.contract(settings), said, ())["detection_f1"]

    assert 0 < events < 20
    assert score(0.0) == 0
    assert score(1.0) == pytest.approx(2 * events / (events + 20))


def test_one_batch_is_learnt_by_heart() -> None:
    keras.utils.set_random_seed(0)
    model, examples = training.network(config()), Examples([], config())
    waveform, target = next(iter(training.stream_of(examples, DETECTION, 0).take(1)))
    optimizer = keras.optimizers.Adam(5e-3)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = DETECTION.loss(model(waveform, training=True), target)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    losses = [float(step()) for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]


def test_the_onnx_file_says_the_same(network: keras.Model, tmp_path: Path) -> None:
    onnxruntime, convert = pytest.importorskip("onnxruntime"), pytest.importorskip("seisserve_export.convert")
    manifest = training.contract(config())
    save(network, manifest, tmp_path)
    convert.convert(tmp_path, manifest, tmp_path / "model.onnx")  # refuses loops
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    windows = np.concatenate([waveforms(), waveforms(1) * np.float32(1e-14), np.zeros((1, WINDOW, 3), np.float32)])
    np.testing.assert_allclose(session.run(None, {"waveform": windows})[0], network(windows, training=False), atol=1e-4)
