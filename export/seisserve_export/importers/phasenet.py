"""Import the published PhaseNet (Zhu and Beroza, 2019) as a TensorFlow module that takes raw counts.

The network is written out below over ``tf.nn`` and only the numbers are read from the file, by name::

    load_phasenet_tf1(folder)       the original TensorFlow 1 checkpoint
    load_phasenet_keras_h5(path)    the same numbers in a Keras HDF5 file

Both return a module whose ``serve`` maps ``waveform [n, 3000, 3]`` (raw, order Z, N, E) to
``probability [n, 3000, 3]`` (N, P, S). Normalisation and the order of components are part of the graph.

A file that is not there raises ``FileNotFoundError``, one that is not PhaseNet ``ValueError``.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from seisserve_export.importers.keras_hdf5 import read_variables

__all__ = ["load_phasenet_keras_h5", "load_phasenet_tf1", "normalise"]

WINDOW = 3000
COMPONENTS = 3
LABELS = 3
LEVELS = 5
ROOT_CHANNELS = 8
KERNEL = 7
STRIDE = 4
BATCH_NORM_EPSILON = 1e-3  # of the original graph, and of Keras by default

Array = npt.NDArray[np.float32]
Variables = dict[str, Array]  # layer/variable
Weights = dict[str, tuple[tf.Tensor, tf.Tensor]]  # convolution: kernel, bias


class Layer(NamedTuple):
    """A convolution as the files name it. A transposed one keeps its output channels before its input channels."""

    conv: str
    batch_norm: str | None
    kernel_shape: tuple[int, int, int, int]
    biased: bool = False
    transposed: bool = False


def load_phasenet_tf1(checkpoint: Path) -> tf.Module:
    """Read the folder that holds the file ``checkpoint`` and the ``.index`` and ``.data`` files it names."""
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"{checkpoint}: no such folder; expected the folder of a TensorFlow 1 checkpoint")
    prefix = tf.train.latest_checkpoint(str(checkpoint))
    if prefix is None:
        raise FileNotFoundError(
            f"{checkpoint}: no checkpoint here; expected a file 'checkpoint' and the .index and .data files it names"
        )
    try:
        reader = tf.train.load_checkpoint(prefix)
        names = [name for name in reader.get_variable_to_shape_map() if name.count("/") == 2]  # not the optimizer's
        variables = {name.partition("/")[2]: reader.get_tensor(name) for name in names}  # scope/layer/variable
    except (tf.errors.OpError, IndexError) as error:  # IndexError: the data file is too short
        raise ValueError(f"{prefix}: cannot be read as a TensorFlow checkpoint: {error}") from error
    return _module(_fold_all(checkpoint, variables))


def load_phasenet_keras_h5(path: Path) -> tf.Module:
    """Read the weights of a Keras HDF5 file, and nothing else of it.

    The ``model_config`` inside the published ``model_95_converted.h5`` describes another network (max pooling in
    place of strided convolutions, 2816 output samples), whose weights happen to have the same names and shapes. The
    numbers are those of the checkpoint, bit for bit, so they belong into the network of the checkpoint.
    """
    return _module(_fold_all(path, read_variables(path)))


def _layers() -> list[Layer]:
    layers = [Layer("input_conv", "input_bn", (KERNEL, 1, COMPONENTS, ROOT_CHANNELS), biased=True)]
    for level in range(1, LEVELS + 1):
        n = ROOT_CHANNELS * 2 ** (level - 1)
        above = max(n // 2, ROOT_CHANNELS)
        layers.append(Layer(f"down_conv1_{level}", f"down_bn1_{level}", (KERNEL, 1, above, n)))
        if level < LEVELS:
            layers.append(Layer(f"down_conv3_{level}", f"down_bn3_{level}", (KERNEL, 1, n, n)))
            layers.append(Layer(f"up_conv0_{level}", f"up_bn0_{level}", (KERNEL, 1, n, 2 * n), transposed=True))
            layers.append(Layer(f"up_conv1_{level}", f"up_bn1_{level}", (KERNEL, 1, 2 * n, n)))
    layers.append(Layer("output_conv", None, (1, 1, ROOT_CHANNELS, LABELS), biased=True))
    return layers


def _fold_all(source: Path, variables: Variables) -> dict[str, tuple[Array, Array]]:
    folded = {layer.conv: _fold(source, layer, variables) for layer in _layers()}
    kernel, bias = folded["input_conv"]
    folded["input_conv"] = (kernel[:, :, ::-1], bias)  # the published input is E, N, Z; ours is Z, N, E
    return folded


def _fold(source: Path, layer: Layer, variables: Variables) -> tuple[Array, Array]:
    """Kernel ``[1, width, channels, channels]`` and bias ``[out]``, with the batch norm multiplied in (in float64)."""

    def read(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        if name not in variables:
            raise ValueError(f"{source}: not PhaseNet, the variable '{name}' is missing")
        if variables[name].shape != shape:
            raise ValueError(f"{source}: not PhaseNet, '{name}' has shape {variables[name].shape} instead of {shape}")
        return variables[name].astype(np.float64)

    channels = layer.kernel_shape[2 if layer.transposed else 3]
    kernel = read(f"{layer.conv}/kernel", layer.kernel_shape)
    bias = read(f"{layer.conv}/bias", (channels,)) if layer.biased else np.zeros(channels)
    if layer.batch_norm is not None:
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        gamma, beta, mean, variance = (read(f"{layer.batch_norm}/{name}", (channels,)) for name in names)
        scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
        kernel = kernel * (scale[:, None] if layer.transposed else scale)
        bias = beta + (bias - mean) * scale
    return kernel.swapaxes(0, 1).astype(np.float32), bias.astype(np.float32)


def _module(folded: dict[str, tuple[Array, Array]]) -> tf.Module:
    module = tf.Module(name="phasenet")
    module.weights = {
        name: (tf.Variable(kernel, trainable=False), tf.Variable(bias, trainable=False))
        for name, (kernel, bias) in folded.items()
    }

    def serve(waveform: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probability": _phasenet(normalise(waveform), module.weights)}

    signature = [tf.TensorSpec([None, WINDOW, COMPONENTS], tf.float32, name="waveform")]
    module.serve = tf.function(serve, input_signature=signature, autograph=False)
    return module


def normalise(waveform: tf.Tensor) -> tf.Tensor:
    """Mean 0 and standard deviation 1 per window and component, whatever the amplitude; exact zeros if constant.

    The middle of the range of a constant is that constant, which cannot be said of its mean in float32. Scaling by
    half the range first keeps the squares of 1e-14 and of 1e9 alike within float32.
    """
    x = tf.transpose(waveform, [0, 2, 1])  # [n, component, sample]: reductions along memory are much faster in ONNX
    high, low = tf.reduce_max(x, 2, keepdims=True), tf.reduce_min(x, 2, keepdims=True)
    x = _divide(x - (0.5 * high + 0.5 * low), 0.5 * high - 0.5 * low)
    x = x - tf.reduce_mean(x, 2, keepdims=True)
    x = _divide(x, tf.sqrt(tf.reduce_mean(x * x, 2, keepdims=True)))
    return tf.transpose(x, [0, 2, 1])


def _divide(x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    return x / tf.where(scale > 0, scale, 1.0)


def _phasenet(waveform: tf.Tensor, weights: Weights) -> tf.Tensor:
    """Probabilities ``[n, sample, label]`` of normalised waveforms ``[n, sample, component]``.

    Images of height 1, ``[n, 1, sample, channel]``: onnxruntime runs them twice as fast as images of width 1.
    """
    x = _conv(tf.expand_dims(waveform, 1), *weights["input_conv"])
    skips = []
    for level in range(1, LEVELS):
        x = _conv(x, *weights[f"down_conv1_{level}"])
        skips.append(x)  # 3000, 750, 188, 47 samples
        x = _conv(x, *weights[f"down_conv3_{level}"], stride=STRIDE)
    x = _conv(x, *weights[f"down_conv1_{LEVELS}"])  # 12 samples
    for level in range(LEVELS - 1, 0, -1):
        skip = skips.pop()
        x = _upsample(x, *weights[f"up_conv0_{level}"], samples=skip.shape[2])
        x = _conv(tf.concat([skip, x], axis=3), *weights[f"up_conv1_{level}"])
    kernel, bias = weights["output_conv"]
    logits = tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)
    return tf.nn.softmax(tf.squeeze(logits, 1))


def _conv(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, stride: int = 1) -> tf.Tensor:
    return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, [1, stride], "SAME"), bias))


def _upsample(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, samples: int) -> tf.Tensor:
    """Four times as many samples, then the middle ``samples`` of them, as the original crops."""
    # "SAME" and a crop: tf2onnx 1.17 takes explicit padding for symmetric here, and shifts the output by a sample.
    width, channels = STRIDE * x.shape[2], kernel.shape[2]
    shape = tf.stack([tf.shape(x)[0], 1, width, channels])
    x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d_transpose(x, kernel, shape, [1, STRIDE], "SAME"), bias))
    start = (width - samples) // 2  # 48 -> 47 drops the last, 752 -> 750 one at each end
    return x[:, :, start : start + samples] if samples != width else x
