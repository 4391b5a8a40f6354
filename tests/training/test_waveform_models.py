"""The networks that give waveforms back: DeepDenoiser, DnCNN and clip recovery, and the transform they need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from seisserve_training import training  # noqa: E402
from seisserve_training.augment import clip, mix  # noqa: E402
from seisserve_training.bundles import save  # noqa: E402
from seisserve_training.clipping import clipped  # noqa: E402
from seisserve_training.config import Config, Data, Network  # noqa: E402
from seisserve_training.models import ARCHITECTURES  # noqa: E402
from seisserve_training.models.layers import Deviation  # noqa: E402
from seisserve_training.models.recovery import Clipped, Range  # noqa: E402
from seisserve_training.models.spectrogram import FREQUENCIES, HOP, InverseSpectrogram, Spectrogram  # noqa: E402
from seisserve_training.synthetic import synthetic_event, synthetic_noise, synthetic_signal  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own
WINDOWS = {"deepdenoiser": 600, "dncnn": 512, "recovery": 512}
Array = np.ndarray
Call = Callable[[Array], Array]


def config(kind: str, components: str = "ZNE") -> Config:
    network = Network(kind=kind, window_samples=WINDOWS[kind], filters=4)
    data = Data(synthetic_share=1.0, synthetic_events=4)
    return Config(name=kind, components=components, network=network, data=data)


def model(kind: str, components: str = "ZNE") -> keras.Model:
    """Fresh weights, and batch norms that do something."""
    keras.utils.set_random_seed(0)
    made, rng = training.network(config(kind, components)), np.random.default_rng(0)
    for layer in made.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.gamma.shape[0]
            layer.set_weights([rng.uniform(0.5, 2, n), *rng.normal(size=(2, n)) / 5, rng.uniform(0.2, 1, n)])
    return made


def waveforms(samples: int, n: int = 2, components: int = 3) -> Array:
    """Events of which the first is clipped."""
    rng = np.random.default_rng(1)
    events = [synthetic_event(rng, max(samples, 400)).waveform[:samples, :components] for _ in range(n)]
    events[0] = clip(events[0], 0.3)
    return np.stack([event / np.abs(event).max() for event in events]).astype(np.float32)


@pytest.fixture(scope="module", params=sorted(WINDOWS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(kind: str) -> Call:
    made = model(kind)
    return lambda windows: np.asarray(made(windows, training=False))


def test_the_waveform_comes_back_in_its_shape(kind: str, run: Call) -> None:
    out = run(waveforms(WINDOWS[kind]))
    assert out.shape == (2, WINDOWS[kind], 3)
    assert np.isfinite(out).all()
    assert out.std() > 0


@pytest.mark.parametrize("components", ["Z", "ZN"])
def test_other_numbers_of_components(kind: str, components: str) -> None:
    windows = waveforms(WINDOWS[kind], components=len(components))
    assert np.asarray(model(kind, components)(windows)).shape == windows.shape
    assert training.contract(config(kind, components)).output.labels == tuple(components)


@pytest.mark.parametrize("scale", [1e-30, 1e-14, 1e9, 1e30])
def test_the_answer_has_the_amplitude_of_the_input(kind: str, run: Call, scale: float) -> None:
    windows = waveforms(WINDOWS[kind])
    size = np.abs(run(windows)).max()
    np.testing.assert_allclose(run(windows * np.float32(scale)) / scale, run(windows), atol=2e-4 * size)


def test_an_offset_is_noise_to_denoisers_and_kept_by_recovery(kind: str, run: Call) -> None:
    windows = waveforms(WINDOWS[kind])
    offset = np.float32(8) if kind == "recovery" else np.float32(0)
    np.testing.assert_allclose(run(windows + 8), run(windows) + offset, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 7.3, -1e-20, 1e20])
def test_a_dead_component_stays_dead(kind: str, run: Call, value: float) -> None:
    dead, missing = waveforms(WINDOWS[kind]), waveforms(WINDOWS[kind])
    dead[:, :, 1], missing[:, :, 1] = value, 0
    out = run(dead)
    np.testing.assert_array_equal(out[:, :, 1], np.float32(value if kind == "recovery" else 0))
    np.testing.assert_allclose(out[:, :, [0, 2]], run(missing)[:, :, [0, 2]], atol=1e-5)
    assert np.isfinite(run(np.full_like(dead, value))).all()


def test_windows_do_not_know_one_another(kind: str, run: Call) -> None:
    windows = waveforms(WINDOWS[kind], n=3)
    for window, out in zip(windows, run(windows), strict=True):
        np.testing.assert_allclose(run(window[None])[0], out, atol=1e-5)


def test_it_learns_one_batch(kind: str) -> None:
    """Its own loss falls, and it ends far better than what came in."""
    rng, samples = np.random.default_rng(2), WINDOWS[kind]
    pairs = []
    for _ in range(4):
        signal, noise = synthetic_signal(rng, samples).waveform, synthetic_noise(rng, samples)
        noisy, clean = mix(signal, noise, 0.0)
        if kind == "recovery":
            noisy, clean = clip(signal, 0.3), signal
        scale = np.abs(noisy).max(axis=0) if kind == "recovery" else noisy.std(axis=0)
        pairs.append((noisy / scale, clean / scale))
    waveform, target = (np.stack(part).astype(np.float32) for part in zip(*pairs, strict=True))
    learner, loss = model(kind), ARCHITECTURES[kind].learn.loss
    optimizer = keras.optimizers.Adam(1e-2)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            now = loss(learner(waveform, training=True), target)
        optimizer.apply(tape.gradient(now, learner.trainable_variables), learner.trainable_variables)
        return now

    for _ in range(120):
        step()
    before = np.square(waveform - target).mean()
    after = np.square(np.asarray(learner(waveform, training=True)) - target).mean()
    assert after < 0.5 * before


def test_onnx_gives_what_the_network_gives(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx")
    ort = pytest.importorskip("onnxruntime")
    from seisserve_export.convert import convert

    made, manifest = model(kind), training.contract(config(kind))
    save(made, manifest, tmp_path)
    convert(tmp_path, manifest, tmp_path / "model.onnx")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for n in (1, 5):
        windows = waveforms(WINDOWS[kind], n)
        expected = np.asarray(made(windows, training=False))
        (found,) = session.run(None, {"waveform": windows})
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_shipped_sizes_are_small(kind: str) -> None:
    full = ARCHITECTURES[kind].build(Network(kind=kind, window_samples=15 * 256), 3)
    assert 4 * full.count_params() < 1_200_000


@pytest.mark.parametrize("samples", [30, 600, 3000])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e9])
def test_the_inverse_gives_the_waveform_back_to_its_ends(samples: int, scale: float) -> None:
    waveform = (np.random.default_rng(0).normal(size=(3, samples)) * scale).astype(np.float32)
    back = np.asarray(InverseSpectrogram()(Spectrogram()(waveform)))
    np.testing.assert_allclose(back, waveform, rtol=0, atol=1e-5 * np.abs(waveform).max())


def test_the_transform_is_scipys() -> None:
    from scipy.signal import stft

    waveform = np.random.default_rng(0).normal(size=(2, 3000))
    _, _, expected = stft(waveform, nperseg=30, noverlap=15, nfft=60)
    found = np.asarray(Spectrogram()(waveform.astype(np.float32)))
    assert found.shape == (2, 3000 // HOP + 1, FREQUENCIES, 2)
    found = (found[..., 0] + 1j * found[..., 1]).transpose(0, 2, 1) / HOP  # scipy divides by the window's sum
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_deviation_is_that_of_numpy() -> None:
    windows = waveforms(512) * np.float32(1e-12)
    expected = windows.astype(np.float64).std(axis=1, keepdims=True)
    np.testing.assert_allclose(Deviation()(windows + np.float32(1e-12)), expected, rtol=1e-3)


def test_deepdenoiser_takes_whole_hops_only() -> None:
    with pytest.raises(ValueError, match="multiples of 15"):
        ARCHITECTURES["deepdenoiser"].build(Network(kind="deepdenoiser", window_samples=1000), 3)


@pytest.mark.parametrize("level", [0.05, 0.3, 0.8])
def test_recovery_touches_nothing_but_clipped_samples(level: float) -> None:
    recovery, rng = model("recovery"), np.random.default_rng(3)
    windows = np.stack([clip(synthetic_event(rng, 512).waveform, level) for _ in range(8)])
    windows -= windows.max(axis=1, keepdims=True) / 2 + windows.min(axis=1, keepdims=True) / 2
    out = np.asarray(recovery(windows))
    sign = clipped(windows.transpose(0, 2, 1)).transpose(0, 2, 1)
    assert (sign != 0).any()
    np.testing.assert_array_equal(out[sign == 0], windows[sign == 0])
    high, low = (np.broadcast_to(edge(axis=1, keepdims=True), out.shape) for edge in (windows.max, windows.min))
    assert (out[sign > 0] >= high[sign > 0]).all()
    assert (out[sign < 0] <= low[sign < 0]).all()


def test_the_network_finds_clipped_samples_by_the_rule_of_numpy() -> None:
    rng = np.random.default_rng(4)
    for drift in (0.0, 1e-4, 5e-3):
        windows = np.stack([clip(synthetic_event(rng, 512).waveform, rng.uniform(0.05, 1)) for _ in range(8)])
        windows = (windows * (1 + drift * rng.normal(size=windows.shape))).astype(np.float32)
        scaled, _, _ = Range()(windows)
        found = np.asarray(Clipped()(scaled))
        np.testing.assert_array_equal(found, clipped(windows.transpose(0, 2, 1)).transpose(0, 2, 1))
