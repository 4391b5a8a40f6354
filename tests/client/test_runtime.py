"""Runtimes: golden outputs, one answer whatever the batch, artifacts by precision, providers of onnxruntime."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from client.small_bundles import add_int8, repository
from client.waveforms import record
from msgspec.structs import replace

from seisserve import Client, UsageError, bundle
from seisserve.errors import BundleError
from seisserve.manifest import write
from seisserve.pipeline import provenance
from seisserve.runtime import RUNTIMES, golden_error, installed, load, prepare
from seisserve.runtimes import onnx as onnx_runtime
from seisserve.runtimes.setup import Device, Setup
from seisserve.transport import FakeTransport, Transport

ONNX = [
    name if installed(name) else pytest.param(name, marks=pytest.mark.skip(f"{name} is not installed"))
    for name, kind in RUNTIMES.items()
    if kind.format == "onnx"
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"))


@pytest.fixture
def both(tmp_path: Path) -> bundle.Bundle:
    """A picker with a float32 and an int8 artifact."""
    return add_int8(repository(tmp_path), "eqtransformer")


@pytest.mark.parametrize("runtime", ONNX)
def test_every_kind_of_output_is_loaded_and_proven(folder: Path, runtime: str) -> None:
    for name in bundle.models(folder):
        found = bundle.find(name, folder)
        assert golden_error(found, load(found, runtime, lanes=1)) <= (0 if runtime == "onnxruntime" else 1e-6)


@pytest.mark.parametrize("scale", [1e-14, 1.0, 1e9])
def test_waveforms_may_differ_by_a_share_of_their_amplitude(folder: Path, scale: float) -> None:
    found = bundle.find("deepdenoiser", folder)
    windows = (np.random.default_rng(1).normal(0, 1, (3, 600, 3)) * scale).astype(np.float32)
    windows[1] = 0
    bundle.write_golden(found.folder, windows, windows / 2)
    wrong = FakeTransport(lambda waveform: waveform * np.float32(0.51))
    assert golden_error(found, wrong) == pytest.approx(0.01, rel=1e-3)
    load(found, lanes=1)


@pytest.mark.parametrize("runtime", ONNX)
def test_an_onnx_file_without_the_outputs_of_the_manifest_is_refused(folder: Path, runtime: str) -> None:
    found = bundle.find("cred", folder)
    output = replace(found.manifest.output, name="other")
    changed = found._replace(manifest=replace(found.manifest, outputs=(output,)))
    with pytest.raises(BundleError, match=r"model\.onnx has no output other"):
        load(changed, runtime, lanes=1)


@pytest.mark.parametrize("runtime", ONNX)
def test_a_damaged_onnx_file_is_refused(tmp_path: Path, runtime: str) -> None:
    found = bundle.find("cred", repository(tmp_path))
    (found.folder / "model.onnx").write_bytes(b"no network")
    with pytest.raises(BundleError, match="sha256"):
        load(found, runtime, lanes=1)
    sha256, size = bundle.digest(found.folder / "model.onnx")
    artifact = replace(found.manifest.artifacts["onnx"], sha256=sha256, size_bytes=size)
    write(found.folder, replace(found.manifest, artifacts={"onnx": artifact}))
    with pytest.raises(BundleError, match="cannot load it"):
        load(bundle.read(found.folder), runtime, lanes=1)


@pytest.mark.parametrize("runtime", ONNX)
def test_what_a_window_gives_depends_on_no_other_window_and_no_lane(runtime: str) -> None:
    found = bundle.find("phasenet")
    model = found.manifest
    noise = np.random.default_rng(2).normal(0, 1, (13, model.fragment_windows[0], 3))
    windows = (noise * 10.0 ** np.arange(-6, 7)[:, None, None]).astype(np.float32)

    def run(transport: Transport, size: int) -> np.ndarray:
        parts = [{"waveform": windows[first : first + size]} for first in range(0, 13, size)]
        with ThreadPoolExecutor(transport.lanes) as pool:
            answers = pool.map(lambda part: transport.predict(model, part), parts)
            return np.concatenate([outputs["probability"] for outputs in answers])

    one = run(load(found, runtime, lanes=1), 13)
    for lanes in (1, 2):
        transport = load(found, runtime, lanes)
        for size in (1, 2, 5, 8):
            np.testing.assert_array_equal(run(transport, size), one)
    np.testing.assert_allclose(one, run(load(found, lanes=1), 13), atol=1e-6)


@pytest.mark.parametrize("runtime", ONNX)
def test_answers_are_the_caller_s_own_and_inputs_may_be_read_only_or_strided(folder: Path, runtime: str) -> None:
    found = bundle.find("eqtransformer", folder)
    transport = load(found, runtime, lanes=1)
    wide = np.random.default_rng(3).normal(0, 1000, (4, 600, 6)).astype(np.float32)
    part = wide[:, :, ::2]
    part.flags.writeable = False
    first = transport.predict(found.manifest, {"waveform": part})["probability"]
    before = first.copy()
    second = transport.predict(found.manifest, {"waveform": -2 * part})["probability"]
    np.testing.assert_array_equal(first, before)
    assert (second != first).any()
    np.testing.assert_array_equal(
        transport.predict(found.manifest, {"waveform": np.ascontiguousarray(part)})["probability"], first
    )


def test_openvino_is_imported_without_what_reports_it() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    code = (
        "import sys; from seisserve.extras import need; need('openvino', 'openvino').Core(); "
        "print([name for name in sys.modules if name.partition('.')[0] == 'openvino_telemetry'])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_artifact_is_chosen_by_precision(both: bundle.Bundle) -> None:
    def chosen(precision: str) -> str:
        return both.artifact("onnx", precision)[1].name

    assert [chosen(p) for p in ("float32", "int8", "best")] == ["model.onnx", "model.int8.onnx", "model.int8.onnx"]
    with pytest.raises(BundleError, match=r"no onnx artifact of precision float16; there is model\.onnx \(float32\), "):
        chosen("float16")
    with pytest.raises(BundleError, match=r"no saved_model artifact; there is model\.onnx \(float32\), model\.int8"):
        both.artifact("saved_model", "best")


def test_best_is_what_the_gate_measured_to_be_fastest(tmp_path: Path) -> None:
    slow = add_int8(repository(tmp_path), "eqtransformer", rate=99.0)
    assert slow.artifact("onnx", "best")[0].precision == "float32"


def test_an_artifact_that_is_not_there_is_not_chosen(both: bundle.Bundle) -> None:
    (both.folder / "model.int8.onnx").unlink()
    assert both.artifact("onnx", "best")[0].precision == "float32"
    with pytest.raises(BundleError, match="precision int8"):
        load(both, precision="int8")


@pytest.mark.parametrize("runtime", ONNX)
def test_another_precision_gives_other_numbers_and_says_so(both: bundle.Bundle, runtime: str) -> None:
    root = both.folder.parents[1]
    found = {}
    for precision in ("float32", "int8", "best"):
        with Client(repository=root, runtime=runtime, precision=precision) as client:
            found[precision] = client.pick(record(), model="eqtransformer")
            curve = client.annotate(record(), model="eqtransformer", stacking="max")[0].values
        whole = np.round(curve * 255) / 255
        assert np.allclose(curve, whole, atol=1e-6) == (precision != "float32")
    assert found["float32"].provenance == provenance(both.manifest)
    assert found["int8"].provenance == found["best"].provenance != found["float32"].provenance
    assert len(found["int8"]) == len(found["float32"]) > 5


def test_what_runs_at_another_precision_lists_nothing_else(both: bundle.Bundle) -> None:
    assert set(prepare(both, Setup(precision="int8"))[0].artifacts) == {"onnx_int8"}
    assert prepare(both, Setup())[0] == both.manifest


def test_another_precision_may_be_as_far_off_as_the_gate_has_found(both: bundle.Bundle) -> None:
    load(both, precision="int8")
    artifacts = dict(both.manifest.artifacts)
    artifacts["onnx_int8"] = replace(artifacts["onnx_int8"], parity={"golden": 0.0005})
    with pytest.raises(BundleError, match=r"model\.int8\.onnx: golden outputs differ by .* tolerance 0\.001"):
        load(both._replace(manifest=replace(both.manifest, artifacts=artifacts)), precision="int8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "torch"}, "must be one of onnxruntime, openvino, tensorflow"),
        ({"precision": "int4"}, "must be one of float32, bfloat16, int8, float16, weights8, best"),
        ({"providers": ["cuda"]}, r"'cuda' is not in the onnxruntime installed here, which has \[.*'cpu'\]"),
        ({"providers": ["tpu"]}, "must be one of tensorrt, cuda, openvino, cpu"),
        ({"providers": []}, "providers is empty"),
        ({"providers": ["cuda"], "runtime": "tensorflow"}, "providers are onnxruntime's"),
        ({"precision": "int8", "server": "localhost:1"}, "a server has its own"),
    ],
)
def test_options_that_cannot_be_met_are_named(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Client(**{**({} if "server" in options else {"repository": folder}), **options}).model("eqtransformer")


class FakeOnnxRuntime(SimpleNamespace):
    """onnxruntime as it is on a machine with these providers, of which some start."""

    def __init__(self, real: Any, there: list[str], start: list[str]) -> None:
        super().__init__(capi=real.capi, SessionOptions=real.SessionOptions, asked=[], options=[])
        self._real, self._there, self._start = real, there, start

    def get_available_providers(self) -> list[str]:
        return self._there

    def InferenceSession(self, path: str, options: Any, providers: list[Any]) -> Any:
        self.asked.append(providers)
        self.options.append(options)
        session = self._real.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        started = [name for name, _ in providers if name in self._start]
        return SimpleNamespace(run=session.run, get_outputs=session.get_outputs, get_providers=lambda: started)


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeOnnxRuntime]:
    def make(*start: str) -> FakeOnnxRuntime:
        there = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        fake = FakeOnnxRuntime(onnx_runtime.need("onnxruntime", "edge"), there, list(start))
        monkeypatch.setattr(onnx_runtime, "need", lambda module, extra: fake)
        return fake

    return make


def test_providers_are_asked_for_in_order_of_preference(folder: Path, with_gpu: Callable[..., Any]) -> None:
    fake = with_gpu("CUDAExecutionProvider", "CPUExecutionProvider")
    load(bundle.find("eqtransformer", folder), providers=("cuda", "cpu"))
    cuda = {"use_tf32": "0", "device_id": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert fake.asked == [[("CUDAExecutionProvider", cuda), ("CPUExecutionProvider", {})]]


def test_a_gpu_gets_its_number_its_memory_and_how_to_search(folder: Path, with_gpu: Callable[..., Any]) -> None:
    fake = with_gpu("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    device = Device(id=1, memory_mb=512, cudnn_conv_algo_search="EXHAUSTIVE")
    load(bundle.find("eqtransformer", folder), providers=("tensorrt", "cuda", "cpu"), device=device)
    ((tensorrt, cuda, cpu),) = fake.asked
    assert tensorrt == ("TensorrtExecutionProvider", {"device_id": "1", "trt_max_workspace_size": str(512 << 20)})
    assert cuda == (
        "CUDAExecutionProvider",
        {"use_tf32": "0", "device_id": "1", "cudnn_conv_algo_search": "EXHAUSTIVE",
         "gpu_mem_limit": str(512 << 20), "arena_extend_strategy": "kSameAsRequested"},
    )  # fmt: skip
    assert cpu == ("CPUExecutionProvider", {})


@pytest.mark.parametrize("spinning", [False, True])
def test_waiting_threads_spin_only_if_told_to(folder: Path, with_gpu: Callable[..., Any], spinning: bool) -> None:
    fake = with_gpu("CPUExecutionProvider")
    load(bundle.find("eqtransformer", folder), device=Device(allow_spinning=spinning))
    (options,) = fake.options
    for threads in ("intra_op", "inter_op"):
        assert options.get_session_config_entry(f"session.{threads}.allow_spinning") == str(int(spinning))


def test_a_provider_that_does_not_start_is_an_error_and_not_a_slow_answer(
    folder: Path, with_gpu: Callable[..., Any]
) -> None:
    with_gpu("CPUExecutionProvider")
    with pytest.raises(UsageError, match=r"'tensorrt' is installed but cannot start here .* those that can: \['cpu'\]"):
        load(bundle.find("eqtransformer", folder), providers=("tensorrt", "cpu"))


def test_a_provider_that_is_not_installed_is_named_with_those_that_are(
    folder: Path, with_gpu: Callable[..., Any]
) -> None:
    with_gpu()
    with pytest.raises(UsageError, match=r"'openvino' is not in .* which has \['tensorrt', 'cuda', 'cpu'\]"):
        load(bundle.find("eqtransformer", folder), providers=("openvino",))
