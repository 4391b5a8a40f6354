"""`seisserve process` here and on a server, with models that are a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import obspy
import pytest
from client.small_bundles import repository
from client.waveforms import record

from seisserve import Client
from seisserve.cli import run
from seisserve.reading import read_file
from seisserve.tables import COLUMNS, DETECTION_COLUMNS
from seisserve.traces import from_stream, to_obspy
from seisserve_serving.repository import load
from seisserve_serving.server import Server

Capture = pytest.CaptureFixture[str]
PICK = ["--pick", "eqtransformer"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    server = Server(load(folder, "onnxruntime", 2), port=0)
    server.start()
    yield server.address
    server.stop(grace_s=1)


@pytest.fixture(params=["here", "server"])
def where(request: pytest.FixtureRequest, folder: Path, address: str) -> list[str]:
    """The options that say where the models are."""
    return ["--server", address] if request.param == "server" else ["--repository", str(folder)]


@pytest.fixture
def file(tmp_path: Path) -> str:
    stream = to_obspy(record(7, 30))
    gap = stream[0].stats.starttime + 12
    (stream.slice(endtime=gap) + stream.slice(starttime=gap + 1)).write(str(tmp_path / "a.mseed"), format="MSEED")
    return str(tmp_path / "a.mseed")


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_stage_with_every_file(
    file: str, folder: Path, where: list[str], tmp_path: Path, capsys: Capture
) -> None:
    picks, detections = tmp_path / "p.csv", tmp_path / "d.jsonl"
    recovered, denoised = tmp_path / "r.mseed", tmp_path / "n.mseed"
    files = [
        "-o",
        str(picks),
        "--detections",
        str(detections),
        "--recovered",
        str(recovered),
        "--denoised",
        str(denoised),
    ]
    words = [file, "--recover", "--denoise", *PICK, "--detect", "cred", *where, *files, "--threshold", "0.3"]
    assert run(["process", *words]) == 0
    said = capsys.readouterr().err
    traces = read_file(Path(file))[0]
    expected = Client(repository=folder).process(
        traces, recover=True, denoise=True, pick="eqtransformer", detect="cred",
        thresholds={"P": 0.3, "S": 0.3, "detection": 0.3}, return_waveforms=True,
    )  # fmt: skip
    assert expected.picks and expected.detections and expected.recovered and expected.denoised
    assert picks.read_text() == expected.picks.to_csv()
    assert detections.read_text() == expected.detections.to_jsonl()
    for path, made in ((recovered, expected.recovered), (denoised, expected.denoised)):
        found = {(trace.id, trace.start_ns): trace.samples for trace in from_stream(obspy.read(str(path)))}
        assert len(found) == len(made) == 6
        for trace in made:
            np.testing.assert_array_equal(found[trace.id, trace.start_ns], trace.samples)
        assert f"6 traces in {path}" in said
    assert f"{len(expected.picks)} picks in {picks}" in said


def test_tables_go_to_standard_output(file: str, where: list[str], capsys: Capture) -> None:
    assert run(["process", file, "--denoise", *PICK, *where]) == 0
    picks = capsys.readouterr().out
    assert picks.startswith(",".join(COLUMNS))
    assert run(["process", file, "--denoise", "--detect", *where]) == 0
    detections = capsys.readouterr().out
    assert detections.startswith(",".join(DETECTION_COLUMNS))
    assert rows(picks) and rows(detections)
    assert run(["process", file, *PICK, *where]) == 0
    assert rows(capsys.readouterr().out) != rows(picks)


def test_a_chain_of_waveforms_writes_those_of_its_last_stage(
    file: str, folder: Path, where: list[str], tmp_path: Path
) -> None:
    target, alone = tmp_path / "out.mseed", tmp_path / "alone.mseed"
    assert run(["process", file, "--denoise", "--recover", *where, "-o", str(target)]) == 0
    made = Client(repository=folder).process(read_file(Path(file))[0], recover=True, denoise=True)
    assert made.recovered is None and made.denoised is not None
    found = {(t.id, t.start_ns): t.samples for t in from_stream(obspy.read(str(target)))}
    assert len(found) == len(made.denoised) == 6
    for trace in made.denoised:
        np.testing.assert_array_equal(found[trace.id, trace.start_ns], trace.samples)
    assert run(["process", file, "--recover", *where, "-o", str(alone)]) == 0
    assert run(["recover", file, *where, "-o", str(target)]) == 0
    assert obspy.read(str(alone)) == obspy.read(str(target))


def test_a_bad_file_costs_only_itself(file: str, where: list[str], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "bad.mseed").write_text("no waveforms")
    assert run(["process", str(tmp_path / "bad.mseed"), file, "--denoise", *PICK, *where]) == 3
    captured = capsys.readouterr()
    assert rows(captured.out)
    assert "bad.mseed: not a waveform file" in captured.err
    assert run(["process", str(tmp_path / "bad.mseed"), "--denoise", *where, "-o", str(tmp_path / "no.mseed")]) == 3
    assert "no traces: no " in capsys.readouterr().err
    assert not (tmp_path / "no.mseed").exists()


WRONG = [
    ([], "no stage: give one or more of --recover, --denoise, --pick, --detect"),
    (["--pick", "a.mseed"], "--pick a.mseed: that is a file, and no model; name the inputs before the stages"),
    (["--pick", "nope"], "nope"),
    (["--pick", "cred"], "'cred' is for detection; for picking there is eqtransformer"),
    (["--denoise", "recovery", "-o", "x.mseed"], "for denoising there is deepdenoiser"),
    (["--denoise"], "the result is waveforms; name a file for them with -o"),
    (["--denoise", "-o", "x.csv"], "'.csv' means no waveform format"),
    (["--denoise", "-o", "no/such/x.mseed"], "no/such"),
    (["--denoise", "-o", "x.mseed", "--denoised", "y.mseed"], "--denoised y.mseed: -o has the denoised here"),
    ([*PICK, "--detect"], "-o has the picks; give --detections FILE, too"),
    (["--detect", "--detections", "d.csv"], "--detections d.csv: -o has the detections here"),
    ([*PICK, "--recovered", "x.mseed"], "--recovered x.mseed: there is no stage --recover"),
    ([*PICK, "-o", "x.png"], "suffix '.png' means no format"),
    (["--detect", "-o", "x.xml"], "detections can be written as csv, jsonl"),
    (["--detect", "--threshold", "P=0.5"], "threshold for 'P'"),
    ([*PICK, "--hop", "9999"], "hop_samples is 9999"),
    (["--denoise", "-o", "x.mseed", "--hop", "9"], "hop_samples: for picking and detection"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_usage_is_one_line_that_says_what_there_is(
    file: str, folder: Path, capsys: Capture, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["process", file, "--repository", str(folder), *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.mseed"]
