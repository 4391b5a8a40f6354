"""One answer: whatever runs the model, in whatever batches, pieces and threads, the picks are the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import obspy
import pytest
from obspy import Stream

from seisserve import Client, Picks, pipeline
from seisserve.reading import read_file
from seisserve.segments import segments
from seisserve.traces import from_stream
from seisserve.windows import cut, stack


@pytest.fixture(scope="module")
def here() -> Iterator[Client]:
    with Client(threads=2) as client:
        yield client


@pytest.fixture(scope="module")
def there(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


@pytest.fixture(scope="module")
def expected(here: Client, long_record: Stream) -> Picks:
    found = here.pick(long_record)
    assert len(found) >= 8  # of twelve onsets
    return found


def same(found: Picks, expected: Picks) -> bool:
    """Equal in every bit, provenance too. (repr of a float is exact, and NaN equals NaN.)"""
    return repr(list(found)) == repr(list(expected)) and found.provenance == expected.provenance


def test_a_server_gives_the_picks_of_this_process(there: Client, long_record: Stream, expected: Picks) -> None:
    assert same(there.pick(long_record), expected)


def test_a_server_gives_the_curves_of_this_process(here: Client, there: Client, long_record: Stream) -> None:
    for ours, theirs in zip(here.annotate(long_record), there.annotate(long_record), strict=True):
        assert ours[:4] == theirs[:4]
        np.testing.assert_array_equal(ours.values, theirs.values)


def test_options_mean_the_same_on_both_sides(here: Client, there: Client, long_record: Stream) -> None:
    for options in (
        {"thresholds": {"P": 0.1}}, {"hop_samples": 1000}, {"stacking": "max"}, {"resampling": "causal"}
    ):  # fmt: skip
        part = long_record.slice(endtime=long_record[0].stats.starttime + 120).copy().resample(50.0)
        assert same(there.pick(part, **options), here.pick(part, **options)), options  # type: ignore[arg-type]


def test_the_number_of_threads_changes_nothing(long_record: Stream, expected: Picks) -> None:
    for threads in (1, 3):
        with Client(threads=threads) as client:
            assert same(client.pick(long_record), expected)


@pytest.mark.parametrize("batch", [1, 2, 7, 32, 64, 1000])
def test_the_batch_size_changes_no_bit_of_the_curve(
    here: Client, there: Client, long_record: Stream, batch: int
) -> None:
    model = here.model().manifest.with_options(hop_samples=768)
    parts, _ = segments(from_stream(long_record), model.sampling_rate_hz, model.components)
    windows = cut(parts, model)
    curves = [
        stack(windows, pipeline.predict(windows, model, client.model().transport, size), model).values
        for client, size in ((here, None), (here, batch), (there, batch))
    ]
    np.testing.assert_array_equal(curves[1], curves[0])
    np.testing.assert_array_equal(curves[2], curves[0])


@pytest.mark.parametrize("seed", range(3))
def test_cutting_a_file_changes_no_pick_away_from_the_cuts(
    here: Client, long_record: Stream, expected: Picks, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    start, traces = long_record[0].stats.starttime, []
    lost = [float(t) for t in rng.uniform(100, 500, 2)]  # a gap of 1 s begins here
    edges = [0.0, *sorted(rng.uniform(0, 600, 3).tolist() + lost), 600.0]
    for number, (begin, end) in enumerate(pairwise(edges)):
        piece = long_record.slice(start + begin + (1.0 if begin in lost else 0.0), start + end - 0.005)
        if piece:
            piece.write(str(tmp_path / f"{number}.mseed"), format="MSEED")
            traces.extend(read_file(tmp_path / f"{number}.mseed")[0])
    found = here.pick(traces)
    window_s = here.model().manifest.window_samples / 100

    def away(picks: Picks) -> list[str]:
        gaps = [start.ns + round(t * 1e9) for t in lost]
        return [repr(p) for p in picks if all(abs(p.time_ns - gap) > (window_s + 1) * 1e9 for gap in gaps)]

    assert away(found) == away(expected)
    assert away(found)


def test_a_cut_without_a_gap_changes_nothing_at_all(here: Client, long_record: Stream, expected: Picks) -> None:
    start = long_record[0].stats.starttime
    pieces = long_record.slice(endtime=start + 255.545) + long_record.slice(starttime=start + 255.55)
    assert len(pieces) == 6
    assert same(here.pick(pieces), expected)
    assert same(here.pick(Stream(pieces[::-1])), expected)


def test_many_threads_may_share_a_client(here: Client, there: Client, long_record: Stream) -> None:
    start = long_record[0].stats.starttime
    parts = [long_record.slice(start + 40 * k, start + 40 * k + 80) for k in range(12)]
    one_by_one = [here.pick(part) for part in parts]
    assert any(one_by_one)
    for client in (here, there):
        with ThreadPoolExecutor(8) as pool:
            for found, alone in zip(pool.map(client.pick, parts), one_by_one, strict=True):
                assert same(found, alone)


def test_the_picks_of_obspys_earthquake_are_at_its_onsets(here: Client, there: Client) -> None:
    for client in (here, there):
        picks = {pick.phase: pick.time_ns for pick in client.pick(obspy.read())}
        origin = obspy.UTCDateTime(2009, 8, 24, 0, 20, 7).ns
        assert picks == {
            "P": pytest.approx(origin + 700_000_000, abs=150_000_000),
            "S": pytest.approx(origin + 1_700_000_000, abs=150_000_000),
        }
