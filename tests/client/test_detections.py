"""Properties of reading detections off a curve."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from client.waveforms import NS, START_NS, STATION, Array, manifest, part, record
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seisserve import Detection, Detections, UsageError
from seisserve.detections import extract_detections
from seisserve.manifest import Label, Manifest
from seisserve.pipeline import detect, pick
from seisserve.segments import Segment
from seisserve.tables import DETECTION_COLUMNS, time_text
from seisserve.transport import FakeTransport
from seisserve.windows import Curve

levels = st.sampled_from([0.0, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 1.0])


def reader(threshold: float = 0.5, gap_s: float = 0.0, shortest_s: float = 0.0, **changes: object) -> Manifest:
    return manifest(
        labels=("detection", "P"),
        components="Z",
        threshold=threshold,
        task="detection",
        **{"detection_gap_s": gap_s, "minimum_detection_s": shortest_s, **changes},
    )


def curve_of(*segments: Array) -> Curve:
    """Detection curves over segments of one sample a centisecond, a gap of one second between."""
    index, parts = START_NS // 10_000_000, []
    for values in segments:
        parts.append(Segment(STATION, index, 0, 100.0, np.ones((1, len(values))), (True,)))
        index += len(values) + 100
    stacked = np.concatenate([np.asarray(values, np.float32) for values in segments])
    bounds = np.cumsum([0] + [len(values) for values in segments])
    return Curve(parts, bounds, np.stack([stacked, 0 * stacked], axis=1), ("detection", "P"))


def places(found: list[Detection]) -> list[tuple[int, int]]:
    """First and last sample, on the time axis of `curve_of`."""
    return [((d.start_ns - START_NS) // 10_000_000, (d.end_ns - START_NS) // 10_000_000) for d in found]


def by_the_book(values: Array, threshold: float) -> list[tuple[int, int]]:
    """On at the threshold, off below half of it; sample after sample."""
    found, begin = [], None
    for k, value in enumerate([*values.astype(np.float32), np.float32(-1)]):
        if begin is None and value >= np.float32(threshold):
            begin = k
        elif begin is not None and value < np.float32(threshold / 2):
            found.append((begin, k - 1))
            begin = None
    return found


@given(curves=st.lists(arrays(np.float32, st.integers(1, 40), elements=levels.map(float).map(np.float32)), max_size=3))
@settings(max_examples=100, deadline=None)
def test_a_detection_is_on_from_the_threshold_until_below_half_of_it(curves: list[Array]) -> None:
    if not curves:
        return
    expected, offset = [], 0
    for values in curves:
        expected += [(begin + offset, end + offset) for begin, end in by_the_book(values, 0.5)]
        offset += len(values) + 100
    assert places(extract_detections(curve_of(*curves), reader())) == expected


@given(
    values=arrays(np.float32, st.integers(1, 60), elements=levels.map(np.float32)),
    gap=st.integers(0, 8),
    shortest=st.integers(0, 8),
)
@settings(max_examples=100, deadline=None)
def test_near_ones_are_one_and_short_ones_go(values: Array, gap: int, shortest: int) -> None:
    joined: list[tuple[int, int]] = []
    for begin, end in by_the_book(values, 0.5):
        if joined and begin - joined[-1][1] < gap:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    kept = [(begin, end) for begin, end in joined if end - begin >= shortest]
    found = extract_detections(curve_of(values), reader(gap_s=gap / 100, shortest_s=shortest / 100))
    assert places(found) == kept
    assert [d.probability for d in found] == [float(values[begin : end + 1].max()) for begin, end in kept]


def test_detections_are_not_joined_across_a_gap() -> None:
    found = extract_detections(curve_of(np.ones(200), np.ones(200)), reader(gap_s=10.0))
    assert places(found) == [(0, 199), (300, 499)]


def test_the_probability_is_calibrated() -> None:
    readings = {"detection": Label(threshold=0.5, calibration=((0.5, 0.2), (1.0, 0.6)))}
    (found,) = extract_detections(curve_of(np.full(100, 0.75)), reader(readings=readings))
    assert found.probability == pytest.approx(0.4)


def test_flags_tell_edges_at_either_end_fragments_and_missing_components() -> None:
    values = np.zeros(1000)
    values[20:300] = values[400:600] = values[700:980] = 1
    model = reader(edge_samples=50)
    assert [d.flags for d in extract_detections(curve_of(values), model)] == [("edge",), (), ("edge",)]
    curve = curve_of(values[:500])
    lame = curve._replace(segments=[curve.segments[0]._replace(live=(False,))])
    flags = [("edge", "fragment", "missing_Z"), ("edge", "fragment", "missing_Z")]
    assert [d.flags for d in extract_detections(lame, model)] == flags


def test_an_empty_curve_has_no_detections() -> None:
    empty = Curve([], np.zeros(1, int), np.zeros((0, 2), np.float32), ("detection", "P"))
    assert extract_detections(empty, reader()) == []


def loud(waveform: Array) -> Array:
    """Detection and P: how large Z is, held for half a second; and 0."""
    size = np.abs(waveform[:, :, 0])
    held = np.max([np.roll(size, k, axis=1) for k in range(50)], axis=0) / np.float32(4000)
    return np.stack([np.minimum(held, 1), 0 * held], axis=2)


@given(cut=st.integers(1, 5999), lost=st.sampled_from([0, 1, 30]))
@settings(max_examples=30, deadline=None)
def test_where_a_record_is_cut_changes_no_detection_a_window_away(cut: int, lost: int) -> None:
    model = reader(threshold=0.2)
    traces = record(3, 60, codes="Z")
    whole = detect(traces, model, FakeTransport(loud)).detections
    assert len(whole) > 5
    pieces = [part(traces[0], 0, cut), part(traces[0], min(cut + lost, 5999), 6000)]
    found = detect(pieces, model, FakeTransport(loud)).detections
    reach, at = 8 * NS, START_NS + cut * 10_000_000

    def away(detections: list[Detection]) -> list[Detection]:
        return [d for d in detections if d.end_ns < at - reach or d.start_ns > at + reach]

    assert found == whole if not lost else away(found) == away(whole)


def test_a_model_may_have_phases_and_a_detection_and_picks_are_phases_only() -> None:
    model = manifest(labels=("detection", "P", "S"), threshold=0.2)

    def network(waveform: Array) -> Array:
        return np.repeat(loud(waveform)[:, :, :1], 3, axis=2)

    traces = record(3, 60)
    picks = pick(traces, model, FakeTransport(network)).picks
    assert {p.phase for p in picks} == {"P", "S"}
    assert detect(traces, model, FakeTransport(network)).detections


TABLE = Detections(
    [Detection(STATION, START_NS, START_NS + 1_500_000_000, 0.123456789, ("edge", "missing_N"))], "cred", 2, "0" * 64
)


def test_tables_have_every_column_and_read_back(tmp_path: Path) -> None:
    (row,) = csv.DictReader(io.StringIO(TABLE.to_csv()))
    assert tuple(row) == DETECTION_COLUMNS == ("trace_id", "start", "end", "probability", "flags", "model", "version")
    assert row == {
        "trace_id": STATION, "start": time_text(START_NS), "end": time_text(START_NS + 1_500_000_000),
        "probability": "0.123457", "flags": "edge|missing_N", "model": "cred", "version": "2",
    }  # fmt: skip
    for name in ("a.csv", "a.jsonl"):
        TABLE.write(tmp_path / name)
    assert (tmp_path / "a.csv").read_text() == TABLE.to_csv()
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == TABLE.rows()


@pytest.mark.parametrize("kind", ["QUAKEML", "SC3ML", "bogus"])
def test_other_formats_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"'{kind}': detections can be written as csv, jsonl"):
        TABLE.write(tmp_path / "a.csv", kind)
    with pytest.raises(UsageError, match="detections can be written as csv, jsonl"):
        TABLE.write(tmp_path / "a.xml")
    assert not list(tmp_path.iterdir())
