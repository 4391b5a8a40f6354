"""Records: what comes in one request or in many, and what goes out in one response or in many."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import grpc
import numpy as np

from seisserve.errors import UsageError, WaveformError
from seisserve.messages import SAMPLE_TYPES, from_message
from seisserve.proto import seismic_pb2 as wire
from seisserve.reading import read_miniseed
from seisserve.resample import NS, Phase, exact_rate
from seisserve.traces import Trace
from seisserve_serving.calls import Call
from seisserve_serving.errors import Cancelled, Overloaded

__all__ = [
    "MOST_SAMPLES", "PART_BYTES", "Answer", "Record", "Work", "check_length", "joined", "parts", "phase_of", "record",
    "stream", "traces_of", "unary", "whole",
]  # fmt: skip

MOST_SAMPLES = 300_000_000  # of a record: eleven and a half days of three components at 100 Hz
PART_BYTES = 4 << 20  # of a response: what gRPC clients take if they were told nothing
ITEM_BYTES = 16  # of an item in a message besides its own: tag and length
PHASES: dict[str, Phase] = {"": "zero", "zero": "zero", "causal": "causal"}


class Record(NamedTuple):
    """What requests ask for: a model, options, and waveforms, which may still be on their way (see `traces_of`)."""

    model: wire.ModelSpec
    options: wire.Options
    waveforms: Iterable[wire.Waveforms]


class Answer(NamedTuple):
    """What there is to answer. head: a response with everything but what is repeated; items: of its field `field`, made
    as they are taken; warnings: of its field `warnings`."""

    head: Any
    field: str
    items: Iterable[Any]
    warnings: list[str]


Work = Callable[[Record, Call], Answer]


def record(request: Any) -> Record:
    """The record in a request."""
    return Record(request.model, request.options, [request.waveforms])


def joined(requests: Iterator[Any]) -> Record:
    """The record in a stream of requests: model and options of the first, waveforms of all.

    A later request may repeat model and options, but not change them. Raises UsageError, as taking the waveforms does.
    """
    first = next(requests, None)
    if first is None:
        raise UsageError("no request came; the first has the model and the options")
    head = Record(first.model, first.options, ())

    def waveforms() -> Iterator[wire.Waveforms]:
        yield first.waveforms
        for number, request in enumerate(requests, 2):
            for name in ("model", "options"):
                if request.HasField(name) and getattr(request, name) != getattr(head, name):
                    raise UsageError(f"request {number}: {name} is not that of the first; it comes with the first only")
            yield request.waveforms

    return head._replace(waveforms=waveforms())


def traces_of(waveforms: Iterable[wire.Waveforms], most: int = MOST_SAMPLES) -> list[Trace]:
    """The traces in messages that come one after the other, decoded as they come. Raises WaveformError, Overloaded."""
    traces: list[Trace] = []
    from_miniseed: list[Trace] = []
    samples = 0
    for message in waveforms:
        for part in message.traces:
            traces.append(from_message(part))
            samples = _counted(samples, [traces[-1]], most)
        for content in message.miniseed:
            more = read_miniseed(content)
            from_miniseed += more
            samples = _counted(samples, more, most)
    if not traces and not from_miniseed:
        raise WaveformError("waveforms is empty; send traces or miniseed")
    return traces + from_miniseed


def _counted(samples: int, more: list[Trace], most: int) -> int:
    samples += sum(len(trace.samples) for trace in more)
    if samples > most:
        raise _too_long(f"the record has more than {most} samples")
    return samples


def check_length(traces: Iterable[Trace], rate_hz: float, most: int = MOST_SAMPLES) -> None:
    """Raises Overloaded if the traces have too many samples once they are resampled to that rate."""
    total = 0.0
    for trace in traces:
        if trace.sampling_rate_hz > 0:  # others are refused, with the reason, as soon as they are used
            total += len(trace.samples) * rate_hz / trace.sampling_rate_hz
    if total > most:
        raise _too_long(f"the record has {total:.3g} samples at the model's {rate_hz:g} Hz, and at most {most} may be")


def _too_long(text: str) -> Overloaded:
    return Overloaded(f"{text}; send it in parts", retry_ms=None)


def phase_of(options: wire.Options) -> Phase:
    """Of the filter that resamples. Raises UsageError for one that does not exist."""
    if options.resampling not in PHASES:
        raise UsageError(f"options.resampling is {options.resampling!r}; it must be 'zero' or 'causal'")
    return PHASES[options.resampling]


def whole(answer: Answer) -> Any:
    """The answer in one response."""
    getattr(answer.head, answer.field).extend(answer.items)
    answer.head.warnings.extend(answer.warnings)
    return answer.head


def parts(answer: Answer, most_bytes: int = PART_BYTES) -> Iterator[Any]:
    """The answer in responses none of which is larger: model and provenance in the first; merged they are the whole.

    A trace or annotation that is too long for a response becomes several that follow one another without a gap.
    """
    part, size = answer.head, answer.head.ByteSize()
    found = ((answer.field, piece) for item in answer.items for piece in _pieces(item, most_bytes // 2))
    for field, item in itertools.chain(found, (("warnings", text) for text in answer.warnings)):
        item_bytes = ITEM_BYTES + (len(item.encode()) if isinstance(item, str) else item.ByteSize())
        if size + item_bytes > most_bytes:
            yield part
            part, size = type(answer.head)(), 0
        getattr(part, field).append(item)
        size += item_bytes
    yield part


def _pieces(item: Any, most_bytes: int) -> Iterator[Any]:
    """The item itself; a trace or annotation with more samples than that in consecutive pieces, equally long but the
    last."""
    if isinstance(item, wire.Trace):
        field, sample_bytes = "samples", np.dtype(SAMPLE_TYPES[item.sample_type]).itemsize
    elif isinstance(item, wire.Annotation):
        field, sample_bytes = "values", 4 * len(item.labels)
    else:
        yield item
        return
    content = getattr(item, field)
    setattr(item, field, b"")
    step = max(most_bytes // sample_bytes, 1)
    for first in range(0, max(len(content) // sample_bytes, 1), step):
        piece = type(item)()
        piece.CopyFrom(item)
        piece.start_ns = item.start_ns + round(first * NS / exact_rate(item.sampling_rate_hz))
        setattr(piece, field, content[first * sample_bytes : (first + step) * sample_bytes])
        yield piece


def unary(work: Work) -> Callable[[Any, Call], Any]:
    """The method that does the work for a request and answers in one response."""
    return lambda request, call: whole(work(record(request), call))


def stream(work: Work) -> Callable[[Iterator[Any], Call], Iterator[Any]]:
    """The method that does it for a record in many requests, and answers, after the last, in as many responses."""
    return lambda requests, call: parts(work(joined(_wanted(requests, call)), call))


def _wanted(requests: Iterator[Any], call: Call) -> Iterator[Any]:
    """The requests, as long as there is somebody who wants the answer."""
    try:
        for request in requests:
            call.check()
            yield request
        call.check()  # requests that end because the caller has gone are not the whole record
    except grpc.RpcError as error:  # what gRPC's iterator raises once the call is over
        call.check()
        raise Cancelled("the caller has gone") from error
