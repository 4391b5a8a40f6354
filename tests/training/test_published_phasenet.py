"""The published PhaseNet as a beginning: every number of its Keras file has a place in the network."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from seisserve.errors import UsageError  # noqa: E402
from seisserve_training.models.onset import onset  # noqa: E402
from seisserve_training.models.phasenet import _published_names, load_published, phasenet  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own

FILE = Path(__file__).parents[3] / "shared/data/weights/phasenet_original_keras/model_95_converted.h5"
needs_weights = pytest.mark.skipif(not FILE.is_file(), reason="published weights: ../shared/data is absent")


@pytest.fixture
def learnt() -> keras.Model:
    """A network whose weights are all unlike fresh ones."""
    model, rng = phasenet(), np.random.default_rng(0)
    model.set_weights([value + 0.1 * np.abs(rng.normal(size=value.shape)) for value in model.get_weights()])
    return model


def published_file(path: Path, model: keras.Model, bias: np.ndarray | float = 0.0) -> Path:
    """A network's weights in the published layout, which has a bias before the first normalisation, too."""
    with h5py.File(path, "w") as file:
        for name, conv, norm in _published_names():
            kernel, *rest = model.get_layer(name).get_weights()
            kernel = kernel[:, :, ::-1] if name == "in" else kernel
            rest = [np.broadcast_to(bias, kernel.shape[-1])] if name == "in" else rest
            values = dict(zip((f"{conv}/kernel", f"{conv}/bias"), [np.swapaxes(kernel, 0, 1), *rest], strict=False))
            if norm:
                layer = model.get_layer(f"{name}_norm")
                values |= {f"{norm}/{part.name}": np.array(part) for part in layer.weights}
                values[f"{norm}/moving_mean"] = values[f"{norm}/moving_mean"] + (bias if name == "in" else 0.0)
            for key, value in values.items():
                file[f"model_weights/{key.split('/')[0]}/{key}:0"] = value
    return path


@pytest.mark.parametrize("build", [phasenet, onset])
def test_every_layer_has_its_weights(learnt: keras.Model, tmp_path: Path, build: type[keras.Model]) -> None:
    bias = np.random.default_rng(1).normal(size=8)
    model = build()
    load_published(model, published_file(tmp_path / "model.h5", learnt, bias))
    for own, wanted in zip(model.weights, learnt.weights, strict=True):
        np.testing.assert_allclose(own, wanted, rtol=0, atol=1e-6, err_msg=own.path)


def test_what_does_not_fit_is_named(learnt: keras.Model, tmp_path: Path) -> None:
    path = published_file(tmp_path / "model.h5", learnt)
    with pytest.raises(UsageError, match=r"for 'in' input_conv/kernel should be \[1, 7, 3, 4\].* \[7, 1, 3, 8\]"):
        load_published(phasenet(filters=4), path)
    with h5py.File(path, "a") as file:
        del file["model_weights/up_bn0_2/up_bn0_2/gamma:0"]
    with pytest.raises(UsageError, match=r"for 'up1' up_bn0_2/gamma should be \[16\], the file has nothing"):
        load_published(phasenet(), path)


@needs_weights
def test_the_published_network_comes_out() -> None:
    """The importer has a network of its own, in which normalisations are multiplied into the kernels."""
    from seisserve_export.importers.phasenet import _phasenet, load_phasenet_keras_h5, normalise

    waveform = np.cumsum(np.random.default_rng(0).standard_normal((2, 3072, 3)), 1).astype(np.float32)
    model = phasenet()
    load_published(model, FILE)
    imported = load_phasenet_keras_h5(FILE)
    expected = _phasenet(normalise(tf.constant(waveform)), imported.weights)
    np.testing.assert_allclose(model(waveform, training=False), expected, rtol=0, atol=1e-5)
