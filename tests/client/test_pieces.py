"""Picks and detections are the same, bit for bit, whether the curve is read in pieces or as a whole."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest
from client.waveforms import Array, fake, manifest, network, part, record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from seisserve import pieces as pieces_module
from seisserve import pipeline as pipeline_module
from seisserve import windows as windows_module
from seisserve.detections import extract_detections
from seisserve.manifest import Manifest
from seisserve.picks import extract
from seisserve.pieces import groups
from seisserve.pipeline import annotate, detect, pick
from seisserve.segments import Segment, segments
from seisserve.traces import Trace, handed_over
from seisserve.transport import FakeTransport
from seisserve.windows import Windows, cut


def in_frames(waveform: Array) -> Array:
    return network(waveform).reshape(len(waveform), -1, 4, 2).max(axis=2)


def single(waveform: Array) -> Array:
    return network(waveform)[:, 250:350].max(axis=1)


LABELS = ("detection", "P")
MODELS: dict[str, tuple[Manifest, FakeTransport]] = {
    "mean": (manifest(LABELS), fake()),
    "max": (manifest(LABELS, stacking="max", hop_samples=200, blinding_samples=100), fake(2)),
    "windowless": (manifest(LABELS, blinding_samples=150, hop_samples=300, edge_samples=100), fake()),
    "frames": (manifest(LABELS, stride=4, fragment_windows=()), FakeTransport(in_frames)),
    "single": (manifest(LABELS, single=True, hop_samples=40, fragment_windows=()), FakeTransport(single)),
}


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "PIECE_SAMPLES", 1500)
    monkeypatch.setattr(pieces_module, "GROUP_SAMPLES", 1500)
    monkeypatch.setattr(windows_module, "BATCH_SAMPLES", 700)


@pytest.mark.parametrize("name", MODELS)
@given(
    seed=st.integers(0, 1000), threshold=st.floats(0.05, 0.9), gap=st.sampled_from([0.0, 0.5, 3.0]), holes=st.booleans()
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_give_what_the_whole_curve_gives(
    name: str, seed: int, threshold: float, gap: float, holes: bool
) -> None:
    base, transport = MODELS[name]
    model = manifest_with(base, threshold, gap)
    traces = record(seed, 120.0)
    if holes:
        edges = np.sort(np.random.default_rng(seed).choice(12_000, 8, replace=False)).tolist()
        traces = [part(one, *edges[2 * k : 2 * k + 2]) for k in range(4) for one in traces]
    curve, _ = annotate(traces, model, transport)
    picks, detections = extract(curve, model), extract_detections(curve, model)
    assert [repr(one) for one in pick(traces, model, transport).picks] == [repr(one) for one in picks]
    assert detect(traces, model, transport).detections == detections


def manifest_with(model: Manifest, threshold: float, gap: float) -> Manifest:
    chosen = model.with_options(dict.fromkeys(model.labels, threshold))
    return replace(chosen, detection_gap_s=gap, minimum_detection_s=0.0)


def test_a_curve_that_is_on_all_the_way_is_one_piece() -> None:
    model = manifest(("P",))
    always = FakeTransport(lambda waveform: np.full((*waveform.shape[:2], 1), 0.9, np.float32))
    assert len(pick(record(0, 120.0), model, always).picks) == 1


def test_groups_hold_every_segment_once_and_no_more_than_one_may() -> None:
    (one,) = record(0, 120.0, codes="Z")
    edges = [0, 100, 900, 1000, 2900, 4600, 4700, 12_000]
    traces = [part(one, begin, end - 5) for begin, end in pairwise(edges)]
    parts, _ = segments(traces, 100.0, "ZNE")
    found = list(groups(parts))
    assert [segment for group in found for segment in group] == parts
    for group in found:
        assert len(group) == 1 or sum(segment.samples.shape[1] for segment in group) <= 1500
    assert len(found) < len(parts)


def test_traces_that_are_handed_over_are_held_by_nobody_else() -> None:
    traces = record()
    expected = list(traces)
    taken: list[Trace] = []
    for trace in handed_over(traces):
        taken.append(trace)
        assert len(traces) + len(taken) == 3
    assert [trace.id for trace in taken] == [trace.id for trace in expected]


def test_the_next_group_is_read_while_the_lanes_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts: list[int] = []
    second = threading.Event()

    def counted(group: list[Segment], model: Manifest) -> Windows:
        cuts.append(len(group))
        if len(cuts) == 2:
            second.set()
        return cut(group, model)

    def waiting(waveform: Array) -> Array:
        assert second.wait(20)  # the first answer of all comes after the second group was read
        return network(waveform)

    monkeypatch.setattr(pipeline_module, "cut", counted)
    traces = [part(one, begin, begin + 400) for one in record(0, 120.0) for begin in range(0, 12_000, 500)]
    found = pick(traces, manifest(LABELS), FakeTransport(waiting, 2)).picks
    assert len(cuts) > 4
    assert [repr(one) for one in found] == [repr(one) for one in pick(traces, manifest(LABELS), fake()).picks]
