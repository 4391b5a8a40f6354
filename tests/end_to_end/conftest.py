"""Records with real onsets, and a server with the shipped models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import obspy
import pytest
from obspy import Stream, UTCDateTime

from seisserve.bundle import shipped
from seisserve_serving.repository import load
from seisserve_serving.server import Server


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Of a real server."""
    server = Server(load(shipped(), "onnxruntime", 2), port=0)
    server.start()
    yield server.address
    server.stop(grace_s=1)


@pytest.fixture
def example() -> Stream:
    """ObsPy's local earthquake as counts: 30 s, three components, 100 Hz; P at 00:20:07.7, S a second later."""
    stream = obspy.read()
    for trace in stream:
        trace.data = np.round(trace.data * 100).astype(np.int32)
    return stream


@pytest.fixture(scope="session")
def long_record() -> Stream:
    """Ten minutes of noise with that earthquake in it six times, louder and fainter, at odd times."""
    rng = np.random.default_rng(3)
    stream = Stream()
    for trace in obspy.read():
        samples = rng.normal(0, 20, 60_000)
        for k in range(6):
            begin = 4_000 + 9_137 * k
            samples[begin : begin + len(trace.data)] += trace.data * 50 / (1 + k)
        header = {**{key: trace.stats[key] for key in ("network", "station", "channel")}, "sampling_rate": 100.0}
        stream.append(
            obspy.Trace(np.round(samples).astype(np.int32), {**header, "starttime": UTCDateTime(2024, 2, 29)})
        )
    return stream
