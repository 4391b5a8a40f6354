"""The server's metrics, for Prometheus: what calls, batches and sessions tell, and what is read when it is asked for.

`metric_table` says what each of them means.
"""

from __future__ import annotations

import platform
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import NamedTuple

import grpc
from prometheus_client import CollectorRegistry, Counter, ProcessCollector, Summary, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from seisserve import __version__
from seisserve_serving.calls import Call, Counted
from seisserve_serving.errors import Cancelled, Expired, Overloaded, Refused
from seisserve_serving.front import Done, Front
from seisserve_serving.histograms import Histogram, Series
from seisserve_serving.lanes import Batch
from seisserve_serving.metric_table import ALIASES, BY_NAME, METRICS, Alias, Metric
from seisserve_serving.models import Models, State

__all__ = ["CONTENT_TYPE", "OTHER", "PATHS", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PATHS = ("/metrics", "/monitoring/prometheus/metrics")  # the second is TensorFlow Serving's
OTHER = "other"
MOST_METHODS, MOST_MODELS, MOST_PHASES, MOST_STATIONS = 128, 128, 32, 500
MOST_KINDS = 4096  # of calls, beyond which they are found anew each time
LONGEST = 64  # characters of a label
FORGOTTEN_S = 86_400.0  # a station that has been silent for so long
OUTCOMES = ("new", "duplicate", "late", "refused")
REFUSALS = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: "overloaded",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.UNAUTHENTICATED: "unauthenticated",
    grpc.StatusCode.PERMISSION_DENIED: "permission_denied",
}
Labels = tuple[str, ...]
Reading = Callable[[], Mapping[Labels, float]]


class Metrics(Collector):
    """The metrics of one server; nothing in it is shared with another.

    It hears of calls (`done`, for `Front(told=)`), of what they count (`counted`, for `Front(counted=)`), of batches
    (`batch`, for `Lanes(told=)`) and of models (`loaded`), and reads the rest from what it watches. `text` has it all.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        own = [metric for metric in METRICS if metric.name.startswith("seisserve_")]
        self._counters = {metric.name: self._counter(metric) for metric in own if metric.kind == "counter"}
        self._histograms = {metric.name: Histogram(metric) for metric in own if metric.kind == "histogram"}
        self._station_latency = Summary(
            "seisserve_station_pick_latency_seconds",
            BY_NAME["seisserve_station_pick_latency_seconds"].meaning,
            ("station",),
            registry=self._registry,
        )
        self._methods, self._models = _Bounded(MOST_METHODS), _Bounded(MOST_MODELS)
        self._phases, self._stations = _Bounded(MOST_PHASES), _Bounded(MOST_STATIONS)
        self._counter_of: dict[Labels, Counter] = {}  # by name and labels
        self._kinds: dict[Hashable, _Kind] = {}
        self._loads: dict[Labels, float] = {}
        self._newest: dict[Labels, float] = {}  # by station, when its newest sample was taken: of time.monotonic
        self._readings: dict[str, Reading] = {}
        self.read("seisserve_build_info", lambda: {(__version__, platform.python_version()): 1})
        self.read("seisserve_model_load_seconds", lambda: dict(self._loads))
        self.read("seisserve_data_latency_seconds", self._data_latency)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.meaning, metric.labels, registry=self._registry)

    def _data_latency(self) -> Mapping[Labels, float]:
        now = time.monotonic()
        for station, newest in list(self._newest.items()):
            if now - newest > FORGOTTEN_S:
                self._newest.pop(station, None)
        return {station: now - newest for station, newest in list(self._newest.items())}

    # What is told

    def done(self, done: Done) -> None:
        """A call has been answered."""
        call = done.call
        key = (done.arrival.method, call.model, call.version, done.code, done.arrival.transport)
        kind = self._kinds.get(key) or self._kind(done, key)
        kind.requests.inc(done.calls)
        for _ in range(done.calls):
            kind.seconds.observe(done.seconds)
        if done.code is grpc.StatusCode.OK:
            stages = dict(call.spent)
            stages.setdefault("post", max(done.seconds - sum(stages.values()), 0.0))
            for stage, seconds in stages.items():
                kind.stages[stage].observe(seconds)
        if isinstance(done.error, Refused):
            self._refused(done.error, call, done.calls)

    def _kind(self, done: Done, key: Hashable) -> _Kind:
        """Where calls of that kind are counted."""
        (method,), (model, version) = self._methods(done.arrival.method), self._model(done.call)
        transport = done.arrival.transport
        made = _Kind(
            self._counters["seisserve_requests_total"].labels(method, model, version, done.code.name, transport),
            self._histograms["seisserve_request_seconds"].of((method, model, transport)),
            _Stages(self._histograms["seisserve_stage_seconds"], model),
        )
        if len(self._kinds) < MOST_KINDS:
            self._kinds[key] = made
        return made

    def _refused(self, error: Refused, call: Call, count: int) -> None:
        if isinstance(error, Expired | Cancelled):
            if "compute" not in call.spent:
                reason = "expired" if isinstance(error, Expired) else "cancelled"
                self._inc("seisserve_dropped_total", 1, reason)
        elif error.code in REFUSALS:
            never = isinstance(error, Overloaded) and error.retry_ms is None
            self._inc("seisserve_rejected_total", count, "too_large" if never else REFUSALS[error.code])

    def counted(self, call: Call, what: Counted, value: float, label: str) -> None:
        """A call has counted or measured something on its way (`Call.count`)."""
        model, _ = self._model(call)
        if what == "picks":
            self._inc("seisserve_picks_total", value, *self._phases(label), model)
        elif what == "packets":
            self._inc("seisserve_packets_total", value, label if label in OUTCOMES else OTHER)
        elif what == "data_latency":
            taken, station = time.monotonic() - value, self._stations(label)
            self._newest[station] = max(taken, self._newest.get(station, taken))  # a late packet has older samples
        elif what == "station_left":
            self._newest.pop(self._stations(label), None)
        elif what == "pick_latency":
            self._observe("seisserve_pick_latency_seconds", value, model)
            self._station_latency.labels(*self._stations(label)).observe(value)
        else:
            self._inc(f"seisserve_{what}_total", value, model)

    def batch(self, batch: Batch) -> None:
        """A batch was computed."""
        (model, _) = self._models(batch.model.name, "")
        waits = self._histograms["seisserve_wait_seconds"].of((model,))
        for waited_s in batch.waited_s:
            waits.observe(waited_s)
        self._observe("seisserve_batch_seconds", batch.compute_s, model)
        self._observe("seisserve_batch_windows", batch.windows, model)
        self._observe("seisserve_batch_padding_windows", batch.padding, model)
        self._observe("seisserve_batch_computed_windows", batch.windows + batch.padding, model)

    def loaded(self, model: str, version: int, seconds: float) -> None:
        """A model version is ready, after that many seconds."""
        self._loads[self._models(model, str(version))] = seconds

    # What is read

    def read(self, name: str, reading: Reading) -> None:
        """Have a gauge of the table read, whenever the metrics are asked for: a value for each set of labels."""
        if BY_NAME[name].kind != "gauge":
            raise ValueError(f"{name} is a {BY_NAME[name].kind}; only a gauge can be read")
        self._readings[name] = reading

    def watch(self, front: Front, models: Models) -> None:
        """Read what the door, the models and their lanes tell."""

        def queues(attribute: str) -> Mapping[Labels, float]:
            return {
                self._models(name, str(version)): sum(
                    getattr(queue, attribute) for queue in set(served.queues.values())
                )
                for name, versions in models.served.items()
                for version, served in versions.items()
            }

        def states() -> Mapping[Labels, float]:
            found = Tally(state.state.name for versions in models.all_states().values() for state in versions.values())
            return {(state.name,): found[state.name] for state in State}

        self.read("seisserve_calls_under_way", lambda: {(): front.under_way})
        self.read("seisserve_draining", lambda: {(): front.draining})
        self.read("seisserve_queue_windows", lambda: queues("waiting"))
        self.read("seisserve_lanes_at_work", lambda: queues("running"))
        self.read("seisserve_lanes", lambda: {(): models.lanes.count})
        self.read("seisserve_lanes_alive", lambda: {(): models.lanes.alive})
        self.read("seisserve_repository_alive", lambda: {(): models.repository is None or models.repository.alive})
        self.read("seisserve_models", states)
        self.read("seisserve_models_failed", lambda: {(): sum(map(len, models.failed.values()))})

    # What is given out

    def text(self) -> bytes:
        """All of it, as `CONTENT_TYPE`."""
        return generate_latest(self)

    def collect(self) -> Iterator[Family]:
        """The own metrics, and the aliases made from those very numbers."""
        families = {}
        for family in self._registry.collect():
            # When each series began is a second series for each; nothing here needs it.
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            families[family.name] = family
        families |= {name: histogram.family() for name, histogram in self._histograms.items()}
        yield from families.values()
        for name, reading in list(self._readings.items()):
            gauge = GaugeMetricFamily(name, BY_NAME[name].meaning, labels=BY_NAME[name].labels)
            for labels, value in reading().items():
                gauge.add_metric(labels, float(value))
            yield gauge
        for alias in ALIASES:
            yield _aliased(alias, families[alias.of.removesuffix("_total")])

    def _inc(self, name: str, value: float, *labels: str) -> None:
        counter = self._counter_of.get((name, *labels))
        if counter is None:
            counter = self._counter_of[name, *labels] = self._counters[name].labels(*labels)
        counter.inc(value)

    def _observe(self, name: str, value: float, *labels: str) -> None:
        self._histograms[name].of(labels).observe(value)

    def _model(self, call: Call) -> Labels:
        """Labels of the call's model; empty if it has found none. Only a served one ever gets into a call."""
        return self._models(call.model, str(call.version)) if call.model else ("", "")


class _Kind(NamedTuple):
    """Where calls of one method, model, status and transport are counted: finding that costs as much as counting."""

    requests: Counter
    seconds: Series
    stages: _Stages


class _Stages(dict[str, Series]):
    """The times of a model's stages, each from its first value on."""

    def __init__(self, histogram: Histogram, model: str) -> None:
        super().__init__()
        self._histogram, self._model = histogram, model

    def __missing__(self, stage: str) -> Series:
        found = self[stage] = self._histogram.of((stage, self._model))
        return found


class _Bounded:
    """Values of labels: the first `most` that come are themselves, any later one is OTHER."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._known: dict[Labels, Labels] = {}

    def __call__(self, *values: str) -> Labels:
        known = self._known.get(values)
        if known is not None:
            return known
        with self._lock:
            if len(self._known) >= self._most:
                return (OTHER,) * len(values)
            # A lone surrogate cannot be written as UTF-8: one such name would end all scraping.
            clean = tuple(value.encode(errors="replace").decode()[:LONGEST] for value in values)
            return self._known.setdefault(values, clean)


def _aliased(alias: Alias, own: Family) -> Family:
    """The own numbers under the alias; those whose labels become equal are added up."""
    family = Family(alias.name, alias.meaning, "histogram" if alias.kind == "histogram" else "unknown")
    sums: dict[tuple[str, Labels], float] = {}
    for sample in own.samples:
        labels = _alias_labels(alias, sample.labels)
        if labels is None:
            continue
        suffix = sample.name.removeprefix(own.name) if alias.kind == "histogram" else ""
        if suffix == "_bucket":
            bound = sample.labels["le"]
            labels = (*labels, bound if bound == "+Inf" else f"{float(bound) / alias.factor:.9g}")
        value = sample.value / alias.factor if suffix == "_sum" else sample.value
        key = (suffix, labels)
        sums[key] = sums.get(key, 0.0) + value
    for (suffix, labels), value in sums.items():
        names = (*alias.labels, "le") if suffix == "_bucket" else alias.labels
        family.add_sample(alias.name + suffix, dict(zip(names, labels, strict=True)), value)
    return family


def _alias_labels(alias: Alias, own: Mapping[str, str]) -> Labels | None:
    """TensorFlow Serving's labels for a sample; nothing for one that it would not have."""
    if not own["model"] or own.get("stage", "compute") != "compute":
        return None
    if alias.labels == ("model_name", "status"):
        return own["model"], own["code"]
    if alias.labels == ("model_name", "API", "entrypoint"):
        return own["model"], own["method"].rpartition("/")[2], "GRPC" if own["transport"] == "grpc" else "REST"
    return (own["model"],)
