"""Everything that takes a request from outside, with good requests to begin from: in this process and over loopback."""

from __future__ import annotations

import io
import json
import os
import random
import re
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import grpc
import httpx
import numpy as np
from client.small_bundles import repository
from fuzz.hostile import mutated_bytes, mutated_json, mutated_miniseed, names_of, wrecked
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from obspy import Stream, UTCDateTime
from obspy import Trace as ObspyTrace
from serving.small_models import HOW, add_bundle, add_onnx

from seisserve.proto import inference_wire_pb2 as v2
from seisserve.proto import seismic_pb2 as seismic
from seisserve.proto import tensorflow_serving_wire_pb2 as tfs
from seisserve.tensors import to_proto
from seisserve_serving import (
    kserve_api,
    reflection,
    rest_kserve,
    rest_seismic,
    rest_tensorflow,
    seismic_api,
    tensorflow_api,
    web,
)
from seisserve_serving.calls import Call
from seisserve_serving.front import Arrival, Front, Methods, _decoded, _encoded
from seisserve_serving.lanes import Batching, Lanes
from seisserve_serving.models import Models
from seisserve_serving.repository import Repository, Source
from seisserve_serving.rest_routes import Asked, Route
from seisserve_serving.server import SERVICES, Server
from seisserve_serving.session_api import Bounds, Sessions
from seisserve_serving.session_api import streams as session_streams
from seisserve_serving.shared_memory import Regions
from seisserve_serving.status import code_of
from seisserve_serving.web import Web

__all__ = ["GOOD", "Outcome", "Site", "Target", "fault", "site"]

Code = grpc.StatusCode
Make = Callable[[random.Random], Message]
MakeMany = Callable[[random.Random], Sequence[Message]]
HERE = "unix:"  # where in-process calls come from: shared memory is for callers on the same machine
SEGMENT = Path("/dev/shm") / f"seisserve-fuzz-{os.getpid()}"
MOST_SAMPLES = 300_000  # of a record: what a hostile sampling rate may ask for is computed, up to the limit
LIMIT_S = 30.0
WINDOW = 600
# What a request that is wrong may be answered with. DEADLINE_EXCEEDED is none: it would be a request that hangs.
FAIR = {
    Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED,
    Code.UNIMPLEMENTED, Code.UNAVAILABLE, Code.PERMISSION_DENIED,
}  # fmt: skip
GENERIC = {"key", "value", "id", "name", "type", "kind", "content", "dim", "size"}  # too general to be a name


class Outcome(NamedTuple):
    """What came of a request."""

    code: grpc.StatusCode
    text: str


class Target(NamedTuple):
    """A method. good: a request that it answers; spoil: the same with something wrong. words: a message about what is
    wrong has one of them."""

    name: str
    good: Callable[[random.Random], Any]
    spoil: Callable[[Any, random.Random], Any]
    send: Callable[[Any], Outcome]
    words: frozenset[str]

    def attack(self, rng: random.Random) -> Outcome:
        """What comes of a hostile request."""
        return self.send(self.spoil(self.good(rng), rng))


class Site(NamedTuple):
    """A server and all there is to call on it. good: the bytes of an answer to a good request."""

    models: Models
    inside: list[Target]
    outside: list[Target]
    good: Callable[[], bytes]


def fault(target: Target, outcome: Outcome) -> str:
    """What is wrong with how a request was answered; empty if nothing is."""
    if outcome.code not in FAIR:
        return f"{target.name} answered {outcome.code.name}: {outcome.text}"
    if outcome.code is Code.INVALID_ARGUMENT:
        text = outcome.text.lower()
        if not any(word in text for word in target.words):
            return f"{target.name}: the message names no field: {outcome.text!r}"
    return ""


def _words(request_type: Any, *more: str) -> frozenset[str]:
    names = names_of(request_type.DESCRIPTOR)
    spoken = {name.replace("_", " ") for name in names} | {name.removesuffix("s") for name in names if len(name) > 4}
    general = {f"{name} is" for name in names & GENERIC}
    return frozenset({*((names | spoken) - GENERIC), *general, "request", *more})


# --- Valid requests


def _window(count: int = 2) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(7).normal(0, 1000, (count, WINDOW, 3)).astype(np.float32)


def _record(encoding: str = "STEIM2", dtype: str = "i4", length: int = 1500) -> bytes:
    rng = np.random.default_rng(3)
    traces = []
    for code in "ZNE":
        samples = rng.normal(0, 300, length)
        samples[700:800] += 4000 * np.sin(np.arange(100))
        header = {
            "network": "XX", "station": "STA", "channel": f"HH{code}", "sampling_rate": 100.0,
            "starttime": UTCDateTime(2024, 1, 1),
        }  # fmt: skip
        traces.append(ObspyTrace(samples.astype(dtype), header))
    content = io.BytesIO()
    Stream(traces).write(content, format="MSEED", encoding=encoding, reclen=512)
    return content.getvalue()


def _waveforms(rng: random.Random) -> seismic.Waveforms:
    made = seismic.Waveforms()
    if rng.random() < 0.5:
        made.miniseed.append(rng.choice(RECORDS))
        return made
    dtype, kind = rng.choice((("<i4", 1), ("<f4", 2), ("<f8", 3)))
    samples = np.random.default_rng(5).normal(0, 3000, (3, 900)).astype(dtype)
    for code, row in zip("ZNE", samples, strict=True):
        made.traces.add(
            id=f"XX.STA..HH{code}", start_ns=1_700_000_000_000_000_000, sampling_rate_hz=100.0, sample_type=kind,
            samples=row.tobytes(),
        )  # fmt: skip
    return made


def _options(rng: random.Random) -> seismic.Options:
    return rng.choice((
        seismic.Options(), seismic.Options(thresholds={"P": 0.4}),
        seismic.Options(hop_samples=300, resampling="causal"),
        seismic.Options(stacking="mean"),
    ))  # fmt: skip


def _of_seismic(request_type: Any, model: str) -> Make:
    def make(rng: random.Random) -> Message:
        made: Message = request_type(model={"name": model}, waveforms=_waveforms(rng))
        if model in ("eqtransformer",):
            made.options.CopyFrom(_options(rng))
        return made

    return make


def _process(rng: random.Random) -> Message:
    made = seismic.ProcessRequest(waveforms=_waveforms(rng), return_waveforms=rng.random() < 0.5)
    for stage in rng.sample(("recover", "denoise", "pick", "detect"), rng.randrange(1, 5)):
        getattr(made, stage).SetInParent()
    return made


def _predict(rng: random.Random) -> Message:
    made = tfs.PredictRequest(model_spec={"name": rng.choice(("eqtransformer", "cred", "sum", "texts"))})
    if made.model_spec.name == "sum":
        for name in ("a", "b"):
            made.inputs[name].CopyFrom(to_proto(np.arange(6, dtype=np.int64).reshape(3, 2)))
    elif made.model_spec.name == "texts":
        for name in ("a", "b"):
            made.inputs[name].CopyFrom(to_proto(np.array([["a", "b"], ["ü", ""]], object)))
    else:
        made.inputs["waveform"].CopyFrom(to_proto(_window()))
        if rng.random() < 0.3:  # as values
            made.inputs["waveform"].Clear()
            made.inputs["waveform"].dtype = 1
            made.inputs["waveform"].float_val.append(1.5)
            made.inputs["waveform"].tensor_shape.CopyFrom(to_proto(_window()).tensor_shape)
    return made


def _examples(request_type: Any) -> Make:
    def make(rng: random.Random) -> Message:
        made: Message = request_type()
        if request_type is tfs.MultiInferenceRequest:
            task = made.tasks.add(method_name=f"tensorflow/serving/{rng.choice(('classify', 'regress'))}")
            task.model_spec.name = "single"
        else:
            made.model_spec.name = "single"
        place = made.input.example_list_with_context if rng.random() < 0.3 else made.input.example_list
        for _ in range(2):
            example = place.examples.add()
            example.features.feature["waveform"].float_list.value.extend([0.5] * (WINDOW * 3))
        return made

    return make


def _infer(rng: random.Random) -> Message:
    made = v2.ModelInferRequest(model_name="eqtransformer", id="7")
    tensor = made.inputs.add(name="waveform", datatype="FP32", shape=[2, WINDOW, 3])
    made.outputs.add(name="probability")
    if rng.random() < 0.4:
        made.model_name, tensor.name, tensor.datatype = "sum", "a", "INT64"
        del made.outputs[:]
        del tensor.shape[:]
        tensor.shape.extend([2, 2])
        tensor.contents.int64_contents.extend([1, 2, 3, 4])
        made.inputs.add().CopyFrom(tensor)
        made.inputs[1].name = "b"
    elif rng.random() < 0.3:
        made.model_name, tensor.name, tensor.datatype = "texts", "a", "BYTES"
        del made.outputs[:]
        del tensor.shape[:]
        tensor.shape.extend([2, 1])
        made.inputs.add().CopyFrom(tensor)
        made.inputs[1].name = "b"
        made.raw_input_contents.extend([struct.pack("<I", 1) + b"a" + struct.pack("<I", 0)] * 2)
    else:
        made.raw_input_contents.append(_window().tobytes())
    tensor.parameters["note"].string_param = "x"
    if len(made.inputs) == 1 and rng.random() < 0.3:
        for one, offset in ((tensor, 0), (made.outputs[0], 1 << 17)):
            one.parameters["shared_memory_region"].string_param = "there"
            one.parameters["shared_memory_offset"].int64_param = offset
            one.parameters["shared_memory_byte_size"].int64_param = 2 * WINDOW * 3 * 4
        del made.raw_input_contents[:]
    return made


def _region(name: str) -> v2.SystemSharedMemoryRegisterRequest:
    return v2.SystemSharedMemoryRegisterRequest(name=name, key=SEGMENT.name, offset=8, byte_size=1 << 18)


def _config(rng: random.Random, folder: Path) -> Message:
    made = tfs.ReloadConfigRequest()
    for name in ("one", "two"):
        item = made.config.model_config_list.config.add(
            name=name, base_path=str(folder / name), model_platform="onnxruntime"
        )
        item.model_version_policy.specific.versions.append(1)
    return made


def _session(rng: random.Random) -> list[Message]:
    start = seismic.SessionRequest(start={"model": {"name": "eqtransformer"}, "wait_s": 1.0, "idle_s": 60.0})
    packets = [
        seismic.SessionRequest(
            packets={"number": number, "waveforms": _waveforms(rng), "finish": number == 3}, seen=number
        )
        for number in range(1, 4)
    ]
    return [start, *packets]


def _health(rng: random.Random) -> Message:
    return health_pb2.HealthCheckRequest(service="eqtransformer")


def _reflect(rng: random.Random) -> Message:
    kind = rng.choice(("file_by_filename", "file_containing_symbol", "all_extension_numbers_of_type", "list_services"))
    return reflection_pb2.ServerReflectionRequest(
        **{
            kind: rng.choice(
                (seismic_api.SEISMIC_SERVICE, "tensorflow.TensorProto", "seisserve/proto/seismic.proto", "")
            )
        }
    )


RECORDS = [
    _record(),
    _record("STEIM1"),
    _record("FLOAT32", "f4"),
    _record("INT16", "i2"),
    _record("FLOAT64", "f8", 900),
]


# --- In this process


def _unary(front: Front, path: str, parts: Any, make: Make) -> Target:
    method, request_type, _ = parts[:3]

    def send(body: bytes) -> Outcome:
        try:
            with front.call(Arrival(path, {}, HERE, len(body)), time.monotonic() + LIMIT_S) as call:
                _encoded(method(_decoded(request_type, body, call), call), call)
        except Exception as error:  # as the server itself: whatever it is must have a code
            return _failed(error)
        return Outcome(Code.OK, "")

    return _target(path, request_type, make, send)


def _stream(front: Front, path: str, parts: Any, make: MakeMany) -> Target:
    method, request_type, _ = parts[:3]

    def send(bodies: list[bytes]) -> Outcome:
        try:
            with front.call(Arrival(path, {}, "fuzz", 0), time.monotonic() + LIMIT_S) as call:
                for response in method((_decoded(request_type, body, call) for body in bodies), call):
                    _encoded(response, call)
        except Exception as error:  # as the server itself: whatever it is must have a code
            return _failed(error)
        return Outcome(Code.OK, "")

    return _stream_target(path, request_type, make, send)


def _target(name: str, request_type: Any, make: Make, send: Callable[[bytes], Outcome]) -> Target:
    def spoil(body: bytes, rng: random.Random) -> bytes:
        return wrecked(request_type.FromString(body), rng)

    return Target(name, lambda rng: make(rng).SerializeToString(), spoil, send, _words(request_type))


def _stream_target(name: str, request_type: Any, make: MakeMany, send: Callable[[list[bytes]], Outcome]) -> Target:
    def good(rng: random.Random) -> list[bytes]:
        return [message.SerializeToString() for message in make(rng)]

    def spoil(bodies: list[bytes], rng: random.Random) -> list[bytes]:
        made = list(bodies)
        for _ in range(rng.choice((1, 1, 2))):
            place = rng.randrange(len(bodies))
            made[place] = wrecked(request_type.FromString(bodies[place]), rng)
        match rng.randrange(8):
            case 0:
                rng.shuffle(made)
            case 1:
                del made[rng.randrange(len(made)) :]
            case 2:
                made.insert(rng.randrange(len(made)), rng.choice(made))
        return made

    return Target(name, good, spoil, send, _words(request_type))


def _failed(error: Exception) -> Outcome:
    code = code_of(error)
    return Outcome(code, f"{type(error).__name__}: {error}" if code is Code.INTERNAL else str(error))


# By the end of a route: a model and bodies for it.
SHORT: Any = [[0.0, 1.0, 2.0]] * 100
BODIES: Mapping[str, Sequence[tuple[str, Any]]] = {
    "predict": (
        ("eqtransformer", {"instances": [SHORT], "signature_name": "fragment"}),
        ("eqtransformer", {"inputs": {"waveform": [SHORT]}, "signature_name": "fragment"}),
        ("eqtransformer", {"instances": [{"waveform": SHORT}], "signature_name": "fragment"}),
        ("sum", {"inputs": {"a": [[1, 2]], "b": [[3, 4]]}}),
        ("texts", {"instances": [{"a": ["a", {"b64": "AAAA"}], "b": ["", "ü"]}]}),
    ),
    "sify": (("single", {"examples": [{"waveform": [0.5] * 1800}], "context": {"x": [1, 2], "y": "t"}}),),
    "gress": (("single", {"examples": [{"waveform": [0.5] * 1800}]}),),
    "infer": (
        ("eqtransformer", {
            "inputs": [{"name": "waveform", "datatype": "FP32", "shape": [1, 100, 3], "data": [0.5] * 300}], "id": "1",
            "outputs": [{"name": "probability", "parameters": {"binary_data": True}}],
        }),
        ("eqtransformer", {
            "inputs": [
                {"name": "waveform", "datatype": "FP32", "shape": [1, 100, 3], "parameters": {"binary_data_size": 1200}}
            ]
        }),
        ("texts", {
            "inputs": [{"name": name, "datatype": "BYTES", "shape": [1, 2], "data": ["a", "ü"]} for name in "ab"],
            "parameters": {"note": 1},
        }),
    ),
    "unload": (("one", {"parameters": {"unload_dependents": True}}),), "load": (("one", {"parameters": {}}),),
    "index": (("", {"ready": True}),),
}  # fmt: skip
HEADERS: Mapping[str, Sequence[str]] = {
    "inference-header-content-length": ("0", "1", "10", "99999999", "-1", "x", "9" * 30, "\u0663"),
    "content-encoding": ("gzip", "deflate", "br", "identity", "x" * 100),
    "accept": ("text/csv", "application/xml", "*/*;q=x", "a/b", ";;,,"),
    "accept-encoding": ("gzip", "deflate;q=0", "*", ","), "x-request-timeout-ms": ("0", "-1", "x", "9" * 18, "5000"),
    "seisserve-priority": ("archive", "never", ""), "x-request-id": ("a b", "x" * 300), "origin": ("http://evil.example",),
}  # fmt: skip
QUERY = {
    "model": ("", "cred", "none", "../x", "x" * 3000), "version": ("1", "0", "-1", "9" * 30, "x", "٣"),
    "hop_samples": ("0", "1", "300", "99999999999", "-3", "x"), "stacking": ("max", "mean", "x"),
    "resampling": ("causal", "x"), "threshold.P": ("0.5", "nan", "inf", "0", "-1", "1e-400", "x"), "threshold.": ("1",),
    "unknown": ("1",),
}  # fmt: skip


class _Http(NamedTuple):
    """A request for a route."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any  # JSON as long as it is good


def _good_http(route: Route) -> Callable[[random.Random], _Http]:
    def good(rng: random.Random) -> _Http:
        kind = next((one for end, one in BODIES.items() if route.path.endswith(end)), (("eqtransformer", None),))
        model, body = rng.choice(kind)
        if route.path.startswith("/seisserve") and route.verb == "POST":
            body = rng.choice(RECORDS)
        path = {name: {"model": model, "version": "1", "label": "stable"}[name] for name in OPEN.findall(route.path)}
        headers, tail = {}, b""
        if "binary_data_size" in str(body):
            headers, tail = {"inference-header-content-length": str(len(json.dumps(body)))}, b"\0" * 1200
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode() + tail
        return _Http(path, {}, headers, body or b"")

    return good


def _spoil_http(route: Route) -> Callable[[_Http, random.Random], _Http]:
    seismic_route = route.path.startswith("/seisserve")

    def spoil(given: _Http, rng: random.Random) -> _Http:
        path, query, headers, body = dict(given.path), dict(given.query), dict(given.headers), given.body
        if path and rng.random() < 0.15:
            path[rng.choice(list(path))] = rng.choice(PATHS)
        if rng.random() < 0.15:
            name = rng.choice(list(HEADERS))
            headers[name] = rng.choice(HEADERS[name])
        if rng.random() < (0.4 if seismic_route else 0.1):
            name = rng.choice(list(QUERY))
            query[name] = rng.choice(QUERY[name])
        if seismic_route:
            body = mutated_miniseed(body, rng) if body and rng.random() < 0.8 else body
        elif body:
            size = int(given.headers.get(rest_kserve.HEADER_LENGTH, len(body)))
            head = mutated_json(json.loads(body[:size]), rng)
            tail = mutated_bytes(body[size:], rng) if rng.random() < 0.3 else body[size:]
            body = head + tail
            if headers == given.headers and headers:
                headers[rest_kserve.HEADER_LENGTH] = str(len(head))
        return _Http(path, query, headers, body)

    return spoil


OPEN = re.compile(r"\{(\w+)(?::\w+)?\}")
PATHS = ("none", "0", "-1", "9" * 30, "%00", "x" * 300, "ü", "sum", "1", "..")
WORDS_HTTP = frozenset({
    "body", "instances", "inputs", "input", "examples", "context", "signature", "query parameter", "version", "model",
    "header", "content-", "miniseed", "threshold", "hop_samples", "stacking", "resampling", "trace", "accept",
    "parameter", "x-request-timeout-ms", "output", "label", "shape", "repository", "waveforms", "priority",
})  # fmt: skip


def _route(front: Front, route: Route, most: int) -> Target:
    def send(given: _Http) -> Outcome:
        asked = Asked(given.path, given.query, given.headers, given.body)
        arrival = Arrival(route.method, given.headers, "fuzz", transport="http")
        try:
            with front.call(arrival, time.monotonic() + LIMIT_S) as call:
                web._worked(route, asked, call, most)
        except Exception as error:  # as the server itself: whatever it is must have a code
            web._failure(error, "1")  # which must not fail itself
            return _failed(error)
        return Outcome(Code.OK, "")

    return Target(f"{route.verb} {route.path}", _good_http(route), _spoil_http(route), send, WORDS_HTTP)


# --- Over loopback


def _call_unary(channel: grpc.Channel, path: str, request_type: Any, make: Make) -> Target:
    method = channel.unary_unary(path)

    def send(body: bytes) -> Outcome:
        try:
            method(body, timeout=LIMIT_S)
        except grpc.RpcError as error:
            return Outcome(error.code(), error.details() or "")
        return Outcome(Code.OK, "")

    return _target(path, request_type, make, send)


def _call_stream(channel: grpc.Channel, path: str, request_type: Any, make: MakeMany) -> Target:
    method = channel.stream_stream(path)

    def send(bodies: list[bytes]) -> Outcome:
        try:
            for _ in method(iter(bodies), timeout=LIMIT_S):
                pass
        except grpc.RpcError as error:
            return Outcome(error.code(), error.details() or "")
        return Outcome(Code.OK, "")

    return _stream_target(path, request_type, make, send)


def _call_http(http: httpx.Client, route: Route) -> Target:
    by_status = {status: code for code, status in web.HTTP.items()} | {
        413: Code.RESOURCE_EXHAUSTED, 405: Code.UNIMPLEMENTED, 406: Code.INVALID_ARGUMENT,
    }  # fmt: skip

    def send(given: _Http) -> Outcome:
        path = OPEN.sub(lambda found: quote(given.path[found[1]], safe=""), route.path)
        headers = {name: value.encode() for name, value in given.headers.items()}
        reply = http.request(route.verb, path, params=dict(given.query), headers=headers, content=given.body)
        code = by_status.get(reply.status_code, Code.UNKNOWN)
        return Outcome(
            code,
            ""
            if code is Code.OK
            else str(
                reply.json()["error"] if "error" in reply.text else f"{reply.status_code} {reply.text[:200]} {given}"
            ),
        )

    return Target(f"{route.verb} {route.path}", _good_http(route), _spoil_http(route), send, WORDS_HTTP)


# --- All together


class _Regions(Regions):
    """One region is always there: requests that were spoilt unregister all now and then."""

    def unregister(self, name: str, call: Call) -> None:
        """All but that one."""
        super().unregister(name, call)
        if name in ("", "there") and call.peer == HERE:
            self.register("there", SEGMENT.name, 8, 1 << 18, call)


@contextmanager
def site(folder: Path, loopback: bool = True) -> Iterator[Site]:
    """A server of small models, all its methods as targets; some change what is served, so they have models of their
    own, in a repository of their own."""
    with ExitStack() as stack:
        SEGMENT.write_bytes(bytes(1 << 19))
        stack.callback(SEGMENT.unlink)
        models = _models(folder / "models", stack)
        admin = _changing(folder / "changing", stack)
        front = Front()
        sessions = Sessions(models, Bounds(sessions=1 << 20, resume_s=0.0, waiting_samples=MOST_SAMPLES))
        makers = _makers(folder / "changing")
        regions = _Regions(8 << 20)
        regions.unregister("", Call(peer=HERE))
        services = {
            **tensorflow_api.services(models),
            **kserve_api.services(models, regions),
            **seismic_api.services(models, MOST_SAMPLES),
        }
        changing = {**tensorflow_api.services(admin), **kserve_api.services(admin)}
        streams: dict[str, Methods] = {**seismic_api.streams(models, MOST_SAMPLES), **reflection.streams(SERVICES)}
        streams[seismic_api.SEISMIC_SERVICE] = {**streams[seismic_api.SEISMIC_SERVICE], **session_streams(sessions)}
        inside = []
        for service, methods in services.items():
            for name, parts in methods.items():
                chosen = changing[service][name] if name in ADMIN else parts
                inside.append(_unary(front, f"/{service}/{name}", chosen, makers[name]))
        for service, methods in streams.items():
            for name, parts in methods.items():
                inside.append(_stream(front, f"/{service}/{name}", parts, _many(name, makers)))
        routes = [
            *rest_tensorflow.routes(services), *rest_kserve.routes(_with_changes(services, changing)),
            *rest_seismic.routes(services),
        ]  # fmt: skip
        inside += [_route(front, route, 8 << 20) for route in routes]
        outside: list[Target] = []
        if loopback:
            outside = _outside(stack, models, sessions, services, streams, routes, makers)
        predict = services[tensorflow_api.PREDICTION_SERVICE]["Predict"]
        request = tfs.PredictRequest(model_spec={"name": "eqtransformer"})
        request.inputs["waveform"].CopyFrom(to_proto(_window(5)))
        body = request.SerializeToString()

        def good() -> bytes:
            with front.call(Arrival(GOOD, {}, "fuzz"), time.monotonic() + LIMIT_S) as call:
                return _encoded(predict[0](_decoded(predict[1], body, call), call), call)

        yield Site(models, inside, outside, good)


GOOD = "/tensorflow.serving.PredictionService/Predict"
ADMIN = {"HandleReloadConfigRequest", "RepositoryModelLoad", "RepositoryModelUnload"}


def _with_changes(services: Mapping[str, Methods], changing: Mapping[str, Methods]) -> dict[str, Methods]:
    name = kserve_api.INFERENCE_SERVICE
    changes = {method: parts for method, parts in changing[name].items() if method in ADMIN}
    return {**services, name: {**services[name], **changes}}


def _models(folder: Path, stack: ExitStack) -> Models:
    repository(folder)
    add_bundle(folder / "single", 1, single=True, labels=("P",))
    add_onnx(folder / "sum", 1)
    add_onnx_texts(folder / "texts", 1)
    models = Models(Lanes(2))
    stack.callback(models.lanes.close)
    stack.callback(models.close)
    Repository(models, HOW._replace(batching=Batching()), Source(folder, True)).wait()
    assert not models.failed, models.failed
    models.repository = None  # what changes models has its own
    models.labels = {name: {"stable": 1} for name in models.served}
    return models


def add_onnx_texts(base: Path, version: int) -> None:
    """A plain ONNX folder that gives `sum` = `a` for strings."""
    from onnx import TensorProto, helper
    from serving.small_models import save

    ends = [helper.make_tensor_value_info(name, TensorProto.STRING, ["n", "m"]) for name in ("a", "b", "x", "y")]
    nodes = [helper.make_node("Identity", [given], [made]) for given, made in (("a", "x"), ("b", "y"))]
    save(helper.make_graph(nodes, "texts", ends[:2], ends[2:]), base / str(version) / "model.onnx")


def _changing(folder: Path, stack: ExitStack) -> Models:
    for name in ("one", "two"):
        add_onnx(folder / name, 1)
    models = Models(Lanes(1))
    stack.callback(models.lanes.close)
    stack.callback(models.close)
    Repository(models, HOW, Source(folder, True)).wait()
    return models


def _makers(changing: Path) -> dict[str, Make]:
    def spec(request_type: Any, **fields: Any) -> Make:
        return lambda rng: request_type(**fields)

    eqt = {"name": "eqtransformer"}
    return {
        "Predict": _predict, "Classify": _examples(tfs.ClassificationRequest),
        "Regress": _examples(tfs.RegressionRequest),
        "MultiInference": _examples(tfs.MultiInferenceRequest),
        "GetModelMetadata": spec(tfs.GetModelMetadataRequest, model_spec=eqt, metadata_field=["signature_def"]),
        "GetModelStatus": spec(tfs.GetModelStatusRequest, model_spec=eqt),
        "HandleReloadConfigRequest": lambda rng: _config(rng, changing),
        "ServerLive": spec(v2.ServerLiveRequest), "ServerReady": spec(v2.ServerReadyRequest),
        "ServerMetadata": spec(v2.ServerMetadataRequest), "ModelReady": spec(v2.ModelReadyRequest, **eqt, version="1"),
        "ModelMetadata": spec(v2.ModelMetadataRequest, **eqt), "ModelInfer": _infer,
        "SystemSharedMemoryRegister": lambda rng: _region(f"region {rng.random()}"),
        "SystemSharedMemoryUnregister": spec(v2.SystemSharedMemoryUnregisterRequest, name="gone"),
        "SystemSharedMemoryStatus": spec(v2.SystemSharedMemoryStatusRequest),
        "RepositoryIndex": spec(v2.RepositoryIndexRequest, ready=True),
        "RepositoryModelLoad": spec(v2.RepositoryModelLoadRequest, model_name="one"),
        "RepositoryModelUnload": spec(v2.RepositoryModelUnloadRequest, model_name="two"),
        "Pick": _of_seismic(seismic.PickRequest, "eqtransformer"), "Detect": _of_seismic(seismic.DetectRequest, "cred"),
        "Denoise": _of_seismic(seismic.DenoiseRequest, "deepdenoiser"),
        "Recover": _of_seismic(seismic.RecoverRequest, "recovery"),
        "Annotate": _of_seismic(seismic.AnnotateRequest, "eqtransformer"), "Process": _process,
        "GetModel": spec(seismic.GetModelRequest, model=eqt), "ServerReflectionInfo": _reflect,
    }  # fmt: skip


def _many(name: str, makers: Mapping[str, Make]) -> MakeMany:
    if name == "Session":
        return _session
    make = makers[name.removesuffix("Stream")]

    def many(rng: random.Random) -> list[Message]:
        made = [make(rng) for _ in range(rng.choice((1, 2, 3)))]
        for later in made[1:] if name.endswith("Stream") else ():
            later.ClearField("options")
        return made

    return many


def _outside(
    stack: ExitStack, models: Models, sessions: Sessions, services: Mapping[str, Methods],
    streams: Mapping[str, Methods], routes: Sequence[Route], makers: Mapping[str, Make],
) -> list[Target]:  # fmt: skip
    """The same over loopback, and what gRPC itself brings. Nothing here may change models: there is no repository."""
    front = Front()
    pages = Web(models, front, models.lanes, port=0, max_message=8 << 20, most_samples=MOST_SAMPLES)
    server = Server(
        models, front, port=0, max_message=8 << 20, most_samples=MOST_SAMPLES, sessions=sessions, beside=[pages],
        shared_memory=True,
    )  # fmt: skip
    server.start()
    stack.callback(server.stop, 1)
    channel = stack.enter_context(grpc.insecure_channel(server.address, options=[("grpc.max_send_message_length", -1)]))
    register = channel.unary_unary(f"/{kserve_api.INFERENCE_SERVICE}/SystemSharedMemoryRegister")
    register(_region("there").SerializeToString())
    http = stack.enter_context(httpx.Client(base_url=f"http://{pages.address}", timeout=LIMIT_S))
    found = [
        _call_unary(channel, f"/{service}/{name}", parts[1], makers[name])
        for service, methods in services.items()
        for name, parts in methods.items()
    ]
    found += [
        _call_stream(channel, f"/{service}/{name}", parts[1], _many(name, makers))
        for service, methods in streams.items()
        for name, parts in methods.items()
    ]
    for service, name in ((health.SERVICE_NAME, "Check"), (health.SERVICE_NAME, "List"), ("no.Service", "Method")):
        found.append(_call_unary(channel, f"/{service}/{name}", health_pb2.HealthCheckRequest, _health))
    found += [_call_http(http, route) for route in routes]
    return [target._replace(name=f"{target.name} (loopback)") for target in found]
