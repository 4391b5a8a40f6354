"""SeismicService: waveforms in, picks and curves out. The work is `seisserve.pipeline`'s."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import grpc
import msgspec
import numpy as np

from seisserve import pipeline
from seisserve.annotations import from_curve
from seisserve.errors import UsageError, WaveformError
from seisserve.manifest import Manifest
from seisserve.proto import seismic_pb2 as wire
from seisserve.reading import read_miniseed
from seisserve.resample import Phase
from seisserve.segments import by_instrument
from seisserve.traces import Trace
from seisserve_serving.models import Models, Served
from seisserve_serving.status import handler

__all__ = ["SEISMIC_SERVICE", "handlers", "trace_message"]

SEISMIC_SERVICE = "seisserve.v1.SeismicService"
SAMPLE_TYPES = {wire.Trace.INT32: "<i4", wire.Trace.FLOAT32: "<f4", wire.Trace.FLOAT64: "<f8"}
PHASES: dict[str, Phase] = {"": "zero", "zero": "zero", "causal": "causal"}


class _Asked(NamedTuple):
    """What a request asks for, checked."""

    served: Served
    manifest: Manifest
    phase: Phase
    instruments: list[list[Trace]]

    @property
    def spec(self) -> wire.ModelSpec:
        return wire.ModelSpec(name=self.manifest.name, version=self.served.version)


def handlers(models: Models) -> grpc.GenericRpcHandler:
    """The service's methods."""

    def pick(request: wire.PickRequest) -> wire.PickResponse:
        asked = _asked(models, request)
        response = wire.PickResponse(model=asked.spec, provenance=pipeline.provenance(asked.manifest, asked.phase))
        for traces in asked.instruments:
            result = pipeline.pick(traces, asked.manifest, asked.served.transport, phase=asked.phase)
            response.picks.extend(wire.Pick(**pick._asdict()) for pick in result.picks)
            response.warnings.extend(result.warnings)
        return response

    def annotate(request: wire.AnnotateRequest) -> wire.AnnotateResponse:
        asked = _asked(models, request)
        response = wire.AnnotateResponse(model=asked.spec)
        for traces in asked.instruments:
            curve, warnings = pipeline.annotate(traces, asked.manifest, asked.served.transport, phase=asked.phase)
            response.annotations.extend(
                wire.Annotation(**item._asdict() | {"values": item.values.astype("<f4").tobytes()})
                for item in from_curve(curve)
            )
            response.warnings.extend(warnings)
        return response

    def get_model(request: wire.GetModelRequest) -> wire.GetModelResponse:
        served = _find(models, request.model)
        spec = wire.ModelSpec(name=served.manifest.name, version=served.version)
        return wire.GetModelResponse(model=spec, manifest_json=msgspec.json.encode(served.manifest).decode())

    methods: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
        "Pick": (pick, wire.PickRequest, wire.PickResponse),
        "Annotate": (annotate, wire.AnnotateRequest, wire.AnnotateResponse),
        "GetModel": (get_model, wire.GetModelRequest, wire.GetModelResponse),
    }
    return grpc.method_handlers_generic_handler(
        SEISMIC_SERVICE, {name: handler(*method) for name, method in methods.items()}
    )


def trace_message(trace: Trace) -> wire.Trace:
    """A trace as a message; samples as int32, float32 or float64, whichever holds them."""
    kind = {"i4": wire.Trace.INT32, "f4": wire.Trace.FLOAT32}.get(trace.samples.dtype.str[1:], wire.Trace.FLOAT64)
    content = np.ascontiguousarray(trace.samples, SAMPLE_TYPES[kind]).tobytes()
    return wire.Trace(
        id=trace.id, start_ns=trace.start_ns, sampling_rate_hz=trace.sampling_rate_hz, sample_type=kind, samples=content
    )


def _asked(models: Models, request: wire.PickRequest | wire.AnnotateRequest) -> _Asked:
    options = request.options
    if options.resampling not in PHASES:
        raise UsageError(f"options.resampling is {options.resampling!r}; it must be 'zero' or 'causal'")
    served = _find(models, request.model)
    manifest = served.manifest.with_options(
        dict(options.thresholds), options.hop_samples or None, options.stacking or None
    )
    traces = [*map(_trace, request.waveforms.traces)]
    for content in request.waveforms.miniseed:
        traces.extend(read_miniseed(content))
    if not traces:
        raise WaveformError("waveforms is empty; send traces or miniseed")
    return _Asked(served, manifest, PHASES[options.resampling], list(by_instrument(traces).values()))


def _find(models: Models, spec: wire.ModelSpec) -> Served:
    if spec.version < 0:
        raise UsageError(f"model.version is {spec.version}; it must be a version number, or 0 for the latest")
    return models.get(spec.name, spec.version)


def _trace(message: wire.Trace) -> Trace:
    if message.sample_type not in SAMPLE_TYPES:
        raise WaveformError(f"trace {message.id}: sample_type is missing; it must be INT32, FLOAT32 or FLOAT64")
    dtype = np.dtype(SAMPLE_TYPES[message.sample_type])
    if len(message.samples) % dtype.itemsize:
        raise WaveformError(
            f"trace {message.id}: samples has {len(message.samples)} bytes; {dtype.name} takes {dtype.itemsize} each"
        )
    return Trace(message.id, message.start_ns, message.sampling_rate_hz, np.frombuffer(message.samples, dtype))


def requests_of(traces: Iterable[Trace]) -> wire.Waveforms:
    """Traces as a message."""
    return wire.Waveforms(traces=map(trace_message, traces))
