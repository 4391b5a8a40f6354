"""SavedModels that reach beyond their own content are refused before TensorFlow loads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from seisserve.errors import BundleError
from seisserve.extras import need
from seisserve_serving.configs import MOST_MESSAGE_MB, check_size

__all__ = ["check_saved_model"]

# Operators that reach beyond the graph: to Python, to files that they name, to other machines.
UNSAFE = {
    "CacheDataset", "CacheDatasetV2", "CreateSummaryDbWriter", "CreateSummaryFileWriter", "DebugIdentity",
    "DebugIdentityV2", "DebugIdentityV3", "DebugNanCount", "DebugNumericSummary", "DebugNumericSummaryV2",
    "EagerPyFunc", "FixedLengthRecordDataset", "FixedLengthRecordDatasetV2", "FixedLengthRecordReader",
    "FixedLengthRecordReaderV2", "ImmutableConst", "LMDBDataset", "LMDBReader", "ListSnapshotChunksDataset",
    "LoadDataset", "MatchingFiles", "MatchingFilesDataset", "PyFunc", "PyFuncStateless", "ReadFile",
    "ReaderReadUpTo", "RegisterDataset", "RegisterDatasetV2", "RpcCall", "RpcClient", "RpcServer", "SaveDataset",
    "SaveDatasetV2", "SnapshotDataset", "SnapshotDatasetV2", "SqlDataset", "TFRecordDataset", "TFRecordDatasetV2",
    "TFRecordReader", "TFRecordReaderV2", "TextLineDataset", "TextLineReader", "TextLineReaderV2", "WholeFileReader",
    "WholeFileReaderV2", "WriteFile",
}  # fmt: skip
# These are in every SavedModel, which reads its variables with them. No signature needs them.
STORAGE = {
    "MergeV2Checkpoints", "Restore", "RestoreSlice", "RestoreV2", "Save", "SaveSlices", "SaveV2", "ShardedFilename",
}  # fmt: skip


def check_saved_model(folder: Path) -> Any:
    """Its graph for serving (MetaGraphDef). Raises BundleError for what is no SavedModel, or has operators that are not
    run here; MissingExtra."""
    graph = _serving_graph(folder)
    functions = {one.signature.name: one.node_def for one in graph.graph_def.library.function}
    all_nodes = [*graph.graph_def.node, *(node for nodes in functions.values() for node in nodes)]
    unsafe = {node.op for node in all_nodes if _is_unsafe(node)} | STORAGE & {
        node.op for node in _called(graph, functions)
    }
    if unsafe:
        raise BundleError(f"{folder}: it has operators that are not run here: {', '.join(sorted(unsafe))}")
    return graph


def _is_unsafe(node: Any) -> bool:
    prints_to_file = node.op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:")
    return node.op in UNSAFE or prints_to_file


def _serving_graph(folder: Path) -> Any:
    saved_model_pb2 = need("tensorflow.core.protobuf.saved_model_pb2", "tensorflow")
    path = folder / "saved_model.pb"
    check_size(path, MOST_MESSAGE_MB)
    try:
        graphs = saved_model_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs
    except DecodeError as error:
        raise BundleError(f"{path}: not a SavedModel") from error
    found = [graph for graph in graphs if "serve" in graph.meta_info_def.tags]
    if not found:
        raise BundleError(f"{path}: the SavedModel has no graph with the tag `serve`")
    if len(graphs) > 1:  # TensorFlow would have to choose
        raise BundleError(f"{path}: the SavedModel has {len(graphs)} graphs; it must have one, with the tag `serve`")
    return found[0]


def _called(graph: Any, functions: dict[str, Any]) -> Iterator[Any]:
    """The nodes that a signature, or a function of the saved objects, comes to."""
    nodes = {node.name: node for node in graph.graph_def.node}
    left = [_node(info.name) for one in graph.signature_def.values() for info in one.outputs.values()]
    bodies = list(graph.object_graph_def.concrete_functions)
    seen: set[str] = set()
    while left or bodies:
        here: Iterable[Any]
        if left:
            name = left.pop()
            if name in seen or name not in nodes:
                continue
            seen.add(name)
            here = [nodes[name]]
            left += map(_node, nodes[name].input)
        else:
            name = bodies.pop()
            if f"function {name}" in seen or name not in functions:
                continue
            seen.add(f"function {name}")
            here = functions[name]
        for node in here:
            yield node
            if node.op in functions:
                bodies.append(node.op)
            for value in node.attr.values():
                bodies += [one.name for one in (value.func, *value.list.func) if one.name]


def _node(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]
