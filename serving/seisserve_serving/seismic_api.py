"""SeismicService: waveforms in; picks, detections, curves or waveforms out. The work is `seisserve.pipeline`'s."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import grpc
import msgspec

from seisserve import pipeline, restoration
from seisserve.annotations import from_curve
from seisserve.errors import UsageError, WaveformError
from seisserve.manifest import Manifest, Task, check_task
from seisserve.messages import from_message, to_message
from seisserve.proto import seismic_pb2 as wire
from seisserve.reading import read_miniseed
from seisserve.resample import Phase
from seisserve.segments import by_instrument
from seisserve.traces import Trace
from seisserve_serving.models import Models, Served
from seisserve_serving.status import Methods, service

__all__ = ["SEISMIC_SERVICE", "handlers"]

SEISMIC_SERVICE = "seisserve.v1.SeismicService"
Request = wire.PickRequest | wire.AnnotateRequest | wire.DetectRequest | wire.DenoiseRequest | wire.RecoverRequest
Restored = TypeVar("Restored", wire.DenoiseResponse, wire.RecoverResponse)
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

    @property
    def provenance(self) -> str:
        return pipeline.provenance(self.manifest, self.phase)


def handlers(models: Models) -> grpc.GenericRpcHandler:
    """The service's methods."""

    def pick(request: wire.PickRequest) -> wire.PickResponse:
        asked = _asked(models, request, "picking")
        response = wire.PickResponse(model=asked.spec, provenance=asked.provenance)
        for traces in asked.instruments:
            result = pipeline.pick(traces, asked.manifest, asked.served.transport, phase=asked.phase)
            response.picks.extend(wire.Pick(**pick._asdict()) for pick in result.picks)
            response.warnings.extend(result.warnings)
        return response

    def detect(request: wire.DetectRequest) -> wire.DetectResponse:
        asked = _asked(models, request, "detection")
        response = wire.DetectResponse(model=asked.spec, provenance=asked.provenance)
        for traces in asked.instruments:
            result = pipeline.detect(traces, asked.manifest, asked.served.transport, phase=asked.phase)
            response.detections.extend(wire.Detection(**found._asdict()) for found in result.detections)
            response.warnings.extend(result.warnings)
        return response

    def denoise(request: wire.DenoiseRequest) -> wire.DenoiseResponse:
        asked = _asked(models, request, "denoising")
        return _restored(asked, wire.DenoiseResponse(model=asked.spec, provenance=asked.provenance))

    def recover(request: wire.RecoverRequest) -> wire.RecoverResponse:
        asked = _asked(models, request, "recovery")
        return _restored(asked, wire.RecoverResponse(model=asked.spec, provenance=asked.provenance))

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
        "Detect": (detect, wire.DetectRequest, wire.DetectResponse),
        "Denoise": (denoise, wire.DenoiseRequest, wire.DenoiseResponse),
        "Recover": (recover, wire.RecoverRequest, wire.RecoverResponse),
        "Annotate": (annotate, wire.AnnotateRequest, wire.AnnotateResponse),
        "GetModel": (get_model, wire.GetModelRequest, wire.GetModelResponse),
    }
    return service(SEISMIC_SERVICE, methods)


def _restored(asked: _Asked, response: Restored) -> Restored:
    for traces in asked.instruments:
        restored, warnings = restoration.restore(traces, asked.manifest, asked.served.transport, phase=asked.phase)
        response.traces.extend(to_message(trace) for item in restored for trace in item.traces())
        response.warnings.extend(warnings)
    return response


def _asked(models: Models, request: Request, task: Task | None = None) -> _Asked:
    """The request, checked; task: what the model must be for."""
    options = request.options
    if options.resampling not in PHASES:
        raise UsageError(f"options.resampling is {options.resampling!r}; it must be 'zero' or 'causal'")
    served = _find(models, request.model, task or "picking")
    if task is not None:
        check_task(served.manifest, task, models.manifests)
    manifest = served.manifest.with_options(
        dict(options.thresholds), options.hop_samples or None, options.stacking or None
    )
    traces = [*map(from_message, request.waveforms.traces)]
    for content in request.waveforms.miniseed:
        traces.extend(read_miniseed(content))
    if not traces:
        raise WaveformError("waveforms is empty; send traces or miniseed")
    return _Asked(served, manifest, PHASES[options.resampling], list(by_instrument(traces).values()))


def _find(models: Models, spec: wire.ModelSpec, task: Task = "picking") -> Served:
    if spec.version < 0:
        raise UsageError(f"model.version is {spec.version}; it must be a version number, or 0 for the latest")
    return models.get(spec.name, spec.version, task)
