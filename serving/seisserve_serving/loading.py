"""One model version from its folder to where it can be called: checked, loaded, proven, warmed up."""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from msgspec.structs import replace

from seisserve import bundle, runtime
from seisserve.bundle import Bundle
from seisserve.errors import BundleError, SeisserveError
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.runtimes.setup import Setup, processors
from seisserve.tensors import to_array
from seisserve.transport import Arrays
from seisserve_serving.configs import ModelConfig, check_links, content
from seisserve_serving.lanes import Batching, Queue
from seisserve_serving.models import Models, Served
from seisserve_serving.onnx_check import check_onnx
from seisserve_serving.plain import load_onnx, load_saved_model
from seisserve_serving.saved_model_check import check_saved_model
from seisserve_serving.signatures import Signature, zero_inputs
from seisserve_serving.text_config import read_batching

__all__ = ["Loading", "load_version", "read_records"]

WARM_UP = Path("assets.extra") / "tf_serving_warmup_requests"
NICENESS = 10
MOST_RECORDS = 1000  # as TensorFlow Serving
PER_MODEL_BATCHING = "batching_params.pbtxt"


class Loading(NamedTuple):
    """How versions are loaded. setup_for: how to run a bundle. batching: of models that have none of their own; with
    batch_plain that is for plain folders, too (nothing says that the rows of their tensors are independent).
    per_model_batching: read it from each version's folder. warm_up: compute batches before anyone can call. told: hears
    of each version that is ready, its name, number, and the seconds that took."""

    setup_for: Callable[[Bundle], Setup]
    batching: Batching | None = None
    per_model_batching: bool = False
    warm_up: bool = True
    batch_plain: bool = False
    told: Callable[[str, int, float], None] | None = None


def load_version(models: Models, config: ModelConfig, version: int, folder: Path, how: Loading) -> tuple[Served, str]:
    """A version, ready to be published, and in words how it runs; on a thread made for it. Raises SeisserveError that
    says what is wrong with it; a runtime may raise anything."""
    check_links(folder, config.base_path)
    batching = config.batching
    if how.per_model_batching and (folder / PER_MODEL_BATCHING).is_file():
        batching = read_batching(folder / PER_MODEL_BATCHING)
        batching = replace(batching, mode=how.batching.mode if how.batching else batching.mode)
    if batching is None and (how.batch_plain or content(folder) == "manifest.json"):
        batching = how.batching
    match content(folder):
        case "manifest.json":
            served, told = _bundle(models, config, version, folder, how, batching)
        case "saved_model.pb" if config.platform != "onnxruntime":
            plain = load_saved_model(folder, config.name)
            served, told = models.of_plain(config.name, version, plain, batching, folder), "tensorflow"
        case _ if config.platform != "tensorflow" and (folder / "model.onnx").is_file():
            plain = load_onnx(folder / "model.onnx", config.name, models.lanes.count)
            served, told = models.of_plain(config.name, version, plain, batching, folder), "onnxruntime"
        case _:
            platform = config.platform or "any platform"
            raise BundleError(f"{folder} has no model for {platform}; it needs saved_model.pb or model.onnx")
    if how.warm_up:
        _step_back()  # now, not before: threads that a runtime has just made would have stepped back with this one
        _warm_up(served)
        _replay(served, folder / WARM_UP)
    return served, told


def _bundle(
    models: Models, config: ModelConfig, version: int, folder: Path, how: Loading, batching: Batching | None
) -> tuple[Served, str]:
    found = bundle.read(folder)
    if found.name not in (config.name, config.base_path.name):
        raise BundleError(f"{folder}: the manifest says {found.name!r}, the folder {config.base_path.name!r}")
    setup = how.setup_for(found)
    artifacts = found.manifest.artifacts.values()
    files = {found.folder / item.file for item in artifacts if item.format == "onnx" and found.has(item)}
    for path in sorted({*files, *folder.glob("*.onnx")}):
        check_onnx(path, one_pass=True)
    if setup.runtime == "tensorflow" and setup.backend is None:
        check_saved_model(folder)
    manifest, transport = runtime.prepare(found, setup)
    if manifest.name != config.name:  # served under another name on purpose
        manifest = replace(manifest, name=config.name)
    lanes = setup.lanes or processors()
    told = f"{setup.runtime}, {setup.precision}, {lanes} at once, {setup.batch_samples} samples a call"
    served = models.of_bundle(version, manifest, transport, batching, folder)
    if batching is not None and batching.mode == "fixed" and _place_matters(served):
        told += ", one window a batch, since its place in one changes the rounding"
        served = models.of_bundle(
            version, manifest, transport, replace(batching, max_batch_size=1, allowed_batch_sizes=()), folder
        )
    return served, told


def _place_matters(served: Served) -> bool:
    """Whether the same window gives other bits at another place of a full batch: a matrix product whose rows are those
    of all windows is cut into blocks wherever they are full, here and there in the midst of a window."""
    manifest, queue = served.manifest, served.queue
    for samples in (manifest.window_samples, *manifest.fragment_windows):
        window = np.random.default_rng(0).normal(0, 100, (1, samples, *manifest.input.shape[2:])).astype(np.float32)
        batch = np.repeat(window, queue.size(samples), axis=0)
        for values in queue.transport.predict(queue.model, {manifest.input.name: batch}).values():
            if not np.array_equal(values, np.repeat(values[:1], len(values), axis=0)):
                return True
    return False


def _warm_up(served: Served) -> None:
    """Compute batches of each size that the queue was told to keep to; where any size may come, of 1, 2, 4, ... windows
    up to a full batch (of fragments only the smallest and the largest)."""
    if served.has_manifest:
        manifest, queue = served.manifest, served.queue
        shape = manifest.input.shape[2:]
        for samples in (manifest.window_samples, *manifest.fragment_windows):
            sizes = _sizes(queue, samples)
            for size in sizes if samples == manifest.window_samples else {sizes[0], sizes[-1]}:
                queue.transport.predict(
                    queue.model, {manifest.input.name: np.zeros((size, samples, *shape), np.float32)}
                )
        return
    for key, signature in served.signatures.items():
        queue = served.queues[key]
        for size in _sizes(queue, 1):
            inputs = zero_inputs(signature, size)
            if inputs is not None:
                _try(queue, signature, inputs)


def _sizes(queue: Queue, samples: int) -> list[int]:
    sizes = queue.sizes(samples)
    if queue.batching.allowed_batch_sizes or queue.batching.mode == "fixed":
        return sizes
    return sorted({2**power for power in range(sizes[-1].bit_length())} | {sizes[-1]})


def _try(queue: Queue, signature: Signature, inputs: Arrays) -> None:
    """Zeros may be nothing that this network takes: that is no fault of the model."""
    try:
        queue.transport.predict(signature, inputs)
    except SeisserveError:
        return


def _replay(served: Served, path: Path) -> None:
    """Compute the requests of a warm-up file. Raises BundleError that names the record at fault."""
    if not path.is_file():
        return
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
        queue = served.queues[signature.key]
        queue.transport.predict(queue.model, inputs)


def _step_back() -> None:
    """Leave the processors to the threads that answer calls, where each thread has a priority of its own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


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
