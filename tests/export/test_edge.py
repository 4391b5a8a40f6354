"""The edge folder picks what the server picks, from packets of any size, with numpy and onnxruntime alone."""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from client.small_bundles import waveform_model
from client.waveforms import START_NS, manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from seisserve import Client, bundle, pipeline
from seisserve.errors import BundleError, UsageError
from seisserve.manifest import Artifact, Label, Manifest, write
from seisserve.picks import Pick
from seisserve.runtime import OnnxRuntime
from seisserve.stretches import stretches
from seisserve.traces import Trace
from seisserve.windows import Curve
from seisserve_export import commands, edge_export
from seisserve_export.edge_export import export_edge

Array = NDArray[Any]
STATION = "XX.STA..HH"
LABELS = ("detection", "P", "S")
READINGS = {
    "detection": Label(threshold=0.5),
    "P": Label(threshold=0.3, calibration=((0.2, 0.1), (0.6, 0.5), (0.9, 0.95)), uncertainty_scale=0.7),
    "S": Label(threshold=0.4),
}
# What a model can be: windows over one another; windows with context, that share nothing; the largest of several;
# frames of four samples; one value for a window; nothing shared at all.
MODELS: dict[str, dict[str, Any]] = {
    "windowed": {"edge_samples": 100},
    "windowless": {"hop_samples": 400, "blinding_samples": 100, "edge_samples": 50},
    "largest": {"hop_samples": 170, "stacking": "max", "blinding_samples": 7, "minimum_pick_distance_s": 0.05},
    "frames": {"stride": 4, "hop_samples": 200, "blinding_samples": 48, "fragment_windows": (100,)},
    "single": {"single": True, "window_samples": 400, "hop_samples": 20, "fragment_windows": (200,)},
    "apart": {"hop_samples": 600, "fragment_windows": (), "minimum_pick_distance_s": 0.0, "edge_samples": 900},
}


def _network(model: Manifest) -> onnx.ModelProto:
    """A network that is a formula; each value depends on its window's largest sample and on all before it."""

    def constant(name: str, value: Any) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))

    wide = {"kernel_shape": [9], "pads": [4, 4]}
    nodes = [
        helper.make_node("Abs", ["waveform"], ["size"]),
        constant("axes", np.array([1, 2])),
        helper.make_node("ReduceMax", ["size", "axes"], ["largest"], keepdims=1),
        constant("share", np.float32(0.2)),
        helper.make_node("Mul", ["largest", "share"], ["part"]),
        constant("level", np.float32(500)),
        helper.make_node("Add", ["part", "level"], ["above"]),
        helper.make_node("Div", ["size", "above"], ["scaled"]),
        constant("time", np.int64(1)),
        helper.make_node("CumSum", ["scaled", "time"], ["sum"]),
        helper.make_node("Cos", ["sum"], ["turn"]),
        helper.make_node("Abs", ["turn"], ["taper"]),
        helper.make_node("Mul", ["scaled", "taper"], ["each"]),
        helper.make_node("Transpose", ["each"], ["channels"], perm=[0, 2, 1]),
        helper.make_node("AveragePool", ["channels"], ["smooth"], **wide),
        constant("noise", np.float32(0.08)),
        helper.make_node("Sub", ["smooth", "noise"], ["signal"]),
        constant("three", np.float32(3)),
        helper.make_node("Mul", ["signal", "three"], ["large"]),
        constant("zero", np.float32(0)),
        constant("one", np.float32(1)),
        helper.make_node("Clip", ["large", "zero", "one"], ["each_probability"]),
    ]
    if model.output.single:
        nodes += [
            constant("last", np.array([2])),
            constant("from", np.array([170])),
            constant("to", np.array([200])),
            helper.make_node("Slice", ["each_probability", "from", "to", "last"], ["middle"]),
            helper.make_node("ReduceMax", ["middle", "last"], ["probability"], keepdims=0),
        ]
    else:
        stride = model.output.stride
        nodes += [
            helper.make_node("MaxPool", ["each_probability"], ["frames"], kernel_shape=[stride], strides=[stride]),
            helper.make_node("Transpose", ["frames"], ["probability"], perm=[0, 2, 1]),
        ]
    ends = [
        helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["n", "samples", 3]),
        helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", *"abc"[: len(model.output.shape) - 1]]),
    ]
    graph = helper.make_graph(nodes, model.name, ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _bundle(repository: Path, model: Manifest) -> bundle.Bundle:
    folder = repository / model.name / "3"
    folder.mkdir(parents=True)
    onnx.save(_network(model), folder / "model.onnx")
    sha256, size = bundle.digest(folder / "model.onnx")
    artifact = Artifact(file="model.onnx", format="onnx", sha256=sha256, size_bytes=size)
    write(folder, replace(model, artifacts={"onnx": artifact}))
    made = bundle.read(folder)
    windows = _earthquakes(7, 4 * model.window_samples, 3).T.reshape(4, model.window_samples, 3).astype(np.float32)
    outputs = OnnxRuntime(made, 1).predict(model, {"waveform": windows})["probability"]
    bundle.write_golden(folder, windows, outputs)
    return made


def _earthquakes(seed: int, samples: int, components: int) -> Array:
    """[components, samples] float64: noise with bursts, an offset, and stretches that are constant."""
    rng = np.random.default_rng(seed)
    record = rng.normal(0, 20, (components, samples)) + rng.uniform(-1e4, 1e4, (components, 1))
    for begin in rng.integers(0, samples, samples // 150 + 1).tolist():
        age = np.arange(samples - begin) / 100
        record[:, begin:] += rng.uniform(100, 3000) * np.exp(-4 * age) * np.sin(2 * np.pi * 7 * age)
    begin = int(rng.integers(samples))
    record[:, begin : begin + 80] = record[:, begin : begin + 1]
    return record


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    for name, changes in MODELS.items():
        _bundle(root, manifest(LABELS, readings=READINGS, name=name, **changes))
    return root


@pytest.fixture(scope="module")
def folder(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The edge folder of a model, made once; of a shipped model, too."""
    root = tmp_path_factory.mktemp("edge")

    @cache
    def made(name: str) -> Path:
        export_edge(bundle.find(name, repository if name in MODELS else None), root / name)
        return root / name

    return made


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[Client]:
    with Client(repository=repository, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def shipped() -> Iterator[Client]:
    with Client(threads=1) as made:
        yield made


@cache
def _picker(folder: Path) -> ModuleType:
    """The picker.py of the folder, as its own module."""
    spec = importlib.util.spec_from_file_location(f"picker_of_{folder.name}", folder / "picker.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _alike(picks: list[Any]) -> list[str]:
    """To the last bit; NaN equals NaN."""
    return sorted(repr(tuple(pick)) for pick in picks)


def _stream(picker: Any, traces: list[dict[str, Trace]], sizes: list[int]) -> tuple[list[Any], int]:
    """The picks of gapless records one after the other, sent in packets of these sizes, and the largest memory."""
    picks: list[Any] = []
    held, turn = 0, 0
    for record in traces:
        first = next(iter(record.values()))
        begin = 0
        while begin < len(first.samples):
            end = begin + sizes[turn % len(sizes)]
            turn += 1
            packet = {code: trace.samples[begin:end] for code, trace in record.items()}
            picks += picker.push(packet, first.start_ns + begin * 10_000_000, 100.0)
            begin = min(end, len(first.samples))
            held = max(held, sum(tape._held.nbytes for tape in (picker._segment.samples, picker._segment.curve)))
    return picks + picker.flush(), held


@st.composite
def records(draw: st.DrawFn) -> list[dict[str, Trace]]:
    """Records one after the other, some with a gap between them, some with other components or another data type."""
    found: list[dict[str, Trace]] = []
    start = START_NS + draw(st.integers(0, 10**11))
    before = ""
    for length in draw(st.lists(st.integers(1, 2500), min_size=1, max_size=3)):
        codes = draw(st.sampled_from(["ZNE", "Z", "NE"]))
        gap = draw(st.integers(1 if codes == before else 0, 900))
        before = codes
        start += gap * 10_000_000 + (draw(st.integers(-4_000_000, 4_000_000)) if gap > 1 else 0)
        dtype = draw(st.sampled_from(["int32", "float32"]))
        samples = _earthquakes(draw(st.integers(0, 2**32 - 1)), length, len(codes)).astype(dtype)
        rows = zip(codes, samples, strict=True)
        found.append({code: Trace(STATION + code, start, 100.0, row) for code, row in rows})
        start += length * 10_000_000
    return found


@pytest.mark.parametrize("name", MODELS)
@given(traces=records(), sizes=st.lists(st.integers(1, 1500), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_picks_are_those_of_the_client(
    name: str,
    client: Client,
    folder: Callable[[str], Path],
    traces: list[dict[str, Trace]],
    sizes: list[int],
) -> None:
    picker = _picker(folder(name)).Picker(folder(name), STATION)
    expected = client.pick([trace for record in traces for trace in record.values()], model=name)
    found, _ = _stream(picker, traces, sizes)
    assert _alike(found) == _alike(expected)


@pytest.mark.parametrize("name", ["phasenet", "onset"])
@pytest.mark.parametrize("sizes", [[100], [1, 4096, 37]])
def test_picks_of_the_shipped_models(
    name: str, sizes: list[int], shipped: Client, folder: Callable[[str], Path]
) -> None:
    samples = _golden_record(name)
    start = START_NS + 123_456_700
    traces = {code: Trace(STATION + code, start, 100.0, row) for code, row in zip("ZNE", samples, strict=True)}
    picker = _picker(folder(name)).Picker(folder(name), STATION)
    expected = shipped.pick(list(traces.values()), model=name)
    found, _ = _stream(picker, [traces], sizes)
    assert expected
    assert _alike(found) == _alike(expected)


def _golden_record(name: str) -> Array:
    windows, _ = bundle.golden(bundle.find(name).folder)
    return np.concatenate(list(windows[:4])).T


@pytest.mark.parametrize("name", MODELS)
def test_a_pick_comes_when_nothing_can_change_it_and_memory_stays_the_same(
    name: str, client: Client, folder: Callable[[str], Path]
) -> None:
    module = _picker(folder(name))
    samples = _earthquakes(3, 20_000, 3)
    traces = {code: Trace(STATION + code, START_NS, 100.0, row) for code, row in zip("ZNE", samples, strict=True)}
    expected = client.pick(list(traces.values()), model=name)
    _, model, transport = client.model(name)
    curve, _ = pipeline.annotate(traces.values(), model, transport)
    # A window, what is looked at behind a peak, how often it is looked, a packet.
    lag = model.window_samples + max(module.REACH, model.edge_samples) + 25 + 10
    due = {pick: _decided(curve, model, pick) + lag for pick in expected}
    picker, found = module.Picker(folder(name), STATION), []
    for begin in range(0, 20_000, 10):
        packet = {code: trace.samples[begin : begin + 10] for code, trace in traces.items()}
        found += picker.push(packet, START_NS + begin * 10_000_000, 100.0)
        assert set(_alike(found)) >= set(_alike([pick for pick, sample in due.items() if sample <= begin]))
    assert len(found) > 20
    assert _alike(found + picker.flush()) == _alike(expected)
    assert [_stream(module.Picker(folder(name)), [_cut(traces, n)], [n])[1] for n in (5000, 20_000)] == [
        _stream(module.Picker(folder(name)), [_cut(traces, n)], [1])[1] for n in (700, 3000)
    ]


def _decided(curve: Curve, model: Manifest, pick: Pick) -> int:
    """The sample of the curve at which neither the pick's own stretch nor one that is on near it can change it."""
    values = curve.values[:, curve.labels.index(pick.phase)]
    on = stretches(values, curve.bounds, model.labels[pick.phase].threshold)
    sample = (pick.time_ns - START_NS) // 10_000_000
    near = sample + 1 + round(model.minimum_pick_distance_s * 100)
    return int(max([near, *on.end[(on.begin <= near) & (on.end >= sample)].tolist()])) + 1


def _cut(record: dict[str, Trace], samples: int) -> dict[str, Trace]:
    return {code: trace._replace(samples=trace.samples[:samples]) for code, trace in record.items()}


def test_what_is_refused_changes_nothing(folder: Callable[[str], Path], client: Client) -> None:
    picker = _picker(folder("windowed")).Picker(folder("windowed"), STATION)
    samples = _earthquakes(5, 3000, 1)[0]
    picks = picker.push({"Z": samples[:2000]}, START_NS, 100.0)
    goes_on = START_NS + 20_000_000_000
    for packet, start_ns, rate, why in [
        ({"Z": samples[2000:]}, goes_on, 50.0, "sampling rate is 50.0 Hz; windowed takes 100 Hz only"),
        ({"Z": samples[2000:]}, goes_on - 10_000_000, 100.0, "packets come in order of time"),
        ({"Q": samples[2000:]}, goes_on, 100.0, "expected some of Z, N, E"),
        ({"Z": samples[2000:], "N": samples[:3]}, goes_on, 100.0, "equally long"),
        ({"Z": np.full(9, np.nan)}, goes_on, 100.0, "NaN"),
        ({"Z": np.full(9, "1")}, goes_on, 100.0, "expected integers or floats"),
    ]:
        with pytest.raises(ValueError, match=why):
            picker.push(packet, start_ns, rate)
    picks += picker.push({"Z": samples[2000:]}, goes_on, 100.0) + picker.flush()
    assert _alike(picks) == _alike(client.pick([Trace(STATION + "Z", START_NS, 100.0, samples)], model="windowed"))


@pytest.mark.parametrize("name", [*MODELS, "phasenet", "onset"])
def test_self_test(name: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    for file in ("model.onnx", "model.ort"):
        assert "selftest passed" in _picker(folder(name)).selftest(folder(name), file)
    copy = shutil.copytree(folder(name), tmp_path / "copy")
    golden = np.fromfile(copy / "golden_output.bin", "<f4")
    golden[len(golden) // 2] += 0.01
    golden.tofile(copy / "golden_output.bin")
    with pytest.raises(ValueError, match=r"golden windows: outputs differ by 0\.01"):
        _picker(folder(name)).selftest(copy)


@pytest.mark.parametrize("name", ["phasenet", "onset", "gpd"])
def test_an_edge_folder_in_int8_picks_what_seisserve_picks_in_int8(name: str, tmp_path: Path) -> None:
    made = tmp_path / "edge"
    export_edge(bundle.find(name), made, precision="int8")
    assert (made / "model.onnx").read_bytes() == (bundle.find(name).folder / "model.int8.onnx").read_bytes()
    assert "The network is in int8." in (made / "README.md").read_text()
    for file in ("model.onnx", "model.ort"):
        assert "selftest passed" in _picker(made).selftest(made, file)
    samples = _golden_record(name)
    traces = {code: Trace(STATION + code, START_NS, 100.0, row) for code, row in zip("ZNE", samples, strict=True)}
    found, _ = _stream(_picker(made).Picker(made, STATION), [traces], [4096, 37])
    with Client(precision="int8") as client:
        expected = client.pick(list(traces.values()), model=name)
    assert expected
    assert _alike(found) == _alike(expected)


def test_self_test_sees_other_picks_and_another_file(folder: Callable[[str], Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folder("windowed"), tmp_path / "copy")
    text = (copy / "golden_picks.csv").read_text()
    (copy / "golden_picks.csv").write_text("\n".join(text.splitlines()[:-1]) + "\n")
    with pytest.raises(ValueError, match="golden record: "):
        _picker(folder("windowed")).selftest(copy)
    (copy / "model.onnx").write_bytes((folder("single") / "model.onnx").read_bytes())
    with pytest.raises(ValueError, match="SHA256SUMS"):
        _picker(folder("windowed")).selftest(copy)


ONLY_THESE = """
import runpy, sys
allowed = set(sys.stdlib_module_names) | {"numpy", "onnxruntime", "__main__"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        caller = sys._getframe(1)
        while caller.f_code.co_filename.startswith("<frozen importlib"):
            caller = caller.f_back
        if caller.f_code.co_filename.endswith("picker.py") and name.partition(".")[0] not in allowed:
            raise SystemExit(f"imports {name}")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    here = {name.partition(".")[0] for name in sys.modules}
    print(sorted(name for name in here if name.startswith(("seisserve", "msgspec", "obspy", "scipy", "onnx", "grpc"))))
"""


def test_it_needs_numpy_and_onnxruntime_only(folder: Callable[[str], Path]) -> None:
    command = [sys.executable, "-I", "-c", ONLY_THESE, str(folder("phasenet") / "picker.py"), "--selftest"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['onnxruntime']"
    assert "selftest passed" in done.stdout


@pytest.mark.parametrize("name", ["windowed", "single"])
def test_standard_input(name: str, client: Client, folder: Callable[[str], Path]) -> None:
    samples = _earthquakes(11, 4321, 3).astype("<f4")
    picker = folder(name) / "picker.py"
    table = _run([sys.executable, str(picker)], samples)
    traces = [Trace(STATION + code, START_NS, 100.0, row) for code, row in zip("ZNE", samples, strict=True)]
    expected = client.pick(traces, model=name).to_csv()
    assert sorted(table.splitlines()) == sorted(expected.splitlines())
    assert table.splitlines()[0] == expected.splitlines()[0]


@pytest.fixture(scope="module")
def in_cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """main.cpp, compiled against the library in the onnxruntime wheel; skipped, with the reason, where that can't be.

    The headers are in no wheel: ONNXRUNTIME_INCLUDE says where they are, CMAKE_PREFIX_PATH where nlohmann_json is.
    """
    prefixes = [*filter(None, os.environ.get("CMAKE_PREFIX_PATH", "").split(":")), "/usr", "/usr/local"]
    given = os.environ.get("ONNXRUNTIME_INCLUDE")
    places = [given] if given else [f"{prefix}/include/onnxruntime" for prefix in prefixes]
    include = next((place for place in places if Path(place, "onnxruntime_cxx_api.h").is_file()), None)
    libraries = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*.*"))
    there = {
        "cmake": shutil.which("cmake"),
        "a C++ compiler": shutil.which("c++"),
        "onnxruntime_cxx_api.h (Debian: libonnxruntime-dev; set ONNXRUNTIME_INCLUDE)": include,
        "nlohmann/json.hpp (Debian: nlohmann-json3-dev; set CMAKE_PREFIX_PATH)": any(
            Path(prefix, "include/nlohmann/json.hpp").is_file() for prefix in prefixes
        ),
        "libonnxruntime.so in the onnxruntime wheel": libraries,
    }
    missing = [what for what, found in there.items() if not found]
    if missing:
        pytest.skip(f"the C++ picker is not compiled and not tested here, missing: {'; '.join(missing)}")
    folder = tmp_path_factory.mktemp("cpp")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # the wheel has neither link
        (folder / name).symlink_to(libraries[-1])
    options = [f"-DONNXRUNTIME_INCLUDE={include}", f"-DONNXRUNTIME_LIBRARY={folder / 'libonnxruntime.so'}"]
    source = Path(edge_export.__file__).parent / "edge" / "cpp"
    for command in (
        ["cmake", "-S", str(source), "-B", str(folder / "build"), "-DCMAKE_CXX_FLAGS=-Werror", *options],
        ["cmake", "--build", str(folder / "build")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "picker"


@pytest.mark.parametrize("name", [*MODELS, "phasenet", "onset"])
def test_the_picker_in_cpp(name: str, in_cpp: Path, folder: Callable[[str], Path]) -> None:
    for file in ("model.onnx", "model.ort"):
        command = [str(in_cpp), str(folder(name)), "--selftest", "--file", file]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "selftest passed" in done.stdout
    lengths = (1, 90, 599, 600, 601, 4321) if name in MODELS else (20_000,)
    for length in lengths:
        samples = _earthquakes(length, length, 3).astype("<f4")
        in_python = _run([sys.executable, str(folder(name) / "picker.py")], samples)
        assert sorted(_run([str(in_cpp), str(folder(name))], samples).splitlines()) == sorted(in_python.splitlines())
    with pytest.raises(ValueError, match="takes 100"):
        _run([str(in_cpp), str(folder(name))], samples, rate="40")


def _run(command: list[str], samples: Array, rate: str = "100", cut: int | None = None) -> str:
    options = ["--stdin", "--rate", rate, "--start", "2023-11-14T22:13:20Z", "--station", STATION]
    given = np.ascontiguousarray(samples.T).tobytes()[:cut]
    done = subprocess.run([*command, *options], input=given, capture_output=True, timeout=120)
    if done.returncode:
        raise ValueError(done.stderr.decode())
    return done.stdout.decode()


def test_standard_input_that_is_wrong(folder: Callable[[str], Path]) -> None:
    command = [sys.executable, str(folder("windowed") / "picker.py")]
    samples = _earthquakes(11, 100, 3).astype("<f4")
    with pytest.raises(ValueError, match="takes 100 Hz only"):
        _run(command, samples, rate="40")
    with pytest.raises(ValueError, match="input ended within a sample: 3 bytes over"):
        _run(command, samples, cut=27)


def test_what_is_in_the_folder(folder: Callable[[str], Path]) -> None:
    made = folder("phasenet")
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert files == {
        "README.md", "SHA256SUMS", "VERSION", "cpp/CMakeLists.txt", "cpp/main.cpp", "golden_input.bin",
        "golden_output.bin", "golden_picks.csv", "manifest.json", "model.onnx", "model.ort",
        "model.required_operators.config", "picker.py",
    }  # fmt: skip
    for line in (made / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split()
        assert bundle.digest(made / name)[0] == expected
    for name in files - {"model.onnx", "model.ort"}:
        assert str(made.parent).encode() not in (made / name).read_bytes()
    assert bundle.read(made).manifest.artifacts.keys() == {"onnx"}
    with (made / "golden_picks.csv").open() as table:
        assert len(list(csv.DictReader(table))) > 5


def test_the_command(repository: Path, tmp_path: Path) -> None:
    def invoke(*arguments: object) -> Any:
        return CliRunner().invoke(commands.export, [str(item) for item in arguments])

    made = tmp_path / "edge"
    result = invoke("--edge", repository / "frames" / "3", "-o", made)
    assert result.exit_code == 0, result.exception
    assert result.output == f"{made}\n"
    assert (made / "VERSION").read_text() == "3\n"
    assert isinstance(invoke("--edge", "phasenet", "-o", made).exception, UsageError)
    missing = invoke("--edge", "deepphasepick", "-o", tmp_path / "other", "--precision", "bfloat16").exception
    assert isinstance(missing, BundleError)
    assert "has no onnx artifact of precision bfloat16" in str(missing)
    assert "--precision is for --edge" in str(invoke(repository, "-o", made, "--precision", "int8").exception)
    assert invoke("--edge", "phasenet:1", "-o", made, "--force").exit_code == 0
    assert "phasenet" in (made / "README.md").read_text()


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (waveform_model("deepdenoiser", "denoising"), "it gives waveforms"),
        (manifest(("detection",), name="cred", task="detection"), "no phases to pick, only detection"),
    ],
)
def test_models_that_do_not_pick_are_refused(model: Manifest, why: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=why):
        export_edge(bundle.Bundle(tmp_path, 1, model), tmp_path / "edge")
    assert not (tmp_path / "edge").exists()
