"""An LSTM arrives in ONNX as an LSTM, for every batch; one that cannot is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tensorflow as tf
from export.small import manifest

from seisserve.errors import BundleError
from seisserve_export.convert import convert
from seisserve_training.models.recurrent import LSTM, bidirectional

WINDOW = 128


def save(function: Callable[[tf.Tensor], tf.Tensor], folder: Path, keep: object = None) -> None:
    module = tf.Module()
    module.keep = keep
    spec = tf.TensorSpec([None, WINDOW, 3], tf.float32, name="waveform")
    module.serve = tf.function(
        lambda waveform: {"probability": function(waveform)}, input_signature=[spec], autograph=False
    )
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})


def network() -> keras.Model:
    """Both directions, and the last step of either alone."""
    waveform = keras.Input((WINDOW, 3))
    x = keras.layers.AveragePooling1D(4)(waveform)
    x = bidirectional(x, 6, name="first")
    x = bidirectional(x, 5, "sum", name="second")
    ends = [LSTM(4, return_sequences=False, backwards=backwards)(x) for backwards in (False, True)]
    ends = [keras.layers.RepeatVector(WINDOW // 4)(end) for end in ends]
    x = keras.layers.UpSampling1D(4)(keras.layers.Concatenate()([x, *ends]))
    model = keras.Model(waveform, keras.layers.Dense(3, "sigmoid")(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=weight.shape) for weight in model.weights])
    return model


def test_lstm_as_lstm(tmp_path: Path) -> None:
    model = network()
    save(lambda waveform: model(waveform, training=False), tmp_path, model)
    path = tmp_path / "model.onnx"
    convert(tmp_path, manifest(window=WINDOW, fragments=()), path)
    count = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert count["LSTM"] == 6
    assert not count.keys() & {"Loop", "Scan", "If", "ReverseSequence", "Gemm"}
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", WINDOW, 3]
    saved = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    windows = np.random.default_rng(1).normal(size=(16, WINDOW, 3)).astype(np.float32)
    whole = session.run(None, {"waveform": windows})[0]
    assert whole.std(axis=(0, 1)).min() > 0.01
    for n in (1, 5, 16):
        (found,) = session.run(None, {"waveform": windows[:n]})
        expected = saved(waveform=tf.constant(windows[:n]))["probability"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found, whole[:n])


def block_lstm(waveform: tf.Tensor, **other: object) -> tf.Tensor:
    """One layer of three units with weights from `waveform`'s place in the world, and what else is asked for."""
    x = tf.transpose(waveform, (1, 0, 2))
    zeros, without = tf.zeros((tf.shape(waveform)[0], 3)), tf.zeros(3)
    given = {
        "x": x, "cs_prev": zeros, "h_prev": zeros, "w": tf.ones((6, 12)) / 4, "b": tf.ones(12) / 3, "wci": without,
        "wcf": without, "wco": without, "cell_clip": -1.0, "seq_len_max": tf.shape(x, tf.int64)[0],
    }  # fmt: skip
    return tf.transpose(tf.raw_ops.BlockLSTM(**(given | other)).h, (1, 0, 2))


def test_forget_bias_of_the_operator_counts(tmp_path: Path) -> None:
    save(lambda waveform: block_lstm(waveform, forget_bias=2.0), tmp_path)
    convert(tmp_path, manifest(window=WINDOW, fragments=()), tmp_path / "model.onnx")
    windows = np.random.default_rng(1).normal(size=(2, WINDOW, 3)).astype(np.float32)
    found = ort.InferenceSession(tmp_path / "model.onnx").run(None, {"waveform": windows})[0]
    np.testing.assert_allclose(found, block_lstm(windows, forget_bias=2.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"cell_clip": 3.0}, "clips its cells"),
        ({"use_peephole": True}, "peepholes"),
        ({"h_prev": tf.ones((1, 3))}, "does not begin with states of zeros"),
    ],
)
def test_what_onnx_has_not_is_named(other: dict[str, object], message: str, tmp_path: Path) -> None:
    save(lambda waveform: block_lstm(waveform, **other), tmp_path)
    with pytest.raises(BundleError, match=message):
        convert(tmp_path, manifest(window=WINDOW, fragments=()), tmp_path / "model.onnx")


def test_weights_must_be_constants(tmp_path: Path) -> None:
    save(lambda waveform: block_lstm(waveform, w=tf.ones((6, 12)) * tf.reduce_max(waveform)), tmp_path)
    with pytest.raises(BundleError, match="weights that are no constants"):
        convert(tmp_path, manifest(window=WINDOW, fragments=()), tmp_path / "model.onnx")


def test_other_outputs_are_not_lost(tmp_path: Path) -> None:
    def cells(waveform: tf.Tensor) -> tf.Tensor:
        x = tf.transpose(waveform, (1, 0, 2))
        zeros, without = tf.zeros((tf.shape(waveform)[0], 3)), tf.zeros(3)
        found = tf.raw_ops.BlockLSTM(
            x=x, cs_prev=zeros, h_prev=zeros, w=tf.ones((6, 12)), b=tf.ones(12), wci=without, wcf=without,
            wco=without, cell_clip=-1.0, seq_len_max=tf.shape(x, tf.int64)[0],
        )  # fmt: skip
        return tf.transpose(found.cs, (1, 0, 2))

    save(cells, tmp_path)
    with pytest.raises(BundleError, match="more than its output h"):
        convert(tmp_path, manifest(window=WINDOW, fragments=()), tmp_path / "model.onnx")
