"""Models without a manifest: SavedModel and ONNX folders of any network, called by their own signatures.

They are checked for what they must not do, but for nothing else: there are no digests and no golden outputs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve.errors import BundleError, UsageError
from seisserve.extras import need
from seisserve.runtime import onnxruntime_errors
from seisserve.tensors import TYPES
from seisserve.transport import Arrays
from seisserve_serving.lanes import Network
from seisserve_serving.onnx_check import check_onnx
from seisserve_serving.saved_model_check import check_saved_model
from seisserve_serving.signatures import DEFAULT, Signature, TensorSpec
from seisserve_serving.until import LIMIT_S, Over, Until, limited, stopped

__all__ = ["Plain", "load_onnx", "load_saved_model"]

ROWS = 64  # in a batch, if nothing else is said
QUIET = 4  # of onnxruntime: fatal errors alone go to its own log
INITIALISERS = {"__saved_model_init_op", "__saved_model_train_op"}
ONNX_TYPES = {
    "tensor(float)": "<f4", "tensor(double)": "<f8", "tensor(float16)": "<f2", "tensor(int8)": "i1",
    "tensor(int16)": "<i2", "tensor(int32)": "<i4", "tensor(int64)": "<i8", "tensor(uint8)": "u1",
    "tensor(uint16)": "<u2", "tensor(uint32)": "<u4", "tensor(uint64)": "<u8", "tensor(bool)": "?",
    "tensor(string)": "O",
}  # fmt: skip


class Plain(NamedTuple):
    """A model without a manifest, loaded: what computes each of its signatures. loops: whether a run may take any time,
    and can be stopped."""

    platform: str
    networks: dict[str, tuple[Signature, Network]]
    loops: bool = False


class _Onnx:
    """An ONNX file, each call on the thread that makes it. limit_s: for each run of a file with loops."""

    def __init__(self, session: Any, lanes: int, options: Callable[[], Any], loops: bool, limit_s: float) -> None:
        self.lanes, self.batch_samples = lanes, ROWS
        self._session, self._options = session, options
        self._loops, self._limit_s = loops, limit_s
        self._free = threading.BoundedSemaphore(lanes)
        self._errors = onnxruntime_errors()

    def predict(self, model: Signature, inputs: Arrays) -> Arrays:
        names = [output.name for output in model.outputs]
        given = {name: _unicode(name, array) if array.dtype.kind == "O" else array for name, array in inputs.items()}
        over = inputs.over if isinstance(inputs, Until) else None
        if self._loops:
            over = limited(model.name, self._limit_s, over)
        with self._free:
            try:
                found = self._session.run(names, given) if over is None else self._run_until(names, given, over)
            except self._errors as error:
                raise UsageError(f"{model.name} cannot compute these inputs: {_first_line(error)}") from error
        return dict(zip(names, found, strict=True))

    def _run_until(self, names: list[str], given: dict[str, NDArray[Any]], over: Over) -> Any:
        options = self._options()

        def stop() -> None:
            options.terminate = True

        with stopped(over, stop):
            return self._session.run(names, given, options)


class _SavedModel:
    """A signature of a SavedModel; TensorFlow brings its own threads."""

    lanes, batch_samples = 1, ROWS

    def __init__(self, model: Any, key: str, errors: tuple[type[Exception], ...]) -> None:
        self._model, self._function, self._errors = model, model.signatures[key], errors
        self._constant = need("tensorflow", "tensorflow").constant

    def predict(self, model: Signature, inputs: Arrays) -> Arrays:
        given = {tensor.name: self._constant(inputs[tensor.name], _type(tensor)) for tensor in model.inputs}
        try:
            found: Mapping[str, Any] = self._function(**given)
            return {name: np.asarray(value.numpy()) for name, value in found.items()}
        except self._errors as error:
            raise UsageError(f"{model.name} cannot compute these inputs: {_first_line(error)}") from error


def load_onnx(path: Path, name: str, lanes: int, limit_s: float = LIMIT_S) -> Plain:
    """An ONNX file, on the CPU; its one signature is `serving_default`. limit_s: for each run, if it has loops; 0 for
    any time. Raises BundleError, MissingExtra."""
    loops = bool(check_onnx(path))
    ort = need("onnxruntime", "edge")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = QUIET
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except onnxruntime_errors() as error:
        raise BundleError(f"{path}: onnxruntime cannot load it: {error}") from error
    given, made = (
        [_onnx_tensor(path, item) for item in items] for items in (session.get_inputs(), session.get_outputs())
    )
    signature = Signature(name, DEFAULT, tuple(given), tuple(made))

    def run_options() -> Any:
        made = ort.RunOptions()
        made.log_severity_level = QUIET  # that a run was stopped is told elsewhere
        return made

    network = _Onnx(session, lanes, run_options, loops, limit_s)
    return Plain("onnxruntime_onnx", {DEFAULT: (signature, network)}, loops)


def load_saved_model(folder: Path, name: str) -> Plain:
    """A SavedModel with all its signatures. Raises BundleError, MissingExtra."""
    tf = need("tensorflow", "tensorflow")
    graph = check_saved_model(folder)
    errors = (tf.errors.OpError, ValueError, TypeError, OSError, KeyError, AttributeError)
    try:
        model = tf.saved_model.load(str(folder))
    except errors as error:
        raise BundleError(f"{folder}: TensorFlow cannot load it: {_first_line(error)}") from error
    networks: dict[str, tuple[Signature, Network]] = {}
    for key, found in sorted(graph.signature_def.items()):
        if key not in INITIALISERS and key in model.signatures:
            given, made = (
                tuple(_graph_tensor(folder, alias, info) for alias, info in sorted(tensors.items()))
                for tensors in (found.inputs, found.outputs)
            )
            networks[key] = (
                Signature(name, key, given, made, found.method_name),
                _SavedModel(model, key, (tf.errors.InvalidArgumentError, ValueError)),
            )
    if not networks:
        raise BundleError(f"{folder}: the SavedModel has no signature that could be called")
    return Plain("tensorflow_savedmodel", networks)


def _graph_tensor(folder: Path, alias: str, info: Any) -> TensorSpec:
    if info.dtype not in TYPES or info.WhichOneof("encoding") not in (None, "name"):
        raise BundleError(f"{folder}: tensor {alias!r} is of a kind that cannot be sent (type {info.dtype})")
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(alias, TYPES[info.dtype][0], shape, info.name)


def _onnx_tensor(path: Path, item: Any) -> TensorSpec:
    if item.type not in ONNX_TYPES:
        raise BundleError(f"{path}: {item.name!r} is a {item.type}, which cannot be sent")
    # onnxruntime tells a scalar and an unknown shape in the same way.
    shape = tuple(size if isinstance(size, int) else -1 for size in item.shape) if item.shape else None
    return TensorSpec(item.name, np.dtype(ONNX_TYPES[item.type]), shape, item.name)


def _unicode(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Strings as onnxruntime wants them. Raises UsageError for bytes that are none."""
    made = np.empty(array.shape, object)
    try:
        made.ravel()[:] = [text.decode() if isinstance(text, bytes) else text for text in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise UsageError(f"input {name!r}: a string is not UTF-8 ({error})") from error
    return made


def _type(tensor: TensorSpec) -> Any:
    return "string" if tensor.dtype.kind == "O" else tensor.dtype


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
