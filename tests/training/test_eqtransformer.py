"""EQTransformer: what it says of any amplitude, that it learns, and that the authors' weights fit into it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import onnx
import onnxruntime as ort
import pytest

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402
from export.published_eqtransformer import DATA, EVERY, WEIGHTS, recorded, windows  # noqa: E402

from seisserve.errors import UsageError  # noqa: E402
from seisserve_export.convert import convert  # noqa: E402
from seisserve_training.augment import Example  # noqa: E402
from seisserve_training.bundles import save  # noqa: E402
from seisserve_training.config import Config, Network  # noqa: E402
from seisserve_training.config import Data as Sets  # noqa: E402
from seisserve_training.examples import Examples  # noqa: E402
from seisserve_training.labels import detection_box  # noqa: E402
from seisserve_training.models.eqtransformer import (  # noqa: E402
    EQTRANSFORMER,
    WINDOW,
    Attention,
    eqtransformer,
    load_published,
)
from seisserve_training.models.recurrent import LSTM  # noqa: E402
from seisserve_training.synthetic import synthetic_event  # noqa: E402
from seisserve_training.tasks.detection_phases import DETECTION_AND_PHASES  # noqa: E402
from seisserve_training.training import contract  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own

needs_weights = pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"published weights: {DATA} is absent")
BOTH = [("EqT_model", 3, "hard_sigmoid"), ("EqT_model2", 2, "sigmoid")]


def waveforms(n: int = 2) -> np.ndarray:
    rng = np.random.default_rng(1)
    events = [synthetic_event(rng, WINDOW).waveform for _ in range(n)]
    return np.stack([event / np.abs(event).max() for event in events]).astype(np.float32)


def lively(model: keras.Model) -> keras.Model:
    """Made-up weights whose probabilities vary, though not so steeply that rounding shows."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = layer.get_weights()
            layer.set_weights([rng.normal(size=kernel.shape) * np.sqrt(2 / np.prod(kernel.shape[:-1])), bias])
    logits = model.get_layer("logits").output
    found = np.asarray(keras.Model(model.input, logits)(waveforms()))
    for number, label in enumerate(("detection", "P", "S")):
        layer, values = model.get_layer(f"{label}_logit"), found[..., number]
        kernel, _ = layer.get_weights()
        layer.set_weights([kernel * 0.5 / values.std(), -np.full(1, 0.5 * values.mean() / values.std())])
    return model


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    return lively(eqtransformer(filters=2))


def test_every_sample_gets_three_probabilities(network: keras.Model) -> None:
    probability = np.asarray(network(waveforms()))
    assert probability.shape == (2, WINDOW, 3)
    assert probability.min() >= 0
    assert probability.max() <= 1
    assert probability.std(axis=(0, 1)).min() > 0.05


@pytest.mark.parametrize("scale", [1e-14, 1e9])
def test_amplitude_changes_nothing(network: keras.Model, scale: float) -> None:
    expected = np.asarray(network(waveforms()))
    np.testing.assert_allclose(network(waveforms() * np.float32(scale)), expected, atol=2e-4)


@pytest.mark.parametrize("value", [7.3, -1e-14, 1e9])
def test_a_dead_component_is_a_missing_one(network: keras.Model, value: float) -> None:
    dead, missing = waveforms(), waveforms()
    dead[:, :, 1], missing[:, :, 1] = value, 0
    np.testing.assert_allclose(network(dead), network(missing), atol=1e-6)
    assert np.isfinite(network(np.full((1, WINDOW, 3), value, np.float32))).all()


def test_windows_do_not_know_one_another(network: keras.Model) -> None:
    both = np.asarray(network(waveforms(3)))
    for number, window in enumerate(waveforms(3)):
        np.testing.assert_allclose(network(window[None])[0], both[number], atol=1e-5)


def test_local_attention_sees_neighbours_only() -> None:
    layer = Attention(4, local=True)
    x = np.random.default_rng(0).uniform(-1, 1, (1, 9, 5)).astype(np.float32)
    before = np.asarray(layer(x))
    changed = x.copy()
    changed[0, 4] *= 0.9
    moved = np.abs(layer(changed) - before).max(axis=(0, 2)) > 1e-6
    np.testing.assert_array_equal(moved, np.abs(np.arange(9) - 4) <= 1)


def config() -> Config:
    return Config(
        name="t",
        label_sigma_s=0.2,
        data=Sets(synthetic_share=1.0, synthetic_events=4),
        network=Network(kind="eqtransformer", window_samples=WINDOW, filters=2),
    )


def test_pairs_hold_detections_phases_and_what_is_sure() -> None:
    examples = Examples([], config())
    pairs = [DETECTION_AND_PHASES.pair(examples, examples.generator(number)) for number in range(20)]
    targets = np.stack([target for _, target in pairs])
    assert targets.shape == (20, WINDOW, 6)
    assert targets.dtype == np.float32
    assert np.isfinite(targets).all()
    assert targets.min() >= 0
    assert targets.max() <= 1
    assert set(np.unique(targets[..., 3:])) <= {0.0, 1.0}
    inside = targets[..., 0] > 0
    assert 0.02 < inside.mean() < 0.9
    sure_onset = (targets[..., 1] > 0.99) & (targets[..., 3] > 0)
    near = [np.convolve(row, np.ones(5), "same") > 0 for row in inside]
    assert np.stack(near)[sure_onset].all()  # where P is, an event is


def test_loss_does_not_look_where_labels_are_unsure() -> None:
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=(2, 50, 3)).astype(np.float32)
    target = np.concatenate([rng.integers(0, 2, (2, 50, 3)), np.ones((2, 50, 3))], axis=2).astype(np.float32)
    target[:, 20:, 5] = 0
    before = float(DETECTION_AND_PHASES.loss(probability, target))
    other = target.copy()
    other[:, 20:, 2] = 1 - other[:, 20:, 2]
    assert float(DETECTION_AND_PHASES.loss(probability, other)) == before
    other[:, 20:, 1] = 1 - other[:, 20:, 1]
    assert float(DETECTION_AND_PHASES.loss(probability, other)) != before
    right = np.clip(target[..., :3], 0, 1)
    assert float(DETECTION_AND_PHASES.loss(right, target)) < 1e-5 < before


def test_an_event_without_s_has_no_sure_end() -> None:
    example = Example(np.zeros((3000, 3), np.float32), (1000.0,), (), np.ones(3000, bool))
    inside, sure = detection_box(example, 100.0)
    assert not inside[sure].any()
    assert sure[:900].all()
    assert not sure[1000:].any()


def test_onnx_says_the_same(network: keras.Model, tmp_path: Path) -> None:
    manifest = contract(config())
    save(network, manifest, tmp_path)
    convert(tmp_path, manifest, tmp_path / "model.onnx")
    count = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert (count["LSTM"], count["Conv"], count["MaxPool"], count["Resize"]) == (6, 47, 7, 21)
    assert not count.keys() & {"Loop", "Scan", "If", "ReverseSequence", "Tile", "Expand"}
    noise = np.random.default_rng(0).normal(size=(3, WINDOW, 3)).astype(np.float32)
    windows_of_both = np.concatenate([waveforms(2), noise * 1e-14])
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 5):
        (found,) = session.run(None, {"waveform": windows_of_both[:n]})
        np.testing.assert_allclose(found, network(windows_of_both[:n]), rtol=0, atol=2e-4)  # rounding, as above


def test_it_learns_one_batch() -> None:
    keras.utils.set_random_seed(0)
    rng, time = np.random.default_rng(1), np.arange(WINDOW)
    events = [synthetic_event(rng, WINDOW) for _ in range(2)]
    waveform = tf.constant(np.stack([event.waveform / np.abs(event.waveform).max() for event in events]), tf.float32)
    onsets = [(event.p_sample, event.s_sample) for event in events]
    curves = [((time > p) & (time < s + 1000), np.abs(time - p) < 40, np.abs(time - s) < 40) for p, s in onsets]
    target = tf.constant(np.stack([np.stack([*three, *[time >= 0] * 3], axis=1) for three in curves]), tf.float32)
    model, optimizer = eqtransformer(filters=4), keras.optimizers.Adam(1e-2)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = DETECTION_AND_PHASES.loss(model(waveform, training=True), target)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    losses = [float(step()) for _ in range(60)]
    share = np.asarray(target)[..., :3].mean(axis=(0, 1))
    know_the_shares_only = DETECTION_AND_PHASES.loss(tf.constant(np.broadcast_to(share, (2, WINDOW, 3))), target)
    assert min(losses[-10:]) < 0.7 * float(know_the_shares_only)


def test_other_windows_are_refused() -> None:
    with pytest.raises(UsageError, match="window_samples is 3000; EQTransformer takes 6000"):
        EQTRANSFORMER.build(Network(kind="eqtransformer", window_samples=3000), 3)


def published_file(path: Path, model: keras.Model, gates: str = "sigmoid") -> Path:
    """The network's own weights as a file of the published layout (sizes of EqT_model2.h5 are those of 8 filters)."""
    from seisserve_training.models.eqtransformer import _published_names

    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = f'{{"recurrent_activation": "{gates}"}}'
        for name, (layer, variables) in _published_names(2).items():
            for variable, value in zip(variables, model.get_layer(name).get_weights(), strict=True):
                published = value[0] if value.ndim == 4 else value
                published = published[:, ::-1] if (layer, variable) == ("conv1d_1", "kernel") else published
                file[f"model_weights/{layer}/{layer}/{variable}:0"] = published
    return path


def test_published_weights_have_a_place_for_every_layer(network: keras.Model, tmp_path: Path) -> None:
    path = published_file(tmp_path / "model.h5", network)
    keras.utils.set_random_seed(1)
    other = eqtransformer(filters=2)
    load_published(other, path)
    for own, loaded in zip(network.weights, other.weights, strict=True):
        np.testing.assert_array_equal(own, loaded, err_msg=own.path)


def test_what_does_not_fit_is_named(network: keras.Model, tmp_path: Path) -> None:
    path = published_file(tmp_path / "model.h5", network)
    with pytest.raises(UsageError, match=r"'encoder1' conv1d_1/kernel should be \[1, 11, 3, 8\].* \[11, 3, 2\]"):
        load_published(eqtransformer(), path)
    with pytest.raises(UsageError, match=r"2 bidirectional LSTMs.*the network has 3"):
        load_published(eqtransformer(filters=2, recurrent=3), path)
    hard = published_file(tmp_path / "hard.h5", network, "hard_sigmoid")
    with pytest.raises(UsageError, match=r"the gates .'hard_sigmoid'.*'sigmoid'"):
        load_published(network, hard)
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(UsageError, match="cannot be read as a Keras HDF5 file"):
        load_published(network, tmp_path / "text.h5")


@needs_weights
@pytest.mark.parametrize(("name", "recurrent", "gates"), BOTH)
def test_the_published_network_comes_out(name: str, recurrent: int, gates: str) -> None:
    model = eqtransformer(recurrent=recurrent, gates=gates)
    load_published(model, WEIGHTS / f"{name}.h5")
    np.testing.assert_allclose(np.asarray(model(windows()))[:, ::EVERY], recorded(name), rtol=0, atol=1e-5)
    assert all(layer.gates == gates for layer in model.layers if isinstance(layer, LSTM))
