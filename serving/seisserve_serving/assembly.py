"""The parts of the server, put together as its settings say."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from seisserve import access, bundle, tuned
from seisserve.bundle import Bundle
from seisserve.errors import BundleError
from seisserve.runtimes.setup import Backend, Device, Setup, processors
from seisserve_serving import logs
from seisserve_serving.admin import ADMIN_METHODS, refuse
from seisserve_serving.front import Front
from seisserve_serving.lanes import Batching, Lanes
from seisserve_serving.loading import Loading
from seisserve_serving.metrics import Metrics
from seisserve_serving.models import Models
from seisserve_serving.repository import Repository as Keeper
from seisserve_serving.repository import Source
from seisserve_serving.security import Guard, Rate
from seisserve_serving.server import Server
from seisserve_serving.session_api import Bounds, Sessions
from seisserve_serving.settings import Batch, Compute, Limits, Repository, Settings
from seisserve_serving.text_config import read_batching
from seisserve_serving.tls import Tls
from seisserve_serving.tracing import Tracing, exporter
from seisserve_serving.web import Web

__all__ = [
    "assemble", "batching_of", "channel_options", "most_calls", "setup_of", "source_of",
]  # fmt: skip

log = logging.getLogger(__name__)
SPARE = 32  # threads that say no at once while all others are at work
LOOPBACK = ("127.", "localhost", "[::1]", "::1")


def most_calls(limits: Limits) -> int:
    """Calls at once. Enough to fill every lane's batches with single windows; more would only wait, and be late."""
    return limits.max_calls or 16 + 16 * processors()


def channel_options(limits: Limits) -> list[tuple[str, int]]:
    """Limits of gRPC itself."""

    def milliseconds(seconds: float) -> int:
        return min(round(1000 * seconds), 2**31 - 1) if seconds else 2**31 - 1  # gRPC's way to say never

    return [
        ("grpc.max_concurrent_streams", limits.grpc_max_concurrent_streams),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.server_handshake_timeout_ms", milliseconds(limits.handshake_timeout_s)),
        ("grpc.max_connection_idle_ms", milliseconds(limits.grpc_max_connection_idle_s)),
        ("grpc.max_connection_age_ms", milliseconds(limits.grpc_max_connection_age_s)),
        ("grpc.keepalive_time_ms", milliseconds(limits.grpc_keepalive_s)),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # callers behind a firewall that forgets may ask as often as every ten seconds, idle or not
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ]


def setup_of(compute: Compute, lanes: int) -> Callable[[Bundle], Setup]:
    """How each model is to be run, on that many lanes at most."""
    device = Device(compute.device_id, compute.gpu_mem_limit_mb, compute.cudnn_conv_algo_search, compute.allow_spinning)
    backend = None
    if compute.remote_backend:
        named = compute.remote_backend_access
        allowed = access.read(Path(named)) if named else access.Access()
        backend = Backend(compute.remote_backend, compute.remote_backend_timeout_s, allowed)

    def setup(found: Bundle) -> Setup:
        chosen = tuned.setup_for(
            found, compute.runtime or None, compute.threads or None, compute.precision or None,
            compute.provider or None, use_tuned=compute.tuned,
        )  # fmt: skip
        return chosen._replace(lanes=min(chosen.lanes or lanes, lanes), device=device, backend=backend)

    return setup


def assemble(settings: Settings) -> Server:
    """A server that is ready to start, its models loaded. One of several workers has its part of the threads, shares
    its port, and refuses what would change its models alone. Raises UsageError, BundleError, ServerError."""
    listen, security, limits, operation = settings.listen, settings.security, settings.limits, settings.operation
    tls = Tls(Path(listen.ssl_config_file)) if listen.ssl_config_file else None
    guard = Guard(
        Path(security.tokens_file) if security.tokens_file else None,
        ADMIN_METHODS,
        admin_for_all=security.allow_admin_without_token,
        rate=Rate(security.client_calls_per_s, security.client_windows_per_s),
    )
    metrics = Metrics()
    lanes = Lanes(max((settings.compute.threads or processors()) // operation.workers, 1), metrics.batch)
    several = operation.workers > 1
    front = Front(
        [guard, refuse] if several else [guard], most_calls(limits), [logs.tell, metrics.done], metrics.counted,
        lanes.let_in, limits.client_share,
    )  # fmt: skip
    endings: list[Callable[[], None]] = []
    if operation.otlp_endpoint:
        tracing = Tracing(exporter(operation.otlp_endpoint, operation.otlp_headers), operation.otlp_share)
        front.told.append(tracing.tell)
        endings.append(tracing.close)
    models = _models(settings, lanes, metrics)
    endings.append(models.close)
    bounds = Bounds(
        limits.max_sessions, limits.max_instruments, limits.session_waiting_samples, limits.session_resume_s
    )
    sessions = Sessions(models, bounds)
    metrics.watch(front, models)
    metrics.read("seisserve_sessions", lambda: {(): sessions.open})
    metrics.read("seisserve_stations", lambda: {(): sessions.stations})
    threads = limits.grpc_max_threads or most_calls(limits) + SPARE
    web = []
    if listen.host and listen.rest_api_port:
        web.append(
            Web(
                models, front, lanes, listen.host, max(listen.rest_api_port, 0), metrics.text,
                tls.context if tls else None, limits.max_message_mb << 20, listen.rest_api_timeout_in_ms / 1000,
                limits.max_connections, threads, limits.max_record_samples,
            )
        )  # fmt: skip
    server = Server(
        models,
        front,
        listen.host,
        listen.port,
        limits.max_message_mb << 20,
        threads,
        socket_path=listen.grpc_socket_path,
        tls=tls,
        options=channel_options(limits),
        most_samples=limits.max_record_samples,
        sessions=sessions,
        beside=web,
        reloads=[guard.reload, *([tls.reload] if tls else [])],
        endings=endings,
        reuse_port=several,
        shared_memory=listen.shared_memory,
    )
    _warn(settings)
    return server


def source_of(repository: Repository) -> Source:
    """Where the list of models comes from."""
    if repository.model_config_file:
        return Source(Path(repository.model_config_file), False, repository.model_config_file_poll_wait_seconds)
    if repository.model_base_path:
        return Source(Path(repository.model_base_path), False, name=repository.model_name)
    folder = Path(repository.repository) if repository.repository else bundle.shipped()
    return Source(folder, True, repository.file_system_poll_wait_seconds)


def batching_of(batch: Batch) -> Batching:
    """Of models that have no batching parameters of their own. Raises UsageError."""
    if not batch.enable_batching:
        return Batching(max_batch_size=1, mode=batch.batch_mode)
    found = read_batching(Path(batch.batching_parameters_file)) if batch.batching_parameters_file else Batching()
    return replace(found, mode=batch.batch_mode)


def _models(settings: Settings, lanes: Lanes, metrics: Metrics) -> Models:
    """All that can be loaded, loaded. Raises BundleError if that is nothing."""
    repository, batch = settings.repository, settings.batching
    how = Loading(
        setup_of(settings.compute, lanes.count), batching_of(batch), batch.enable_per_model_batching_parameters,
        batch_plain=bool(batch.batching_parameters_file), told=metrics.loaded,
        run_timeout_s=settings.compute.run_timeout_s,
    )  # fmt: skip
    models = Models(lanes)
    source = source_of(repository)
    keeper = Keeper(
        models, how, source,
        poll_s=repository.file_system_poll_wait_seconds,
        retries=repository.max_num_load_retries,
        retry_s=repository.load_retry_interval_micros / 1e6,
        at_once=repository.num_load_threads,
        labels_ahead=repository.allow_version_labels_for_unavailable_models,
    )  # fmt: skip
    keeper.wait()
    if not models.served:
        models.close()
        reasons = [reason for found in models.failed.values() for reason in found.values()]
        raise BundleError("; ".join([f"{source.path}: no model could be loaded", *reasons]))
    return models


def _warn(settings: Settings) -> None:
    """Say what an operator may not have meant."""
    listen, security = settings.listen, settings.security
    if not listen.host or listen.host.startswith(LOOPBACK):
        return
    if not security.tokens_file and not listen.ssl_config_file:
        log.warning("anybody who reaches %s may use this server: it has neither tokens_file nor TLS", listen.host)
    elif not listen.ssl_config_file:
        log.warning("tokens travel in clear to %s: there is no ssl_config_file", listen.host)
    if security.allow_admin_without_token:
        log.warning("anybody who reaches %s may load and unload models (allow_admin_without_token)", listen.host)
