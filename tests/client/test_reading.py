"""Reading a record as its samples are wanted gives, bit for bit, what reading all of it at once gives."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import obspy
import pytest
from client.waveforms import NS, START_NS, Array, fake, manifest, part, pieces, record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seisserve import miniseed, reading
from seisserve import pieces as pieces_module
from seisserve import segments as segments_module
from seisserve.commands.work import Target, tabulate
from seisserve.deferred import Recent, is_deferred
from seisserve.errors import WaveformError
from seisserve.pipeline import detect, pick
from seisserve.reading import Batch, Reading, batches, read_file
from seisserve.segments import by_instrument, segments
from seisserve.tables import Picks
from seisserve.traces import Trace, from_stream, to_obspy

MODEL = manifest(("P", "S", "detection"), window_samples=600)
PICKING = manifest()
ENCODINGS = {"int32": ["STEIM1", "STEIM2", "INT32"], "float32": ["FLOAT32"], "float64": ["FLOAT64"]}
LENGTH = 256  # of a record
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record is a long one; blocks are short, and few of them are kept."""
    monkeypatch.setattr(reading, "LONG", 0)
    monkeypatch.setattr(reading, "Recent", lambda: Recent(20_000))
    monkeypatch.setattr(reading, "PART_SAMPLES", 5000)
    monkeypatch.setattr(miniseed, "BLOCK", 700)
    monkeypatch.setattr(segments_module, "BLOCK", 900)
    monkeypatch.setattr(pieces_module, "PIECE_SAMPLES", 1500)
    monkeypatch.setattr(pieces_module, "GROUP_SAMPLES", 1500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


def write(path: Path, traces: list[Trace], encoding: str | None = None, length: int = LENGTH, order: str = ">") -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # samples of one file in several types: ObsPy says so
        stream = to_obspy(traces)
    with path.open("wb") as file:
        for one in stream:
            kind = encoding if encoding in ENCODINGS[one.data.dtype.name] else ENCODINGS[one.data.dtype.name][0]
            one.write(file, format="MSEED", encoding=kind, reclen=length, byteorder=order)
    return path


def shuffled(path: Path, order: list[int], length: int = LENGTH) -> None:
    """Put the records of a file in another order."""
    content = path.read_bytes()
    records = [content[low : low + length] for low in range(0, len(content), length)]
    path.write_bytes(b"".join(records[k % len(records)] for k in dict.fromkeys(k % len(records) for k in order)))


def every(source: Reading) -> list[Trace]:
    """The traces of all parts."""
    return [trace for some in source.parts() for trace in some]


def same_traces(found: list[Trace], expected: list[Trace]) -> None:
    assert [trace[:3] for trace in found] == [trace[:3] for trace in expected]
    for one, other in zip(found, expected, strict=True):
        samples = np.asarray(one.samples)
        assert samples.dtype == other.samples.dtype == one.samples.dtype
        np.testing.assert_array_equal(samples, other.samples)


def at_once(paths: list[Path]) -> tuple[list[Trace], list[str]]:
    traces: list[Trace] = []
    problems: list[str] = []
    for path in paths:
        try:
            more, wrong = read_file(path)
        except WaveformError as error:
            problems.append(str(error))
            continue
        traces += more
        problems += map(str, wrong)
    return traces, problems


@given(data=st.data(), rate=st.sampled_from([1.0, 20.0, 62.5, 100.0, 0.1, 500.0, 100 / 3]), seed=st.integers(0, 1000))
@SLOW
def test_traces_are_those_that_obspy_reads(folder: Path, data: st.DataObject, rate: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = data.draw(st.sampled_from(["int32", "float32", "float64"]))
    length = data.draw(st.sampled_from([256, 512]))
    traces, time_ns = [], START_NS + int(rng.integers(NS))
    for _ in range(data.draw(st.integers(1, 6))):
        samples = rng.integers(-1000, 1000, int(rng.integers(1, 900))).astype(kind)
        code = data.draw(st.sampled_from("ZN"))
        traces.append(Trace(f"XX.STA..HH{code}", time_ns // 1000 * 1000, rate, samples))
        late = data.draw(st.sampled_from([0, 1e-6, 0.3, 0.49, 0.5, 0.51, 0.9, 1, 100, -0.4, -0.6, -50]))
        time_ns += round((len(samples) + late) * NS / rate)
    path = write(folder / "some.mseed", traces, data.draw(st.sampled_from(ENCODINGS[kind])), length,
                 data.draw(st.sampled_from("<>")))  # fmt: skip
    if data.draw(st.booleans()):
        shuffled(path, data.draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=30)), length)
    scanned = miniseed.scan(path)
    assert scanned is not None
    same_traces(scanned.traces(Recent(10_000)), from_stream(obspy.read(str(path))))


def patched(path: Path, offset: int, value: bytes, every: int = 1) -> None:
    """Write bytes into (some of) the records."""
    content = bytearray(path.read_bytes())
    for low in range(0, len(content), LENGTH * every):
        content[low + offset : low + offset + len(value)] = value
    path.write_bytes(content)


HEADERS: list[tuple[str, int, bytes, int]] = [
    ("a time correction that is to be applied", 40, (4321).to_bytes(4, "big"), 1),
    ("a negative one, of some records", 40, (-6543).to_bytes(4, "big", signed=True), 3),
    ("another quality", 6, b"R", 1),
    ("a quality of some records", 6, b"Q", 4),
    ("another channel for some records", 17, b"N", 3),
    ("a location code", 13, b"00", 1),
    ("a short station code", 8, b"A  B ", 1),
    ("no network code", 18, b"  ", 1),
    ("a rate as a period", 32, (-2).to_bytes(2, "big", signed=True) + (1).to_bytes(2, "big"), 1),
    ("a rate with a divisor", 32, (301).to_bytes(2, "big") + (-3).to_bytes(2, "big", signed=True), 1),
    ("no samples in some records", 30, b"\0\0", 5),
    ("sequence numbers of spaces", 0, b"      ", 1),
]


@pytest.mark.parametrize(("offset", "value", "every"), [row[1:] for row in HEADERS], ids=[row[0] for row in HEADERS])
def test_headers_mean_what_they_mean_to_obspy(tmp_path: Path, offset: int, value: bytes, every: int) -> None:
    path = write(tmp_path / "a.mseed", record(0, 20.0, codes="Z"))
    patched(path, offset, value, every)
    scanned = miniseed.scan(path)
    assert scanned is not None
    same_traces(scanned.traces(Recent()), from_stream(obspy.read(str(path))))


@pytest.mark.parametrize("late_us", [-50, 1, 49, 123_456])
def test_microseconds_are_read(tmp_path: Path, late_us: int) -> None:
    path = tmp_path / "a.mseed"
    to_obspy([trace._replace(start_ns=START_NS + late_us * 1000) for trace in record(0, 20.0)]).write(
        str(path), format="MSEED", reclen=LENGTH
    )
    scanned = miniseed.scan(path)
    assert scanned is not None
    assert {trace.start_ns for trace in scanned.traces(Recent())} == {START_NS + late_us * 1000}
    same_traces(scanned.traces(Recent()), from_stream(obspy.read(str(path))))


STRANGE: list[tuple[str, int, bytes, int]] = [
    ("text", 52, b"\0", 1), ("an unknown encoding", 52, b"\x63", 2), ("records of another length", 54, b"\x09", 3),
    ("a leap second", 36, b"\x10", 2), ("no record at all", 6, b"?", 3), ("the second 60", 26, b"\x3c", 2),
    ("no rate", 32, b"\0\0", 1), ("nearly the same rate", 32, (20_001).to_bytes(2, "big"), 5),
    ("a letter that is none", 8, b"\xe4", 2),
]  # fmt: skip


@pytest.mark.parametrize(("offset", "value", "every"), [row[1:] for row in STRANGE], ids=[row[0] for row in STRANGE])
def test_what_is_out_of_the_ordinary_is_left_to_obspy(tmp_path: Path, offset: int, value: bytes, every: int) -> None:
    path = write(tmp_path / "a.mseed", record(0, 20.0, codes="Z"))
    patched(path, 32, (20_000).to_bytes(2, "big") + (-200).to_bytes(2, "big", signed=True))
    assert miniseed.scan(path) is not None
    patched(path, offset, value, every)
    assert miniseed.scan(path) is None


@pytest.mark.parametrize("content", [b"", b"0", b"waveforms, allegedly\n" * 100, bytes(4096)])
def test_what_is_no_miniseed_is_left_to_obspy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    assert miniseed.scan(path) is None


def broken(data: st.DataObject, rates: list[float], seconds: float = 40.0) -> list[Trace]:
    """A record in pieces: some lost, some twice, some of another rate, some spoiled, in any order."""
    found = []
    for number, rate in enumerate(rates):
        shift_ns = round(seconds * number * 0.9 * NS)
        for item in record(number, seconds, rate, dtype=data.draw(st.sampled_from(["int32", "float32"]))):
            moved = item._replace(start_ns=item.start_ns + shift_ns)
            n = len(moved.samples)
            some = pieces(moved, data.draw(st.lists(st.integers(1, n - 1), max_size=4)))
            if len(some) > 2 and data.draw(st.booleans()):
                some.pop(data.draw(st.integers(0, len(some) - 1)))
            for _ in range(data.draw(st.integers(0, 2))):
                begin, end = sorted(data.draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))
                twice = part(moved, begin, end + 1)
                wrong = data.draw(st.sampled_from([0, 0, 1]))
                some.append(twice._replace(samples=twice.samples + twice.samples.dtype.type(wrong)))
            late_ns = data.draw(st.sampled_from([0, 0, 2_000_000]))  # less than half a sample
            found += [one._replace(start_ns=one.start_ns + late_ns * (k % 2)) for k, one in enumerate(some)]
    return data.draw(st.permutations(found))


@given(
    data=st.data(),
    rates=st.sampled_from([[100.0], [100.0, 100.0], [50.0], [200.0, 100.0], [62.5, 40.0]]),
    phase=st.sampled_from(["zero", "causal"]),
)
@SLOW
def test_picks_and_segments_are_those_of_the_record_read_at_once(
    folder: Path, data: st.DataObject, rates: list[float], phase: Any
) -> None:
    traces = broken(data, rates)
    borders = sorted(data.draw(st.lists(st.integers(0, len(traces)), max_size=3)))
    edges = [0, *borders, len(traces)]
    paths = [
        write(folder / f"{k}{kind}.mseed", some, data.draw(st.sampled_from(["STEIM2", "INT32"])))
        for k, (low, high) in enumerate(itertools.pairwise(edges))
        for kind in "if"
        if (some := [trace for trace in traces[low:high] if trace.samples.dtype.kind == kind])
    ]
    whole, problems = at_once(paths)
    (batch,) = batches(paths)
    source = Reading(batch)
    assert set(batch.files) == set(paths) and not problems
    assert any(is_deferred(trace.samples) for trace in every(source))

    expected, warned = segments(whole, 100.0, "ZNE", phase)
    found, also = segments(every(source), 100.0, "ZNE", phase)
    assert sorted(also) == sorted(warned)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one[:4], one.live) == (other[:4], other.live)
        assert one.samples.dtype == other.samples.dtype
        np.testing.assert_array_equal(np.asarray(one.samples), other.samples)
    best = pick(whole, PICKING, fake(), phase=phase)
    again = [pick(some, PICKING, fake(), phase=phase) for some in source.parts()]
    assert [repr(one) for some in again for one in some.picks] == [repr(one) for one in best.picks]
    assert sorted(warning for some in again for warning in some.warnings) == sorted(best.warnings)
    assert not source.errors


def test_a_record_with_gaps_comes_in_parts_that_no_segment_reaches_across(tmp_path: Path) -> None:
    edges = [(0, 1000), (1150, 2500), (2800, 6000), (6300, 6350), (6600, 9000), (9300, 12_000)]
    whole = [part(trace, *some) for trace in record(0, 120.0) for some in edges]
    path = write(tmp_path / "a.mseed", whole)
    parts = [(min(t.start_ns for t in some), len(some)) for some in Reading(Batch([path], [])).parts()]
    assert [((start_ns - START_NS) / NS, count) for start_ns, count in parts] == [(0, 6), (28, 3), (63, 6), (93, 3)]
    rival = write(tmp_path / "b.mseed", [part(whole[0]._replace(id="XX.STA..HH3"), 0, 900)])
    assert len(list(Reading(Batch([path, rival], [])).parts())) == 1  # Z or 3: the whole record decides


@given(data=st.data(), begin=st.integers(0, 5999), samples=st.integers(1, 3000))
@SLOW
def test_any_part_of_a_resampled_record_is_that_of_the_whole(
    folder: Path, data: st.DataObject, begin: int, samples: int
) -> None:
    rate = data.draw(st.sampled_from([50.0, 250.0, 99.987, 40.0]))
    path = write(folder / "r.mseed", record(0, 60.0, rate, codes="Z"))
    phase = data.draw(st.sampled_from(["zero", "causal"]))
    ((expected,), _) = segments(read_file(path)[0], 100.0, "Z", phase)
    ((found,), _) = segments(every(Reading(Batch([path], []))), 100.0, "Z", phase)
    assert found.samples.shape == expected.samples.shape
    np.testing.assert_array_equal(
        found.samples[:, begin : begin + samples], expected.samples[:, begin : begin + samples]
    )


def test_detections_of_several_stations_in_several_files_are_those_of_all_at_once(tmp_path: Path) -> None:
    model = manifest(("detection", "P"), hop_samples=200)
    paths = []
    for day in range(3):
        traces = [
            trace._replace(id=trace.id.replace("STA", station), start_ns=trace.start_ns + day * 60 * NS)
            for station in ("AAA", "BBB")
            for trace in record(day, 60.0)
        ]
        paths.append(write(tmp_path / f"{day}.mseed", traces))
    (batch,) = batches(paths[::-1])
    source = Reading(batch)
    whole, _ = at_once(paths)
    found = {name: detect(some, model, fake()) for name, some in by_instrument(every(source)).items()}
    expected = {name: detect(some, model, fake()) for name, some in by_instrument(whole).items()}
    assert found == expected
    assert sum(len(one.detections) for one in expected.values()) > 20


@pytest.fixture
def day_files(tmp_path: Path) -> list[Path]:
    """Three files of one station."""
    return [
        write(
            tmp_path / f"{k}.mseed",
            [t._replace(start_ns=t.start_ns + k * 70 * NS) for t in record(k, 60.0)],
        )
        for k in range(3)
    ]


def all_samples(source: Reading) -> list[Array]:
    """All samples of all traces, read as `tabulate` reads them."""
    while True:
        errors: list[WaveformError] = []
        try:
            samples = [np.asarray(trace.samples) for trace in every(source)]
        except WaveformError as error:
            errors, samples = [error], []
        if not source.again(errors):
            source.finish()
            return samples


@pytest.mark.parametrize(
    ("offset", "value", "every", "kept"),
    [(70, b"\x55\x55", 4, 9), (64, b"\xff\xff\xff\xff", 7, 6), (72, b"\x7f\xff", 9, 9)],
    ids=["bits in the data", "frame", "last sample"],
)
def test_damage_costs_what_it_costs_at_once(
    day_files: list[Path], offset: int, value: bytes, every: int, kept: int
) -> None:
    patched(day_files[1], offset, value, every)
    whole, problems = at_once(day_files)
    source = Reading(Batch(day_files, []))
    found = all_samples(source)
    assert len(found) == len(whole) == kept
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one, other.samples)
    assert len(problems) == 1
    same = re.compile(r"Encountered \d+ error")  # ObsPy counts those of a file, or of a block
    assert [same.sub("", str(error)) for error in source.errors] == [same.sub("", problem) for problem in problems]


def test_the_command_leaves_out_a_file_that_turns_out_to_be_broken_in_the_midst_of_the_work(
    day_files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patched(day_files[1], 64, b"\xff\xff\xff\xff", 7)

    def work(traces: Iterable[Trace]) -> Picks:
        found = Picks([], "fake", 1, "")
        for some in by_instrument(traces).values():
            try:
                found.extend(pick(some, PICKING, fake()).picks)
            except WaveformError as error:
                found.errors.append(error)
        return found

    whole, _ = at_once(day_files)
    expected = work(whole)
    target = Target(tmp_path / "picks.csv", "csv")
    assert tabulate([Reading(Batch(day_files, []))], work, target) == 3
    assert (tmp_path / "picks.csv").read_text() == expected.to_csv()
    assert len(expected) > 20
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "1.mseed: not a waveform file that ObsPy can read" in said[0]


def test_a_file_that_ends_in_the_middle_of_a_record_is_read_as_far_as_it_goes(day_files: list[Path]) -> None:
    day_files[0].write_bytes(day_files[0].read_bytes()[:-100])
    whole, problems = at_once(day_files)
    source = Reading(Batch(day_files, []))
    found = all_samples(source)
    assert [len(samples) for samples in found] == [len(trace.samples) for trace in whole]
    assert [str(error) for error in source.errors] == problems
    assert "truncated: its last 156 bytes are no whole record" in problems[0]


def test_an_instrument_with_samples_that_are_no_numbers_is_left_out_of_its_file_only(tmp_path: Path) -> None:
    paths = []
    for k in range(2):
        traces = [t._replace(start_ns=t.start_ns + k * 70 * NS) for t in record(k, 60.0, dtype="float32")]
        other = [trace._replace(id=trace.id.replace("STA", "ELSE")) for trace in traces]
        if k:
            traces[1] = traces[1]._replace(samples=np.where(np.arange(6000) == 4321, np.nan, traces[1].samples))
        paths.append(write(tmp_path / f"{k}.mseed", [*traces, *other]))
    whole, problems = at_once(paths)
    source = Reading(Batch(paths, []))
    same_traces(sorted(every(source), key=lambda t: t[:2]), sorted(whole, key=lambda t: t[:2]))
    assert [str(error) for error in source.errors] == problems
    assert "trace XX.STA..HHN: 1 of 6000 samples are NaN" in problems[0]


def test_a_file_that_changes_while_it_is_read_is_named(day_files: list[Path]) -> None:
    traces = every(Reading(Batch(day_files, [])))
    day_files[2].write_bytes(day_files[2].read_bytes()[: 2 * LENGTH])
    with pytest.raises(WaveformError, match=r"2\.mseed: (became shorter|changed) while it was read"):
        np.asarray(traces[-1].samples)


def test_other_formats_and_short_records_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = to_obspy(record(0, 60.0, dtype="float32"))
    stream[0].write(str(tmp_path / "z.sac"), format="SAC")
    write(tmp_path / "n.mseed", from_stream(stream[1:]))
    paths = [tmp_path / "z.sac", tmp_path / "n.mseed"]
    (batch,) = batches(paths)
    kinds = {trace.id[-1]: is_deferred(trace.samples) for trace in every(Reading(batch))}
    assert kinds == {"Z": False, "N": True, "E": True}
    monkeypatch.setattr(reading, "LONG", 18_000)
    assert not any(is_deferred(trace.samples) for trace in every(Reading(batch)))
