"""One model version from its folder to where it can be called: checked, loaded, proven, warmed up."""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from msgspec.structs import replace

from seisserve import bundle, runtime
from seisserve.bundle import Bundle
from seisserve.errors import BundleError, SeisserveError, UsageError
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.runtimes.setup import Setup, processors
from seisserve.tensors import to_array
from seisserve.transport import Arrays
from seisserve_serving.configs import ModelConfig, check_links, check_size, content
from seisserve_serving.lanes import Batching, Queue
from seisserve_serving.models import Models, Served
from seisserve_serving.onnx_check import check_onnx
from seisserve_serving.plain import load_onnx, load_saved_model
from seisserve_serving.saved_model_check import check_saved_model
from seisserve_serving.signatures import zero_inputs
from seisserve_serving.text_config import read_batching
from seisserve_serving.until import LIMIT_S, Steps, Until

__all__ = ["Loading", "load_version", "read_records", "step_back"]

WARM_UP = Path("assets.extra") / "tf_serving_warmup_requests"
NICENESS = 10
MOST_RECORDS = 1000  # as TensorFlow Serving
MOST_WARM_UP_MB = 64  # checking their sums takes seconds
MOST_MANIFEST_MB = 16
PER_MODEL_BATCHING = "batching_params.pbtxt"


class Loading(NamedTuple):
    """How versions are loaded. setup_for: how to run a bundle. batching: of models that have none of their own; with
    batch_plain that is for plain folders, too (nothing says that the rows of their tensors are independent).
    per_model_batching: read it from each version's folder. warm_up: compute batches before anyone can call. told: hears
    of each version that is ready, its name, number, and the seconds that took. run_timeout_s: for each run of a network
    while it is loaded, and later of one that has loops; 0 for any time."""

    setup_for: Callable[[Bundle], Setup]
    batching: Batching | None = None
    per_model_batching: bool = False
    warm_up: bool = True
    batch_plain: bool = False
    told: Callable[[str, int, float], None] | None = None
    run_timeout_s: float = LIMIT_S


def load_version(
    models: Models, config: ModelConfig, version: int, folder: Path, how: Loading, steps: Steps
) -> tuple[Served, str]:
    """A version, ready to be published, and in words how it runs; on a thread made for it. `steps` hears of each run of
    the network. Raises SeisserveError that says what is wrong with it; a runtime may raise anything."""
    check_links(folder, config.base_path)
    _check_manifest(models, config.name, folder)
    batching = config.batching
    if how.per_model_batching and (folder / PER_MODEL_BATCHING).is_file():
        try:
            batching = read_batching(folder / PER_MODEL_BATCHING)
        except UsageError as error:
            raise BundleError(str(error)) from error
        batching = replace(batching, mode=how.batching.mode if how.batching else batching.mode)
    if batching is None and (how.batch_plain or content(folder) == "manifest.json"):
        batching = how.batching
    match content(folder):
        case "manifest.json":
            served, told = _bundle(models, config, version, folder, how, batching, steps)
        case "saved_model.pb" if config.platform != "onnxruntime":
            plain = load_saved_model(folder, config.name)
            served, told = models.of_plain(config.name, version, plain, batching, folder), "tensorflow"
        case _ if config.platform != "tensorflow" and (folder / "model.onnx").is_file():
            plain = load_onnx(folder / "model.onnx", config.name, models.lanes.count, how.run_timeout_s)
            served, told = models.of_plain(config.name, version, plain, batching, folder), "onnxruntime"
        case _:
            platform = config.platform or "any platform"
            raise BundleError(f"{folder} has no model for {platform}; it needs saved_model.pb or model.onnx")
    if how.warm_up:
        step_back()  # now, not before: threads that a runtime has just made would have stepped back with this one
        _warm_up(served, folder, steps)
        _replay(served, folder / WARM_UP, steps)
    return served, told


def _check_manifest(models: Models, name: str, folder: Path) -> None:
    """Raises BundleError for a bundle whose manifest is missing, or too large to be one: without it a network would be
    served that nothing proves and that takes no waveforms, in place of one that does."""
    if content(folder) == "manifest.json":
        check_size(folder / "manifest.json", MOST_MANIFEST_MB)
        return
    if (folder / "golden.npz").exists():
        raise BundleError(f"{folder} has no manifest.json, but golden.npz as a bundle has; put the whole bundle there")
    for version, served in models.served.get(name, {}).items():
        if served.has_manifest:
            raise BundleError(f"{folder} has no manifest.json, which version {version} of {name!r} has")


def _bundle(
    models: Models, config: ModelConfig, version: int, folder: Path, how: Loading, batching: Batching | None,
    steps: Steps,
) -> tuple[Served, str]:  # fmt: skip
    found = bundle.read(folder)
    if found.name not in (config.name, config.base_path.name):
        raise BundleError(f"{folder}: the manifest says {found.name!r}, the folder {config.base_path.name!r}")
    setup = how.setup_for(found)
    artifacts = found.manifest.artifacts.values()
    listed = [(folder / item.file, item.size_bytes) for item in artifacts if item.format == "onnx" and found.has(item)]
    for path, size in listed:
        if path.stat().st_size != size:
            raise BundleError(f"{path}: {path.stat().st_size} bytes, the manifest says {size}")
    for path in sorted({*(path for path, _ in listed), *filter(Path.is_file, folder.glob("*.onnx"))}):
        check_onnx(path, one_pass=True)
    if setup.runtime == "tensorflow" and setup.backend is None:
        check_saved_model(folder)
    with _golden_windows_fit(folder):
        manifest, transport = runtime.prepare(found, setup, steps.run(f"{folder}: the run of its golden windows"))
    if manifest.name != config.name:  # served under another name on purpose
        manifest = replace(manifest, name=config.name)
    lanes = setup.lanes or processors()
    told = f"{setup.runtime}, {setup.precision}, {lanes} at once, {setup.batch_samples} samples a call"
    served = models.of_bundle(version, manifest, transport, batching, folder)
    if batching is not None and batching.mode == "fixed" and _place_matters(served, folder, steps):
        told += ", one window a batch, since its place in one changes the rounding"
        served = models.of_bundle(
            version, manifest, transport, replace(batching, max_batch_size=1, allowed_batch_sizes=()), folder
        )
    return served, told


@contextmanager
def _golden_windows_fit(folder: Path) -> Iterator[None]:
    """Raises BundleError where onnxruntime says that its inputs are not what the network takes: that will not pass."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "InvalidArgument":  # all that tells onnxruntime's errors apart
            raise
        raise BundleError(f"{folder}: the network does not take its golden windows: {error}") from error


def _place_matters(served: Served, folder: Path, steps: Steps) -> bool:
    """Whether the same window gives other bits at another place of a full batch: a matrix product whose rows are those
    of all windows is cut into blocks wherever they are full, here and there in the midst of a window."""
    manifest, queue = served.manifest, served.queue
    for samples in (manifest.window_samples, *manifest.fragment_windows):
        window = np.random.default_rng(0).normal(0, 100, (1, samples, *manifest.input.shape[2:])).astype(np.float32)
        batch = np.repeat(window, queue.size(samples), axis=0)
        with steps.run(f"{folder}: a full batch of {samples} samples"):
            outputs = queue.transport.predict(queue.model, {manifest.input.name: batch})
        for values in outputs.values():
            if not np.array_equal(values, np.repeat(values[:1], len(values), axis=0)):
                return True
    return False


def _warm_up(served: Served, folder: Path, steps: Steps) -> None:
    """Compute batches of each size that the queue was told to keep to; where any size may come, of 1, 2, 4, ... windows
    up to a full batch (of fragments only the smallest and the largest)."""
    if served.has_manifest:
        manifest, queue = served.manifest, served.queue
        shape = manifest.input.shape[2:]
        for samples in (manifest.window_samples, *manifest.fragment_windows):
            sizes = _sizes(queue, samples)
            for size in sizes if samples == manifest.window_samples else {sizes[0], sizes[-1]}:
                zeros = {manifest.input.name: np.zeros((size, samples, *shape), np.float32)}
                _run(queue, zeros, f"{folder}: a batch of {size} windows of {samples} zeros", steps)
        return
    for key, signature in served.signatures.items():
        queue = served.queues[key]
        for size in _sizes(queue, 1):
            inputs = zero_inputs(signature, size)
            if inputs is not None:
                with suppress(UsageError):  # zeros may be nothing that this network takes: no fault of the model
                    _run(queue, inputs, f"{folder}: signature {key} with {size} rows of zeros", steps)


def _sizes(queue: Queue, samples: int) -> list[int]:
    sizes = queue.sizes(samples)
    if queue.batching.allowed_batch_sizes or queue.batching.mode == "fixed":
        return sizes
    return sorted({2**power for power in range(sizes[-1].bit_length())} | {sizes[-1]})


def _run(queue: Queue, inputs: Arrays, what: str, steps: Steps) -> None:
    with steps.run(what):
        queue.transport.predict(queue.model, Until(inputs, steps.over))


def _replay(served: Served, path: Path, steps: Steps) -> None:
    """Compute the requests of a warm-up file. Raises BundleError that names the record at fault."""
    if not path.is_file():
        return
    check_size(path, MOST_WARM_UP_MB)
    for number, record in enumerate(read_records(path)):
        if number == MOST_RECORDS:
            raise BundleError(f"{path}: more than {MOST_RECORDS} records")
        try:
            request = wire.PredictionLog.FromString(record).predict_log.request
        except DecodeError as error:
            raise BundleError(f"{path}: record {number} is no PredictionLog") from error
        if not request.inputs:
            continue  # of another method
        try:
            signature = served.signature(request.model_spec.signature_name)
            types = {tensor.name: tensor.dtype for tensor in signature.inputs}
            inputs = {
                name: to_array(tensor, name, types.get(name, np.dtype(np.float32)))
                for name, tensor in request.inputs.items()
            }
            signature.check_inputs(inputs)
        except SeisserveError as error:
            raise BundleError(f"{path}: record {number}: {error}") from error
        _run(served.queues[signature.key], inputs, f"{path}: record {number}", steps)


def step_back(thread: int | None = None, niceness: int = NICENESS) -> None:
    """Leave the processors to the threads that answer calls, where each thread has a priority of its own: this thread,
    or that with a native id."""
    if sys.platform == "linux":
        chosen = threading.get_native_id() if thread is None else thread
        os.setpriority(os.PRIO_PROCESS, chosen, max(niceness, os.getpriority(os.PRIO_PROCESS, chosen)))


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file. Raises BundleError if it is cut off or damaged."""
    with path.open("rb") as file:
        while head := file.read(12):
            if len(head) < 12 or _masked_crc(head[:8]) != struct.unpack("<I", head[8:])[0]:
                raise BundleError(f"{path}: not a TFRecord file, or damaged at byte {file.tell() - len(head)}")
            (length,) = struct.unpack("<Q", head[:8])
            if length > path.stat().st_size:
                raise BundleError(f"{path}: cut off, a record has {length} bytes")
            body, tail = file.read(length), file.read(4)
            if len(tail) < 4 or _masked_crc(body) != struct.unpack("<I", tail)[0]:
                raise BundleError(f"{path}: damaged, or cut off, before byte {file.tell()}")
            yield body


def _masked_crc(content: bytes) -> int:
    """CRC-32C, rotated and shifted as the format wants it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = _table()
