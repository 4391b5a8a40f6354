"""python healthcheck.py HOST:PORT [MODEL]: exit code 0 if the server (or the model) is SERVING; else 1, and why."""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 5


def main(address: str, model: str = "") -> str | None:
    """Why the server cannot be used, or nothing."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        request = health_pb2.HealthCheckRequest(service=model)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return f"{address}: {error.code().name}: {error.details()}"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return None if status == "SERVING" else f"{address}: {status}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
