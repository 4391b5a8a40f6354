"""A real server on loopback with the shipped models, and a channel to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from seisserve.bundle import Bundle, find, shipped
from seisserve_serving.models import Models
from seisserve_serving.repository import load
from seisserve_serving.server import Server

LIMITS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The shipped picker."""
    return find("phasenet")


@pytest.fixture(scope="session")
def models() -> Models:
    return load(shipped(), "onnxruntime", 2)


@pytest.fixture(scope="session")
def server(models: Models) -> Iterator[Server]:
    started = Server(models, port=0, max_message=64 << 20)
    started.start()
    yield started
    started.stop(grace_s=1)


@pytest.fixture(scope="session")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address, options=LIMITS) as opened:
        yield opened


@pytest.fixture(scope="session")
def refused() -> Callable[..., tuple[grpc.StatusCode, str]]:
    """Calls with a request, and gives the status code and message that it is refused with."""

    def call(method: Callable[..., Any], request: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            method(request, timeout=30)
        return caught.value.code(), caught.value.details()

    return call


@pytest.fixture(scope="session")
def windows(bundle: Bundle) -> NDArray[np.float32]:
    """A hundred different windows, [100, samples, components]."""
    rng = np.random.default_rng(1)
    shape = (100, bundle.manifest.window_samples, len(bundle.manifest.components))
    return (rng.normal(0, 100, shape) * rng.uniform(0.1, 10, (100, 1, 1))).astype(np.float32)
