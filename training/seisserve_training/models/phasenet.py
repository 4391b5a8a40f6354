"""PhaseNet: Zhu and Beroza (2019), Geophysical Journal International 216, doi:10.1093/gji/ggy423."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
from keras import layers, ops

from seisserve.manifest import Output
from seisserve_training.config import Network
from seisserve_training.labels import PHASES
from seisserve_training.models import published
from seisserve_training.models.architecture import Architecture, Serving
from seisserve_training.models.layers import Standardise
from seisserve_training.tasks.phases import PHASE_PICKING

__all__ = ["CITATION", "PHASENET", "body", "features", "load_published", "phasenet"]

CITATION = "Zhu and Beroza (2019), Geophysical Journal International 216, doi:10.1093/gji/ggy423"
DEPTH, STRIDE, KERNEL = 5, 4, 7
NOISE_PRIOR = 4.0  # logit; a sample of an onset is about one in a hundred
FRAGMENTS = (512, 1024, 2048, 4096, 8192)


def phasenet(components: int = 3, classes: int = 3, filters: int = 8, dropout: float = 0.0) -> keras.Model:
    """The U-Net of the paper, normalisation included.

    Input `waveform` [n, samples, components] in raw counts, samples a multiple of 256 (the total stride); output
    `probability` [n, samples, classes].
    """
    waveform = keras.Input((None, components), name="waveform")
    x = ops.expand_dims(Standardise(name="standardise")(waveform), 1)
    return keras.Model(waveform, body(x, classes, filters, dropout), name="phasenet")


def body(x: Any, classes: int, filters: int, dropout: float) -> Any:
    """The network behind the normalisation: [n, 1, samples, components] -> [n, samples, classes].

    The first class is noise, which most samples are. The bias says so from the start: a network that begins undecided
    spends its first hundreds of steps on learning that, and some seeds never learn more.
    """
    prior = keras.initializers.Constant([NOISE_PRIOR] + [0.0] * (classes - 1))
    x = layers.Conv2D(classes, 1, bias_initializer=prior, name="logits")(features(x, filters, dropout))
    return layers.Softmax(name="softmax")(ops.squeeze(x, 1))


def features(x: Any, filters: int, dropout: float) -> Any:
    """The U-Net without its last layer: [n, 1, samples, channels] -> [n, 1, samples, filters].

    Convolutions are two-dimensional of height one: runtimes have their fast kernels there.
    """
    x = _conv(x, filters, "in")
    skips = []
    for level in range(DEPTH):
        x = _conv(x, filters << level, f"down{level}", dropout=dropout)
        if level < DEPTH - 1:
            skips.append(x)
            x = _conv(x, filters << level, f"stride{level}", stride=STRIDE, dropout=dropout)
    for level in reversed(range(DEPTH - 1)):
        x = _up(x, filters << level, f"up{level}", dropout)
        x = layers.Concatenate(name=f"skip{level}")([skips[level], x])
        x = _conv(x, filters << level, f"join{level}", dropout=dropout)
    return x


def _conv(x: Any, filters: int, name: str, stride: int = 1, dropout: float = 0.0) -> Any:
    """[n, 1, samples, c] -> [n, 1, samples / stride, filters]"""
    x = layers.Conv2D(filters, (1, KERNEL), (1, stride), "same", use_bias=False, name=name)(x)
    return _finish(x, name, dropout)


def _up(x: Any, filters: int, name: str, dropout: float) -> Any:
    """[n, 1, samples, c] -> [n, 1, samples * STRIDE, filters]"""
    x = layers.Conv2DTranspose(filters, (1, KERNEL), (1, STRIDE), "same", use_bias=False, name=name)(x)
    return _finish(x, name, dropout)


def _finish(x: Any, name: str, dropout: float) -> Any:
    x = layers.BatchNormalization(name=f"{name}_norm", momentum=0.98)(x)
    x = layers.ReLU(name=f"{name}_relu")(x)
    return layers.Dropout(dropout, name=f"{name}_dropout")(x) if dropout else x


def load_published(model: keras.Model, path: Path) -> None:
    """Set the weights behind the normalisation to those of the published PhaseNet's Keras file (model_95_converted.h5).

    For every network with this body of 8 filters, three components and the classes N, P, S. Raises UsageError that
    names the first layer whose weights the file does not have, or not in that shape.
    """
    file = published.read(path)
    for name, conv, norm in _published_names():
        layer = model.get_layer(name)
        kernel, *bias = [file.array(f"{conv}/{part.name}", name, tuple(part.shape)) for part in layer.weights]
        if name == "in":
            kernel = kernel[:, :, ::-1]  # the published input is E, N, Z; ours is Z, N, E
        layer.set_weights([kernel, *bias])
        if norm:
            weights = model.get_layer(f"{name}_norm").weights
            values = {part.name: file.array(f"{norm}/{part.name}", name, tuple(part.shape)) for part in weights}
            if name == "in":  # a bias before a normalisation is a shift of its mean
                values["moving_mean"] = values["moving_mean"] - file.array("input_conv/bias", name, kernel.shape[-1:])
            model.get_layer(f"{name}_norm").set_weights([values[part.name] for part in weights])


def _published_names() -> Iterator[tuple[str, str, str]]:
    """Our convolutions, with the published layers of kernel and of normalisation; their levels count from one."""
    yield "in", "input_conv", "input_bn"
    for level in range(DEPTH):
        yield f"down{level}", f"down_conv1_{level + 1}", f"down_bn1_{level + 1}"
    for level in range(DEPTH - 1):
        yield f"stride{level}", f"down_conv3_{level + 1}", f"down_bn3_{level + 1}"
        yield f"up{level}", f"up_conv0_{level + 1}", f"up_bn0_{level + 1}"
        yield f"join{level}", f"up_conv1_{level + 1}", f"up_bn1_{level + 1}"
    yield "logits", "output_conv", ""


def build(network: Network, components: int) -> keras.Model:
    """The network of a configuration."""
    return phasenet(components, len(PHASES), network.filters, network.dropout)


def serve(network: Network, components: int) -> Serving:
    """Windows that overlap by half."""
    window = network.window_samples
    return Serving(
        window_samples=window,
        hop_samples=window // 2,
        fragment_windows=tuple(size for size in FRAGMENTS if size < window),
        outputs=(Output(name="probability", shape=(-1, window, len(PHASES)), labels=PHASES),),
        thresholds={"P": 0.3, "S": 0.3},
    )


PHASENET = Architecture("picking", CITATION, build, serve, PHASE_PICKING, load_published)
