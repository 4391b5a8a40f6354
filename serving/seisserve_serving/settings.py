"""Every setting of the server: what it means, what it may be, and where its value came from.

The structs below are the one source: the flags of `seisserve serve`, the environment variables (SEISSERVE_ and the name
in capitals), the tables of the TOML file and docs/settings.md all follow from them. A flag goes before the environment,
that before the file. Names that TensorFlow Serving has too mean the same here.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Meta

from seisserve.errors import UsageError

__all__ = [
    "FREE", "SECRETS", "Batch", "Compute", "Effective", "Field", "Limits", "Listen", "Operation", "Repository",
    "Security", "Settings", "as_markdown", "as_toml", "convert", "fields", "read",
]  # fmt: skip

PREFIX = "SEISSERVE_"
CONFIG = "SEISSERVE_CONFIG"  # names the file; not a setting itself
MASK = "***"
SECRETS = {"otlp_headers"}
# A Service of Kubernetes that is called seisserve puts these into every container; they are no settings.
SERVICE_LINK = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")

Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
FREE = -1  # rest_api_port: a free one


class Repository(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which models are served, and how they are kept up to date."""

    repository: Annotated[str, Meta(description="Folder of NAME/VERSION/ folders. Empty: the shipped models.")] = ""
    model_name: Annotated[str, Meta(description="With model_base_path: serve one model alone, by this name.")] = ""
    model_base_path: Annotated[str, Meta(description="Folder of the VERSION/ folders of that model.")] = ""
    model_config_file: Annotated[
        str, Meta(description="TensorFlow Serving's models.config: models, version policies, labels.")
    ] = ""
    model_config_file_poll_wait_seconds: Annotated[
        Seconds, Meta(description="Read that file again after so long. 0: never.")
    ] = 0.0
    file_system_poll_wait_seconds: Annotated[
        Seconds, Meta(description="Look for new and removed models and versions after so long. 0: only at the start.")
    ] = 1.0
    allow_version_labels_for_unavailable_models: Annotated[
        bool, Meta(description="Let the label of a reload name a version that is not loaded yet.")
    ] = False
    num_load_threads: Annotated[int, Meta(ge=1, description="Models loaded side by side.")] = 1
    max_num_load_retries: Annotated[Count, Meta(description="How often a load that failed is tried again.")] = 5
    load_retry_interval_micros: Annotated[Count, Meta(description="Microseconds between these.")] = 60_000_000


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the server listens."""

    host: Annotated[str, Meta(description="Address; 0.0.0.0 for all. Empty: the Unix socket alone.")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Of gRPC. 0: a free one, which is printed.")] = 8500
    grpc_socket_path: Annotated[str, Meta(description="Unix socket for gRPC, beside the port. Empty: none.")] = ""
    shared_memory: Annotated[
        bool,
        Meta(description="Read and write tensors of ModelInfer in shared memory, for callers on this machine (Linux)."),
    ] = False
    rest_api_port: Annotated[
        int,
        Meta(ge=FREE, le=65535, description="Of HTTP. 0: no HTTP; -1: a free one (also the default with port 0)."),
    ] = 8501
    rest_api_timeout_in_ms: Annotated[
        int, Meta(ge=1, description="Deadline of an HTTP call that brings none of its own.")
    ] = 30_000
    ssl_config_file: Annotated[
        str, Meta(description="TensorFlow Serving's SSLConfig; turns on TLS for gRPC and HTTP. Empty: no TLS.")
    ] = ""


class Compute(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What runs the networks, and on what."""

    runtime: Annotated[
        Literal["", "onnxruntime", "openvino", "tensorflow"],
        Meta(description="Empty: as tuned, else onnxruntime."),
    ] = ""
    precision: Annotated[
        Literal["", "float32", "bfloat16", "int8", "float16", "weights8", "best"],
        Meta(description="Which artifact. Empty: as tuned, else float32."),
    ] = ""
    threads: Annotated[Count, Meta(description="Batches computed at once, over all models. 0: one per processor.")] = 0
    provider: Annotated[
        tuple[Literal["tensorrt", "cuda", "openvino", "cpu"], ...],
        Meta(description="Of onnxruntime, in order of preference. Empty: cpu."),
    ] = ()
    tuned: Annotated[
        bool, Meta(description="Use what `seisserve tune` chose where none of the four above is given.")
    ] = True
    allow_spinning: Annotated[
        bool, Meta(description="Let threads of onnxruntime spin while they wait: a little faster alone, worse shared.")
    ] = False
    device_id: Annotated[Count, Meta(description="Which GPU.")] = 0
    gpu_mem_limit_mb: Annotated[Count, Meta(description="Of each model on the GPU. 0: no limit.")] = 0
    cudnn_conv_algo_search: Annotated[
        Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"],
        Meta(description="EXHAUSTIVE is the fastest later and seconds slower at the first batch of each size."),
    ] = "HEURISTIC"
    remote_backend: Annotated[
        str,
        Meta(description="HOST:PORT of a TensorFlow Serving with the same models, which computes. Empty: here."),
    ] = ""
    remote_backend_timeout_s: Annotated[float, Meta(gt=0, description="Of each call to it.")] = 30.0
    remote_backend_access: Annotated[
        str, Meta(description="TOML file with what it wants: TLS, token (docs/security.md). Empty: nothing.")
    ] = ""
    run_timeout_s: Annotated[
        Seconds,
        Meta(
            description="Of one run of a network while it is loaded (more for TensorRT, which builds then), and of "
            "each call of a plain ONNX model with loops. 0: any time."
        ),
    ] = 60.0
    nice: Annotated[int, Meta(ge=0, le=19, description="Give way to other processes, as of nice(1). 0: do not.")] = 0
    cpu_affinity: Annotated[str, Meta(description="Processors to run on, as 0-3,6. Empty: all that are allowed.")] = ""


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the windows of several calls are computed together."""

    enable_batching: Annotated[bool, Meta(description="Off: windows are computed one by one.")] = True
    batching_parameters_file: Annotated[
        str, Meta(description="TensorFlow Serving's BatchingParameters, for all models. Empty: as the runtime likes.")
    ] = ""
    enable_per_model_batching_parameters: Annotated[
        bool, Meta(description="Also read batching_params.pbtxt in the folder of each version.")
    ] = False
    batch_mode: Annotated[
        Literal["exact", "fixed"],
        Meta(
            description="fixed: always full batches, of models with parameters of their own, too, for answers that are "
            "equal bit for bit on any hardware."
        ),
    ] = "exact"


class Security(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may do what (docs/security.md)."""

    tokens_file: Annotated[str, Meta(description="TOML file of bearer tokens. Empty: calls need no token.")] = ""
    allow_admin_without_token: Annotated[
        bool, Meta(description="Without a tokens_file: let any caller reload, load and unload models.")
    ] = False
    client_calls_per_s: Annotated[
        Seconds, Meta(description="Of each token, or address where there are none. 0: no limit.")
    ] = 0.0
    client_windows_per_s: Annotated[Seconds, Meta(description="Windows computed for it. 0: no limit.")] = 0.0


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much one caller, or all of them, may ask for."""

    max_calls: Annotated[Count, Meta(description="Answered at once, sessions too. 0: 16, and 16 per processor.")] = 0
    client_share: Annotated[
        float,
        Meta(
            ge=0, le=1,
            description="Once this part of max_calls is under way, no client (token, or address) gets more than its "
            "even part while others call. 1: whoever comes first.",
        ),
    ] = 0.5  # fmt: skip
    grpc_max_threads: Annotated[
        Count, Meta(description="For gRPC calls that take a thread: records, sessions. 0: max_calls and 32.")
    ] = 0
    max_message_mb: Annotated[int, Meta(ge=1, le=2047, description="Of the largest request and response.")] = 256
    max_connections: Annotated[int, Meta(ge=1, description="Open at once, of gRPC and of HTTP each.")] = 2048
    grpc_max_concurrent_streams: Annotated[int, Meta(ge=1, description="Calls at once on one connection.")] = 256
    grpc_max_connection_idle_s: Annotated[Seconds, Meta(description="Then it is closed. 0: never.")] = 3600.0
    grpc_max_connection_age_s: Annotated[
        Seconds, Meta(description="Then callers connect anew (and spread over replicas). 0: never.")
    ] = 0.0
    grpc_keepalive_s: Annotated[
        Seconds, Meta(description="Ask a silent caller whether it is there; it has 20 s to answer. 0: never.")
    ] = 60.0
    handshake_timeout_s: Annotated[float, Meta(gt=0, description="For a connection to become one.")] = 20.0
    max_record_samples: Annotated[
        int, Meta(ge=1, description="Of one record, all components together; in one message or in many.")
    ] = 300_000_000
    max_sessions: Annotated[int, Meta(ge=1, description="In real time, at once; broken ones that may resume too.")] = 16
    max_instruments: Annotated[int, Meta(ge=1, description="Of one session.")] = 1000
    session_waiting_samples: Annotated[
        int, Meta(ge=1, description="Of one instrument, that wait for those before them.")
    ] = 8_000_000
    session_resume_s: Annotated[Seconds, Meta(description="How long a session outlives its connection.")] = 300.0


class Operation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How it is run and watched."""

    workers: Annotated[
        int,
        Meta(
            ge=1, le=256,
            description="Processes on the port, each with its part of the threads and the next HTTP port. More than "
            "one: for many small calls; models are not changed by calls then (docs/server.md).",
        ),
    ] = 1  # fmt: skip
    grace_s: Annotated[Seconds, Meta(description="At SIGTERM: time for calls under way to finish.")] = 30.0
    drain_delay_s: Annotated[
        Seconds, Meta(description="Before that: health says NOT_SERVING, and calls are still taken.")
    ] = 0.0
    log_format: Annotated[Literal["text", "json"], Meta(description="json: one object on each line.")] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="info has the calls that failed, debug all of them."),
    ] = "info"
    otlp_endpoint: Annotated[
        str, Meta(description="URL of an OpenTelemetry collector (gRPC), as http://host:4317. Empty: no traces.")
    ] = ""
    otlp_headers: Annotated[str, Meta(description="Sent along, as NAME=VALUE,NAME=VALUE.")] = ""
    otlp_share: Annotated[
        float, Meta(ge=0, le=1, description="Of calls that are traced, where the caller hasn't decided it.")
    ] = 1.0


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of them, by table of the TOML file."""

    repository: Repository = Repository()
    listen: Listen = Listen()
    compute: Compute = Compute()
    batching: Batch = Batch()
    security: Security = Security()
    limits: Limits = Limits()
    operation: Operation = Operation()


class Field(NamedTuple):
    """A setting. expected: what it may be, in words; kind: its type without constraints."""

    table: str
    name: str
    kind: Any
    annotated: Any
    default: Any
    expected: str
    description: str

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


class Effective(NamedTuple):
    """The settings, and for each name where its value came from."""

    settings: Settings
    origins: dict[str, str]


def fields() -> dict[str, Field]:
    """Every setting by its name, which is unique over all tables."""
    return {field.name: field for field in _fields()}


def convert(field: Field, value: Any, origin: str) -> Any:
    """A value as the setting has it; texts (of flags, the environment) are read. Raises UsageError."""
    given = [part.strip() for part in value.split(",") if part.strip()] if _is_list(field, value) else value
    if value == MASK and field.name in SECRETS:
        raise UsageError(f"{origin} {field.name} is masked ({MASK}); put its real value there")
    try:
        return msgspec.convert(given, field.annotated, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        shown = MASK if field.name in SECRETS else repr(value)
        raise UsageError(f"{origin} {field.name} is {shown}; it must be {field.expected}") from error


def read(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None) -> Effective:
    """The settings from flags (only those that were given), environment and file, in this order of precedence.

    Raises UsageError for a name that is unknown, with the nearest that there is, and for a value that it cannot have.
    """
    known = fields()
    path = file or (Path(environment[CONFIG]) if environment.get(CONFIG) else None)
    values: dict[str, tuple[Any, str]] = {}
    if path is not None:
        values.update({name: (value, f"file {path}") for name, value in _of_file(path, known)})
    for variable, value in environment.items():
        if variable.startswith(PREFIX) and variable != CONFIG and not _service_link(variable, value):
            name = variable.removeprefix(PREFIX).lower()
            if name not in known or variable != known[name].variable:
                raise UsageError(_unknown("environment variable", variable, [f.variable for f in known.values()]))
            values[name] = (value, f"environment {variable}")
    values.update({name: (value, f"flag --{name}") for name, value in flags.items()})
    converted: dict[str, dict[str, Any]] = {field.table: {} for field in known.values()}
    for name, (value, origin) in values.items():
        converted[known[name].table][name] = convert(known[name], value, origin)
    # a server on a free port is one of several on this machine: they cannot all have the one HTTP port
    if "rest_api_port" not in values and converted["listen"].get("port") == 0:
        converted["listen"]["rest_api_port"] = FREE
        values["rest_api_port"] = (FREE, "port is 0")
    settings = msgspec.convert(converted, Settings)
    _check(settings)
    return Effective(settings, {name: values[name][1] if name in values else "default" for name in known})


def as_toml(effective: Effective) -> str:
    """The settings as a file that `--config` reads, each with where it came from; secrets are masked."""
    lines: list[str] = []
    table = ""
    for field in fields().values():
        if field.table != table:
            table = field.table
            lines += ["", f"[{table}]"]
        value = getattr(getattr(effective.settings, table), field.name)
        if field.name in SECRETS and value:
            value = MASK
        text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f"{field.name} = {text}  # {effective.origins[field.name]}")
    return "\n".join(lines[1:]) + "\n"


def as_markdown() -> str:
    """docs/settings.md."""
    lines = [MARKDOWN_HEAD]
    table = ""
    for field in fields().values():
        if field.table != table:
            table = field.table
            about = type(getattr(Settings(), table)).__doc__
            lines += [
                "",
                f"## `[{table}]`",
                "",
                f"{about}",
                "",
                "| name | may be | default | |",
                "| --- | --- | --- | --- |",
            ]
        default = json.dumps(field.default, ensure_ascii=False)
        lines.append(f"| `{field.name}` | {field.expected} | `{default}` | {field.description} |")
    return "\n".join(lines) + "\n"


MARKDOWN_HEAD = """# Settings of the server

<!-- made by `python -m seisserve_serving.settings`; a test compares -->

`seisserve serve` takes each of these as a flag (`--max_calls 100`, `--max_calls=100`, or with hyphens), as an
environment variable (`SEISSERVE_MAX_CALLS=100`) and from a TOML file (`--config FILE`, or `SEISSERVE_CONFIG=FILE`), in
this order of precedence:

```toml
[limits]
max_calls = 100
```

A flag that is yes or no is turned on by `--tuned` and off by `--no-tuned` or `--tuned=false`. Lists are repeated flags,
or separated by commas. The repository is given without a flag: `seisserve serve REPOSITORY`.

Unknown names are refused, with the nearest that there is. `seisserve serve --print-config` prints what is in force and
where each value came from, secrets masked, and does not serve. What it prints is a file for `--config`."""

MARKDOWN_TABLE = ("| name | may be | default | |", "| --- | --- | --- | --- |")


def _fields() -> Iterator[Field]:
    for table in msgspec.structs.fields(Settings):
        for field in msgspec.structs.fields(table.type):
            kind, *metas = get_args(field.type) if get_origin(field.type) is Annotated else (field.type,)
            while get_origin(kind) is Annotated:  # Annotated[Count, Meta(...)] holds both already, flat
                kind, *inner = get_args(kind)
                metas = [*inner, *metas]
            description = next((meta.description for meta in metas if meta.description), "")
            yield Field(table.name, field.name, kind, field.type, field.default, _expected(kind, metas), description)


def _expected(kind: Any, metas: list[Meta]) -> str:
    if kind is bool:
        return "true or false"
    if kind is str:
        return "text"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(choice or "(empty)" for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of " + ", ".join(get_args(get_args(kind)[0]))
    what = "a whole number" if kind is int else "a number"
    low = max((meta.ge for meta in metas if meta.ge is not None), default=None)
    above = max((meta.gt for meta in metas if meta.gt is not None), default=None)
    high = min((meta.le for meta in metas if meta.le is not None), default=None)
    if high is not None:
        return f"{what} from {low} to {high}"
    return f"{what} above {above}" if above is not None else f"{what}, at least {low}"


def _is_list(field: Field, value: Any) -> bool:
    return get_origin(field.kind) is tuple and isinstance(value, str)


def _service_link(variable: str, value: str) -> bool:
    return bool(SERVICE_LINK.fullmatch(variable.removeprefix(PREFIX)) or SERVICE_ADDRESS.match(value))


def _of_file(path: Path, known: Mapping[str, Field]) -> Iterator[tuple[str, Any]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from error
    tables = list(dict.fromkeys(field.table for field in known.values()))
    for table, entries in content.items():
        if table in known and not isinstance(entries, dict):
            raise UsageError(f"{path}: {table} belongs into the table [{known[table].table}]")
        if table not in tables or not isinstance(entries, dict):
            raise UsageError(f"{path}: " + _unknown("table", table, tables))
        for name, value in entries.items():
            if name not in known:
                raise UsageError(f"{path}: " + _unknown("setting", name, list(known)))
            if known[name].table != table:
                raise UsageError(f"{path}: {name} belongs into the table [{known[name].table}], not [{table}]")
            yield name, value


def _unknown(what: str, name: str, there: list[str]) -> str:
    nearest = difflib.get_close_matches(name, there, 1, 0.0)
    return f"unknown {what} {name!r}; the nearest is {nearest[0]}"


def _check(settings: Settings) -> None:
    repository, listen, batching, compute = settings.repository, settings.listen, settings.batching, settings.compute
    if bool(repository.model_name) != bool(repository.model_base_path):
        raise UsageError("model_name and model_base_path belong together; one of them is missing")
    sources = [name for name in ("repository", "model_base_path", "model_config_file") if getattr(repository, name)]
    if len(sources) > 1:
        raise UsageError(f"{' and '.join(sources)} are both given; one of them must say what to serve")
    if repository.model_config_file_poll_wait_seconds and not repository.model_config_file:
        raise UsageError("model_config_file_poll_wait_seconds is given without a model_config_file to read again")
    if not listen.host and not listen.grpc_socket_path:
        raise UsageError("host and grpc_socket_path are both empty; the server must listen somewhere")
    if listen.shared_memory and sys.platform != "linux":
        raise UsageError("shared_memory must be off: this server reads the segments of Linux only")
    for name in ("batching_parameters_file", "enable_per_model_batching_parameters"):
        if not batching.enable_batching and getattr(batching, name):
            raise UsageError(f"{name} is given, but enable_batching is off")
    if compute.remote_backend and (compute.runtime or compute.precision or compute.provider):
        raise UsageError("remote_backend computes elsewhere; runtime, precision and provider say how to do so here")
    if compute.remote_backend_access and not compute.remote_backend:
        raise UsageError("remote_backend_access is given without a remote_backend to reach")
    operation = settings.operation
    if operation.workers > 1:
        if sys.platform != "linux":
            raise UsageError("workers must be 1: only Linux spreads connections over several processes")
        if not listen.host or listen.grpc_socket_path:
            raise UsageError("workers share a port, no Unix socket: host must be given, and grpc_socket_path empty")
        if listen.shared_memory:
            raise UsageError("shared_memory is for one worker: a call that registers a region would reach one of them")
        if listen.rest_api_port + operation.workers - 1 > 65535:
            raise UsageError(f"rest_api_port is {listen.rest_api_port}; each of the workers wants the next one")
    if operation.otlp_headers and not operation.otlp_endpoint:
        raise UsageError("otlp_headers are given without an otlp_endpoint to send them to")


if __name__ == "__main__":
    print(as_markdown(), end="")
