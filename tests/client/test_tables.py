"""Picks as tables: every pick, every column, nothing lost on the way."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seisserve import Pick, Picks, UsageError
from seisserve.tables import COLUMNS, format_of, time_text

CODES = st.text("ABCXYZ0189", min_size=1, max_size=5)
PICKS = st.lists(
    st.builds(
        Pick,
        trace_id=st.tuples(CODES, CODES, st.sampled_from(["", "00"]), st.just("HH")).map(".".join),
        phase=st.sampled_from(["P", "S"]),
        time_ns=st.integers(-(10**15), 4 * 10**15).map(lambda microseconds: microseconds * 1000),
        probability=st.floats(2**-10, 1, width=32),
        uncertainty_s=st.floats(0, 10).map(lambda value: round(value, 4)),
        snr_db=st.one_of(st.just(float("nan")), st.floats(-50, 100).map(lambda value: round(value, 2))),
        flags=st.lists(st.sampled_from(["edge", "fragment", "missing_N"]), unique=True).map(tuple),
    ),
    max_size=6,
).map(lambda picks: Picks(picks, "phasenet", 3, "0123456789abcdef" * 4))


@given(PICKS)
def test_csv_has_one_row_a_pick_and_reads_back(picks: Picks) -> None:
    text = picks.to_csv()
    assert text.startswith("trace_id,phase,time,probability,uncertainty_s,snr_db,flags,model,version\n")
    assert picks.to_csv(header=False) == text.partition("\n")[2]
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(picks)
    for row, pick in zip(rows, picks, strict=True):
        assert (row["trace_id"], row["phase"], row["model"], row["version"]) == (
            pick.trace_id,
            pick.phase,
            "phasenet",
            "3",
        )
        assert abs(float(row["probability"]) - pick.probability) <= 5e-7
        assert float(row["uncertainty_s"]) == pick.uncertainty_s
        assert row["snr_db"] == ("" if math.isnan(pick.snr_db) else str(pick.snr_db))
        assert tuple(row["flags"].split("|") if row["flags"] else ()) == pick.flags


@given(PICKS)
def test_json_lines_are_json_that_any_reader_takes(picks: Picks) -> None:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in picks.to_jsonl().splitlines()]
    assert rows == picks.rows()
    assert all(tuple(row) == COLUMNS for row in rows)


@given(st.integers(-(10**16), 10**17))
def test_times_are_iso_8601_with_microseconds(microseconds: int) -> None:
    text = time_text(microseconds * 1000)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    assert datetime.fromisoformat(text) == moment
    assert text.endswith("Z")
    assert len(text) == len("2009-08-24T00:20:07.700000Z")


@settings(max_examples=20, deadline=None)
@given(PICKS.filter(lambda picks: len({pick[:3] for pick in picks}) == len(picks)))
def test_quakeml_reads_back_with_times_phases_and_provenance(picks: Picks) -> None:
    content = io.BytesIO()
    picks.to_catalog().write(content, format="QUAKEML")
    content.seek(0)
    (event,) = obspy.read_events(content, format="QUAKEML")
    assert [found.time.ns for found in event.picks] == [pick.time_ns for pick in picks]
    assert [found.phase_hint for found in event.picks] == [pick.phase for pick in picks]
    assert [found.waveform_id.get_seed_string() for found in event.picks] == [pick.trace_id for pick in picks]
    assert len({found.resource_id.id for found in event.picks}) == len(picks)
    for found, pick in zip(event.picks, picks, strict=True):
        assert found.evaluation_mode == "automatic"
        note = json.loads(found.comments[0].text)
        assert note["provenance"] == picks.provenance
        assert note["probability"] == round(pick.probability, 6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.csv", "csv"), ("a.CSV", "csv"), ("a.jsonl", "jsonl"), ("a.ndjson", "jsonl"), ("a.xml", "QUAKEML"),
     ("a.b.qml", "QUAKEML"), ("a.scml", "SC3ML")],
)  # fmt: skip
def test_the_suffix_tells_the_format(name: str, kind: str) -> None:
    assert format_of(Path(name)) == kind
    Picks.check_format(kind)


def test_an_unknown_format_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    picks = Picks([], "phasenet", 1, "0")
    for name in ("a.foo", "a"):
        with pytest.raises(UsageError, match="suffix"):
            picks.write(tmp_path / name)
    with pytest.raises(UsageError, match="'bogus'"):
        picks.write(tmp_path / "a.csv", "bogus")
    assert not list(tmp_path.iterdir())


def test_an_open_file_takes_csv_and_any_format_by_name(tmp_path: Path) -> None:
    picks = Picks([Pick("XX.A..HH", "P", 0, 0.5, 0.1, 1.0, ())], "phasenet", 1, "0" * 64)
    for kind in (None, "csv", "jsonl", "quakeml"):
        text = io.StringIO()
        picks.write(text, kind)
        picks.write(tmp_path / "file", kind or "csv")
        assert (tmp_path / "file").read_text()[:40] == text.getvalue()[:40] != ""
