"""`seisserve pick` on every kind of record that the world has, and the formats that it writes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import obspy
import pytest
from obspy import Stream, UTCDateTime

from seisserve.cli import run
from seisserve.client import DEFAULT_MODELS

COLUMNS = ["trace_id", "phase", "time", "probability", "uncertainty_s", "snr_db", "flags", "model", "version"]
P_TIME, S_TIME = UTCDateTime("2009-08-24T00:20:07.7Z"), UTCDateTime("2009-08-24T00:20:08.7Z")
Capture = pytest.CaptureFixture[str]


def write(stream: Stream, path: Path, **options: Any) -> str:
    stream.write(str(path), format="MSEED", **options)
    return str(path)


def picked(text: str) -> list[dict[str, str]]:
    """The rows of a CSV table, every cell of them checked."""
    reader = csv.DictReader(io.StringIO(text))
    rows = list(reader)
    assert reader.fieldnames == COLUMNS
    for row in rows:
        assert row["trace_id"].count(".") == 3
        assert row["phase"] in ("P", "S")
        assert row["time"] == f"{np.datetime64(row['time'].removesuffix('Z'), 'us')}Z"
        assert 0 < float(row["probability"]) <= 1
        assert float(row["uncertainty_s"]) > 0
        assert row["snr_db"] == "" or np.isfinite(float(row["snr_db"]))
        assert (row["model"], row["version"]) == (DEFAULT_MODELS["picking"], "1")
    return rows


def pick(capsys: Capture, *arguments: str, code: int = 0) -> list[dict[str, str]]:
    """The rows that `seisserve pick` prints."""
    found = run(["pick", *arguments])
    captured = capsys.readouterr()
    assert found == code, captured.err
    assert "Traceback" not in captured.err
    return picked(captured.out)


def has_onsets(rows: list[dict[str, str]], tolerance_s: float = 0.15) -> bool:
    """Whether P and S of ObsPy's earthquake are among the picks, at their times."""
    return all(
        any(row["phase"] == phase and abs(UTCDateTime(row["time"]) - time) < tolerance_s for row in rows)
        for phase, time in (("P", P_TIME), ("S", S_TIME))
    )


def test_one_station(example: Stream, tmp_path: Path, capsys: Capture) -> None:
    rows = pick(capsys, write(example, tmp_path / "a.mseed"))
    assert has_onsets(rows)
    assert {(row["trace_id"], row["flags"]) for row in rows} == {("BW.RJOB..EH", "fragment")}


def test_three_stations_in_one_file(example: Stream, tmp_path: Path, capsys: Capture) -> None:
    stations = Stream()
    for name in ("AAA", "BBB", "CCC"):
        for trace in example.copy():
            trace.stats.station = name
            stations.append(trace)
    rows = pick(capsys, write(stations, tmp_path / "a.mseed"))
    for name in ("AAA", "BBB", "CCC"):
        assert has_onsets([row for row in rows if row["trace_id"] == f"BW.{name}..EH"])


def test_components_in_files_of_their_own_in_a_folder(example: Stream, tmp_path: Path, capsys: Capture) -> None:
    together = pick(capsys, write(example, tmp_path / "all.mseed"))
    folder = tmp_path / "folder" / "below"
    folder.mkdir(parents=True)
    files = [write(Stream([trace]), folder / f"{trace.stats.channel}.mseed") for trace in example]
    assert pick(capsys, str(tmp_path / "folder")) == together
    assert pick(capsys, *reversed(files)) == together


def test_gaps_are_not_predicted_across(long_record: Stream, tmp_path: Path, capsys: Capture) -> None:
    start = long_record[0].stats.starttime
    parts = long_record.slice(endtime=start + 200) + long_record.slice(start + 260, start + 262)
    rows = pick(capsys, write(parts + long_record.slice(start + 300), tmp_path / "a.mseed"))
    assert rows
    assert not [
        row for row in rows if 200.01 < UTCDateTime(row["time"]) - start < 299.99 and "fragment" not in row["flags"]
    ]


def test_overlaps_that_agree_change_nothing(long_record: Stream, tmp_path: Path, capsys: Capture) -> None:
    start = long_record[0].stats.starttime
    overlapping = long_record.slice(endtime=start + 300) + long_record.slice(starttime=start + 200)
    alone = pick(capsys, write(long_record, tmp_path / "a.mseed"))
    assert pick(capsys, write(overlapping, tmp_path / "b.mseed")) == alone


def test_overlaps_that_conflict_come_with_a_warning(example: Stream, tmp_path: Path, capsys: Capture) -> None:
    other = example.copy().trim(example[0].stats.starttime + 20)
    for trace in other:
        trace.data = trace.data + 7
    assert run(["pick", write(example + other, tmp_path / "a.mseed")]) == 0
    captured = capsys.readouterr()
    assert has_onsets(picked(captured.out))
    assert captured.err.count("seisserve: warning: BW.RJOB..EH") == 3
    assert "overlapping records disagree" in captured.err


@pytest.mark.parametrize("rate", [20.0, 40.0, 200.0, 500.0])
def test_other_sampling_rates(example: Stream, tmp_path: Path, capsys: Capture, rate: float) -> None:
    for trace in example:
        trace.data = trace.data.astype(float)
        trace.resample(rate, window=None)
        trace.data = np.round(trace.data).astype(np.int32)
    rows = pick(capsys, write(example, tmp_path / "a.mseed"))
    assert has_onsets(rows) or rate < 50  # the event's energy lies above 10 Hz


def test_only_a_vertical_is_picked_and_flagged(example: Stream, tmp_path: Path, capsys: Capture) -> None:
    rows = pick(capsys, write(example.select(component="Z"), tmp_path / "a.mseed"), "--threshold", "0.1")
    assert any(abs(UTCDateTime(row["time"]) - P_TIME) < 0.15 for row in rows)
    assert {row["flags"] for row in rows} == {"fragment|missing_N|missing_E"}


def test_horizontals_named_1_and_2_are_north_and_east(example: Stream, tmp_path: Path, capsys: Capture) -> None:
    before = pick(capsys, write(example, tmp_path / "a.mseed"))
    for trace in example:
        trace.stats.channel = trace.stats.channel.replace("N", "1").replace("EHE", "EH2")
    assert pick(capsys, write(example, tmp_path / "b.mseed")) == before


def test_amplitudes_of_1e_14_give_the_same_picks(example: Stream, tmp_path: Path, capsys: Capture) -> None:
    for trace in example:
        trace.data = trace.data.astype(float) * 1e-14 / np.abs(trace.data).max()
    assert has_onsets(pick(capsys, write(example, tmp_path / "a.mseed")))


@pytest.mark.parametrize("offset", [2_147_000_000, -2_147_000_000])
def test_counts_near_the_end_of_their_range_give_the_same_picks(
    example: Stream, tmp_path: Path, capsys: Capture, offset: int
) -> None:
    before = pick(capsys, write(example, tmp_path / "a.mseed"))
    for trace in example:
        assert np.abs(trace.data).max() < 480_000
        trace.data = trace.data + np.int32(offset)
    assert pick(capsys, write(example, tmp_path / "b.mseed", encoding="INT32")) == before


def test_a_constant_trace_has_no_picks(example: Stream, tmp_path: Path, capsys: Capture) -> None:
    for trace in example:
        trace.data = np.full(10_000, 4711, np.int32)
    assert pick(capsys, write(example, tmp_path / "a.mseed")) == []


@pytest.mark.parametrize("seconds", [5.0, 0.5, 0.0])
def test_a_fragment_is_picked_and_flagged(example: Stream, tmp_path: Path, capsys: Capture, seconds: float) -> None:
    part = example.trim(P_TIME - seconds / 2, P_TIME + seconds / 2)
    rows = pick(capsys, write(part, tmp_path / "a.mseed"), "--threshold", "0.05")
    assert all("fragment" in row["flags"] for row in rows)
    assert rows or seconds < 5


def test_a_threshold_of_its_own_for_each_phase(example: Stream, tmp_path: Path, capsys: Capture) -> None:
    file = write(example, tmp_path / "a.mseed")
    assert {row["phase"] for row in pick(capsys, file, "--threshold", "0.2", "--threshold", "S=1")} == {"P"}
    assert not pick(capsys, file, "--threshold", "1")


def test_a_server_and_this_process_write_the_same_file(
    long_record: Stream, tmp_path: Path, address: str, capsys: Capture
) -> None:
    file = write(long_record, tmp_path / "a.mseed")
    here = pick(capsys, file)
    assert len(here) >= 8
    assert pick(capsys, file, "--server", address) == here
    assert pick(capsys, file, "--server", address, "--model", "onset:1") == here
    assert pick(capsys, file, "--threads", "1") == here


def test_files_in_each_format_hold_the_same_picks(example: Stream, tmp_path: Path, capsys: Capture) -> None:
    file = write(example, tmp_path / "a.mseed")
    table = pick(capsys, file)
    for name in ("p.csv", "p.jsonl", "p.xml", "p.scml"):
        assert run(["pick", file, "-o", str(tmp_path / name)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{len(table)} picks in" in captured.err
    assert picked((tmp_path / "p.csv").read_text()) == table
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == [COLUMNS] * len(table)
    assert [{k: "" if v is None else str(v) for k, v in line.items()} for line in lines] == table
    picks = [pick for event in obspy.read_events(str(tmp_path / "p.xml")) for pick in event.picks]
    found = [(p.phase_hint, p.time, p.waveform_id.get_seed_string()) for p in picks]
    assert found == [(r["phase"], UTCDateTime(r["time"]), r["trace_id"]) for r in table]
    seiscomp = ElementTree.parse(tmp_path / "p.scml").findall(
        ".//{*}pick"
    )  # ObsPy reads no pick without an origin from it
    times = [(p.findtext("{*}phaseHint"), UTCDateTime(p.findtext("{*}time/{*}value"))) for p in seiscomp]
    assert times == [(r["phase"], UTCDateTime(r["time"])) for r in table]


def test_quakeml_follows_its_schema(example: Stream, tmp_path: Path) -> None:
    core = pytest.importorskip("obspy.io.quakeml.core")
    for number, stream in enumerate((example, example.copy().trim(endtime=P_TIME - 4))):  # with picks, and without
        target = tmp_path / f"{number}.xml"
        assert run(["pick", write(stream, tmp_path / "a.mseed"), "-o", str(target)]) == 0
        assert core._validate(str(target))


def test_a_format_may_be_named(example: Stream, tmp_path: Path, capsys: Capture) -> None:
    file = write(example, tmp_path / "a.mseed")
    for name in ("jsonl", "QUAKEML", "SC3ML", "csv"):
        assert run(["pick", file, "--format", name]) == 0
        assert capsys.readouterr().out[:1] == {"jsonl": "{", "csv": "t"}.get(name, "<")
