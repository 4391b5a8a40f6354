"""The LSTM in one pass is Keras' own LSTM: the same weights give the same output and learn the same."""

from __future__ import annotations

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from seisserve_training.models.recurrent import LSTM, bidirectional  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own


def sequences(n: int = 4, steps: int = 11, features: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, steps, features)).astype(np.float32)


def share_weights(one: keras.layers.Layer, other: keras.layers.Layer) -> None:
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=weight.shape) / 2 for weight in one.weights]
    one.set_weights(weights)
    other.set_weights(weights)


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("backwards", [False, True])
def test_output_and_gradients_are_those_of_keras(return_sequences: bool, backwards: bool) -> None:
    own = LSTM(6, return_sequences, backwards)
    keras_own = keras.layers.LSTM(6, return_sequences=return_sequences, go_backwards=backwards)
    x = tf.constant(sequences())
    own(x), keras_own(x)
    assert [(w.name, w.shape) for w in own.weights] == [(w.name, w.shape) for w in keras_own.weights]
    share_weights(own, keras_own)
    outputs, gradients = [], []
    for layer in (own, keras_own):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            if return_sequences and backwards and layer is keras_own:
                y = y[:, ::-1]  # Keras gives the steps in the order in which it went through them
            loss = tf.reduce_sum(y**2 * np.arange(1, 7))
        outputs.append(y)
        gradients.append(tape.gradient(loss, [x, *layer.trainable_variables]))
    assert outputs[0].shape == own.compute_output_shape(x.shape)
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)
    for found, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_forget_gates_begin_open() -> None:
    own, keras_own = LSTM(3), keras.layers.LSTM(3)
    own(sequences()), keras_own(sequences())
    np.testing.assert_array_equal(own.bias, keras_own.cell.bias)


@pytest.mark.parametrize(("merge", "features"), [("concat", 8), ("sum", 4)])
def test_both_directions_see_the_whole_sequence(merge: str, features: int) -> None:
    x = keras.Input((None, 5))
    model = keras.Model(x, bidirectional(x, 4, merge, name="both"))
    before = np.asarray(model(sequences()))
    assert before.shape == (4, 11, features)
    changed = sequences()
    changed[:, 5] += 1
    moved = np.abs(model(changed) - before).max(axis=(0, 2))
    assert (moved > 0).all()


def test_any_other_merge_is_refused() -> None:
    with pytest.raises(KeyError, match="mean"):
        bidirectional(keras.Input((None, 5)), 4, "mean", name="both")


def test_a_saved_layer_comes_back_the_same(tmp_path) -> None:  # type: ignore[no-untyped-def]
    x = keras.Input((None, 5))
    model = keras.Model(x, LSTM(4, return_sequences=False, backwards=True)(x))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(sequences()), model(sequences()))
