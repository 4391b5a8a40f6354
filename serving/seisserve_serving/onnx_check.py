"""ONNX files that ask for more than their own content are refused before a runtime sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from seisserve.errors import BundleError
from seisserve.proto import onnx_wire_pb2 as wire

__all__ = ["check_onnx"]

DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}  # what onnxruntime itself brings
EXTERNAL = 1


def check_onnx(path: Path) -> None:
    """Raises BundleError for a file that has weights in other files, or operators that are no part of onnxruntime."""
    try:
        model = wire.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise BundleError(f"{path}: not an ONNX file") from error
    own = {function.domain for function in model.functions}  # made of other operators in the file itself
    used = {item.domain for item in model.opset_import} | {node.domain for node in _nodes(model)}
    if foreign := used - own - DOMAINS:
        raise BundleError(f"{path}: it needs operators of {', '.join(sorted(foreign))}; custom operators are not run")
    if any(tensor.data_location == EXTERNAL for tensor in _tensors(model)):
        raise BundleError(f"{path}: it has weights in other files; save it as one file")


def _nodes(model: wire.ModelProto) -> Iterator[wire.NodeProto]:
    def inside(nodes: Iterable[wire.NodeProto]) -> Iterator[wire.NodeProto]:
        for node in nodes:
            yield node
            for graph in _inner(node):
                yield from inside(graph.node)

    yield from inside(model.graph.node)
    for function in model.functions:
        yield from inside(function.node)


def _tensors(model: wire.ModelProto) -> Iterator[wire.TensorProto]:
    for graph in [model.graph, *(graph for node in _nodes(model) for graph in _inner(node))]:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def _inner(node: wire.NodeProto) -> Iterator[wire.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
