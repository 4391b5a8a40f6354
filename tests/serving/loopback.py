"""A gRPC server of its own on loopback, and a channel to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import grpc

from seisserve_serving.grpc_server import GrpcServer, Handler

__all__ = ["Loopback"]


class Loopback:
    """Answers these methods on a free port until it is left."""

    def __init__(self, server: GrpcServer, methods: Mapping[str, Handler]) -> None:
        self.server = server
        server.add(methods)
        self.port = server.add_port("127.0.0.1:0")
        server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.channel.close()
        self.server.stop(1).result(30)
