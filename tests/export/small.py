"""A small network with made-up weights, its manifest and windows for it."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from msgspec.structs import replace

from seisserve.bundle import Bundle
from seisserve.manifest import Label, Manifest, Output, Tensor
from seisserve_export.gate import Report
from seisserve_training.models.phasenet import phasenet

WINDOW = 1024
Array = npt.NDArray[np.float32]


class Exported(NamedTuple):
    bundle: Bundle
    report: Report


def manifest(name: str = "small", window: int = WINDOW, fragments: tuple[int, ...] = (256, 512)) -> Manifest:
    label = Label(threshold=0.4)
    return Manifest(
        name=name,
        task="picking",
        summary="Made-up weights",
        licence="Apache-2.0",
        citation="Nobody",
        sampling_rate_hz=100.0,
        components="ZNE",
        window_samples=window,
        fragment_windows=fragments,
        hop_samples=window // 2,
        edge_samples=100,
        input=Tensor(name="waveform", shape=(-1, window, 3)),
        outputs=(Output(name="probability", shape=(-1, window, 3), labels=("N", "P", "S")),),
        labels={"P": label, "S": label},
    )


def network(window: int = WINDOW) -> tf.Module:
    """PhaseNet with random weights and batch norms that do something, in both signatures."""
    rng = np.random.default_rng(0)
    model = phasenet()
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.gamma.shape[0]
            layer.set_weights([rng.uniform(0.5, 2, n), *rng.normal(size=(2, n)) / 5, rng.uniform(0.2, 1, n)])
        elif layer.weights:
            layer.set_weights([rng.normal(size=w.shape) * np.sqrt(2 / np.prod(w.shape[:-1])) for w in layer.weights])

    logits = model.get_layer("logits")
    spread = np.std(keras.Model(model.input, logits.output)(rng.normal(size=(4, window, 3)).astype(np.float32)))
    logits.kernel.assign(logits.kernel * 2 / spread)  # probabilities of all sizes

    return both_signatures(lambda waveform: model(waveform, training=False), window, model)


def softmax(window: int = WINDOW) -> tf.Module:
    """Something small that gives probabilities."""
    return both_signatures(lambda waveform: tf.nn.softmax(waveform / (1 + tf.abs(waveform))), window)


def softmax_manifest(fragments: tuple[int, ...] = (256, 512)) -> Manifest:
    """Its contract; it knows nothing of phases."""
    return replace(manifest("tiny", fragments=fragments), task="detection", labels={})


def both_signatures(function: Callable[[tf.Tensor], tf.Tensor], window: int, model: object = None) -> tf.Module:
    """The function as a module that can be saved."""

    def call(waveform: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probability": function(waveform)}

    module = tf.Module()
    specs = [tf.TensorSpec([None, samples, 3], tf.float32, name="waveform") for samples in (window, None)]
    module.serve, module.fragment = (tf.function(call, input_signature=[spec], autograph=False) for spec in specs)
    module.model = model
    return module


def waveforms(n: int, samples: int = WINDOW) -> Array:
    """Noise and a burst; every window has another amplitude, from 1e-14 to 1e9, and an offset; one is all zeros."""
    rng = np.random.default_rng(n)
    windows = rng.normal(size=(n, samples, 3))
    windows[:, samples // 3 : samples // 2] *= 8
    windows = (windows + rng.uniform(-2, 2, (n, 1, 3))) * 10.0 ** np.linspace(-14, 9, n)[:, None, None]
    windows[n // 2] *= n == 1
    return windows.astype(np.float32)
