"""Every metric that the server has: what it counts, and when to worry. docs/metrics.md is made from this table:

python -m seisserve_serving.metric_table > docs/metrics.md
"""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["ALIASES", "BY_NAME", "METRICS", "Alias", "Metric", "documentation"]

Kind = Literal["counter", "gauge", "histogram", "summary"]
Buckets = tuple[float, ...]
SECONDS: Buckets = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
LATENESS: Buckets = (0.1, 0.25, 0.5, 1, 1.5, 2, 3, 5, 10, 30, 60)
WINDOWS: Buckets = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metric(NamedTuple):
    """A metric of the server's own. worry: what the person on call should look for, or nothing."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    worry: str = ""
    buckets: Buckets = ()


class Alias(NamedTuple):
    """A metric under the name that TensorFlow Serving has for it. of: the own one that it is made from.

    factor: its unit in those of the own one (TensorFlow Serving counts microseconds).
    """

    name: str
    kind: Literal["counter", "histogram"]
    labels: tuple[str, ...]
    of: str
    meaning: str
    factor: float = 1


METRICS = (
    Metric("seisserve_build_info", "gauge", ("version", "python"), "Always 1; the labels tell what runs.",
           "Two versions at once, long after a rollout."),
    # Calls
    Metric("seisserve_requests_total", "counter", ("method", "model", "version", "code", "transport"),
           "Calls that were answered, by gRPC status (over HTTP too). model is empty until a call has found one.",
           "Any INTERNAL: the log has each with its request id. A rising share of codes other than OK."),
    Metric("seisserve_request_seconds", "histogram", ("method", "model", "transport"),
           "From a call's arrival to its answer; a stream counts from its beginning to its end.",
           "p99 over what your users were promised.", SECONDS),
    Metric("seisserve_stage_seconds", "histogram", ("stage", "model"),
           "Where the time of calls that were answered with OK went. decode and encode: messages; queue: waiting for a "
           "lane; compute: the network; post: the rest (cutting windows, stacking, picking). The batches of one call "
           "may wait and compute side by side: queue and compute are their sums.",
           "queue above compute: there are more calls than the machine can compute.", SECONDS),
    Metric("seisserve_calls_under_way", "gauge", (), "Calls that are being answered now.",
           "At its limit (`max_calls`): new calls are refused."),
    Metric("seisserve_draining", "gauge", (), "1 once the server has been told to stop, else 0.",
           "1 for longer than the grace period."),
    Metric("seisserve_rejected_total", "counter", ("reason",),
           "Calls that the server refused. overloaded: too many calls or windows wait, or a caller came too often; "
           "too_large: it never fits; unavailable: draining or loading; unauthenticated; permission_denied. What gRPC "
           "itself refuses (a message over the limit) never reaches the server and is not counted.",
           "overloaded for minutes: add machines. unauthenticated: somebody tries tokens, or one has expired."),
    Metric("seisserve_dropped_total", "counter", ("reason",),
           "Calls that were over before anything was computed for them: expired (the deadline) or cancelled.",
           "expired: deadlines are shorter than the queue."),
    # Batches
    Metric("seisserve_wait_seconds", "histogram", ("model",), "From a call's windows arriving in the queue to the "
           "batch that takes them, for each call in each batch.", "p99 near the callers' deadlines.", SECONDS),
    Metric("seisserve_batch_seconds", "histogram", ("model",), "Computing a batch.",
           "Slower than it was: another process has the processors, or the machine is throttled.", SECONDS),
    Metric("seisserve_batch_windows", "histogram", ("model",), "Windows of a batch; _sum counts all windows.",
           "", WINDOWS),
    Metric("seisserve_batch_padding_windows", "histogram", ("model",), "Windows that fill a batch up to an allowed "
           "size; they are computed for nothing.", "_sum above a third of the windows: allow smaller batches.",
           (0, *WINDOWS)),
    Metric("seisserve_batch_computed_windows", "histogram", ("model",), "Windows of a batch, padding included.",
           "", WINDOWS),
    Metric("seisserve_queue_windows", "gauge", ("model", "version"), "Windows that wait for a lane.",
           "Never back to 0."),
    Metric("seisserve_lanes_at_work", "gauge", ("model", "version"), "Lanes (computing threads) at work for it."),
    Metric("seisserve_lanes", "gauge", (), "Lanes of the process.",),
    Metric("seisserve_lanes_alive", "gauge", (), "1 if all lanes' threads are there, else 0.",
           "0: a thread has died; restart the server (the liveness probe does)."),
    # Models
    Metric("seisserve_models", "gauge", ("state",), "Model versions by state, as GetModelStatus gives them.",
           "LOADING or UNLOADING for minutes."),
    Metric("seisserve_models_failed", "gauge", (), "Model versions that could not be loaded.",
           "Above 0: GetModelStatus and the log say why. The version that served before still does."),
    Metric("seisserve_repository_alive", "gauge", (), "1 if the thread that loads and unloads models is there, else 0.",
           "0: what is loaded still answers; restart the server (the liveness probe does)."),
    Metric("seisserve_model_load_seconds", "gauge", ("model", "version"), "Loading, checking and warming it took.",),
    # Waveforms
    Metric("seisserve_picks_total", "counter", ("phase", "model"), "Picks that were given out.",
           "None for an hour while station-hours come in; ten times the usual: a noisy station, or a wrong unit."),
    Metric("seisserve_detections_total", "counter", ("model",), "Detections that were given out."),
    Metric("seisserve_station_hours_total", "counter", ("model",), "Hours of record that were worked through; the "
           "components of an instrument count once.", "Slower than the stations deliver."),
    Metric("seisserve_gaps_total", "counter", ("model",), "Gaps inside the records of an instrument.",
           "Many times the usual: a link or a digitizer is failing."),
    # Real time
    Metric("seisserve_sessions", "gauge", (), "Real-time sessions that are open."),
    Metric("seisserve_stations", "gauge", (), "Stations with state in real-time sessions.",
           "Fewer than you send: some have expired."),
    Metric("seisserve_packets_total", "counter", ("outcome",), "Packets of real-time sessions: new, duplicate (with "
           "nothing new), late (some of it after its time was settled) or refused.",
           "late: the latency bound is shorter than the network's delay."),
    Metric("seisserve_data_latency_seconds", "gauge", ("station",), "Age of a station's newest sample now; it rises "
           "while nothing comes, for a day, or until its session finishes in order. Stations beyond the first 500 are "
           "`other`.", "Minutes: its link is down, or its clock is off."),
    Metric("seisserve_pick_latency_seconds", "histogram", ("model",), "From the arrival of the last sample that a "
           "pick needed (of the first of the packets that were worked on together) to the pick.",
           "p99 over 2 s: too many stations for this machine.", LATENESS),
    Metric("seisserve_station_pick_latency_seconds", "summary", ("station",), "The same by station (`other` as above); "
           "_sum by _count is the mean."),
    # The process (Linux)
    Metric("process_resident_memory_bytes", "gauge", (), "Memory of the process.", "Rising for days."),
    Metric("process_virtual_memory_bytes", "gauge", (), "Its address space; larger than the memory, and harmless."),
    Metric("process_cpu_seconds_total", "counter", (), "Processor time, user and system."),
    Metric("process_start_time_seconds", "gauge", (), "When it began, in seconds since 1970.", "It changes by itself."),
    Metric("process_open_fds", "gauge", (), "Files and connections that are open.", "Near process_max_fds."),
    Metric("process_max_fds", "gauge", (), "How many there may be."),
)  # fmt: skip
BY_NAME = {metric.name: metric for metric in METRICS}

PREFIX = ":tensorflow:serving:"
MICRO = 1e-6
ALIASES = (
    Alias(PREFIX + "request_count", "counter", ("model_name", "status"), "seisserve_requests_total",
          "Calls that found their model."),
    Alias(PREFIX + "request_latency", "histogram", ("model_name", "API", "entrypoint"), "seisserve_request_seconds",
          "The same calls' time. API: the last part of the method; entrypoint: GRPC or REST.", MICRO),
    Alias(PREFIX + "runtime_latency", "histogram", ("model_name",), "seisserve_stage_seconds", "Stage compute.", MICRO),
    Alias(PREFIX + "batching_session:queuing_latency", "histogram", ("thread_pool_name",), "seisserve_wait_seconds",
          "thread_pool_name, here and below: the model.", MICRO),
    Alias(PREFIX + "batching_session:input_batch_size", "histogram", ("thread_pool_name",), "seisserve_batch_windows",
          "Without padding."),
    Alias(PREFIX + "batching_session:processed_batch_size", "histogram", ("thread_pool_name",),
          "seisserve_batch_computed_windows", "With padding."),
    Alias(PREFIX + "batching_session:padding_size", "histogram", ("thread_pool_name",),
          "seisserve_batch_padding_windows", "Padding alone."),
)  # fmt: skip


def documentation() -> str:
    """docs/metrics.md."""
    lines = [HEAD]
    for metric in METRICS:
        lines.append(
            f"| `{metric.name}` | {metric.kind} | {_code(metric.labels)} | {metric.meaning} | {metric.worry} |"
        )
    lines.append(MIDDLE)
    for alias in ALIASES:
        lines.append(f"| `{alias.name}` | {alias.kind} | {_code(alias.labels)} | `{alias.of}` | {alias.meaning} |")
    return "\n".join([*lines, TAIL])


def _code(labels: tuple[str, ...]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


HEAD = """\
# Metrics

<!-- Made by `python -m seisserve_serving.metric_table > docs/metrics.md`; change the table there. -->

`http://HOST:8501/metrics`, and the same at `/monitoring/prometheus/metrics`, where TensorFlow Serving has its own.
Text of Prometheus, format 0.0.4. [`docker/`](../docker/README.md) has a scrape configuration, alert rules and a Grafana
dashboard over these names. Numbers begin at zero with the process.

Labels are bounded whatever callers send: a name that is not served makes no label; method, model, phase and station
have `other` for what is beyond their limit.

| name | type | labels | meaning | worry when |
| --- | --- | --- | --- | --- |"""
MIDDLE = """
## Under TensorFlow Serving's names

Made from the numbers above in the same scrape, so that they never differ. Latencies are in microseconds, as there.

| name | type | labels | made from | |
| --- | --- | --- | --- | --- |"""
TAIL = """
Those of type counter are announced as `untyped`: their names lack the ending `_total` that the text format of today
wants. `rate()` does not mind.
"""

if __name__ == "__main__":
    print(documentation(), end="")
