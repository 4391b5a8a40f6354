from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelSpec(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class Trace(_message.Message):
    __slots__ = ("id", "start_ns", "sampling_rate_hz", "sample_type", "samples")
    class SampleType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SAMPLE_TYPE_UNSPECIFIED: _ClassVar[Trace.SampleType]
        INT32: _ClassVar[Trace.SampleType]
        FLOAT32: _ClassVar[Trace.SampleType]
        FLOAT64: _ClassVar[Trace.SampleType]
    SAMPLE_TYPE_UNSPECIFIED: Trace.SampleType
    INT32: Trace.SampleType
    FLOAT32: Trace.SampleType
    FLOAT64: Trace.SampleType
    ID_FIELD_NUMBER: _ClassVar[int]
    START_NS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_TYPE_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    id: str
    start_ns: int
    sampling_rate_hz: float
    sample_type: Trace.SampleType
    samples: bytes
    def __init__(self, id: _Optional[str] = ..., start_ns: _Optional[int] = ..., sampling_rate_hz: _Optional[float] = ..., sample_type: _Optional[_Union[Trace.SampleType, str]] = ..., samples: _Optional[bytes] = ...) -> None: ...

class Waveforms(_message.Message):
    __slots__ = ("traces", "miniseed")
    TRACES_FIELD_NUMBER: _ClassVar[int]
    MINISEED_FIELD_NUMBER: _ClassVar[int]
    traces: _containers.RepeatedCompositeFieldContainer[Trace]
    miniseed: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, traces: _Optional[_Iterable[_Union[Trace, _Mapping]]] = ..., miniseed: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Options(_message.Message):
    __slots__ = ("thresholds", "hop_samples", "stacking", "resampling")
    class ThresholdsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    HOP_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    STACKING_FIELD_NUMBER: _ClassVar[int]
    RESAMPLING_FIELD_NUMBER: _ClassVar[int]
    thresholds: _containers.ScalarMap[str, float]
    hop_samples: int
    stacking: str
    resampling: str
    def __init__(self, thresholds: _Optional[_Mapping[str, float]] = ..., hop_samples: _Optional[int] = ..., stacking: _Optional[str] = ..., resampling: _Optional[str] = ...) -> None: ...

class PickRequest(_message.Message):
    __slots__ = ("model", "waveforms", "options")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WAVEFORMS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    waveforms: Waveforms
    options: Options
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., waveforms: _Optional[_Union[Waveforms, _Mapping]] = ..., options: _Optional[_Union[Options, _Mapping]] = ...) -> None: ...

class Pick(_message.Message):
    __slots__ = ("trace_id", "phase", "time_ns", "probability", "uncertainty_s", "snr_db", "flags")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    UNCERTAINTY_S_FIELD_NUMBER: _ClassVar[int]
    SNR_DB_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    trace_id: str
    phase: str
    time_ns: int
    probability: float
    uncertainty_s: float
    snr_db: float
    flags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, trace_id: _Optional[str] = ..., phase: _Optional[str] = ..., time_ns: _Optional[int] = ..., probability: _Optional[float] = ..., uncertainty_s: _Optional[float] = ..., snr_db: _Optional[float] = ..., flags: _Optional[_Iterable[str]] = ...) -> None: ...

class PickResponse(_message.Message):
    __slots__ = ("model", "picks", "warnings", "provenance")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PICKS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    picks: _containers.RepeatedCompositeFieldContainer[Pick]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    provenance: str
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., picks: _Optional[_Iterable[_Union[Pick, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., provenance: _Optional[str] = ...) -> None: ...

class DetectRequest(_message.Message):
    __slots__ = ("model", "waveforms", "options")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WAVEFORMS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    waveforms: Waveforms
    options: Options
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., waveforms: _Optional[_Union[Waveforms, _Mapping]] = ..., options: _Optional[_Union[Options, _Mapping]] = ...) -> None: ...

class Detection(_message.Message):
    __slots__ = ("trace_id", "start_ns", "end_ns", "probability", "flags")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    START_NS_FIELD_NUMBER: _ClassVar[int]
    END_NS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    trace_id: str
    start_ns: int
    end_ns: int
    probability: float
    flags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, trace_id: _Optional[str] = ..., start_ns: _Optional[int] = ..., end_ns: _Optional[int] = ..., probability: _Optional[float] = ..., flags: _Optional[_Iterable[str]] = ...) -> None: ...

class DetectResponse(_message.Message):
    __slots__ = ("model", "detections", "warnings", "provenance")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    detections: _containers.RepeatedCompositeFieldContainer[Detection]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    provenance: str
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., detections: _Optional[_Iterable[_Union[Detection, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., provenance: _Optional[str] = ...) -> None: ...

class DenoiseRequest(_message.Message):
    __slots__ = ("model", "waveforms", "options")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WAVEFORMS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    waveforms: Waveforms
    options: Options
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., waveforms: _Optional[_Union[Waveforms, _Mapping]] = ..., options: _Optional[_Union[Options, _Mapping]] = ...) -> None: ...

class DenoiseResponse(_message.Message):
    __slots__ = ("model", "traces", "warnings", "provenance")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TRACES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    traces: _containers.RepeatedCompositeFieldContainer[Trace]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    provenance: str
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., traces: _Optional[_Iterable[_Union[Trace, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., provenance: _Optional[str] = ...) -> None: ...

class RecoverRequest(_message.Message):
    __slots__ = ("model", "waveforms", "options")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WAVEFORMS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    waveforms: Waveforms
    options: Options
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., waveforms: _Optional[_Union[Waveforms, _Mapping]] = ..., options: _Optional[_Union[Options, _Mapping]] = ...) -> None: ...

class RecoverResponse(_message.Message):
    __slots__ = ("model", "traces", "warnings", "provenance")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TRACES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    traces: _containers.RepeatedCompositeFieldContainer[Trace]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    provenance: str
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., traces: _Optional[_Iterable[_Union[Trace, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., provenance: _Optional[str] = ...) -> None: ...

class AnnotateRequest(_message.Message):
    __slots__ = ("model", "waveforms", "options")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WAVEFORMS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    waveforms: Waveforms
    options: Options
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., waveforms: _Optional[_Union[Waveforms, _Mapping]] = ..., options: _Optional[_Union[Options, _Mapping]] = ...) -> None: ...

class Annotation(_message.Message):
    __slots__ = ("trace_id", "start_ns", "sampling_rate_hz", "labels", "values")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    START_NS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    trace_id: str
    start_ns: int
    sampling_rate_hz: float
    labels: _containers.RepeatedScalarFieldContainer[str]
    values: bytes
    def __init__(self, trace_id: _Optional[str] = ..., start_ns: _Optional[int] = ..., sampling_rate_hz: _Optional[float] = ..., labels: _Optional[_Iterable[str]] = ..., values: _Optional[bytes] = ...) -> None: ...

class AnnotateResponse(_message.Message):
    __slots__ = ("model", "annotations", "warnings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    annotations: _containers.RepeatedCompositeFieldContainer[Annotation]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., annotations: _Optional[_Iterable[_Union[Annotation, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class ProcessRequest(_message.Message):
    __slots__ = ("waveforms", "recover", "denoise", "pick", "detect", "options", "return_waveforms")
    WAVEFORMS_FIELD_NUMBER: _ClassVar[int]
    RECOVER_FIELD_NUMBER: _ClassVar[int]
    DENOISE_FIELD_NUMBER: _ClassVar[int]
    PICK_FIELD_NUMBER: _ClassVar[int]
    DETECT_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    RETURN_WAVEFORMS_FIELD_NUMBER: _ClassVar[int]
    waveforms: Waveforms
    recover: ModelSpec
    denoise: ModelSpec
    pick: ModelSpec
    detect: ModelSpec
    options: Options
    return_waveforms: bool
    def __init__(self, waveforms: _Optional[_Union[Waveforms, _Mapping]] = ..., recover: _Optional[_Union[ModelSpec, _Mapping]] = ..., denoise: _Optional[_Union[ModelSpec, _Mapping]] = ..., pick: _Optional[_Union[ModelSpec, _Mapping]] = ..., detect: _Optional[_Union[ModelSpec, _Mapping]] = ..., options: _Optional[_Union[Options, _Mapping]] = ..., return_waveforms: bool = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("name", "model", "provenance", "traces")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    TRACES_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: ModelSpec
    provenance: str
    traces: _containers.RepeatedCompositeFieldContainer[Trace]
    def __init__(self, name: _Optional[str] = ..., model: _Optional[_Union[ModelSpec, _Mapping]] = ..., provenance: _Optional[str] = ..., traces: _Optional[_Iterable[_Union[Trace, _Mapping]]] = ...) -> None: ...

class ProcessResponse(_message.Message):
    __slots__ = ("stages", "picks", "detections", "warnings")
    STAGES_FIELD_NUMBER: _ClassVar[int]
    PICKS_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    picks: _containers.RepeatedCompositeFieldContainer[Pick]
    detections: _containers.RepeatedCompositeFieldContainer[Detection]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ..., picks: _Optional[_Iterable[_Union[Pick, _Mapping]]] = ..., detections: _Optional[_Iterable[_Union[Detection, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model", "manifest_json")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    manifest_json: str
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., manifest_json: _Optional[str] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("start", "packets", "seen")
    START_FIELD_NUMBER: _ClassVar[int]
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    start: SessionStart
    packets: SessionPackets
    seen: int
    def __init__(self, start: _Optional[_Union[SessionStart, _Mapping]] = ..., packets: _Optional[_Union[SessionPackets, _Mapping]] = ..., seen: _Optional[int] = ...) -> None: ...

class SessionStart(_message.Message):
    __slots__ = ("model", "options", "wait_s", "idle_s", "conflicts", "instruments", "resume_token")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    INSTRUMENTS_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    options: Options
    wait_s: float
    idle_s: float
    conflicts: str
    instruments: int
    resume_token: str
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., options: _Optional[_Union[Options, _Mapping]] = ..., wait_s: _Optional[float] = ..., idle_s: _Optional[float] = ..., conflicts: _Optional[str] = ..., instruments: _Optional[int] = ..., resume_token: _Optional[str] = ...) -> None: ...

class SessionPackets(_message.Message):
    __slots__ = ("number", "waveforms", "finish")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    WAVEFORMS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    number: int
    waveforms: Waveforms
    finish: bool
    def __init__(self, number: _Optional[int] = ..., waveforms: _Optional[_Union[Waveforms, _Mapping]] = ..., finish: bool = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("number", "acknowledged", "started", "picks", "watermarks", "expired", "warnings", "counts", "finished")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PICKS_FIELD_NUMBER: _ClassVar[int]
    WATERMARKS_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    number: int
    acknowledged: int
    started: SessionStarted
    picks: _containers.RepeatedCompositeFieldContainer[Pick]
    watermarks: _containers.RepeatedCompositeFieldContainer[Watermark]
    expired: _containers.RepeatedScalarFieldContainer[str]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    counts: _containers.RepeatedCompositeFieldContainer[SessionCounts]
    finished: bool
    def __init__(self, number: _Optional[int] = ..., acknowledged: _Optional[int] = ..., started: _Optional[_Union[SessionStarted, _Mapping]] = ..., picks: _Optional[_Iterable[_Union[Pick, _Mapping]]] = ..., watermarks: _Optional[_Iterable[_Union[Watermark, _Mapping]]] = ..., expired: _Optional[_Iterable[str]] = ..., warnings: _Optional[_Iterable[str]] = ..., counts: _Optional[_Iterable[_Union[SessionCounts, _Mapping]]] = ..., finished: bool = ...) -> None: ...

class SessionStarted(_message.Message):
    __slots__ = ("resume_token", "model", "provenance", "resumed", "resume_s", "waiting_answers", "history_s")
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    RESUME_S_FIELD_NUMBER: _ClassVar[int]
    WAITING_ANSWERS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_S_FIELD_NUMBER: _ClassVar[int]
    resume_token: str
    model: ModelSpec
    provenance: str
    resumed: bool
    resume_s: float
    waiting_answers: int
    history_s: float
    def __init__(self, resume_token: _Optional[str] = ..., model: _Optional[_Union[ModelSpec, _Mapping]] = ..., provenance: _Optional[str] = ..., resumed: bool = ..., resume_s: _Optional[float] = ..., waiting_answers: _Optional[int] = ..., history_s: _Optional[float] = ...) -> None: ...

class Watermark(_message.Message):
    __slots__ = ("trace_id", "time_ns")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    trace_id: str
    time_ns: int
    def __init__(self, trace_id: _Optional[str] = ..., time_ns: _Optional[int] = ...) -> None: ...

class SessionCounts(_message.Message):
    __slots__ = ("trace_id", "received", "late", "duplicate", "conflicting", "refused_packets", "gaps", "picks", "held_bytes")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    CONFLICTING_FIELD_NUMBER: _ClassVar[int]
    REFUSED_PACKETS_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    PICKS_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    trace_id: str
    received: int
    late: int
    duplicate: int
    conflicting: int
    refused_packets: int
    gaps: int
    picks: int
    held_bytes: int
    def __init__(self, trace_id: _Optional[str] = ..., received: _Optional[int] = ..., late: _Optional[int] = ..., duplicate: _Optional[int] = ..., conflicting: _Optional[int] = ..., refused_packets: _Optional[int] = ..., gaps: _Optional[int] = ..., picks: _Optional[int] = ..., held_bytes: _Optional[int] = ...) -> None: ...
