"""Bundles of networks that are a formula, one for each task: written as ONNX, in no time, without weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from client.waveforms import manifest
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from seisserve import bundle
from seisserve.manifest import Artifact, Label, Manifest, Output, write
from seisserve.runtime import OnnxRuntime

WINDOW = 600
LABELS = ("detection", "P", "S")
Nodes = list[onnx.NodeProto]


def repository(folder: Path) -> Path:
    """A repository of four models that have the names of the usual ones.

    eqtransformer: how much larger than 500 the components are (Z: detection, N: P, E: S), detection over a second.
    cred: the same over all components, one value for 50 samples. deepdenoiser: half of the input. recovery: samples
    below 3000 (less the middle of their window) as they are, larger ones doubled.
    """
    whole = manifest(LABELS, fragment_windows=(100, 300), name="eqtransformer", threshold=0.5)
    _write(folder, whole, _probability)
    frames = {"labels": ("detection",), "stride": 50, "fragment_windows": (), "task": "detection", "threshold": 0.5}
    _write(folder, manifest(name="cred", **frames), _framed)
    _write(folder, waveform_model("deepdenoiser", "denoising"), _half)
    _write(folder, waveform_model("recovery", "recovery"), _doubled)
    return folder


def waveform_model(name: str, task: str, **changes: Any) -> Manifest:
    """The contract of a model that gives waveforms."""
    model = manifest(labels=("Z", "N", "E"), name="x")
    output = Output(name="waveform", shape=(-1, model.window_samples, 3), labels=("Z", "N", "E"))
    return replace(model, name=name, task=task, labels={}, outputs=(output,), **changes)


def labels(threshold: float = 0.5) -> dict[str, Label]:
    return {label: Label(threshold=threshold) for label in LABELS}


def _write(repository: Path, model: Manifest, network: Callable[[str, str], Nodes]) -> None:
    folder = repository / model.name / "1"
    folder.mkdir(parents=True)
    shapes = {"in": ["n", "samples", 3], "out": ["n", *[f"d{k}" for k in model.output.shape[1:]]]}
    names = {"in": model.input.name, "out": model.onnx_output(model.output.name)}
    ends = [helper.make_tensor_value_info(names[key], TensorProto.FLOAT, shapes[key]) for key in ("in", "out")]
    graph = helper.make_graph(network(names["in"], names["out"]), model.name, ends[:1], ends[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    onnx.save(made, folder / "model.onnx")
    sha256, size = bundle.digest(folder / "model.onnx")
    artifact = Artifact(file="model.onnx", format="onnx", sha256=sha256, size_bytes=size)
    write(folder, replace(model, artifacts={"onnx": artifact}))
    windows = np.random.default_rng(0).normal(0, 1000, (3, WINDOW, 3)).astype(np.float32)
    answer = OnnxRuntime(bundle.read(folder), 1).predict(model, {model.input.name: windows})
    bundle.write_golden(folder, windows, answer[model.output.name])


def _constant(name: str, value: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))


def _probability(given: str, out: str) -> Nodes:
    return [
        *_size(given, "ratio"),
        helper.make_node("Transpose", ["ratio"], ["channels"], perm=[0, 2, 1]),
        helper.make_node("MaxPool", ["channels"], ["held"], kernel_shape=[101], pads=[50, 50]),
        helper.make_node("Transpose", ["held"], ["wide"], perm=[0, 2, 1]),
        _constant("is_box", np.array([1, 0, 0], bool)),
        helper.make_node("Where", ["is_box", "wide", "ratio"], [out]),
    ]


def _framed(given: str, out: str) -> Nodes:
    return [
        *_size(given, "ratio"),
        helper.make_node("Transpose", ["ratio"], ["channels"], perm=[0, 2, 1]),
        helper.make_node("MaxPool", ["channels"], ["frames"], kernel_shape=[50], strides=[50]),
        helper.make_node("ReduceMax", ["frames"], ["one"], axes=[1], keepdims=1),
        helper.make_node("Transpose", ["one"], [out], perm=[0, 2, 1]),
    ]


def _size(given: str, out: str) -> Nodes:
    """|x| / (|x| + 500)"""
    return [
        helper.make_node("Abs", [given], ["size"]),
        _constant("scale", np.float32(500)),
        helper.make_node("Add", ["size", "scale"], ["more"]),
        helper.make_node("Div", ["size", "more"], [out]),
    ]


def _half(given: str, out: str) -> Nodes:
    return [_constant("half", np.float32(0.5)), helper.make_node("Mul", [given, "half"], [out])]


def _doubled(given: str, out: str) -> Nodes:
    return [
        helper.make_node("Abs", [given], ["size"]),
        _constant("level", np.float32(3000)),
        helper.make_node("Greater", ["size", "level"], ["clipped"]),
        helper.make_node("Add", [given, given], ["double"]),
        helper.make_node("Where", ["clipped", "double", given], [out]),
    ]


def add_int8(repository: Path, name: str, rate: float = 200.0) -> bundle.Bundle:
    """Give a picker of the repository an artifact that rounds its probabilities to whole 255ths, as int8 does; the gate
    is said to have measured `rate` windows a second, and 100 for the float32 one."""
    found = bundle.find(name, repository)
    made = onnx.load(found.folder / "model.onnx")
    out = made.graph.output[0].name
    made.graph.node[-1].output[0] = "exact"
    scale = numpy_helper.from_array(np.float32(1 / 255), "step")
    zero = numpy_helper.from_array(np.uint8(0), "zero")
    made.graph.initializer.extend([scale, zero])
    made.graph.node.append(helper.make_node("QuantizeLinear", ["exact", "step", "zero"], ["whole"]))
    made.graph.node.append(helper.make_node("DequantizeLinear", ["whole", "step", "zero"], [out]))
    onnx.save(made, found.folder / "model.int8.onnx")
    sha256, size = bundle.digest(found.folder / "model.int8.onnx")
    rounded = Artifact(
        file="model.int8.onnx", format="onnx", precision="int8", sha256=sha256, size_bytes=size,
        parity={"golden": 0.5 / 255}, windows_per_second=rate,
    )  # fmt: skip
    onnx32 = replace(found.manifest.artifacts["onnx"], windows_per_second=100.0)
    write(found.folder, replace(found.manifest, artifacts={"onnx": onnx32, "onnx_int8": rounded}))
    return bundle.read(found.folder)
