"""Whatever is wrong: one line that says so, the right exit code, never a traceback; and the other commands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import obspy
import pytest
from obspy import Stream

from seisserve import BundleError, Client, bundle, runtime
from seisserve.bundle import shipped
from seisserve.cli import FAILED, run
from seisserve.runtime import RUNTIMES, installed
from seisserve.transport import Transport
from seisserve_serving.repository import load
from seisserve_serving.server import Server

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def good(example: Stream, tmp_path: Path) -> str:
    example.write(str(tmp_path / "good.mseed"), format="MSEED")
    return str(tmp_path / "good.mseed")


def error_of(capsys: Capture, code: int, *arguments: str) -> str:
    """The one line on standard error that a command which fails with this code has."""
    found = run(list(arguments))
    captured = capsys.readouterr()
    assert found == code, captured.err
    lines = [line for line in captured.err.splitlines() if not line.endswith("nothing written")]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("seisserve: ")
    return lines[0]


def empty(path: Path, stream: Stream) -> None:
    path.write_bytes(b"")


def text(path: Path, stream: Stream) -> None:
    path.write_text("waveforms, allegedly\n" * 100)


def not_a_number(path: Path, stream: Stream) -> None:
    for trace in stream:
        trace.data = trace.data.astype(float)
        del trace.stats.mseed
    stream.select(component="N")[0].data[100:107] = np.nan
    stream.write(str(path), format="MSEED")


def header_only(path: Path, stream: Stream) -> None:
    stream.write(str(path), format="MSEED")
    path.write_bytes(path.read_bytes()[:48])


def no_file(path: Path, stream: Stream) -> None:
    pass


BAD_FILES: list[tuple[Callable[[Path, Stream], None], str]] = [
    (empty, "bad.mseed: the file is empty"), (text, "bad.mseed: not a waveform file"),
    (no_file, "bad.mseed: no such file"),
    (not_a_number, "trace BW.RJOB..EHN: 7 of 3000 samples are NaN"), (header_only, "bad.mseed:"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BAD_FILES, ids=[spoil.__name__ for spoil, _ in BAD_FILES])
def test_a_bad_file_is_one_line_and_does_not_stop_the_others(
    good: str, tmp_path: Path, capsys: Capture, spoil: Callable[[Path, Stream], None], message: str
) -> None:
    spoil(tmp_path / "bad.mseed", obspy.read(good))
    other = obspy.read(good)
    for trace in other:
        trace.stats.station = "OTHER"
    other.write(str(tmp_path / "other.mseed"), format="MSEED")
    bad, fine = str(tmp_path / "bad.mseed"), str(tmp_path / "other.mseed")
    run(["pick", fine])
    rows = capsys.readouterr().out
    assert message in error_of(capsys, 3, "pick", bad)
    assert message in error_of(capsys, 3, "annotate", bad, "-o", str(tmp_path / "curves.mseed"))
    assert message in error_of(capsys, 3, "plot", bad, "-o", str(tmp_path / "picture.png"))
    assert run(["pick", bad, fine]) == 3
    assert capsys.readouterr().out == rows
    assert len(rows.splitlines()) > 1
    for command, target in (("annotate", "curves.mseed"), ("plot", "picture.png")):
        assert run([command, bad, fine, "-o", str(tmp_path / target)]) == 3
        assert (tmp_path / target).stat().st_size > 1000


def test_the_whole_part_of_a_truncated_file_is_picked(good: str, tmp_path: Path, capsys: Capture) -> None:
    Path(good).write_bytes(Path(good).read_bytes()[:-100])
    assert run(["pick", good]) == 3
    captured = capsys.readouterr()
    assert {row.split(",")[1] for row in captured.out.splitlines()[1:]} == {"P", "S"}
    assert captured.err.startswith("seisserve: ")
    assert "good.mseed: truncated" in captured.err
    assert captured.err.count("\n") == 1


WRONG: list[tuple[list[str], str]] = [
    (["--model", "nope"], "no model 'nope'"), (["--model", "phasenet:9"], "no version 9"),
    (["--model", "phasenet:x"], "'phasenet:x'"), (["--bogus"], "'--bogus'"),
    (["--threshold", "2"], "threshold for P is 2"),
    (["--threshold", "P=high"], "'P=high'"), (["--threshold", "Q=0.5"], "'Q'"), (["--threshold", "nan"], "nan"),
    (["--hop", "0"], "--hop"), (["--hop", "99999"], "hop_samples is 99999"), (["--stacking", "sum"], "sum"),
    (["--resampling", "fft"], "fft"), (["--runtime", "torch"], "torch"), (["--threads", "0"], "--threads"),
    (["--format", "bogus"], "'bogus'"), (["-o", "picks.foo"], "'.foo'"),
    (["-o", "no/such/folder/p.csv"], "no/such/folder"),
    (["-o", "."], "."), (["--repository", "no/such"], "no/such"), (["--server", "localhost:1"], "localhost:1"),
    (["--server", "localhost:1", "--repository", "."], "exclude one another"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[" ".join(options) for options, _ in WRONG])
def test_a_wrong_option_is_one_line_that_names_it(
    good: str, capsys: Capture, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, 2, "pick", good, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["good.mseed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pick"], "INPUTS"), (["nope"], "'nope'"), (["models", "show", "nope"], "'nope'"),
        (["annotate", "x", "-o", "x.csv"], "miniSEED"), (["plot", "x", "-o", "x.gif"], ".png"),
        (["plot", "x", "-o", "no/such/x.png"], "no/such"), (["annotate", "x", "-o", "no/such/x.mseed"], "no/such"),
        (["serve", "no/such"], "no/such"), (["serve", "--port", "99999"], "--port"),
    ],
)  # fmt: skip
def test_wrong_usage_of_other_commands_is_one_line_too(capsys: Capture, arguments: list[str], message: str) -> None:
    assert message in error_of(capsys, 2, *arguments)


def test_an_empty_folder_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    assert "no files in it" in error_of(capsys, 3, "pick", str(tmp_path))


def test_a_file_that_cannot_be_written_is_one_line(good: str, capsys: Capture) -> None:
    assert "No space left" in error_of(capsys, 1, "pick", good, "--format", "csv", "-o", "/dev/full")


def test_curves_are_written_as_miniseed(good: str, tmp_path: Path) -> None:
    target = tmp_path / "curves.mseed"
    assert run(["annotate", good, "-o", str(target)]) == 0
    curves = obspy.read(str(target))
    assert sorted(trace.id for trace in curves) == ["BW.RJOB..EHN", "BW.RJOB..EHP", "BW.RJOB..EHS"]
    for trace in curves:
        assert (trace.stats.npts, trace.stats.sampling_rate) == (3000, 100.0)
        assert trace.data.dtype == np.float32
        assert 0 <= trace.data.min() <= trace.data.max() <= 1


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.PDF", b"%PDF")])
def test_a_picture_is_drawn(good: str, tmp_path: Path, name: str, magic: bytes) -> None:
    assert run(["plot", good, "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_the_shipped_models_are_listed_shown_and_proven(capsys: Capture) -> None:
    assert run(["models", "list"]) == 0
    shipped_names = bundle.models(shipped())
    listed = [line.split("  ")[:2] for line in capsys.readouterr().out.splitlines()]
    assert ["onset:1", "picking"] in listed and ["cred:1", "detection"] in listed and len(listed) == len(shipped_names)
    assert run(["models", "show", "phasenet"]) == 0
    assert '"window_samples": ' in capsys.readouterr().out
    assert run(["models", "verify", "phasenet"]) == 0
    proven = capsys.readouterr().out.count("digest right, golden outputs within")
    formats = {name: kind.format for name, kind in RUNTIMES.items() if installed(name)}
    there = [artifact.format for artifact in bundle.find("phasenet").manifest.artifacts.values()]
    assert proven == sum(there.count(one) for one in formats.values()) >= 3  # float32 and int8 on each that reads them


@pytest.mark.parametrize(("runner", "code"), [("openvino", 0), ("onnxruntime", FAILED), ("tensorflow", FAILED)])
def test_a_model_fails_only_if_its_own_runtime_gets_it_wrong(
    runner: str, code: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = runtime.golden_error

    def wrong_there(one: bundle.Bundle, network: Transport) -> float:
        if isinstance(network, RUNTIMES[runner]):
            raise BundleError("golden outputs differ")
        return right(one, network)

    monkeypatch.setattr(runtime, "golden_error", wrong_there)
    assert run(["models", "verify", "basicphaseae"]) == code
    told = capsys.readouterr()
    if code:
        assert "golden outputs differ" in told.err
    else:
        assert not installed(runner) or f"not for {runner}: golden outputs differ" in told.out


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "--help"], ["pick", "-h"], ["models", "--help"], ["--version"]]
)
def test_help_is_there(capsys: Capture, arguments: list[str]) -> None:
    assert run(arguments) == 0
    assert "seisserve" in capsys.readouterr().out


def test_the_installed_command_keeps_tables_and_errors_apart(good: str, tmp_path: Path) -> None:
    command: list[Any] = [sys.executable, "-m", "seisserve", "pick", good, tmp_path / "gone.mseed"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 3
    assert ended.stdout.startswith("trace_id,phase,time,")
    assert ended.stderr == f"seisserve: {tmp_path / 'gone.mseed'}: no such file\n"


def test_a_bad_record_does_not_cost_the_good_ones_of_the_same_station(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = obspy.read(), obspy.read()
    for trace in bad:
        trace.stats.starttime += 3600
        trace.data = trace.data.astype(np.float32)
    bad[0].data[5] = np.nan
    good.write(str(tmp_path / "good.mseed"), format="MSEED")
    bad.write(str(tmp_path / "bad.mseed"), format="MSEED")
    assert run(["pick", str(tmp_path / "good.mseed")]) == 0
    alone = capsys.readouterr().out
    assert run(["pick", str(tmp_path / "good.mseed"), str(tmp_path / "bad.mseed")]) == 3
    both = capsys.readouterr()
    assert both.out == alone
    assert "bad.mseed: trace BW.RJOB..EHZ: 1 of 3000 samples are NaN" in both.err


def test_a_server_that_goes_away_costs_nothing_of_what_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, station in enumerate(("ONE", "TWO")):
        stream = obspy.read()
        for trace in stream:
            trace.stats.station = station
        stream.write(str(tmp_path / f"{number}.mseed"), format="MSEED")
    server = Server(load(shipped(), "onnxruntime", 1), port=0)
    server.start()
    pick = Client.pick

    def pick_then_stop(self: Client, *arguments: Any, **options: Any) -> Any:
        picks = pick(self, *arguments, **options)
        server.stop(5)
        return picks

    monkeypatch.setattr(Client, "pick", pick_then_stop)
    out = str(tmp_path / "picks.csv")
    code = run(["pick", str(tmp_path), "--server", server.address, "--timeout", "60", "-o", out])
    assert code == 2
    assert "cannot reach a server" in capsys.readouterr().err
    rows = (tmp_path / "picks.csv").read_text().splitlines()[1:]
    assert rows
    assert all(row.startswith("BW.ONE") for row in rows)
