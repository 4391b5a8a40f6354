"""Bundles that somebody hostile wrote: refused with the reason, nothing outside them is read, the server lives."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from serving.small_models import HOW, add_bundle, add_onnx, end, save, served, window

from seisserve import bundle
from seisserve.errors import BundleError
from seisserve.runtimes.setup import Setup
from seisserve_serving.calls import Call
from seisserve_serving.configs import All
from seisserve_serving.models import Models
from seisserve_serving.onnx_check import check_onnx
from seisserve_serving.predict import predict


def refused(tmp_path: Path, spoil: Callable[[Path], object]) -> str:
    """Why the second version of a model is not served; the first one is, and answers as before."""
    add_bundle(tmp_path / "models" / "picker", 1)
    spoil(add_bundle(tmp_path / "models" / "picker", 2))
    models = served(tmp_path / "models", retries=0)
    models.repository.reload([models.repository._configs["picker"]._replace(policy=All())], Call())  # type: ignore[union-attr]
    try:
        assert list(models.served["picker"]) == [1]
        answer = predict(models.get("picker"), {"waveform": window()}, "", [], Call()).result()["probability"]
        assert (answer == 0.5).all()
        return models.failed["picker"][2]
    finally:
        end(models)


def change(**fields: Any) -> Callable[[Path], None]:
    """Spoils the manifest."""

    def spoil(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return spoil


def names(file: str) -> Callable[[Path], None]:
    """Spoils the name of the ONNX file in the manifest, which is a good one, with the right digest."""

    def spoil(folder: Path) -> None:
        outside = (folder / file).resolve()
        outside.parent.mkdir(parents=True, exist_ok=True)
        outside.write_bytes((folder / "model.onnx").read_bytes())
        artifacts = json.loads((folder / "manifest.json").read_text())["artifacts"]
        change(artifacts={"onnx": {**artifacts["onnx"], "file": file}})(folder)

    return spoil


@pytest.mark.parametrize(
    "file", ["../model.onnx", "../../../model.onnx", "sub/model.onnx", "..", ".hidden", "a\nb", ""]
)
def test_a_file_that_is_not_in_the_bundle_s_own_folder_is_refused(tmp_path: Path, file: str) -> None:
    assert "`$.artifacts[...].file`" in refused(tmp_path, names(file) if file.endswith("onnx") else rename(file))


def rename(file: str) -> Callable[[Path], None]:
    return lambda folder: change(
        artifacts={"onnx": {"file": file, "format": "onnx", "sha256": "0" * 64, "size_bytes": 1}}
    )(folder)


def test_a_path_from_the_root_is_refused(tmp_path: Path) -> None:
    assert "`$.artifacts[...].file`" in refused(tmp_path, rename("/etc/passwd"))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"window_samples": 1 << 62}, "outputs"), ({"window_samples": 10**40}, "outputs"),
        ({"sampling_rate_hz": 10**400}, "sampling_rate_hz"), ({"hop_samples": 0}, "hop_samples"),
        ({"input": {"name": "waveform", "shape": [-1, 1 << 62, 3]}}, "golden windows are"),
        ({"code": "os.system"}, "code"),
    ],
)  # fmt: skip
def test_a_manifest_with_numbers_or_keys_that_cannot_be_is_refused(tmp_path: Path, fields: Any, why: str) -> None:
    assert why in refused(tmp_path, change(**fields))


@pytest.mark.parametrize("text", [b"[" * 200_000, b'{"labels":' * 50_000, b'{"name": "\xff"}', b'{"name": "\\ud800"}'])
def test_a_manifest_that_is_no_json_or_deep_json_is_refused(tmp_path: Path, text: bytes) -> None:
    assert "manifest.json" in refused(tmp_path, lambda folder: (folder / "manifest.json").write_bytes(text))


def array(shape: str, descr: str = "'<f4'", content: bytes = b"") -> bytes:
    """A file of numpy's with a header that says so."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def archive(given: bytes, made: bytes = b"", compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        file.writestr("input.npy", given)
        file.writestr("output.npy", made or array("(1,)", content=b"\0" * 4))
    return content.getvalue()


def plain_array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    return content.getvalue()


GOLDEN = {
    "bomb": lambda: archive(array("(75000000,)", content=b"\0" * 300_000_000)),
    "huge shape": lambda: archive(array(f"({1 << 40}, 600, 3)")),
    "overflowing shape": lambda: archive(array(f"({1 << 62}, {1 << 62})")),
    "negative shape": lambda: archive(array("(-1, 600, 3)")),
    "objects": lambda: archive(array("(1,)", "'|O'", b"cos\n")),
    "texts": lambda: archive(array("(1, 600, 3)", "'<U2'", b"\0" * 14400)),
    "nothing in an item": lambda: archive(array("(1,)", "'|V0'")), "code": lambda: archive(array("__import__('os')")),
    "no array": lambda: archive(b"text"), "one array": plain_array, "empty": lambda: b"", "text": lambda: b"golden",
    "cut": lambda: archive(array("(1, 600, 3)", content=b"\0" * 7200))[:-30],
    "damaged": lambda: archive(array("(1, 600, 3)", content=b"\1" * 7200)).replace(b"\1", b"\2"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(GOLDEN))
def test_golden_windows_that_are_none_or_too_large_are_refused(tmp_path: Path, kind: str) -> None:
    assert "golden" in refused(tmp_path, lambda folder: (folder / "golden.npz").write_bytes(GOLDEN[kind]()))


def test_golden_outputs_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        windows, outputs = bundle.golden(folder)
        bundle.write_golden(folder, windows, outputs * np.float32("nan"))

    assert "golden outputs differ by nan" in refused(tmp_path, spoil)


def rewritten(edit: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    """Spoils the network; its digest is right."""

    def spoil(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        edit(model)
        sign(folder, model.SerializeToString())

    return spoil


def sign(folder: Path, content: bytes) -> None:
    (folder / "model.onnx").write_bytes(content)
    sha256, size = bundle.digest(folder / "model.onnx")
    change(artifacts={"onnx": {"file": "model.onnx", "format": "onnx", "sha256": sha256, "size_bytes": size}})(folder)


def loop(model: onnx.ModelProto) -> None:
    """As good as endless: as often as an integer can count."""
    trips = helper.make_node("Constant", [], ["trips"], value=numpy_helper.from_array(np.array((1 << 63) - 1)))
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    ends = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("more", "again")]
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [])
    body = helper.make_graph([helper.make_node("Identity", ["more"], ["again"])], "body", [count, ends[0]], ends[1:])
    model.graph.node.insert(0, helper.make_node("Loop", ["trips", "yes"], [], body=body))
    model.graph.node.insert(0, trips)
    model.graph.node.insert(0, yes)


def bomb(model: onnx.ModelProto, levels: int = 60) -> None:
    """Functions each of which calls the one before twice."""
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for level in range(levels):
        called, domain = ("Identity", "") if not level else (f"f{level - 1}", "own")
        nodes = [helper.make_node(called, [a], [b], domain=domain) for a, b in (("x", "m"), ("m", "y"))]
        model.functions.append(helper.make_function("own", f"f{level}", ["x"], ["y"], nodes, opset))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node(f"f{levels - 1}", ["waveform"], ["unused"], domain="own"))


def endless(model: onnx.ModelProto) -> None:
    """A function that calls itself."""
    bomb(model, 1)
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "f0", "own"


def foreign(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Steal", ["waveform"], ["unused"], domain="evil.ops"))


def outside(model: onnx.ModelProto) -> None:
    weights = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    onnx.external_data_helper.set_external_data(weights, "../../../../../../etc/passwd")
    weights.ClearField("raw_data")
    model.graph.initializer.append(weights)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (loop, "it has Loop; the network of a bundle is computed in one pass"),
        (bomb, "functions call one another too often"),
        (endless, "functions call one another too often"), (foreign, "it needs operators of evil.ops"),
        (outside, "it has weights in other files"),
    ],
)  # fmt: skip
def test_a_network_that_asks_for_more_than_itself_is_refused(tmp_path: Path, edit: Any, why: str) -> None:
    assert why in refused(tmp_path, rewritten(edit))


def test_the_file_that_the_manifest_names_is_looked_at_whatever_it_is_called(tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        rewritten(outside)(folder)
        (folder / "model.onnx").rename(folder / "model.bin")
        artifacts = json.loads((folder / "manifest.json").read_text())["artifacts"]
        change(artifacts={"onnx": {**artifacts["onnx"], "file": "model.bin"}})(folder)

    assert "it has weights in other files" in refused(tmp_path, spoil)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_network_that_is_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    def spoil(folder: Path) -> None:
        content = (folder / "model.onnx").read_bytes()
        sign(folder, content[: int(share * len(content))])

    assert "model.onnx: " in refused(tmp_path, spoil)


def test_functions_that_end_are_no_fault_nor_is_control_flow_in_a_plain_model(tmp_path: Path) -> None:
    model = onnx.load(add_onnx(tmp_path / "sum", 1, TensorProto.FLOAT) / "model.onnx")
    for edit in (lambda model: bomb(model, 10), loop):
        edit(model)
        onnx.save(model, tmp_path / "model.onnx")
        check_onnx(tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="it has Loop"):
        check_onnx(tmp_path / "model.onnx", one_pass=True)


def test_graphs_in_one_another_without_end_are_refused(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    for _ in range(30):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "g", ends[:1], ends[1:])
    save(graph, tmp_path / "model.onnx")
    check_onnx(tmp_path / "model.onnx")
    inner = graph.SerializeToString()
    for _ in range(1000):
        inner = field(1, field(5, field(6, inner)))
    (tmp_path / "model.onnx").write_bytes(field(7, inner))
    with pytest.raises(BundleError, match="not an ONNX file"):
        check_onnx(tmp_path / "model.onnx")


def field(number: int, content: bytes) -> bytes:
    """A field with bytes, as protobuf writes it."""
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_links_that_lead_in_a_circle_are_refused_and_end(tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        os.symlink(folder / "b", folder / "a")
        os.symlink(folder / "a", folder / "b")
        (folder / "golden.npz").unlink()
        os.symlink(folder / "golden.npz", folder / "golden.npz")

    assert "golden" in refused(tmp_path, spoil)


# --- SavedModels


def saved(tmp_path: Path, make: Callable[[Any], Any]) -> Models:
    """A table with one plain SavedModel, whose only signature is `make(text)`."""
    import tensorflow as tf

    module: Any = tf.Module()
    module.weight = tf.Variable(1.0)  # so that there is something to save and restore, as always
    signature = tf.function(make, input_signature=[tf.TensorSpec([], tf.string, "text")])
    tf.saved_model.save(module, str(tmp_path / "models" / "text" / "1"), signatures={"serving_default": signature})
    return served(tmp_path / "models", HOW._replace(warm_up=False), retries=0)


def calls_python(text: Any) -> Any:
    import tensorflow as tf

    return {"made": tf.numpy_function(lambda value: value, [text], tf.string)}


def writes_a_file(text: Any) -> Any:
    import tensorflow as tf

    tf.io.write_file("/tmp/never", text)
    return {"made": text}


def prints_into_a_file(text: Any) -> Any:
    import tensorflow as tf

    tf.print(text, output_stream="file:///tmp/never")
    return {"made": text}


def restores(text: Any) -> Any:
    import tensorflow as tf

    inner = tf.function(
        lambda name: tf.raw_ops.RestoreV2(prefix=name, tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.string])
    )
    return {"made": inner(text)[0]}


def lists_files(text: Any) -> Any:
    import tensorflow as tf

    return {"made": tf.io.matching_files(text)}


@pytest.mark.parametrize(
    ("make", "operator"),
    [(calls_python, "PyFunc"), (writes_a_file, "WriteFile"), (prints_into_a_file, "PrintV2"), (restores, "RestoreV2"),
     (lists_files, "MatchingFiles")],
)  # fmt: skip
def test_a_saved_model_that_reaches_beyond_itself_is_refused(tmp_path: Path, make: Any, operator: str) -> None:
    models = saved(tmp_path, make)
    assert models.served == {}
    assert f"operators that are not run here: {operator}" in models.failed["text"][1]
    end(models)


def test_a_saved_model_that_keeps_to_itself_is_served(tmp_path: Path) -> None:
    def shout(text: Any) -> Any:
        import tensorflow as tf

        tf.print("called")
        return {"made": tf.strings.upper(text)}

    models = saved(tmp_path, shout)
    assert list(models.served) == ["text"]
    end(models)


def test_the_saved_model_of_a_bundle_is_looked_at_too(tmp_path: Path) -> None:
    import tensorflow as tf

    module: Any = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None, 600, 3], tf.float32, "waveform")])
    def probability(waveform: Any) -> Any:
        tf.io.write_file("/tmp/never", "x")
        return {"probability": tf.abs(waveform[:, :, :2])}

    folder = add_bundle(tmp_path / "models" / "picker", 1)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": probability})
    found = bundle.saved_model(folder)
    artifact = {"file": ".", "format": "saved_model", "sha256": found.sha256, "size_bytes": found.size_bytes}
    change(artifacts={"saved_model": artifact})(folder)
    models = served(tmp_path / "models", HOW._replace(setup_for=lambda found: Setup("tensorflow")), retries=0)
    assert "operators that are not run here: WriteFile" in models.failed["picker"][1]
    end(models)
