"""TensorFlow Serving's text files, read as they are: the list of models, and batching parameters."""

from __future__ import annotations

import logging
from pathlib import Path

from google.protobuf import text_format

from seisserve.errors import UsageError
from seisserve.proto.tensorflow_batching_pb2 import BatchingParameters
from seisserve.proto.tensorflow_serving_wire_pb2 import OTHER, FileSystemStoragePathSourceConfig, ModelServerConfig
from seisserve.proto.tensorflow_serving_wire_pb2 import ModelConfig as ModelConfigMessage
from seisserve_serving.configs import All, Latest, ModelConfig, Policy, Specific
from seisserve_serving.lanes import Batching

__all__ = ["batching", "model_configs", "read_batching", "read_models"]

log = logging.getLogger(__name__)
PLATFORMS = ("", "tensorflow", "onnxruntime")
MOST_BYTES = 16 << 20  # of a text file
OTHERS = ("batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
# Batching parameters that have no meaning here, and why; they are read and logged.
IGNORED = {
    "thread_pool_name": "all models share the lanes of this server",
    "pad_variable_length_inputs": "only inputs of one shape are computed together",
}
MOST_ROWS = 8192  # in a batch: a batch of each size is computed before a model is served


def read_models(path: Path) -> list[ModelConfig]:
    """The models of a `models.config`. A base_path that is not absolute starts at the file. Raises UsageError."""
    message = ModelServerConfig()
    _parse(path, message)
    return model_configs(message, path.parent, str(path))


def model_configs(message: ModelServerConfig, start: Path, where: str) -> list[ModelConfig]:
    """The models of a list of models. start: where a relative base_path starts; where: for messages. Raises
    UsageError that names the field at fault."""
    if message.WhichOneof("config") == "custom_model_config":
        raise UsageError(f"{where}: custom_model_config is not supported; it must be model_config_list")
    if message.WhichOneof("config") is None:  # also a file that somebody is about to write
        raise UsageError(f"{where} is empty; it must have a model_config_list")
    found: dict[str, ModelConfig] = {}
    for number, item in enumerate(message.model_config_list.config):
        place = f"{where}: config {number} ({item.name!r})"
        if not item.name or not item.base_path:
            raise UsageError(f"{place}: name and base_path must be there")
        if "\0" in item.name + item.base_path:
            raise UsageError(f"{place}: name and base_path {item.base_path!r} must not have a zero character in them")
        if item.name in found:
            raise UsageError(f"{place}: that name is there twice")
        if item.model_platform not in PLATFORMS or item.model_type == OTHER:
            raise UsageError(
                f"{place}: model_platform is {item.model_platform!r}; it must be tensorflow, onnxruntime or absent"
            )
        if item.HasField("logging_config"):
            log.warning("%s: logging_config is ignored; this server does not record requests", place)
        found[item.name] = ModelConfig(
            item.name, start / item.base_path, item.model_platform, _policy(item, place), _labels(item, place)
        )
    return list(found.values())


def read_batching(path: Path) -> Batching:
    """The batching parameters of a file. Raises UsageError."""
    message = BatchingParameters()
    _parse(path, message)
    return batching(message, str(path))


def batching(message: BatchingParameters, where: str) -> Batching:
    """Batching parameters as the lanes take them. Raises UsageError that names the parameter at fault."""
    given = {
        name: getattr(message, name).value
        for name in ("max_batch_size", *OTHERS, "max_execution_batch_size")
        if message.HasField(name)
    }
    for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads", "max_execution_batch_size"):
        if given.get(name, 1) < 1:
            raise UsageError(f"{where}: {name} is {given[name]}; it must be at least 1")
    rows, sizes = _at_once(message, given, where), tuple(message.allowed_batch_sizes)
    for name, values in ((rows, [given.get(rows, 0)]), ("allowed_batch_sizes", sizes)):
        if max(values, default=0) > MOST_ROWS:
            verb = "has" if values is sizes else "is"
            raise UsageError(f"{where}: {name} {verb} {max(values)}; it must be at most {MOST_ROWS}")
    try:
        return Batching(
            max_batch_size=given.get(rows, 0),
            **{name: given[name] for name in OTHERS if name in given},
            allowed_batch_sizes=sizes,
        )
    except UsageError as error:
        raise UsageError(f"{where}: {str(error).replace('max_batch_size', rows)}") from error


def _at_once(message: BatchingParameters, given: dict[str, int], where: str) -> str:
    """Which parameter says how many rows are computed at once; what means nothing is logged. Raises UsageError."""
    split = message.enable_large_batch_splitting
    ignored = {field.name: IGNORED[field.name] for field, _ in message.ListFields() if field.name in IGNORED}
    if message.HasField("enable_large_batch_splitting") and not split.value:
        ignored["enable_large_batch_splitting"] = "large requests are always split"
    if "max_execution_batch_size" in given and not split.value:
        ignored["max_execution_batch_size"] = "it counts with enable_large_batch_splitting only"
    for name, why in ignored.items():
        log.warning("%s: %s is ignored: %s", where, name, why)
    if "max_execution_batch_size" not in given or not split.value:
        return "max_batch_size"
    rows, most = given["max_execution_batch_size"], given.get("max_batch_size", MOST_ROWS)
    if rows > most:
        raise UsageError(f"{where}: max_execution_batch_size is {rows}; it must be at most max_batch_size, {most}")
    return "max_execution_batch_size"


def _parse(path: Path, message: ModelServerConfig | BatchingParameters) -> None:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path}: larger than {MOST_BYTES >> 20} MB; this is no configuration")
        text_format.Parse(path.read_text(encoding="utf-8"), message)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a {type(message).__name__} text file: {error}") from error


def _policy(item: ModelConfigMessage, place: str) -> Policy:
    policy: FileSystemStoragePathSourceConfig.ServableVersionPolicy = item.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return All()
        case "specific":
            if not policy.specific.versions or min(policy.specific.versions) < 1:
                raise UsageError(f"{place}: model_version_policy.specific must name versions, each 1 or more")
            return Specific(frozenset(policy.specific.versions))
        case _:
            return Latest(policy.latest.num_versions or 1)


def _labels(item: ModelConfigMessage, place: str) -> dict[str, int]:
    for label, version in item.version_labels.items():
        if not label or version < 1:
            raise UsageError(f"{place}: version_labels has {label!r}: {version}; labels and versions must not be empty")
    return dict(item.version_labels)
