"""SeismicService: waveforms in, picks and curves out. The work is `seisserve.pipeline`'s."""

from __future__ import annotations

from typing import NamedTuple

import grpc
import msgspec

from seisserve import pipeline
from seisserve.annotations import from_curve
from seisserve.errors import UsageError, WaveformError
from seisserve.manifest import Manifest
from seisserve.messages import from_message
from seisserve.proto import seismic_pb2 as wire
from seisserve.reading import read_miniseed
from seisserve.resample import Phase
from seisserve.segments import by_instrument
from seisserve.traces import Trace
from seisserve_serving.models import Models, Served
from seisserve_serving.status import Methods, service

__all__ = ["SEISMIC_SERVICE", "handlers"]

SEISMIC_SERVICE = "seisserve.v1.SeismicService"
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

    methods: Methods = {
        "Pick": (pick, wire.PickRequest, wire.PickResponse),
        "Annotate": (annotate, wire.AnnotateRequest, wire.AnnotateResponse),
        "GetModel": (get_model, wire.GetModelRequest, wire.GetModelResponse),
    }
    return service(SEISMIC_SERVICE, methods)


def _asked(models: Models, request: wire.PickRequest | wire.AnnotateRequest) -> _Asked:
    options = request.options
    if options.resampling not in PHASES:
        raise UsageError(f"options.resampling is {options.resampling!r}; it must be 'zero' or 'causal'")
    served = _find(models, request.model)
    manifest = served.manifest.with_options(
        dict(options.thresholds), options.hop_samples or None, options.stacking or None
    )
    traces = [*map(from_message, request.waveforms.traces)]
    for content in request.waveforms.miniseed:
        traces.extend(read_miniseed(content))
    if not traces:
        raise WaveformError("waveforms is empty; send traces or miniseed")
    return _Asked(served, manifest, PHASES[options.resampling], list(by_instrument(traces).values()))


def _find(models: Models, spec: wire.ModelSpec) -> Served:
    if spec.version < 0:
        raise UsageError(f"model.version is {spec.version}; it must be a version number, or 0 for the latest")
    return models.get(spec.name, spec.version)
