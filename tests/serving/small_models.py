"""What the tests of the repository share: tiny bundles, and plain ONNX and SavedModel folders, in versions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from client.waveforms import manifest
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from seisserve import bundle
from seisserve.manifest import Artifact, write
from seisserve.runtime import OnnxRuntime
from seisserve.runtimes.setup import Setup
from seisserve_serving.lanes import Lanes
from seisserve_serving.loading import Loading
from seisserve_serving.models import Models
from seisserve_serving.repository import Repository, Source

WINDOW = 600
HOW = Loading(lambda found: Setup(lanes=1))


def add_bundle(base: Path, version: int, scale: float = 1.0, name: str = "", **changes: Any) -> Path:
    """A bundle in BASE/VERSION whose probability is |x| / (|x| + scale)."""
    folder = base / str(version)
    building = base.parent / f".{base.name}.{version}"
    building.mkdir(parents=True)
    model = manifest(name=name or base.name, fragment_windows=(), **changes)
    shape = ["n", *[f"d{axis}" for axis in model.output.shape[1:]]]
    single, labels = model.output.single, len(model.output.labels)
    nodes = [
        helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(np.float32(scale))),
        helper.make_node("Constant", [], ["low"], value=numpy_helper.from_array(np.array([0], np.int64))),
        helper.make_node("Constant", [], ["high"], value=numpy_helper.from_array(np.array([labels], np.int64))),
        helper.make_node("Constant", [], ["last"], value=numpy_helper.from_array(np.array([-1], np.int64))),
        helper.make_node("Abs", ["waveform"], ["size"]),
        helper.make_node("Add", ["size", "scale"], ["more"]),
        helper.make_node("Div", ["size", "more"], ["ratio"]),
        helper.make_node("Slice", ["ratio", "low", "high", "last"], ["curve" if single else "probability"]),
    ]
    if single:
        nodes.append(helper.make_node("ReduceMax", ["curve"], ["probability"], axes=[1], keepdims=0))
    ends = [
        helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["n", "samples", 3]),
        helper.make_tensor_value_info("probability", TensorProto.FLOAT, shape),
    ]
    save(helper.make_graph(nodes, "ratio", ends[:1], ends[1:]), building / "model.onnx")
    sha256, size = bundle.digest(building / "model.onnx")
    artifact = Artifact(file="model.onnx", format="onnx", sha256=sha256, size_bytes=size)
    write(building, replace(model, artifacts={"onnx": artifact}))
    windows = np.random.default_rng(0).normal(0, 10, (3, WINDOW, 3)).astype(np.float32)
    answer = OnnxRuntime(bundle.read(building), 1).predict(model, {"waveform": windows})
    bundle.write_golden(building, windows, answer["probability"])
    base.mkdir(exist_ok=True)
    building.rename(folder)  # at once, as an operator should, too
    return folder


def save(graph: onnx.GraphProto, path: Path, **opsets: int) -> None:
    """Write an ONNX file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    domains = [helper.make_opsetid("", 17), *(helper.make_opsetid(name, number) for name, number in opsets.items())]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=9), path)


def add_onnx(base: Path, version: int, kind: int = TensorProto.INT64, batch: str | int = "n") -> Path:
    """A plain ONNX folder: `sum` = `a` + `b`, both [n, 2]."""
    ends = [helper.make_tensor_value_info(name, kind, [batch, 2]) for name in ("a", "b", "sum")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["sum"])], "sum", ends[:2], ends[2:])
    folder = base / str(version)
    save(graph, folder / "model.onnx")
    return folder


def served(source: Path, how: Loading = HOW, **options: Any) -> Models:
    """A table of the models in a folder of models, or in a `models.config`, with all of them loaded."""
    models = Models(Lanes(1))
    Repository(models, how, Source(source, source.is_dir(), options.get("poll_s", 0.0)), **options)
    assert models.repository is not None
    models.repository.wait()
    return models


def end(models: Models) -> None:
    """Stop what a table of models runs on."""
    models.close()
    models.lanes.close()


def eventually(what: Callable[[], Any]) -> None:
    """Wait until something is so."""
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until, "it did not come about"
        threading.Event().wait(0.01)


def window(value: float = 1.0, count: int = 1) -> NDArray[np.float32]:
    """Windows of one value; a bundle of that scale gives one half."""
    return np.full((count, WINDOW, 3), value, np.float32)
