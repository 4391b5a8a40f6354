"""SeismicService over HTTP: miniSEED in the body; picks and detections come back as tables, waveforms as miniSEED.

curl --data-binary @day.mseed 'http://localhost:8501/seisserve/v1/pick?model=phasenet&threshold.P=0.5'
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from seisserve.annotations import Annotation, to_stream
from seisserve.detections import Detection
from seisserve.errors import UsageError
from seisserve.messages import from_message
from seisserve.picks import Pick
from seisserve.proto import seismic_pb2 as wire
from seisserve.tables import Detections, Picks
from seisserve.traces import to_obspy
from seisserve.turns import turn
from seisserve_serving.calls import Call
from seisserve_serving.front import Methods
from seisserve_serving.rest_json import dump
from seisserve_serving.rest_routes import Asked, NotAcceptable, Reply, Route, number
from seisserve_serving.seismic_api import SEISMIC_SERVICE

__all__ = ["routes"]

PATH = "/seisserve/v1"
MINISEED = "application/vnd.fdsn.mseed"
CSV, JSON_LINES, QUAKEML = "text/csv", "application/x-ndjson", "application/xml"
TABLES = {CSV: "csv", JSON_LINES: "jsonl", "application/jsonl": "jsonl", "application/json-lines": "jsonl"}
MOST_HEADER = 2000  # characters of warnings in a header


class _Form(NamedTuple):
    """A media type, and what writes a response in it."""

    media: str
    write: Callable[[Any], bytes]


def routes(services: Mapping[str, Methods]) -> list[Route]:
    """The routes, over the methods of the gRPC service."""
    methods = services[SEISMIC_SERVICE]

    def route(name: str, forms: Mapping[str, Callable[[Any], bytes]]) -> Route:
        method, request_type, _ = methods[name]

        def work(asked: Asked, call: Call) -> Reply:
            form = _form(asked, forms)
            response = method(_request(request_type, asked), call)
            return Reply(form.write(response), form.media, headers=_headers(response))

        return Route("POST", f"{PATH}/{name.lower()}", f"/{SEISMIC_SERVICE}/{name}", work)

    def model(asked: Asked, call: Call) -> Reply:
        query = asked.options("version")
        spec = wire.ModelSpec(name=asked.path["model"], version=number(query.get("version", "0"), "version"))
        response = methods["GetModel"][0](wire.GetModelRequest(model=spec), call)
        return Reply(response.manifest_json.encode(), headers=_headers(response))

    picks = {media: _table(_picks, kind) for media, kind in TABLES.items()} | {QUAKEML: _table(_picks, "QUAKEML")}
    detections = {media: _table(_detections, kind) for media, kind in TABLES.items()}
    waveforms = {MINISEED: _waveforms, "application/octet-stream": _waveforms}
    return [
        route("Pick", picks),
        route("Detect", detections),
        route("Denoise", waveforms),
        route("Recover", waveforms),
        route("Annotate", {MINISEED: _curves, "application/octet-stream": _curves, JSON_LINES: _curves_as_json}),
        Route("GET", f"{PATH}/models/{{model:servable}}", f"/{SEISMIC_SERVICE}/GetModel", model),
    ]


def _request(request_type: Any, asked: Asked) -> Any:
    """The request as of gRPC. Raises UsageError that names the query parameter."""
    query = asked.options("model", "version", "hop_samples", "stacking", "resampling", "threshold.")
    request = request_type()
    request.model.name = query.get("model", "")
    request.model.version = number(query.get("version", "0"), "version")
    hop = number(query.get("hop_samples", "0"), "hop_samples")
    if hop >= 1 << 31:
        raise UsageError(f"hop_samples is {hop}; it must be below {1 << 31}")
    request.options.hop_samples = hop
    request.options.stacking = query.get("stacking", "")
    request.options.resampling = query.get("resampling", "")
    for name, text in query.items():
        if name.startswith("threshold."):
            request.options.thresholds[name.removeprefix("threshold.")] = _threshold(name, text)
    if not asked.body:
        raise UsageError("the body is empty; it must be miniSEED records")
    request.waveforms.miniseed.append(asked.body)
    return request


def _threshold(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise UsageError(f"{name} is {text[:40]!r}; it must be a number above 0 and at most 1") from error
    if not math.isfinite(value) or abs(value) > 1:  # the model says more; this must fit into the message
        raise UsageError(f"{name} is {text[:40]!r}; it must be a number above 0 and at most 1")
    return value


def _form(asked: Asked, forms: Mapping[str, Callable[[Any], bytes]]) -> _Form:
    """What the Accept header wants most. Without one, or with */*: the first."""
    wanted: list[tuple[float, int, str]] = []
    for part in asked.headers.get("accept", "*/*").lower().split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((one[2:] for one in parameters if one.startswith("q=")), "1")
        try:
            weight = float(quality)
        except ValueError as error:
            raise UsageError(f"the Accept header has q={quality[:20]!r}; it must be a number from 0 to 1") from error
        if weight > 0:
            wanted.append((-weight, len(wanted), media))
    for _, _, media in sorted(wanted):
        kind, _, _ = media.partition("/")
        for offered, write in forms.items():
            if media in ("*/*", offered) or (media == f"{kind}/*" and offered.startswith(f"{kind}/")):
                return _Form(offered, write)
    raise NotAcceptable(f"the Accept header names none of {', '.join(forms)}")


def _headers(response: Any) -> dict[str, str]:
    """What does not fit into a table: model, provenance, warnings (a JSON list, cut to what a header may hold)."""
    headers = {"seisserve-model": f"{response.model.name}:{response.model.version}"}
    if "provenance" in response.DESCRIPTOR.fields_by_name:
        headers["seisserve-provenance"] = response.provenance
    warnings: list[str] = list(getattr(response, "warnings", ()))
    if warnings:
        headers["seisserve-warnings-count"] = str(len(warnings))
        while len(json.dumps(warnings)) > MOST_HEADER:
            warnings.pop()
        headers["seisserve-warnings"] = json.dumps(warnings)
    return headers


def _table(results: Callable[[Any], Picks | Detections], kind: str) -> Callable[[Any], bytes]:
    def write(response: Any) -> bytes:
        text = io.StringIO()
        results(response).write(text, kind)
        return text.getvalue().encode()

    return write


def _picks(response: wire.PickResponse) -> Picks:
    found = (
        Pick(one.trace_id, one.phase, one.time_ns, one.probability, one.uncertainty_s, one.snr_db, tuple(one.flags))
        for one in response.picks
    )
    return Picks(found, response.model.name, response.model.version, response.provenance)


def _detections(response: wire.DetectResponse) -> Detections:
    found = (
        Detection(one.trace_id, one.start_ns, one.end_ns, one.probability, tuple(one.flags))
        for one in response.detections
    )
    return Detections(found, response.model.name, response.model.version, response.provenance)


def _waveforms(response: wire.DenoiseResponse | wire.RecoverResponse) -> bytes:
    return _miniseed(to_obspy(map(from_message, response.traces)))


def _annotations(response: wire.AnnotateResponse) -> list[Annotation]:
    return [
        Annotation(
            one.trace_id, one.start_ns, one.sampling_rate_hz, tuple(one.labels),
            np.frombuffer(one.values, "<f4").reshape(-1, len(one.labels)),
        )
        for one in response.annotations
    ]  # fmt: skip


def _curves(response: wire.AnnotateResponse) -> bytes:
    return _miniseed(to_stream(_annotations(response)))


def _curves_as_json(response: wire.AnnotateResponse) -> bytes:
    """One object for each segment; values [samples, labels]."""
    return b"".join(dump(one._asdict(), [one.values]) + b"\n" for one in _annotations(response))


def _miniseed(stream: Any) -> bytes:
    content = io.BytesIO()
    if stream:
        with turn():
            stream.write(content, format="MSEED")
    return content.getvalue()
