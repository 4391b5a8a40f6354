"""Import the published GPD (Ross et al., 2018) as a TensorFlow module that takes raw counts.

The network is written out below over ``tf.nn`` and only the numbers are read from the file, by name.
``load_gpd_keras_h5(path)`` returns a module whose ``serve`` maps ``waveform [n, 800, 3]`` (raw, order Z, N, E) to
``probability [n, 3]`` (N, P, S) at the window's centre. The order of components (published: N, E, Z) and of classes
(published: P, S, N), the filter and the normalisation are part of the graph.

The authors filter a whole record, causally, and then cut windows of 400 samples. Here a window brings what the filter
needs of the past along: its impulse response, which has died away after 2 s, is a convolution over the first 600
samples, whose last 400 outputs are the authors' window. The last 200 samples are not looked at; they are there because
an answer belongs to the centre of its window.

A file that is not there raises ``FileNotFoundError``, one that is not GPD ``ValueError``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from scipy.signal import butter, sosfilt

from seisserve.manifest import Label, Manifest, Output, Tensor
from seisserve_export.importers.keras_hdf5 import Variables, read_variables

__all__ = ["GPD_ORIGINAL", "load_gpd_keras_h5"]

SAMPLES = 400  # that the network sees
PAST = 200  # samples before those, for the filter
WINDOW = SAMPLES + 2 * PAST
RATE_HZ = 100.0
BAND_HZ, CORNERS = (3.0, 20.0), 4  # of the authors' program
KERNELS: tuple[tuple[int, ...], ...] = ((21, 3, 32), (15, 32, 64), (11, 64, 128), (9, 128, 256))
DENSE: tuple[tuple[int, ...], ...] = ((6400, 200), (200, 200))
LAST = {"kernel": (200, 3), "bias": (3,)}
BATCH_NORM_EPSILON = 1e-3
COMPONENTS = [2, 0, 1]  # Z, N, E among the published N, E, Z
CLASSES = [2, 0, 1]  # N, P, S among the published P, S, N
ROUNDING = 1e-6  # of the window's range, in float32: less than that is no signal

Array = npt.NDArray[np.float32]

GPD_ORIGINAL = Manifest(
    name="gpd_original",
    task="picking",
    summary="GPD as its authors published it, trained on Southern California earthquakes (SCSN); their band-pass of 3 "
    "to 20 Hz is in the graph, cut off after 2 s",
    licence="MIT",
    citation="Ross et al. (2018), Bulletin of the Seismological Society of America 108, 2894-2901, "
    "doi:10.1785/0120180080",
    sampling_rate_hz=RATE_HZ,
    components="ZNE",
    window_samples=WINDOW,
    hop_samples=10,
    edge_samples=WINDOW // 2,
    input=Tensor(name="waveform", shape=(-1, WINDOW, 3)),
    outputs=(Output(name="probability", shape=(-1, 3), labels=("N", "P", "S"), stride=10),),
    labels={phase: Label(threshold=0.95, chosen_on="default of the published GPD") for phase in ("P", "S")},
)


def load_gpd_keras_h5(path: Path) -> tf.Module:
    """Read the published ``model_pol_best.hdf5``."""
    variables = read_variables(path)
    folded: dict[str, tuple[Array, Array]] = {}
    for number, shape in enumerate(KERNELS, start=1):
        kernel, bias = _fold(path, variables, f"conv1d_{number}_1", f"batch_normalization_{number}_1", shape)
        folded[f"conv{number}"] = kernel[None], bias
    for number, shape in enumerate(DENSE, start=1):
        norm = f"batch_normalization_{number + len(KERNELS)}_1"
        folded[f"dense{number}"] = _fold(path, variables, f"dense_{number}_1", norm, shape)
    kernel, bias = folded["conv1"]
    folded["conv1"] = kernel[:, :, COMPONENTS], bias
    last = {name: _read(path, variables, f"dense_3_1/{name}", shape) for name, shape in LAST.items()}
    folded["dense3"] = last["kernel"][:, CLASSES].astype(np.float32), last["bias"][CLASSES].astype(np.float32)
    return _module(folded)


def _read(path: Path, variables: Variables, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    if name not in variables:
        raise ValueError(f"{path}: not GPD, the variable '{name}' is missing")
    if variables[name].shape != shape:
        raise ValueError(f"{path}: not GPD, '{name}' has shape {variables[name].shape} instead of {shape}")
    return variables[name].astype(np.float64)


def _fold(path: Path, variables: Variables, layer: str, norm: str, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Kernel and bias with the batch norm multiplied in (in float64)."""
    channels = shape[-1:]
    kernel = _read(path, variables, f"{layer}/kernel", shape)
    bias = _read(path, variables, f"{layer}/bias", channels)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    gamma, beta, mean, variance = (_read(path, variables, f"{norm}/{name}", channels) for name in names)
    scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    return (kernel * scale).astype(np.float32), (beta + (bias - mean) * scale).astype(np.float32)


def _impulse_response() -> Array:
    """The first 201 samples of the filter's answer to a unit pulse, latest first as a convolution of tf.nn wants it.

    What is cut off is below 1e-5 of the largest; its mean is taken off so that an offset gives zero here too.
    """
    pulse = np.zeros(PAST + 1)
    pulse[0] = 1
    response = sosfilt(butter(CORNERS, BAND_HZ, "bandpass", fs=RATE_HZ, output="sos"), pulse)
    return np.asarray((response - response.mean())[::-1], np.float32)


def _module(folded: dict[str, tuple[Array, Array]]) -> tf.Module:
    module = tf.Module(name="gpd")
    module.weights = {
        name: (tf.Variable(kernel, trainable=False), tf.Variable(bias, trainable=False))
        for name, (kernel, bias) in folded.items()
    }
    module.filter = tf.Variable(_impulse_response()[None, :, None, None], trainable=False)

    def serve(waveform: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probability": _gpd(_filtered(waveform, module.filter), module.weights)}

    signature = [tf.TensorSpec([None, WINDOW, 3], tf.float32, name="waveform")]
    module.serve = tf.function(serve, input_signature=signature, autograph=False)
    return module


def _filtered(waveform: tf.Tensor, response: tf.Tensor) -> tf.Tensor:
    """``[n, 1, 400, 3]``: filtered, over the largest amplitude of all components; exact zeros if all are constant.

    The middle of the range goes first, which is exact for a constant; and the range, so that amplitudes of 1e-14 and
    of 1e9 are alike.
    """
    x = tf.transpose(waveform[:, : PAST + SAMPLES], [0, 2, 1])  # [n, component, sample]
    high, low = tf.reduce_max(x, 2, keepdims=True), tf.reduce_min(x, 2, keepdims=True)
    half = tf.reduce_max(0.5 * high - 0.5 * low, 1, keepdims=True)
    x = (x - (0.5 * high + 0.5 * low)) / tf.where(half > 0, half, 1.0)
    x = tf.nn.conv2d(tf.expand_dims(x, 3), response, 1, "VALID")  # [n, component, sample, 1]
    x = x / tf.maximum(tf.reduce_max(tf.abs(x), [1, 2], keepdims=True), ROUNDING)
    return tf.transpose(x, [0, 3, 2, 1])


def _gpd(x: tf.Tensor, weights: dict[str, tuple[tf.Tensor, tf.Tensor]]) -> tf.Tensor:
    """Probabilities ``[n, 3]`` of filtered waveforms ``[n, 1, 400, 3]``."""
    for number in range(1, len(KERNELS) + 1):
        kernel, bias = weights[f"conv{number}"]
        x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))
        x = tf.nn.max_pool2d(x, [1, 2], [1, 2], "VALID")
    x = tf.reshape(x, [-1, DENSE[0][0]])
    for number in range(1, len(DENSE) + 1):
        kernel, bias = weights[f"dense{number}"]
        x = tf.nn.relu(tf.nn.bias_add(tf.matmul(x, kernel), bias))
    kernel, bias = weights["dense3"]
    return tf.nn.softmax(tf.nn.bias_add(tf.matmul(x, kernel), bias))
