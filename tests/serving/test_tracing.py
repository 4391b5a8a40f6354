"""Traces: a span for each call, its stages below it, in the caller's own trace where there is one."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from seisserve.errors import MissingExtra, UsageError
from seisserve_serving.calls import Call
from seisserve_serving.front import Arrival, Done, Front
from seisserve_serving.tracing import Tracing, exporter

METHOD = "/tensorflow.serving.PredictionService/Predict"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """A collector in memory."""

    def __init__(self) -> None:
        self.memory = InMemorySpanExporter()
        self.tracing = Tracing(self.memory)

    def spans(self) -> list[ReadableSpan]:
        self.tracing._provider.force_flush()
        return list(self.memory.get_finished_spans())


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.tracing.close()


def answered(metadata: dict[str, str] | None = None, code: grpc.StatusCode = grpc.StatusCode.OK) -> Done:
    call = Call("r-1", peer="ipv4:10.0.0.1:5", user="operator")
    call.about("phasenet", 3)
    call.charge(32)
    for stage, seconds in {"decode": 0.001, "queue": 0.002, "compute": 0.5}.items():
        call.spent[stage] += seconds
    return Done(
        Arrival(METHOD, {"authorization": "Bearer geheim", **(metadata or {})}, call.peer, 9), call, code, 0.1, None
    )


def test_a_call_is_a_span_with_its_stages_inside(collector: Collector) -> None:
    collector.tracing.tell(answered())
    *stages, call = collector.spans()
    assert call.name == METHOD[1:]
    assert call.kind is SpanKind.SERVER
    assert call.end_time - call.start_time == pytest.approx(0.1e9)
    assert call.attributes == {
        "seisserve.request_id": "r-1", "seisserve.code": "OK", "rpc.system": "grpc",
        "rpc.service": "tensorflow.serving.PredictionService", "rpc.method": "Predict", "rpc.grpc.status_code": 0,
        "client.address": "ipv4:10.0.0.1:5", "enduser.id": "operator", "seisserve.model": "phasenet",
        "seisserve.version": 3, "seisserve.windows": 32, "seisserve.bytes": 9,
    }  # fmt: skip
    assert [span.name for span in stages] == ["decode", "queue", "compute"]
    at = call.start_time
    for span in stages:
        assert span.parent.span_id == call.context.span_id
        assert span.start_time == at
        at = span.end_time
    assert at == call.end_time  # 0.5 s on several lanes at once are no longer than the call
    assert stages[2].attributes == {"seisserve.stage_s": 0.5}
    assert "geheim" not in "".join(span.to_json() for span in collector.spans())


def test_a_caller_that_traces_gets_its_spans_into_its_own_trace(collector: Collector) -> None:
    collector.tracing.tell(answered({"traceparent": f"00-{TRACE}-{SPAN}-01"}))
    collector.tracing.tell(answered({"traceparent": f"00-{TRACE}-{SPAN}-00"}))  # which it does not sample
    collector.tracing.tell(answered({"traceparent": "rubbish"}))
    calls = [span for span in collector.spans() if span.name == METHOD[1:]]
    assert [f"{span.context.trace_id:032x}" == TRACE for span in calls] == [True, False]
    assert f"{calls[0].parent.span_id:016x}" == SPAN
    assert calls[1].parent is None


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.OK, StatusCode.UNSET), (grpc.StatusCode.INVALID_ARGUMENT, StatusCode.UNSET),
        (grpc.StatusCode.INTERNAL, StatusCode.ERROR), (grpc.StatusCode.DEADLINE_EXCEEDED, StatusCode.ERROR),
    ],
)  # fmt: skip
def test_only_faults_of_the_server_are_errors(code: grpc.StatusCode, status: StatusCode, collector: Collector) -> None:
    collector.tracing.tell(answered(code=code))
    assert collector.spans()[-1].status.status_code is status


def test_the_door_tells_of_calls_as_they_end(collector: Collector) -> None:
    front = Front(told=[collector.tracing.tell])
    with front.call(Arrival(METHOD, {}, "unix:"), None) as call:
        call.spent["decode"] += 0.0
    assert [span.name for span in collector.spans()] == ["decode", METHOD[1:]]


def test_none_is_traced_at_a_share_of_zero() -> None:
    memory = InMemorySpanExporter()
    tracing = Tracing(memory, share=0.0)
    tracing.tell(answered())
    tracing.tell(answered({"traceparent": f"00-{TRACE}-{SPAN}-01"}))
    tracing.close()
    assert {f"{span.context.trace_id:032x}" for span in memory.get_finished_spans()} == {TRACE}


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match="must begin with http"):
        exporter("localhost:4317")
    for headers in ("geheim", "=geheim", "a=b,geheim"):
        with pytest.raises(UsageError, match="NAME=VALUE") as caught:
            exporter("http://localhost:4317", headers)
        assert "geheim" not in str(caught.value)
    exporter("http://localhost:4317", "a=b, C=d").shutdown()


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(MissingExtra, match=r"pip install 'seisserve\[tracing\]'"):
        exporter("http://localhost:4317")
