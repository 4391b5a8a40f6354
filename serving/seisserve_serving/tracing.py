"""OpenTelemetry traces: a span for each call, with one below it for each of its stages."""

from __future__ import annotations

import time
from typing import Any

import grpc

from seisserve._version import __version__
from seisserve.errors import UsageError
from seisserve.extras import need
from seisserve_serving.front import Done

__all__ = ["Tracing", "exporter"]

# Codes that mean a fault of the server's side; the others are the caller's.
FAULTS = {
    grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS,
}  # fmt: skip
CONTEXT = ("traceparent", "tracestate")  # the headers of W3C Trace Context
FLUSH_MS = 2000  # at the end: what a collector that does not answer may cost


def exporter(endpoint: str, headers: str = "") -> Any:
    """Sends spans to a collector over gRPC; headers as NAME=VALUE,NAME=VALUE. Raises UsageError, MissingExtra."""
    otlp = need("opentelemetry.exporter.otlp.proto.grpc.trace_exporter", "tracing")
    pairs = [pair.partition("=") for pair in headers.split(",") if pair.strip()]
    for name, sign, _ in pairs:
        if not sign or not name.strip():
            raise UsageError("otlp_headers must be NAME=VALUE,NAME=VALUE; one of them has no name or no =")
    if not endpoint.startswith(("http://", "https://")):
        raise UsageError(f"otlp_endpoint is {endpoint!r}; it must begin with http:// or https://, as http://host:4317")
    named = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return otlp.OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"), headers=named or None)


class Tracing:
    """Tells an exporter of calls. share: of those whose caller hasn't decided already; a caller that sends
    `traceparent` gets its spans into its own trace.

    Spans are made when a call has been answered. Stages lie end to end in the order in which they began: their lengths
    are measured (summed over lanes, where windows are computed side by side), their places are not.
    """

    def __init__(self, exporter: Any, share: float = 1.0) -> None:
        sdk = need("opentelemetry.sdk.trace", "tracing")
        batches = need("opentelemetry.sdk.trace.export", "tracing")
        sampling = need("opentelemetry.sdk.trace.sampling", "tracing")
        resources = need("opentelemetry.sdk.resources", "tracing")
        self._api = need("opentelemetry.trace", "tracing")
        self._context = need("opentelemetry.trace.propagation.tracecontext", "tracing").TraceContextTextMapPropagator()
        resource = resources.Resource.create({"service.name": "seisserve", "service.version": __version__})
        self._provider = sdk.TracerProvider(sampling.ParentBasedTraceIdRatio(share), resource)
        self._provider.add_span_processor(batches.BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("seisserve", __version__)

    def tell(self, done: Done) -> None:
        """Make the spans of a call. For `Front.told`."""
        end = time.time_ns()
        begin = end - int(done.seconds * 1e9)
        carrier = {key: str(done.arrival.metadata[key]) for key in CONTEXT if key in done.arrival.metadata}
        parent = self._context.extract(carrier)
        api = self._api
        name = done.arrival.method.removeprefix("/")
        span = self._tracer.start_span(
            name, context=parent, kind=api.SpanKind.SERVER, start_time=begin, attributes=_attributes(done)
        )
        if done.code in FAULTS:
            span.set_status(api.Status(api.StatusCode.ERROR, done.code.name))
        if span.is_recording():
            inside, at = api.set_span_in_context(span), begin
            for stage, seconds in done.call.spent.items():
                child = self._tracer.start_span(stage, context=inside, start_time=at)
                child.set_attribute("seisserve.stage_s", seconds)
                at = min(at + int(seconds * 1e9), end)
                child.end(at)
        span.end(end)

    def close(self) -> None:
        """Send what is left, within two seconds."""
        self._provider.force_flush(FLUSH_MS)
        self._provider.shutdown()


def _attributes(done: Done) -> dict[str, str | int]:
    arrival, call = done.arrival, done.call
    found: dict[str, str | int] = {"seisserve.request_id": call.request_id, "seisserve.code": done.code.name}
    if arrival.method.startswith("/"):
        service, _, method = arrival.method[1:].partition("/")
        status = int(done.code.value[0])
        found |= {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method, "rpc.grpc.status_code": status}
    optional: dict[str, str | int] = {
        "client.address": call.peer, "enduser.id": call.user, "seisserve.model": call.model,
        "seisserve.version": call.version, "seisserve.windows": call.windows, "seisserve.bytes": arrival.size,
    }  # fmt: skip
    return found | {key: value for key, value in optional.items() if value}
