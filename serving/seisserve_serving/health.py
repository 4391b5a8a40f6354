"""gRPC's health service. Past the door, which refuses when it is busy: a server that is busy must not be taken for
dead. Requests are decoded here, since gRPC answers UNKNOWN to those that are malformed."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

__all__ = ["handlers"]


def handlers(servicer: health.aio.HealthServicer) -> grpc.GenericRpcHandler:
    """The methods of the service for gRPC's asyncio server."""
    response = health_pb2.HealthCheckResponse.SerializeToString

    async def check(body: bytes, context: Any) -> Any:
        return await servicer.Check(await _decoded(body, context), context)

    async def watch(body: bytes, context: Any) -> None:
        await servicer.Watch(await _decoded(body, context), context)

    return grpc.method_handlers_generic_handler(
        health.SERVICE_NAME,
        {
            "Check": grpc.unary_unary_rpc_method_handler(check, response_serializer=response),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, response_serializer=response),
        },
    )


async def _decoded(body: bytes, context: Any) -> health_pb2.HealthCheckRequest:
    try:
        return health_pb2.HealthCheckRequest.FromString(body)
    except DecodeError:
        text = f"the request is no HealthCheckRequest message: its {len(body)} bytes cannot be decoded"
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        raise
