"""Imported SeisBench networks against what SeisBench's own classes gave, and what is refused.

seisbench_recorded.npz holds their outputs for the windows and made-up numbers of seisbench_cases.py, and for those
windows the outputs of the weight sets in shared/data.
"""

import http.server
import json
import pickle
import shutil
import sys
import threading
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import obspy
import pytest
import tensorflow as tf
from click.testing import CliRunner, Result
from export.seisbench_cases import CASES, kept, numbers, windows

from seisserve import manifest as manifests
from seisserve.bundle import golden, read
from seisserve.errors import UsageError
from seisserve.runtime import load
from seisserve_export.bundles import export_bundle, save_bundle
from seisserve_export.commands import import_weights
from seisserve_export.importers.seisbench import Imported, load_seisbench
from seisserve_export.importers.seisbench_files import fetch, find, read_arrays
from seisserve_export.importers.seisbench_filter import apply, impulse_response

RECORDED = np.load(Path(__file__).with_name("seisbench_recorded.npz"))
SHAPES = json.loads(str(RECORDED["shapes"]))
DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
INSTANCE = DATA / "weights" / "seisbench_phasenet_instance"
PNW = DATA / "weights" / "seisbench_pnw" / "pnw.json.v1"
TOLERANCE = 2e-5  # of a probability, or of a waveform's largest amplitude

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"published weights and real waveforms: {DATA} is absent")
Array = npt.NDArray[Any]


class Storage:
    """Stands for values that go into a file of their own."""

    def __init__(self, key: str, array: Array) -> None:
        self.key, self.array = key, array


def write_torch(path: Path, arrays: dict[str, Array]) -> None:
    """A .pt file as PyTorch writes one, from a graphics card."""
    names = {"f4": "FloatStorage", "i8": "LongStorage"}
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in names.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def rebuild(*_: Any) -> None:
        raise AssertionError

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild  # type: ignore[attr-defined]

    class Tensor:
        def __init__(self, storage: Storage) -> None:
            self.storage = storage

        def __reduce__(self) -> Any:
            array = self.storage.array
            steps = tuple(step // array.itemsize for step in array.strides)
            return rebuild, (self.storage, 0, array.shape, steps, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            if isinstance(item, Storage):
                kind = getattr(torch, names[item.array.dtype.str[1:]])
                return ("storage", kind, item.key, "cuda:0", item.array.size)
            return None

    storages = {
        name: Storage(str(key), np.ascontiguousarray(array)) for key, (name, array) in enumerate(arrays.items())
    }
    with pytest.MonkeyPatch.context() as patch, zipfile.ZipFile(path, "w") as archive:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        with archive.open("weights/data.pkl", "w") as file:
            Pickler(file, 2).dump(OrderedDict((name, Tensor(storage)) for name, storage in storages.items()))
        for storage in storages.values():
            archive.writestr(f"weights/data/{storage.key}", storage.array.tobytes())


def write_case(folder: Path, name: str, version: str = ".v1", **rest: Any) -> Path:
    """The files of a case; rest: more arguments, and `description`, more keys beside them."""
    folder.mkdir(exist_ok=True, parents=True)
    description = {"docstring": f"Made up.\nPublished under MIT License. {name}", "version": "1"}
    description |= rest.pop("description", {})
    path = folder / f"{name}.json{version}"
    path.write_text(json.dumps(description | {"model_args": CASES[name].arguments | rest}))
    write_torch(folder / f"{name}.pt{version}", numbers(SHAPES[name]))
    return path


def in_our_order(name: str) -> Array:
    """Windows of a case with the components that it has."""
    x = windows(CASES[name].samples)
    return x[:, :, : CASES[name].arguments.get("in_channels", 3)]


def serve(imported: Imported, x: Array) -> Array:
    outputs = imported.module.serve(tf.constant(x, tf.float32))
    found: Array = outputs[imported.manifest.output.name].numpy()
    return found


@pytest.fixture(params=list(CASES), scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Imported]:
    path = write_case(tmp_path_factory.mktemp("seisbench"), request.param)
    return request.param, load_seisbench(find(path))


def test_same_numbers_as_the_source(case: tuple[str, Imported]) -> None:
    name, imported = case
    found, expected = serve(imported, in_our_order(name)), RECORDED[name]
    samples = CASES[name].samples
    if imported.manifest.task == "detection":  # few values, each held
        expected = expected[:, np.arange(samples) * expected.shape[1] // samples]
    elif found.ndim == 3:
        found = found[:, kept(samples)]
    scale = np.abs(expected).max(axis=(1, 2), keepdims=True) if imported.manifest.task == "denoising" else 1
    assert (expected / scale).std() > 1e-3  # else anything would agree
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=TOLERANCE)


def test_amplitude_does_not_matter(case: tuple[str, Imported]) -> None:
    name, imported = case
    x = in_our_order(name)
    x = x / np.abs(x).max()
    expected = serve(imported, x)
    scale = np.abs(expected).max() if imported.manifest.task == "denoising" else 1
    for amplitude in (1e-14, 1e9):
        factor = amplitude if imported.manifest.task == "denoising" else 1
        found = serve(imported, (x.astype(np.float64) * amplitude).astype(np.float32)) / factor
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=5e-5)


def test_dead_components_are_zeros(case: tuple[str, Imported]) -> None:
    name, imported = case
    x = in_our_order(name)
    x[:, :, -1] = 0
    expected = serve(imported, x)
    assert np.isfinite(expected).all()
    x[:, :, -1] = 1 / 3
    found = serve(imported, x)
    if imported.manifest.task == "denoising":  # each component by itself, and with its mean
        assert not expected[:, :, -1].any()
        found, expected = found[:, :, :-1], expected[:, :, :-1]
    np.testing.assert_array_equal(found, expected)


def test_manifest(case: tuple[str, Imported]) -> None:
    name, imported = case
    model = imported.manifest
    assert model.window_samples == CASES[name].samples
    assert model.sampling_rate_hz == CASES[name].arguments.get("sampling_rate", 100)
    assert model.components == ("Z" if name == "phasenet_vertical" else "ZNE")
    assert "Made up. Published under MIT License." in model.summary
    assert "sha256" in model.summary
    assert "Published under MIT License" in model.licence
    assert "doi:10." in model.citation
    assert {"picking", "detection", "denoising"} >= {model.task}
    assert "N" not in model.labels
    assert manifests.decode(msgspec.json.encode(model), "here") == model


@needs_data
@pytest.mark.parametrize(("name", "files"), [("instance_medium", "*MEDIUM*.json"), ("instance_micro", "*MICRO*.json")])
def test_published_phasenet(name: str, files: str) -> None:
    imported = load_seisbench(find(next(INSTANCE.glob(files))))
    model = imported.manifest
    assert (model.window_samples, model.hop_samples, model.blinding_samples) == (3001, 1501, 250)
    assert model.output.labels == ("P", "S", "N")
    assert {label: reading.threshold for label, reading in model.labels.items()} == {"P": 0.3, "S": 0.3}
    found = serve(imported, windows(3001))[:, kept(3001)]
    assert found[:, :, :2].max() > 0.5
    np.testing.assert_allclose(found, RECORDED[name], rtol=0, atol=TOLERANCE)


@needs_data
def test_published_eqtransformer(tmp_path: Path) -> None:
    """Without its filter on windows; with it on windows of a record that ObsPy has filtered as a whole."""
    description = json.loads(PNW.read_text())
    for key in ("filter_args", "filter_kwargs"):
        del description["model_args"][key]
    (tmp_path / PNW.name).write_text(json.dumps(description))
    shutil.copyfile(PNW.with_name("pnw.pt.v1"), tmp_path / "pnw.pt.v1")
    bare = load_seisbench(find(tmp_path / PNW.name))
    np.testing.assert_allclose(serve(bare, windows(6000))[:, kept(6000)], RECORDED["pnw"], rtol=0, atol=TOLERANCE)

    imported = load_seisbench(find(PNW))
    model, reach = imported.manifest, (imported.manifest.window_samples - 6000) // 2
    assert (model.hop_samples, model.blinding_samples, model.stacking) == (3000, 500 + reach, "max")
    assert {label: reading.threshold for label, reading in model.labels.items()} == {
        "detection": 0.3,
        "P": 0.1,
        "S": 0.1,
    }
    record = np.concatenate(list(windows(6000)))
    cut = np.stack([record[begin - reach : begin + 6000 + reach] for begin in (3000, 6000, 9000)])
    found = serve(imported, cut)[:, reach:-reach][:, kept(6000)]
    np.testing.assert_allclose(found, RECORDED["pnw_filtered"], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bandpass", {"freqmin": 1, "freqmax": 45, "corners": 2, "zerophase": True}),
        ("bandpass", {"freqmin": 2.0, "freqmax": 60.0}),  # ObsPy makes a high-pass of it
        ("highpass", {"freq": 3.0, "corners": 2}),
        ("lowpass", {"freq": 10.0, "zerophase": True}),
        ("bandstop", {"freqmin": 10, "freqmax": 20}),
    ],
)
@pytest.mark.filterwarnings("ignore:Selected high corner frequency")
def test_filter_is_that_of_obspy(kind: str, options: dict[str, Any]) -> None:
    record = np.cumsum(np.random.default_rng(0).normal(size=12000)) + 500
    trace = obspy.Trace(record.copy(), {"sampling_rate": 100.0}).filter(kind, **options)
    taps = impulse_response(kind, 100.0, **options)
    reach = len(taps) // 2
    begin, end = 5000, 7000
    found = apply(tf.constant(record[None, None, begin - reach : end + reach], tf.float32), taps)[0, 0].numpy()
    assert np.abs(found - trace.data[begin:end]).max() < 1e-3 * np.abs(trace.data[begin:end]).max()


def test_filter_makes_the_window_longer(tmp_path: Path) -> None:
    options = {"filter_args": ["highpass"], "filter_kwargs": {"freq": 3.0, "corners": 2}}
    for name, single in (("gpd", True), ("variable", False)):
        imported = load_seisbench(find(write_case(tmp_path, name, **options)))
        model, window = imported.manifest, CASES[name].samples
        reach = (model.window_samples - window) // 2
        assert reach > 0
        assert model.output.shape == ((-1, 3) if single else (-1, model.window_samples, 3))
        x = np.random.default_rng(0).normal(size=(1, model.window_samples, 3))
        assert serve(imported, x).shape == (1, *model.output.shape[1:])


def test_defaults_of_the_weights(tmp_path: Path) -> None:
    defaults = {"P_threshold": 0.2, "blinding": [200, 300], "overlap": 0.5, "stacking": "max", "batch_size": 64}
    path = write_case(tmp_path, "phasenet", description={"default_args": defaults})
    model = load_seisbench(find(path), "mine").manifest
    assert model.name == "mine"
    assert (model.hop_samples, model.blinding_samples, model.stacking) == (1501, 300, "max")
    assert {label: (reading.threshold, reading.chosen_on) for label, reading in model.labels.items()} == {
        "P": (0.2, "stated with the weights"),
        "S": (0.3, "default of SeisBench's PhaseNet"),
    }


def test_single_values(tmp_path: Path) -> None:
    model = load_seisbench(find(write_case(tmp_path, "gpd", description={"default_args": {"stride": 5}}))).manifest
    assert (model.hop_samples, model.blinding_samples, model.output.single) == (5, 0, True)


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        ("phasenet", {"norm": "rms"}, "norm is 'rms'"),
        ("phasenet", {"component_order": "ZNEH", "in_channels": 4}, "component_order is 'ZNEH'"),
        ("phasenet", {"phases": "PS"}, "out.weight"),
        ("phasenet", {"phases": "PPS"}, "all different"),
        ("phasenet", {"wide": 3}, "wide"),
        ("phasenet", {"filter_args": ["remez_fir"], "filter_kwargs": {}}, "not bandpass"),
        ("phasenet", {"filter_args": {"??Z": ["highpass"]}}, "one filter for all components"),
        ("phasenet", {"filter_args": ["highpass"], "filter_kwargs": {"freq": 0.01}}, "rings"),
        ("phasenet", {"filter_args": ["highpass"], "filter_kwargs": {"freq": 70}}, "half of 100 Hz"),
        ("phasenet", {"default_args": {"blinding": [1500, 1600]}}, "blinding"),
        ("phasenet", {"default_args": {"stacking": "median"}}, "stacking is 'median'"),
        ("phasenet", {"default_args": {"window": 3}}, "window"),
        ("gpd", {"phases": None}, "phases"),
        ("gpd", {"pred_sample": 100}, "pred_sample is 100"),
        ("eqtransformer", {"lstm_blocks": 2}, "lstm_blocks"),
        ("eqtransformer", {"original_compatible": True}, "original_compatible"),
        ("phasenet", {"description": {"licence": "MIT"}}, "unknown keys licence"),
    ],
)
def test_what_cannot_be_carried_is_refused(name: str, changed: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason.replace("?", r"\?")) as caught:
        load_seisbench(find(write_case(tmp_path, name, **changed)))
    assert "\n" not in str(caught.value)


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    path = write_case(tmp_path, "phasenet")
    arrays = numbers(SHAPES["phasenet"])
    for reason, changed in {
        "missing": {name: array for name, array in arrays.items() if name != "out.bias"},
        "expected": arrays | {"out.bias": np.zeros(4, np.float32)},
        "not finite": arrays | {"out.bias": np.full(3, np.nan, np.float32)},
        "no place": arrays | {"extra.weight": np.zeros(4, np.float32)},
        "no network": {"some.weight": np.zeros(4, np.float32)},
        "DeepPhasePick": {"conv1.depthwise.weight": np.zeros(4, np.float32)},
    }.items():
        write_torch(tmp_path / "phasenet.pt.v1", changed)
        with pytest.raises(UsageError, match=reason):
            load_seisbench(find(path))


def test_reads_what_pytorch_wrote(tmp_path: Path) -> None:
    path = tmp_path / "real.pt"
    path.write_bytes(RECORDED["torch_file"].tobytes())
    arrays = read_arrays(path)
    assert list(arrays) == ["a.weight", "b.num_batches_tracked", "c"]
    np.testing.assert_array_equal(arrays["a.weight"], np.arange(6).reshape(2, 3).T)
    assert arrays["c"].dtype == np.float64 and arrays["c"][0] == 1.5 and arrays["b.num_batches_tracked"] == 7


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_case(tmp_path, "phasenet")
    weights = path.with_name("phasenet.pt.v1")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="not a weights file"):
        load_seisbench(find(path))
    with zipfile.ZipFile(weights, "w") as archive:
        archive.writestr("weights/data.pkl", pickle.dumps({"a": Evil()}))
    with pytest.raises(UsageError, match="not allowed"):
        load_seisbench(find(path))
    assert capsys.readouterr().out == ""
    weights.unlink()
    with pytest.raises(UsageError, match="side by side"):
        find(path)
    path.write_text("{")
    weights.touch()
    with pytest.raises(UsageError, match="not a JSON file"):
        load_seisbench(find(path))


class WebDav(http.server.SimpleHTTPRequestHandler):
    """A folder as SeisBench's repository shows it."""

    def do_PROPFIND(self) -> None:
        folder = Path(self.translate_path(self.path))
        if not folder.is_dir():
            self.send_error(404)
            return
        links = [self.path, *(f"{self.path}{path.name}" for path in sorted(folder.iterdir()))]
        entries = "".join(f"<d:response><d:href>{link}</d:href></d:response>" for link in links)
        body = f'<?xml version="1.0"?><d:multistatus xmlns:d="DAV:">{entries}</d:multistatus>'.encode()
        self.send_response(207)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("repository")
    for version in (".v1", ".v2", ".v10"):
        write_case(folder / "models" / "phasenetlight", "light", version)
    write_case(folder / "models" / "gpd", "gpd", "", description={"version": "3"})

    def handler(*arguments: Any, **rest: Any) -> WebDav:
        return WebDav(*arguments, directory=str(folder), **rest)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/models/"
        server.shutdown()
        thread.join()


def test_fetch(repository: str, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    files = fetch("PhaseNetLight/light", tmp_path, repository, lambda *now: seen.append(now))
    assert (files.description.name, files.weights.name, files.name) == ("light.json.v10", "light.pt.v10", "light")
    assert {name: done for name, done, total in seen if done == total} == {
        path.name: path.stat().st_size for path in files[:2]
    }
    assert fetch("phasenetlight/light:2", tmp_path, repository).weights.name == "light.pt.v2"
    assert fetch("gpd/gpd", tmp_path, repository).weights.name == "gpd.pt"
    assert fetch("gpd/gpd:3", tmp_path, repository).weights.name == "gpd.pt"
    for name, reason in {
        "phasenetlight/heavy": "no weights 'heavy'",
        "phasenetlight/light:7": "there is 1, 2, 10",
        "gpd/gpd:4": "no version 4",
        "cred/original": "404",
        "nonsense": "no name of SeisBench weights",
    }.items():
        with pytest.raises(UsageError, match=reason):
            fetch(name, tmp_path, repository)
    with pytest.raises(UsageError, match="cannot be reached"):
        fetch("phasenet/instance", tmp_path, "http://127.0.0.1:9/")
    with pytest.raises(UsageError, match="must begin with https"):
        fetch("phasenet/instance", tmp_path, "file:///tmp")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(import_weights, [str(item) for item in arguments])


def test_command(repository: str, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "fetched" / "1"
    result = invoke("seisbench", "phasenetlight/light", "-o", folder, "--repository", repository)
    assert result.exit_code == 0, result.exception
    bundle = read(folder)
    assert bundle.manifest.name == "fetched"
    x, _ = golden(folder)
    found = load(bundle).predict(bundle.manifest, {"waveform": windows(3001)})["probability"]
    np.testing.assert_allclose(found[:, kept(3001)], RECORDED["light"], rtol=0, atol=TOLERANCE)
    assert x.shape == (5, 3001, 3)
    missing = invoke("seisbench", tmp_path / "nothing.json", "-o", folder, "--force")
    assert isinstance(missing.exception, UsageError) and "no such file" in str(missing.exception)
    other = invoke("phasenet-tf1", tmp_path, "-o", folder, "--repository", repository)
    assert isinstance(other.exception, UsageError) and "--repository" in str(other.exception)


@pytest.mark.parametrize(
    "name", ["phasenet", "gpd", "autoencoder", "cred_original", "deepdenoiser", "eqtransformer_conservative"]
)
def test_onnx(name: str, tmp_path: Path) -> None:
    """Every kind of layer through the converter and the gate; recurrent ones without loops."""
    imported = load_seisbench(find(write_case(tmp_path, name)))
    save_bundle(imported.module, imported.manifest, tmp_path / "source")
    report = export_bundle(tmp_path / "source", tmp_path / "1")
    assert report.max_relative < 1e-4
    x = in_our_order(name)
    model = read(tmp_path / "1").manifest
    found = load(read(tmp_path / "1")).predict(model, {"waveform": x})[model.output.name]
    expected = serve(imported, x)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=TOLERANCE)
