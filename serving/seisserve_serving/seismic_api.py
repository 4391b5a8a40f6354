"""SeismicService: waveforms in; picks, detections, curves or waveforms out. The work is `seisserve.pipeline`'s."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from seisserve import chain, pipeline, restoration
from seisserve.annotations import Annotation, from_curve
from seisserve.chain import STAGES, Options, Stage
from seisserve.detections import Detection
from seisserve.errors import UsageError
from seisserve.manifest import Manifest, Task, check_task
from seisserve.messages import to_message
from seisserve.picks import Pick
from seisserve.proto import seismic_pb2 as wire
from seisserve.resample import Phase
from seisserve.segments import by_instrument
from seisserve.traces import Trace
from seisserve.transport import Transport
from seisserve_serving.calls import Call
from seisserve_serving.counting import count_detections, count_picks, count_record
from seisserve_serving.front import Methods
from seisserve_serving.models import Models, Served
from seisserve_serving.record_api import (
    MOST_SAMPLES,
    Answer,
    Record,
    Work,
    check_length,
    phase_of,
    stream,
    traces_of,
    unary,
)

__all__ = ["SEISMIC_SERVICE", "services", "streams"]

SEISMIC_SERVICE = "seisserve.v1.SeismicService"
Restored = wire.DenoiseResponse | wire.RecoverResponse


class _Asked(NamedTuple):
    """What a request asks for, checked."""

    served: Served
    call: Call
    manifest: Manifest
    phase: Phase
    instruments: list[list[Trace]]

    @property
    def spec(self) -> wire.ModelSpec:
        return wire.ModelSpec(name=self.manifest.name, version=self.served.version)

    @property
    def transport(self) -> Transport:
        return self.served.queue.at(self.call)

    @property
    def provenance(self) -> str:
        return pipeline.provenance(self.manifest, self.phase)


def services(models: Models, most: int = MOST_SAMPLES) -> dict[str, Methods]:
    """The service's methods that take one request, by its name. most: samples of a record."""

    def process(request: wire.ProcessRequest, call: Call) -> wire.ProcessResponse:
        return _process(models, request, call, most)

    def get_model(request: wire.GetModelRequest, call: Call) -> wire.GetModelResponse:
        served = _find(models, request.model).of(call)
        spec = wire.ModelSpec(name=served.manifest.name, version=served.version)
        return wire.GetModelResponse(model=spec, manifest_json=msgspec.json.encode(served.manifest).decode())

    methods: Methods = {
        **{name: (unary(work), *types) for name, (work, *types) in _works(models, most).items()},
        "Process": (process, wire.ProcessRequest, wire.ProcessResponse),
        "GetModel": (get_model, wire.GetModelRequest, wire.GetModelResponse),
    }
    return {SEISMIC_SERVICE: methods}


def streams(models: Models, most: int = MOST_SAMPLES) -> dict[str, Methods]:
    """Those that take a record in many requests."""
    works = _works(models, most)
    methods = {f"{name}Stream": (stream(work), *types) for name, (work, *types) in works.items()}
    return {SEISMIC_SERVICE: methods}


def _works(models: Models, most: int) -> dict[str, tuple[Work, Any, Any]]:
    """What there is to do with a record, and the types of request and response."""

    def pick(record: Record, call: Call) -> Answer:
        asked, found, warnings = _asked(models, record, call, most, "picking"), [], []
        for traces in asked.instruments:
            result = pipeline.pick(traces, asked.manifest, asked.transport, phase=asked.phase)
            found += result.picks
            warnings += result.warnings
            count_record(call, traces)
        count_picks(call, found)
        head = wire.PickResponse(model=asked.spec, provenance=asked.provenance)
        return Answer(head, "picks", map(_pick, found), warnings)

    def detect(record: Record, call: Call) -> Answer:
        asked, found, warnings = _asked(models, record, call, most, "detection"), [], []
        for traces in asked.instruments:
            result = pipeline.detect(traces, asked.manifest, asked.transport, phase=asked.phase)
            found += result.detections
            warnings += result.warnings
            count_record(call, traces)
        count_detections(call, found)
        head = wire.DetectResponse(model=asked.spec, provenance=asked.provenance)
        return Answer(head, "detections", map(_detection, found), warnings)

    def denoise(record: Record, call: Call) -> Answer:
        asked = _asked(models, record, call, most, "denoising")
        return _restored(asked, wire.DenoiseResponse(model=asked.spec, provenance=asked.provenance))

    def recover(record: Record, call: Call) -> Answer:
        asked = _asked(models, record, call, most, "recovery")
        return _restored(asked, wire.RecoverResponse(model=asked.spec, provenance=asked.provenance))

    def annotate(record: Record, call: Call) -> Answer:
        asked, found, warnings = _asked(models, record, call, most), [], []
        for traces in asked.instruments:
            curve, more = pipeline.annotate(traces, asked.manifest, asked.transport, phase=asked.phase)
            found += from_curve(curve)
            warnings += more
            count_record(call, traces)
        return Answer(wire.AnnotateResponse(model=asked.spec), "annotations", map(_annotation, found), warnings)

    return {
        "Pick": (pick, wire.PickRequest, wire.PickResponse),
        "Detect": (detect, wire.DetectRequest, wire.DetectResponse),
        "Denoise": (denoise, wire.DenoiseRequest, wire.DenoiseResponse),
        "Recover": (recover, wire.RecoverRequest, wire.RecoverResponse),
        "Annotate": (annotate, wire.AnnotateRequest, wire.AnnotateResponse),
    }


def _pick(pick: Pick) -> wire.Pick:
    return wire.Pick(**pick._asdict())


def _detection(detection: Detection) -> wire.Detection:
    return wire.Detection(**detection._asdict())


def _annotation(item: Annotation) -> wire.Annotation:
    return wire.Annotation(**item._asdict() | {"values": item.values.astype("<f4").tobytes()})


def _restored(asked: _Asked, head: Restored) -> Answer:
    made: list[Trace] = []
    warnings: list[str] = []
    for traces in asked.instruments:
        restored, more = restoration.restore(traces, asked.manifest, asked.transport, phase=asked.phase)
        made += [trace for item in restored for trace in item.traces()]
        warnings += more
        count_record(asked.call, traces)
    return Answer(head, "traces", map(to_message, made), warnings)


def _process(models: Models, request: wire.ProcessRequest, call: Call, most: int) -> wire.ProcessResponse:
    phase = phase_of(request.options)
    served: dict[Stage, Served] = {}
    for stage, task in STAGES.items():
        if request.HasField(stage):
            served[stage] = _find(models, getattr(request, stage), task).of(call)
            check_task(served[stage].manifest, task, models.manifests)
    manifests = chain.with_options({stage: one.manifest for stage, one in served.items()}, _options(request.options))
    traces = traces_of([request.waveforms], most)
    for manifest in manifests.values():
        check_length(traces, manifest.sampling_rate_hz, most)
    stages = {stage: (manifest, served[stage].queue.at(call)) for stage, manifest in manifests.items()}
    digests = chain.provenances(manifests, phase)
    keep = chain.returned(stages, request.return_waveforms)
    response = wire.ProcessResponse()
    for stage, manifest in manifests.items():
        spec = wire.ModelSpec(name=manifest.name, version=served[stage].version)
        response.stages.add(name=stage, model=spec, provenance=digests[stage])
    for instrument in by_instrument(traces).values():
        made = chain.process(instrument, stages, phase=phase, keep=keep)
        for stage, answered in zip(manifests, response.stages, strict=True):
            answered.traces.extend(map(to_message, made.waveforms.get(stage, [])))
        response.picks.extend(map(_pick, made.picks))
        response.detections.extend(map(_detection, made.detections))
        response.warnings.extend(made.warnings)
        count_record(call, instrument)
        count_picks(call, made.picks)
        count_detections(call, made.detections)
    return response


def _options(options: wire.Options) -> Options:
    return Options(dict(options.thresholds), options.hop_samples or None, options.stacking or None)


def _asked(models: Models, record: Record, call: Call, most: int, task: Task | None = None) -> _Asked:
    """The record, checked; task: what the model must be for."""
    phase = phase_of(record.options)
    served = _find(models, record.model, task or "picking").of(call)
    if task is not None:
        check_task(served.manifest, task, models.manifests)
    manifest = served.manifest.with_options(*_options(record.options))
    traces = traces_of(record.waveforms, most)
    check_length(traces, manifest.sampling_rate_hz, most)
    return _Asked(served, call, manifest, phase, list(by_instrument(traces).values()))


def _find(models: Models, spec: wire.ModelSpec, task: Task = "picking") -> Served:
    if spec.version < 0:
        raise UsageError(f"model.version is {spec.version}; it must be a version number, or 0 for the latest")
    return models.get(spec.name, spec.version, task)
