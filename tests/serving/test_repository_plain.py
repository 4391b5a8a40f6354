"""Folders without a manifest: any network, called by its own signatures; refused if it asks for more than itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from serving.plain_saved_models import add_reader, add_typed
from serving.small_models import HOW, add_bundle, add_onnx, end, save, served, window
from serving.test_hostile_bundles import sign
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2, service_pb2_grpc

from seisserve import Client
from seisserve.errors import BundleError, UsageError
from seisserve.traces import Trace
from seisserve_serving.calls import Call
from seisserve_serving.lanes import Batching
from seisserve_serving.loading import read_records
from seisserve_serving.models import Models
from seisserve_serving.onnx_check import check_onnx
from seisserve_serving.predict import predict
from seisserve_serving.server import Server

Array = NDArray[Any]
X = np.array([[1, 2], [3, 4]], np.int32)
HALF = np.array([[0.5, 1], [2, 4]], np.float16)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    root = tmp_path_factory.mktemp("plain")
    add_typed(root / "typed", 3)
    add_onnx(root / "sum", 1)
    add_bundle(root / "picker", 1)
    models = served(root)
    yield models
    end(models)


@pytest.fixture(scope="module")
def server(plain: Models) -> Iterator[Server]:
    started = Server(plain, port=0)
    started.start()
    yield started
    started.stop(grace_s=1)


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(server.address) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def triton(server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.address) as client:
        yield client


def asked(model: str, signature: str = "", **inputs: Any) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def test_predict_takes_and_gives_the_types_of_the_saved_model(stub: Any) -> None:
    answer = stub.Predict(asked("typed", x=X, half=HALF), timeout=60)
    assert (answer.model_spec.version.value, answer.model_spec.signature_name) == (3, "serving_default")
    np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["sum"]), X.astype(np.float16) + HALF, strict=True)
    np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["parity"]), X % 2 == 0, strict=True)


def test_every_signature_can_be_called_with_scalars_any_shape_and_strings(stub: Any) -> None:
    of = np.arange(6.0).reshape(1, 2, 3)
    answer = stub.Predict(asked("typed", "scale", factor=np.float64(2.0), of=of), timeout=60)
    np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["product"]), 2 * of, strict=True)
    answer = stub.Predict(asked("typed", "shout", text=np.array([b"on", b"call"], object)), timeout=60)
    assert tf.make_ndarray(answer.outputs["loud"]).tolist() == [b"ON", b"CALL"]


def test_the_metadata_are_those_of_the_saved_model(stub: Any, plain: Models) -> None:
    question = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    question.model_spec.name = "typed"
    ours = get_model_metadata_pb2.SignatureDefMap()
    assert stub.GetModelMetadata(question, timeout=30).metadata["signature_def"].Unpack(ours)
    folder = plain.get("typed").folder
    assert folder is not None
    theirs = SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0].signature_def
    assert set(ours.signature_def) == {"serving_default", "scale", "shout"}
    for key, signature in ours.signature_def.items():
        assert signature == theirs[key]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (asked("typed", x=X, half=HALF.astype(np.float32)), "input 'half': dtype is DT_FLOAT; expected DT_HALF"),
        (asked("typed", x=X), "inputs are ['x']; typed takes ['half', 'x']"),
        (asked("typed", x=X[:, :1], half=HALF), "input 'x': shape [2, 1]; expected [-1, 2] (-1 is free)"),
        (asked("typed", "other", x=X), "signature_name 'other': typed has "),
        (asked("typed", x=X, half=HALF.repeat(2, 0)), "typed cannot compute these inputs"),
        (asked("sum", a=X.astype(np.int64), b=np.zeros((3, 2), np.int64)), "sum cannot compute these inputs"),
    ],
    ids=["dtype", "missing", "shape", "signature", "graph", "rows"],
)
def test_inputs_that_do_not_fit_are_refused_by_name(stub: Any, request_: Any, text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request_, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in caught.value.details()


def triton_inputs(**arrays: Array) -> list[InferInput]:
    kinds = {"int64": "INT64", "int32": "INT32", "float16": "FP16", "object": "BYTES", "float64": "FP64"}
    found = []
    for name, array in arrays.items():
        tensor = InferInput(name, array.shape, kinds[array.dtype.name])
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


def test_triton_clients_get_the_same_values(triton: InferenceServerClient) -> None:
    answer = triton.infer("typed", triton_inputs(x=X, half=HALF), client_timeout=60)
    np.testing.assert_array_equal(answer.as_numpy("sum"), X.astype(np.float16) + HALF, strict=True)
    np.testing.assert_array_equal(answer.as_numpy("parity"), X % 2 == 0, strict=True)
    found = triton.get_model_metadata("typed")
    assert (found.platform, [(t.name, t.datatype, list(t.shape)) for t in found.inputs]) == (
        "tensorflow_savedmodel", [("half", "FP16", [-1, 2]), ("x", "INT32", [-1, 2])],
    )  # fmt: skip


FIELDS = {
    "BOOL": ("bool_contents", TensorProto.BOOL, [True, False]), "INT8": ("int_contents", TensorProto.INT8, [-128, 127]),
    "INT16": ("int_contents", TensorProto.INT16, [-5, 5]), "INT32": ("int_contents", TensorProto.INT32, [-5, 5]),
    "INT64": ("int64_contents", TensorProto.INT64, [-(2**62), 5]),
    "UINT8": ("uint_contents", TensorProto.UINT8, [0, 255]),
    "UINT16": ("uint_contents", TensorProto.UINT16, [0, 9]),
    "UINT32": ("uint_contents", TensorProto.UINT32, [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", TensorProto.UINT64, [0, 2**64 - 1]),
    "FP32": ("fp32_contents", TensorProto.FLOAT, [0.5, -1]), "FP64": ("fp64_contents", TensorProto.DOUBLE, [0.1, -1]),
    "BYTES": ("bytes_contents", TensorProto.STRING, [b"on", b"call"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def echoes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of one network for each type, which gives back what it gets."""
    root = tmp_path_factory.mktemp("echoes")
    for name, (_, kind, _) in FIELDS.items():
        ends = [helper.make_tensor_value_info(end_name, kind, ["n"]) for end_name in ("x", "y")]
        node = helper.make_node("Identity", ["x"], ["y"])
        save(helper.make_graph([node], "echo", ends[:1], ends[1:]), root / name / "1" / "model.onnx")
    models = served(root)
    assert sorted(models.served) == sorted(FIELDS)
    server = Server(models, port=0)
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)
    server.stop(grace_s=1)
    end(models)


@pytest.mark.parametrize("name", FIELDS)
def test_typed_contents_of_every_type_come_back_typed(echoes: Any, name: str) -> None:
    field, _, values = FIELDS[name]
    request = service_pb2.ModelInferRequest(model_name=name)
    tensor = request.inputs.add(name="x", datatype=name, shape=[2])
    getattr(tensor.contents, field).extend(values)
    (output,) = echoes.ModelInfer(request, timeout=30).outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", name, [2])
    assert list(getattr(output.contents, field)) == values


@pytest.mark.parametrize("name", FIELDS)
def test_raw_contents_of_every_type_come_back_raw(echoes: Any, name: str) -> None:
    _, kind, values = FIELDS[name]
    raw = (
        b"".join(len(text).to_bytes(4, "little") + text for text in values)
        if name == "BYTES"
        else np.array(values, helper.tensor_dtype_to_np_dtype(kind)).tobytes()
    )
    request = service_pb2.ModelInferRequest(model_name=name, raw_input_contents=[raw])
    request.inputs.add(name="x", datatype=name, shape=[2])
    assert list(echoes.ModelInfer(request, timeout=30).raw_output_contents) == [raw]


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [("INT8", [300, 1], "int_contents"), ("UINT8", [256, 1], "uint_contents"), ("INT16", [1, 1 << 20], "int_contents")],
)
def test_values_that_a_type_cannot_hold_are_refused(echoes: Any, name: str, values: list[int], text: str) -> None:
    request = service_pb2.ModelInferRequest(model_name=name)
    tensor = request.inputs.add(name="x", datatype=name, shape=[2])
    getattr(tensor.contents, FIELDS[name][0]).extend(values)
    with pytest.raises(grpc.RpcError) as caught:
        echoes.ModelInfer(request, timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"input 'x': {text}" in caught.value.details()


@pytest.mark.parametrize("raw", [b"\1", b"\5\0\0\0ab", b"\1\0\0\0a", b"\xff\xff\xff\xff", b"\1\0\0\0a" * 3])
def test_strings_that_are_cut_off_are_refused(echoes: Any, raw: bytes) -> None:
    request = service_pb2.ModelInferRequest(model_name="BYTES", raw_input_contents=[raw])
    request.inputs.add(name="x", datatype="BYTES", shape=[2])
    with pytest.raises(grpc.RpcError) as caught:
        echoes.ModelInfer(request, timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_seismic_calls_say_that_a_plain_model_takes_no_waveforms(server: Server) -> None:
    trace = Trace("XX.STA..HHZ", 0, 100.0, np.zeros(1000, np.float32))
    with Client(server.address) as client, pytest.raises(UsageError, match="'sum' has no manifest, so it takes no"):
        client.pick([trace], model="sum")


def test_the_default_model_is_never_a_plain_one(plain: Models) -> None:
    assert plain.get("").name == "picker"
    assert [manifest.name for manifest in plain.manifests()] == ["picker"]


def test_calls_are_put_together_only_with_batching_parameters_and_a_free_batch_axis(tmp_path: Path) -> None:
    add_onnx(tmp_path / "free", 1)
    add_onnx(tmp_path / "fixed", 1, batch=2)
    inputs = {"a": np.ones((2, 2), np.int64), "b": np.arange(4).reshape(2, 2)}
    for how, together in (
        (HOW, {"free": False, "fixed": False}),
        (HOW._replace(batching=Batching()), {"free": False, "fixed": False}),
        (HOW._replace(batching=Batching(max_batch_size=8), batch_plain=True), {"free": True, "fixed": False}),
    ):
        models = served(tmp_path, how)
        for name, batched in together.items():
            queue = models.get(name).queues["serving_default"]
            assert queue.whole is not batched
            found = predict(models.get(name), inputs, "", [], Call()).result()["sum"]
            np.testing.assert_array_equal(found, inputs["a"] + inputs["b"], strict=True)
        large = {name: np.tile(array, (20, 1)) for name, array in inputs.items()}
        found = predict(models.get("free"), large, "", [], Call()).result()["sum"]
        np.testing.assert_array_equal(found, large["a"] + large["b"], strict=True)
        none = {name: array[:0] for name, array in inputs.items()}
        assert predict(models.get("free"), none, "", [], Call()).result()["sum"].shape == (0, 2)
        end(models)


def test_what_one_caller_sends_never_spoils_the_answer_of_another(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n"]) for name in ("place", "value")]
    table = numpy_helper.from_array(np.arange(10, 20), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "place"], ["value"])], "g", ends[:1], ends[1:], [table]
    )
    save(graph, tmp_path / "table" / "1" / "model.onnx")
    batching = Batching(max_batch_size=8, batch_timeout_micros=200_000)
    models = served(tmp_path, HOW._replace(batching=batching, batch_plain=True))
    answers: dict[int, Any] = {}

    def ask(place: int) -> None:
        try:
            later = predict(models.get("table"), {"place": np.array([place])}, "", [], Call())
            answers[place] = int(later.result()["value"][0])
        except UsageError as error:
            answers[place] = str(error)

    threads = [threading.Thread(target=ask, args=(place,)) for place in (0, 3, 77, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "table cannot compute these inputs" in answers.pop(77)
    assert answers == {0: 10, 3: 13, 9: 19}
    end(models)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_as_a_model_or_a_warm_up_file_are_refused_or_read(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(content)
        for read in (check_onnx, lambda path: list(read_records(path))):
            with suppress(BundleError):
                read(path)


def test_per_model_batching_parameters_are_read_from_the_version_folder_when_asked_for(tmp_path: Path) -> None:
    for base in (add_onnx(tmp_path / "sum", 1), add_bundle(tmp_path / "picker", 1)):
        (base / "batching_params.pbtxt").write_text("max_batch_size { value: 3 }")
    for asked_for in (False, True):
        models = served(tmp_path, HOW._replace(per_model_batching=asked_for))
        assert (models.get("picker").queue.batching.max_batch_size == 3) is asked_for
        assert models.get("sum").queues["serving_default"].whole is not asked_for
        end(models)


def foreign(folder: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    node = helper.make_node("Steal", ["x"], ["y"], domain="evil.ops")
    branch = helper.make_graph([node], "inner", [], ends[1:])
    condition = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    outer = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    save(helper.make_graph([condition, outer], "g", ends[:1], ends[1:]), folder / "model.onnx", **{"evil.ops": 1})


def external(folder: Path) -> None:
    add_onnx(folder.parent, int(folder.name), TensorProto.FLOAT)
    model = onnx.load(folder / "model.onnx")
    weights = numpy_helper.from_array(np.zeros((4, 2), np.float32), "w")
    model.graph.initializer.append(weights)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)


def no_onnx(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\x08\x07 this is none \xff\xff")


def empty(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"")


def no_saved_model(folder: Path) -> None:
    (folder / "saved_model.pb").write_bytes(b"\xff none")


def reader(folder: Path) -> None:
    folder.rmdir()
    add_reader(folder.parent, int(folder.name))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (foreign, "it needs operators of evil.ops; custom operators are not run"),
        (external, "it has weights in other files; save it as one file"),
        (no_onnx, "model.onnx: "), (empty, "model.onnx: "), (no_saved_model, "saved_model.pb: not a SavedModel"),
        (reader, "it has operators that are not run here: ReadFile"),
    ],
)  # fmt: skip
def test_what_asks_for_more_than_itself_or_is_no_model_is_refused(tmp_path: Path, make: Any, why: str) -> None:
    folder = tmp_path / "bad" / "1"
    folder.mkdir(parents=True)
    make(folder)
    models = served(tmp_path)
    assert models.served == {}
    assert why in models.failed["bad"][1]
    end(models)


def test_the_weights_of_a_bundle_must_be_in_its_file_too(tmp_path: Path) -> None:
    folder = add_bundle(tmp_path / "picker", 1)
    model = onnx.load(folder / "model.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 2), np.float32), "w"))
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    sign(folder, (folder / "model.onnx").read_bytes())
    models = served(tmp_path)
    assert "weights in other files" in models.failed["picker"][1]
    end(models)


def warm_up_file(folder: Path, *requests: Any) -> Path:
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
    return path


def test_warm_up_requests_of_tensorflow_serving_are_replayed_before_anybody_can_call(tmp_path: Path) -> None:
    good = [asked("picker", waveform=window()), asked("picker", waveform=window(count=5))]
    path = warm_up_file(add_bundle(tmp_path / "picker", 1), *good)
    assert [
        prediction_log_pb2.PredictionLog.FromString(record).predict_log.request for record in read_records(path)
    ] == good
    warm_up_file(add_bundle(tmp_path / "wrong", 1), good[0], asked("wrong", waveform=window()[:, :7]))
    warm_up_file(add_onnx(tmp_path / "sum", 1), asked("sum", a=X.astype(np.int64), b=X.astype(np.int64)))
    for name, change in (
        ("cut", lambda content: content[:-3]),
        ("bent", lambda content: content[:50] + b"x" + content[51:]),
    ):
        path = warm_up_file(add_bundle(tmp_path / name, 1), good[0])
        path.write_bytes(change(path.read_bytes()))
    models = served(tmp_path)
    assert sorted(models.served) == ["picker", "sum"]
    assert "record 1: input 'waveform': shape [1, 7, 3]" in models.failed["wrong"][1]
    assert "damaged, or cut off" in models.failed["cut"][1]
    assert "damaged, or cut off" in models.failed["bent"][1]
    end(models)
    models = served(tmp_path, HOW._replace(warm_up=False))
    assert len(models.served) == 5
    end(models)
