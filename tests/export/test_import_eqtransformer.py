"""The imported EQTransformer gives what the authors' own networks gave, and a file that is not one is named."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
import tensorflow as tf
from export.published_eqtransformer import DATA, EVERY, NAMES, WEIGHTS, Array, recorded, windows

from seisserve_export.bundles import export_bundle, save_bundle
from seisserve_export.importers.eqtransformer import EQTRANSFORMER_ORIGINAL, load_eqtransformer_h5
from seisserve_training.models.eqtransformer import _published_names, eqtransformer

needs_weights = pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"published weights: {DATA} is absent")


def write_h5(path: Path, gates: str = "sigmoid", left_out: str = "") -> Path:
    """Made-up weights in the layout of EqT_model2.h5; `hard_sigmoid` gates as in EqT_model.h5, but two LSTMs."""
    rng = np.random.default_rng(0)
    cells = [{"config": {"name": "lstm_3", "recurrent_activation": gates}}]
    model = eqtransformer()
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"config": {"layers": cells}})
        for name, (layer, variables) in _published_names(2).items():
            for variable, weight in zip(variables, model.get_layer(name).weights, strict=True):
                shape = weight.shape[1:] if len(weight.shape) == 4 else weight.shape
                value = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else np.zeros(shape)
                value = np.ones(shape) if variable in ("gamma", "moving_variance") else value
                if f"{layer}/{variable}" != left_out:
                    file[f"model_weights/{layer}/{layer}/{variable}:0"] = value
    return path


def serve(module: tf.Module, waveform: Array) -> Array:
    return np.asarray(module.serve(tf.constant(waveform))["probability"])


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> tf.Module:
    return load_eqtransformer_h5(write_h5(tmp_path_factory.mktemp("eqt") / "made_up.h5"))


@needs_weights
@pytest.mark.parametrize("name", NAMES)
def test_published_weights_give_what_the_authors_network_gives(name: str) -> None:
    expected = recorded(name)
    assert expected.max(axis=(0, 1)).min() > 0.5  # it sees the events
    found = serve(load_eqtransformer_h5(WEIGHTS / f"{name}.h5"), windows())
    np.testing.assert_allclose(found[:, ::EVERY], expected, rtol=0, atol=1e-5)


@needs_weights
@pytest.mark.parametrize(("name", "lstms"), [("EqT_model", 5), ("EqT_model2", 6)])
def test_bundle_of_published_weights(name: str, lstms: int, tmp_path: Path) -> None:
    save_bundle(load_eqtransformer_h5(WEIGHTS / f"{name}.h5"), EQTRANSFORMER_ORIGINAL, tmp_path / "saved")
    report = export_bundle(tmp_path / "saved", tmp_path / "1", windows=windows())
    assert report.max_abs < 1e-4
    assert report.picks >= 4
    count = Counter(node.op_type for node in onnx.load(tmp_path / "1" / "model.onnx").graph.node)
    assert count["LSTM"] == lstms  # hard gates: tf2onnx makes one of the two directions
    assert not count.keys() & {"Loop", "Scan", "If"}


@pytest.mark.parametrize("gates", ["sigmoid", "hard_sigmoid"])
def test_both_gates_agree_with_the_network_that_is_trained(gates: str, tmp_path: Path) -> None:
    from seisserve_training.models.eqtransformer import load_published

    path = write_h5(tmp_path / "made_up.h5", gates)
    trainable = eqtransformer(gates=gates)
    load_published(trainable, path)
    expected = np.asarray(trainable(windows()))
    assert expected.std(axis=(0, 1)).min() > 0.01
    np.testing.assert_allclose(serve(load_eqtransformer_h5(path), windows()), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-14, 1e9])
def test_amplitude_does_not_matter(made_up: tf.Module, scale: float) -> None:
    unit = windows()[:1] / np.abs(windows()[:1]).max()
    np.testing.assert_allclose(serve(made_up, unit * np.float32(scale)), serve(made_up, unit), rtol=0, atol=1e-4)


def test_constant_components_count_as_zeros(made_up: tf.Module) -> None:
    dead, missing = windows(), windows()
    dead[:, :, 2], missing[:, :, 2] = -16777215.0, 0
    np.testing.assert_array_equal(serve(made_up, dead), serve(made_up, missing))
    assert np.isfinite(serve(made_up, np.zeros((1, 6000, 3), np.float32))).all()


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_eqtransformer_h5(tmp_path / "nowhere.h5")
    with pytest.raises(ValueError, match="'attentionP/attentionP_Add_Wa' is missing"):
        load_eqtransformer_h5(write_h5(tmp_path / "less.h5", left_out="attentionP/attentionP_Add_Wa"))
    with pytest.raises(ValueError, match=r"the gates of its LSTMs are \['relu'\]"):
        load_eqtransformer_h5(write_h5(tmp_path / "relu.h5", "relu"))
    weights = write_h5(tmp_path / "weights.h5")
    shutil.copy(weights, tmp_path / "wrong.h5")
    with h5py.File(weights, "a") as file:
        del file.attrs["model_config"]
    with pytest.raises(ValueError, match="only weights; expected a whole Keras model"):
        load_eqtransformer_h5(weights)
    with h5py.File(tmp_path / "wrong.h5", "a") as file:
        del file["model_weights/lstm_4/lstm_4/bias:0"]
        file["model_weights/lstm_4/lstm_4/bias:0"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"'lstm_4/bias' has shape \(3,\) instead of \(64,\)"):
        load_eqtransformer_h5(tmp_path / "wrong.h5")
