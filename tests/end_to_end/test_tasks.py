"""Detections and waveforms from client and command line, here and on a server, with models that are a formula."""

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
from obspy import Stream

from seisserve import Client, Detections, UsageError
from seisserve.cli import run
from seisserve.tables import DETECTION_COLUMNS
from seisserve.traces import to_obspy
from seisserve_serving.repository import load
from seisserve_serving.server import Server

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    server = Server(load(folder, "onnxruntime", 2), port=0)
    server.start()
    yield server.address
    server.stop(grace_s=1)


@pytest.fixture(scope="module", params=["here", "server"])
def client(request: pytest.FixtureRequest, folder: Path, address: str) -> Iterator[Client]:
    with Client(address) if request.param == "server" else Client(repository=folder) as opened:
        yield opened


@pytest.fixture(params=["here", "server"])
def where(request: pytest.FixtureRequest, folder: Path, address: str) -> list[str]:
    """The options that say where the models are."""
    return ["--server", address] if request.param == "server" else ["--repository", str(folder)]


@pytest.fixture
def stream() -> Stream:
    """Half a minute, three components, int32, with a gap of a second in all of them."""
    whole = to_obspy(record(7, 30))
    start = whole[0].stats.starttime
    return whole.slice(endtime=start + 11.995) + whole.slice(starttime=start + 13)


@pytest.fixture
def file(stream: Stream, tmp_path: Path) -> str:
    stream.write(str(tmp_path / "a.mseed"), format="MSEED")
    return str(tmp_path / "a.mseed")


def rows(text: str) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(text))
    assert tuple(reader.fieldnames or ()) == DETECTION_COLUMNS
    return list(reader)


def test_a_server_and_this_process_find_the_same(folder: Path, address: str, stream: Stream) -> None:
    with Client(repository=folder) as here, Client(address) as there:
        for model in ("eqtransformer", "cred"):
            expected = here.detect(stream, model=model)
            assert len(expected) >= 2
            assert list(there.detect(stream, model=model)) == list(expected)
        assert repr(list(there.pick(stream, model="eqtransformer"))) == repr(
            list(here.pick(stream, model="eqtransformer"))
        )
        for ours, theirs in ((here.denoise, there.denoise), (here.recover, there.recover)):
            assert theirs(stream) == ours(stream)


def test_a_stream_gives_a_stream_with_its_names_and_times(client: Client, stream: Stream) -> None:
    denoised, recovered = client.denoise(stream), client.recover(stream)
    assert isinstance(denoised, Stream) and isinstance(recovered, Stream)
    given = {(t.id, t.stats.starttime.ns): t.data for t in stream}
    for restored in (denoised, recovered):
        assert {(t.id, t.stats.starttime.ns, t.stats.npts) for t in restored} == {
            (*key, len(data)) for key, data in given.items()
        }
    for trace in recovered:
        before = given[trace.id, trace.stats.starttime.ns]
        quiet = np.abs(before) < 500
        np.testing.assert_array_equal(trace.data[quiet], before[quiet])
    assert all(trace.data.dtype == np.float32 for trace in denoised)


def test_traces_give_traces(client: Client) -> None:
    traces = record(7, 30)
    for restored in (client.denoise(traces), client.recover(iter(traces))):
        assert [t[:3] for t in restored] == [t[:3] for t in traces]


def test_the_usual_model_of_each_task_is_the_default(client: Client, stream: Stream) -> None:
    found = client.detect(stream)
    assert isinstance(found, Detections)
    assert (found.model, found.version, len(found.provenance)) == ("eqtransformer", 1, 64)
    made = client.restore(stream, model="recovery")
    assert (made.model, made.version) == ("recovery", 1)
    signal, removed = made.traces(), made.removed()
    for kept, taken in zip(signal, removed, strict=True):
        assert kept[:3] == taken[:3]


def test_a_model_for_something_else_is_refused_with_the_names_of_those_that_fit(client: Client, stream: Stream) -> None:
    for call, model, message in (
        (client.pick, "cred", "'cred' is for detection; for picking there is eqtransformer"),
        (client.pick, "recovery", "'recovery' is for recovery; for picking there is eqtransformer"),
        (client.detect, "deepdenoiser", "for detection there is cred, eqtransformer"),
        (client.denoise, "recovery", "for denoising there is deepdenoiser"),
        (client.recover, "eqtransformer", "'eqtransformer' is for picking and detection; for recovery there is recov"),
        (client.annotate, "recovery", "'recovery' is for recovery: it gives waveforms, and no curves"),
        (client.restore, "cred", "for denoising there is deepdenoiser"),
    ):
        with pytest.raises(UsageError, match=message):
            call(stream, model=model)  # type: ignore[operator]


def test_a_bad_instrument_may_be_skipped(client: Client, stream: Stream) -> None:
    bad = stream.copy()
    for trace in bad:
        trace.stats.station = "BAD"
        trace.data = trace.data.astype(float)
    bad[0].data[5] = np.nan
    found, made = (
        client.detect(bad + stream, on_error="skip"),
        client.restore(bad + stream, model="deepdenoiser", on_error="skip"),
    )
    assert {d.trace_id for d in found} == {t.id[:-1] for t in made.traces()} == {"XX.STA..HH"}
    assert ["BAD" in str(error) for error in [*found.errors, *made.errors]] == [True, True]


def test_detect_writes_a_table(file: str, where: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert run(["detect", file, *where]) == 0
    table = rows(capsys.readouterr().out)
    assert len(table) >= 2
    assert all(row["start"] < row["end"] for row in table)
    assert run(["detect", file, *where, "-o", str(tmp_path / "d.csv")]) == 0
    assert rows((tmp_path / "d.csv").read_text()) == table
    assert f"{len(table)} detections in" in capsys.readouterr().err
    assert run(["detect", file, *where, "--threshold", "0.95"]) == 0
    assert len(rows(capsys.readouterr().out)) < len(table)
    assert run(["detect", file, *where, "--model", "cred", "--format", "jsonl"]) == 0
    assert capsys.readouterr().out.startswith('{"trace_id": "XX.STA..HH", "start": ')


def test_denoise_writes_signal_and_noise(file: str, where: list[str], tmp_path: Path, stream: Stream) -> None:
    signal, noise = tmp_path / "signal.mseed", tmp_path / "noise.slist"
    assert run(["denoise", file, *where, "-o", str(signal), "--noise", str(noise)]) == 0
    given, kept, taken = (
        {(trace.id, trace.stats.starttime.ns): trace.data for trace in read}
        for read in (stream, obspy.read(str(signal)), obspy.read(str(noise)))
    )
    assert given.keys() == kept.keys() == taken.keys()
    assert len(given) == 6
    for key, before in given.items():
        assert kept[key].dtype == np.float32
        np.testing.assert_allclose(kept[key] + taken[key], before, rtol=1e-5, atol=1e-2)


def test_recover_writes_waveforms(file: str, where: list[str], tmp_path: Path, stream: Stream) -> None:
    target = tmp_path / "out.mseed"
    assert run(["recover", file, *where, "-o", str(target)]) == 0
    given = {(t.id, t.stats.starttime.ns): t.data for t in stream}
    found = obspy.read(str(target))
    assert len(found) == 6
    for trace in found:
        before = given[trace.id, trace.stats.starttime.ns]
        np.testing.assert_array_equal(trace.data[np.abs(before) < 500], before[np.abs(before) < 500])


def test_a_bad_file_costs_only_itself(file: str, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "bad.mseed").write_text("no waveforms")
    inputs = [str(tmp_path / "bad.mseed"), file, "--repository", str(folder)]
    for command, target in (("detect", "d.csv"), ("denoise", "d.mseed"), ("recover", "r.mseed")):
        assert run([command, *inputs, "-o", str(tmp_path / target)]) == 3
        assert (tmp_path / target).stat().st_size > 100
        assert "bad.mseed: not a waveform file" in capsys.readouterr().err


WRONG = [
    (["detect", "--format", "QUAKEML"], "detections can be written as csv, jsonl"),
    (["detect", "-o", "a.xml"], "detections can be written as csv, jsonl"),
    (["detect", "--model", "recovery"], "'recovery' is for recovery; for detection there is cred, eqtransformer"),
    (["detect", "--threshold", "2"], "threshold for detection is 2"),
    (["pick", "--model", "cred"], "'cred' is for detection; for picking there is eqtransformer"),
    (["denoise", "-o", "a.csv"], "'.csv' means no waveform format"),
    (["denoise", "-o", "a.mseed", "--format", "bogus"], "'bogus'"),
    (["denoise", "-o", "a.mseed", "--noise", "no/such/n.mseed"], "no/such"),
    (["denoise", "-o", "a.mseed", "--model", "recovery"], "for denoising there is deepdenoiser"),
    (["recover", "-o", "a.mseed", "--hop", "9999"], "hop_samples is 9999"),
    (["recover"], "--output"),
    (["annotate", "-o", "a.mseed", "--model", "recovery"], "gives waveforms, and no curves"),
    (["plot", "-o", "a.png", "--model", "recovery"], "gives waveforms, and no curves"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_usage_is_one_line_that_says_what_there_is(
    file: str, folder: Path, capsys: Capture, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run([words[0], file, "--repository", str(folder), *words[1:]]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.mseed"]


@pytest.mark.parametrize("model", ["eqtransformer", "cred"])
def test_curves_of_a_detection_model_are_written_and_drawn(
    file: str, where: list[str], tmp_path: Path, capsys: Capture, model: str
) -> None:
    curves, picture = tmp_path / "curves.mseed", tmp_path / "a.png"
    assert run(["annotate", file, *where, "--model", model, "-o", str(curves)]) == 0
    letters = {trace.stats.channel for trace in obspy.read(str(curves))}
    assert letters == ({"HHD"} if model == "cred" else {"HHD", "HHP", "HHS"})
    assert run(["plot", file, *where, "--model", model, "-o", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().err.splitlines()[-1]
    assert " detections drawn in" in said
    assert (" picks and " in said) == (model == "eqtransformer")


def test_a_picture_has_a_box_for_each_detection_in_each_panel(folder: Path, stream: Stream) -> None:
    from seisserve import plots
    from seisserve.traces import from_stream

    with Client(repository=folder) as client:
        found = client.detect(stream)
        curves = client.annotate(stream, model="eqtransformer")
    figure = plots.draw(from_stream(stream), curves, [], found)
    assert [len(panel.patches) for panel in figure.axes] == [len(found)] * 4
