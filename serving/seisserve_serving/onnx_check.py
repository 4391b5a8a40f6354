"""ONNX files that ask for more than their own content are refused before a runtime sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from seisserve.errors import BundleError
from seisserve.proto import onnx_wire_pb2 as wire
from seisserve_serving.configs import MOST_MESSAGE_MB, check_size

__all__ = ["check_onnx"]

DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}  # what onnxruntime itself brings
EXTERNAL = 1
CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}
MOST_NODES = 1_000_000  # once the functions in the file are written out, each of which may call others many times


def check_onnx(path: Path, *, one_pass: bool = False) -> set[str]:
    """The operators in it that have a graph of their own, which may be computed for ever. Raises BundleError for a file
    that has weights in other files, operators that are no part of onnxruntime, or functions that become more than a
    runtime could hold; with one_pass also for any such operator."""
    check_size(path, MOST_MESSAGE_MB)
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
    found = {node.op_type for node in _nodes(model) if node.op_type in CONTROL_FLOW or any(_inner(node))}
    if one_pass and found:
        raise BundleError(f"{path}: it has {', '.join(sorted(found))}; the network of a bundle is computed in one pass")
    if _written_out(model) > MOST_NODES:
        raise BundleError(f"{path}: its functions call one another too often, or for ever")
    return found


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


def _written_out(model: wire.ModelProto) -> float:
    """How many nodes there are once every function is put where it is called; infinite for one that calls itself."""
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], float] = {}

    def size(nodes: Iterable[wire.NodeProto]) -> float:
        total = 0.0
        for node in nodes:
            total += 1 + sum(size(graph.node) for graph in _inner(node))
            if (key := (node.domain, node.op_type)) in functions:
                if key not in sizes:
                    sizes[key] = float("inf")  # as long as it is not known: what is met again calls itself
                    sizes[key] = size(functions[key].node)
                total += sizes[key]
        return total

    try:
        return size(model.graph.node)
    except RecursionError:
        return float("inf")
