"""Whatever comes over the wire is answered with a status that says what is wrong, and the server goes on as before.

`tests/fuzz/many.py` sends 100,000 such requests, `make fuzz` looks for others in every decoder.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from fuzz.targets import FAIR, Code, Outcome, Site, Target, fault, site
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seisserve.proto import seismic_pb2 as wire
from seisserve.proto.tensorflow_serving_wire_pb2 import ReloadConfigRequest

INSIDE, OUTSIDE = 12, 4  # hostile requests to each method in one example
NOT_THERE = ("HandleReload", "RepositoryModel", "/load", "/unload", "no.Service", "Health/List")  # over loopback

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site")) as opened:
        yield opened


@pytest.fixture
def unharmed(here: Site) -> Iterator[Site]:
    """After the test every lane is there, and a good request is answered as before it."""
    before = here.good()
    yield here
    assert here.models.lanes.alive
    assert here.good() == before


def check(target: Target, rng: random.Random) -> Outcome:
    request = target.spoil(target.good(rng), rng)
    outcome = target.send(request)
    assert not fault(target, outcome), request
    return outcome


@pytest.mark.parametrize("seed", range(5))
def test_the_requests_to_begin_from_are_good(here: Site, seed: int) -> None:
    for target in [*here.inside, *here.outside]:
        outcome = target.send(target.good(random.Random(seed)))
        there = "loopback" not in target.name or not any(name in target.name for name in NOT_THERE)
        assert outcome.code is Code.OK if there else outcome.code in FAIR, target.name


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds)
def test_no_request_is_an_internal_error_and_what_is_wrong_is_named(unharmed: Site, seed: int) -> None:
    rng = random.Random(seed)
    for target in unharmed.inside:
        for _ in range(INSIDE):
            check(target, rng)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds)
def test_the_same_over_loopback(unharmed: Site, seed: int) -> None:
    rng = random.Random(seed)
    for target in unharmed.outside:
        for _ in range(OUTSIDE):
            check(target, rng)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=64))
def test_any_bytes_are_answered_by_every_method(unharmed: Site, body: bytes) -> None:
    for target in unharmed.inside:
        request = target.good(random.Random(0))
        if isinstance(request, bytes):
            assert not fault(target, target.send(body))
        elif isinstance(request, list):
            assert not fault(target, target.send([body]))
            assert not fault(target, target.send([*request, body]))
        else:
            assert not fault(target, target.send(request._replace(body=body)))


def test_a_method_called_in_another_way_than_it_has_is_answered(unharmed: Site) -> None:
    for target in unharmed.inside:
        request = target.good(random.Random(0))
        if isinstance(request, list):
            assert not fault(target, target.send([]))


def traced(**fields: Any) -> wire.Waveforms:
    """A trace of a second, with something else in it."""
    usual = {
        "id": "XX.STA..HHZ",
        "start_ns": 10**18,
        "sampling_rate_hz": 100.0,
        "sample_type": 1,
        "samples": b"\1" * 400,
    }
    return wire.Waveforms(traces=[wire.Trace(**{**usual, **fields})])


FOUND = {
    "a time that no answer can hold": (
        "DenoiseStream", [wire.DenoiseRequest(waveforms=traced(start_ns=(1 << 63) - 1))],
    ),
    "a rate so low that the record has no end": ("Session", [
        wire.SessionRequest(start={}),
        wire.SessionRequest(packets={"number": 1, "waveforms": traced(sampling_rate_hz=1e-300), "finish": True}),
    ]),
    "a zero character in a path": ("HandleReloadConfigRequest", ReloadConfigRequest(
        config={"model_config_list": {"config": [{"name": "a", "base_path": "a\0b"}]}}
    )),
}  # fmt: skip


@pytest.mark.parametrize("what", list(FOUND))
def test_what_was_found_once(unharmed: Site, what: str) -> None:
    method, message = FOUND[what]
    target = next(target for target in unharmed.inside if target.name.endswith(f"/{method}"))
    many = [one.SerializeToString() for one in message] if isinstance(message, list) else message.SerializeToString()
    outcome = target.send(many)
    assert not fault(target, outcome)
    assert outcome.code is (Code.OK if method == "Session" else Code.INVALID_ARGUMENT)  # there a warning tells of it
