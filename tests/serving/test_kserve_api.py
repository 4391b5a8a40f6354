"""The Open Inference protocol against Triton's official client, and bit for bit against TensorFlow Serving's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

import seisserve
from seisserve.bundle import Bundle
from seisserve.proto import tensorflow_serving_wire_pb2 as tensorflow
from seisserve.runtime import TensorFlowRuntime
from seisserve.tensors import to_array, to_proto
from seisserve_serving.lanes import Lanes
from seisserve_serving.models import Models, State
from seisserve_serving.server import Server

Array = NDArray[np.float32]
Refused = Callable[..., tuple[grpc.StatusCode, str]]
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
InferRequest = service_pb2.ModelInferRequest


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def predicted(channel: grpc.Channel) -> Callable[[Array], Array]:
    """What TensorFlow Serving's Predict of the same server gives."""
    call = channel.unary_unary(
        "/tensorflow.serving.PredictionService/Predict",
        request_serializer=tensorflow.PredictRequest.SerializeToString,
        response_deserializer=tensorflow.PredictResponse.FromString,
    )

    def predict(windows: Array) -> Array:
        spec = tensorflow.ModelSpec(name="phasenet", signature_name="fragment")
        request = tensorflow.PredictRequest(model_spec=spec)
        request.inputs["waveform"].CopyFrom(to_proto(windows))
        return to_array(call(request, timeout=60).outputs["probability"], "probability")

    return predict


def raw(windows: Array) -> list[InferInput]:
    """The windows as the official client sends them."""
    tensor = InferInput("waveform", windows.shape, "FP32")
    tensor.set_data_from_numpy(windows)
    return [tensor]


def typed(windows: Array) -> Any:
    """The windows as typed contents, which the official client cannot send."""
    request = InferRequest(model_name="phasenet")
    tensor = request.inputs.add(name="waveform", datatype="FP32", shape=windows.shape)
    tensor.contents.fp32_contents.extend(windows.ravel().tolist())
    return request


@pytest.mark.parametrize("count", [0, 1, 33])
def test_raw_contents_give_the_bits_of_tensorflow_servings_predict(
    client: InferenceServerClient, predicted: Callable[[Array], Array], windows: Array, count: int
) -> None:
    found = client.infer("phasenet", raw(windows[:count]), client_timeout=60).as_numpy("probability")
    np.testing.assert_array_equal(found, predicted(windows[:count]), strict=True)


@pytest.mark.parametrize("count", [0, 1, 33])
def test_typed_contents_give_the_same_bits_typed(
    stub: Any, predicted: Callable[[Array], Array], windows: Array, count: int
) -> None:
    response = stub.ModelInfer(typed(windows[:count]), timeout=60)
    (output,) = response.outputs
    assert not response.raw_output_contents
    assert (output.name, output.datatype) == ("probability", "FP32")
    found = np.array(output.contents.fp32_contents, np.float32).reshape(output.shape)
    np.testing.assert_array_equal(found, predicted(windows[:count]), strict=True)


def test_the_shape_says_whether_it_is_a_fragment(
    client: InferenceServerClient, predicted: Callable[[Array], Array], windows: Array, bundle: Bundle
) -> None:
    for length in bundle.manifest.fragment_windows:
        part = np.ascontiguousarray(windows[:3, :length])
        found = client.infer("phasenet", raw(part), client_timeout=60).as_numpy("probability")
        np.testing.assert_array_equal(found, predicted(part), strict=True)


@pytest.mark.parametrize(("version", "request_id"), [("", ""), ("1", "mine-7")])
def test_the_answer_names_the_version_that_served_and_the_request(
    client: InferenceServerClient, windows: Array, version: str, request_id: str
) -> None:
    response = client.infer("phasenet", raw(windows[:1]), version, request_id=request_id).get_response()
    assert (response.model_name, response.model_version, response.id) == ("phasenet", "1", request_id)


def test_parameters_that_do_not_change_the_answer_are_ignored(
    client: InferenceServerClient, stub: Any, predicted: Callable[[Array], Array], windows: Array
) -> None:
    expected = predicted(windows[:1])
    answer = client.infer("phasenet", raw(windows[:1]), priority=1, timeout=10**6, parameters={"mine": "x"})
    np.testing.assert_array_equal(answer.as_numpy("probability"), expected, strict=True)
    made = request(content=windows[:1].tobytes())
    made.inputs[0].parameters["binary_data_size"].int64_param = windows[:1].nbytes  # as KServe's client sends
    assert stub.ModelInfer(made, timeout=60).raw_output_contents == [expected.tobytes()]


class TwoOutputs:
    """A network with two outputs: its input, and twice that."""

    lanes, batch_samples = 1, 65_536

    def predict(self, model: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"once": inputs["waveform"], "twice": 2 * inputs["waveform"]}


@pytest.fixture(scope="module")
def two_server(bundle: Bundle) -> Iterator[Server]:
    """A server of two versions of a model of two outputs, and of one that could not be loaded."""
    once, twice = (msgspec.structs.replace(bundle.manifest.output, name=name) for name in ("once", "twice"))
    manifest = msgspec.structs.replace(bundle.manifest, name="two", outputs=(once, twice))
    models = Models(Lanes(2))
    for version in (2, 10):
        models.add(version, manifest, TwoOutputs())
    models.note("bad", 3, State.END, 9, "the reason")
    server = Server(models, port=0)
    server.start()
    yield server
    server.stop(grace_s=1)


@pytest.fixture(scope="module")
def two(two_server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(two_server.address) as opened:
        yield opened


@pytest.mark.parametrize("names", [["once", "twice"], ["twice", "once"], ["twice"], []])
def test_requested_outputs_come_in_their_order_and_no_others(
    two: InferenceServerClient, windows: Array, names: list[str]
) -> None:
    answer = two.infer("two", raw(windows[:2]), outputs=[InferRequestedOutput(name) for name in names])
    expected = {"once": windows[:2], "twice": 2 * windows[:2]}
    assert [output.name for output in answer.get_response().outputs] == (names or list(expected))
    for name in names or expected:
        np.testing.assert_array_equal(answer.as_numpy(name), expected[name], strict=True)


def test_the_latest_version_answers_if_none_is_named(two: InferenceServerClient, windows: Array) -> None:
    for asked, served in (("", "10"), ("2", "2"), ("10", "10")):
        assert two.infer("two", raw(windows[:1]), asked).get_response().model_version == served
    assert two.get_model_metadata("two").versions == ["2", "10"]


def test_the_index_has_what_is_served_and_what_could_not_be_loaded(
    two: InferenceServerClient, two_server: Server
) -> None:
    def rows(index: Any) -> list[tuple[str, ...]]:
        return [(model.name, model.version, model.state, model.reason) for model in index.models]

    ready = [("two", "2", "READY", ""), ("two", "10", "READY", "")]
    assert rows(two.get_model_repository_index()) == [("bad", "3", "UNAVAILABLE", "the reason"), *ready]
    with grpc.insecure_channel(two_server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert rows(stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True), timeout=30)) == ready


def test_live_and_ready(client: InferenceServerClient, two: InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("phasenet") and client.is_model_ready("phasenet", "1")
    assert not client.is_model_ready("phasenet", "9")
    assert not client.is_model_ready("nope")
    assert not two.is_model_ready("bad", "3")


def test_a_server_without_models_is_live_but_not_ready() -> None:
    server = Server(Models(Lanes(1)), port=0)
    server.start()
    with InferenceServerClient(server.address) as opened:
        assert opened.is_server_live() and not opened.is_server_ready()
    server.stop(grace_s=1)


def test_the_metadata_of_the_server_promise_the_repository_only_if_there_is_one(
    client: InferenceServerClient, two: InferenceServerClient
) -> None:
    found = client.get_server_metadata()
    assert (found.name, found.version) == ("seisserve", seisserve.__version__)
    assert list(found.extensions) == ["model_repository", "model_repository(unload_dependents)"]
    assert list(two.get_server_metadata().extensions) == []


@pytest.mark.parametrize("version", ["", "1"])
def test_the_metadata_of_a_model_are_those_of_the_manifest(
    client: InferenceServerClient, bundle: Bundle, version: str
) -> None:
    found = client.get_model_metadata("phasenet", version)
    assert (found.name, list(found.versions), found.platform) == ("phasenet", ["1"], "onnxruntime_onnx")
    for ours, theirs in ((found.inputs, (bundle.manifest.input,)), (found.outputs, bundle.manifest.outputs)):
        assert [(t.name, t.datatype, tuple(t.shape)) for t in ours] == [(t.name, "FP32", t.shape) for t in theirs]
    assert found.inputs[0].shape[0] == -1


def test_the_platform_is_that_of_the_runtime(bundle: Bundle) -> None:
    models = Models(Lanes(1))
    models.add(1, bundle.manifest, TensorFlowRuntime(bundle))
    server = Server(models, port=0)
    server.start()
    with InferenceServerClient(server.address) as opened:
        assert opened.get_model_metadata("phasenet").platform == "tensorflow_savedmodel"
    server.stop(grace_s=1)


def test_the_official_client_gets_code_and_message(client: InferenceServerClient, windows: Array) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("phasenet", raw(windows[:1, :777]))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert caught.value.message() == "input 'waveform': 777 samples; phasenet takes 512, 1024, 2048, 3072"


def test_loading_and_unloading_are_refused_where_there_is_no_repository(two: InferenceServerClient) -> None:
    for call in (two.load_model, two.unload_model):
        with pytest.raises(InferenceServerException) as caught:
            call("two")
        assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"


W = (1, 3072, 3)
ZEROS = bytes(4 * 9216)
NAN, INFINITE = np.full(9216, [np.nan] + 9215 * [0.0], "<f4"), np.full(9216, np.inf, "<f4")


def request(
    shape: tuple[int, ...] = W, content: bytes | None = ZEROS, datatype: str = "FP32", alias: str = "waveform",
    model_name: str = "phasenet", **fields: Any,
) -> Any:  # fmt: skip
    """A request of raw contents with one thing wrong."""
    made = InferRequest(model_name=model_name, **fields)
    made.inputs.add(name=alias, datatype=datatype, shape=shape)
    if content is not None:
        made.raw_input_contents.append(content)
    return made


def of_types(shape: tuple[int, ...] = W, **contents: Any) -> Any:
    """A request of typed contents."""
    made = request(shape, None)
    made.inputs[0].contents.CopyFrom(service_pb2.InferTensorContents(**contents))
    return made


def both() -> Any:
    """A request of raw and typed contents."""
    made = of_types(fp32_contents=[0.0] * 9216)
    made.raw_input_contents.append(ZEROS)
    return made


def twice() -> Any:
    """A request with an input that is there twice."""
    made = request()
    made.inputs.append(made.inputs[0])
    made.raw_input_contents.append(ZEROS)
    return made


def parameter(name: str, place: Callable[[Any], Any]) -> Any:
    """A request with this parameter."""
    made = request(outputs=[InferRequest.InferRequestedOutputTensor(name="probability")])
    place(made).parameters[name].int64_param = 1
    return made


REFUSALS: list[tuple[str, Any, grpc.StatusCode, str]] = [
    ("unknown model", request(model_name="nope"), NOT_FOUND, "no model 'nope' is served; there is "),
    ("unknown version", request(model_version="9"), NOT_FOUND, "no version 9 of 'phasenet' is served"),
    ("no name", request(model_name=""), INVALID, "model_name is empty"),
    ("version in words", request(model_version="stable"), INVALID, "model_version is 'stable'"),
    ("version zero", request(model_version="0"), INVALID, "model_version is '0'"),
    ("negative version", request(model_version="-3"), INVALID, "model_version is '-3'"),
    ("digits of elsewhere", request(model_version="\u0661"), INVALID, "model_version is"),
    ("endless version", request(model_version="9" * 5000), INVALID, "model_version is"),
    ("unknown input", request(alias="x"), INVALID, "inputs are ['x']; phasenet takes ['waveform']"),
    ("no input", InferRequest(model_name="phasenet"), INVALID, "inputs are []; phasenet takes ['waveform']"),
    ("an input twice", twice(), INVALID, "input 'waveform' is there twice"),
    ("unknown output", request(outputs=[InferRequest.InferRequestedOutputTensor(name="q")]), INVALID,
     "output 'q': phasenet has the outputs probability"),
    ("datatype", request(datatype="FP64"), INVALID, "input 'waveform': datatype is 'FP64'; expected FP32"),
    ("no datatype", request(datatype=""), INVALID, "input 'waveform': datatype is ''; expected FP32"),
    ("rank", request((3072, 3)), INVALID, "input 'waveform': shape [3072, 3]"),
    ("scalar", request((), bytes(4)), INVALID, "input 'waveform': shape []"),
    ("components", request((1, 3072, 2), bytes(4 * 6144)), INVALID, "input 'waveform': shape [1, 3072, 2]; expected"),
    ("length", request((1, 777, 3), bytes(4 * 2331)), INVALID, "input 'waveform': 777 samples"),
    ("negative size", request((-1, 3072, 3)), INVALID, "input 'waveform': shape [-1, 3072, 3] is not fully known"),
    ("huge", request((1 << 40, 3072, 3)), INVALID, "input 'waveform': shape [1099511627776, 3072, 3] is too large"),
    ("huge and empty", request((0, 1 << 62, 3), b""), INVALID, "input 'waveform': shape"),
    ("many axes", request((1,) * 80, bytes(4)), INVALID, "input 'waveform': shape"),
    ("too few bytes", request(content=bytes(100)), INVALID,
     "input 'waveform': raw_input_contents has 100 bytes; shape [1, 3072, 3] needs 36864"),
    ("too many bytes", request(content=ZEROS + b"\0"), INVALID, "raw_input_contents has 36865 bytes"),
    ("too many raw", request(raw_input_contents=[ZEROS]), INVALID, "raw_input_contents has 2 entries for 1 inputs"),
    ("raw without inputs", InferRequest(model_name="phasenet", raw_input_contents=[ZEROS]), INVALID,
     "raw_input_contents has 1 entries for 0 inputs"),
    ("raw and typed", both(), INVALID, "input 'waveform': contents must be absent"),
    ("neither", request(content=None), INVALID,
     "input 'waveform': fp32_contents has 0 values; shape [1, 3072, 3] needs 9216"),
    ("too few values", of_types(fp32_contents=[1.0]), INVALID, "input 'waveform': fp32_contents has 1 values"),
    ("too many values", of_types((0, 3072, 3), fp32_contents=[1.0]), INVALID, "fp32_contents has 1 values"),
    ("other contents", of_types(fp64_contents=[1.0] * 9216), INVALID, "input 'waveform': contents has fp64_contents"),
    ("more contents", of_types(fp32_contents=[1.0], bool_contents=[True]), INVALID, "contents has bool_contents"),
    ("NaN", request(content=NAN.tobytes()), INVALID, "input 'waveform': 1 of 9216 values are NaN or infinite"),
    ("infinite", of_types(fp32_contents=INFINITE), INVALID, "input 'waveform': 9216 of 9216 values are NaN"),
    ("sequence", parameter("sequence_id", lambda made: made), INVALID, "parameter 'sequence_id' is not supported"),
    ("shared memory in", parameter("shared_memory_region", lambda made: made.inputs[0]), INVALID,
     "input 'waveform': parameter 'shared_memory_region' is not supported"),
    ("shared memory out", parameter("shared_memory_region", lambda made: made.outputs[0]), INVALID,
     "output 'probability': parameter 'shared_memory_region' is not supported"),
    ("classification", parameter("classification", lambda made: made.outputs[0]), INVALID,
     "output 'probability': parameter 'classification' is not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "code", "text"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_a_bad_request_is_refused_with_the_field_at_fault(
    stub: Any, refused: Refused, made: Any, code: grpc.StatusCode, text: str
) -> None:
    found, message = refused(stub.ModelInfer, made)
    assert found is code
    assert text in message


def test_the_request_that_the_bad_ones_are_made_of_is_good(stub: Any) -> None:
    assert stub.ModelInfer(request(), timeout=60).outputs[0].shape == [1, 3072, 3]


@pytest.mark.parametrize(
    ("name", "version", "code", "text"),
    [
        ("nope", "", NOT_FOUND, "no model 'nope'"),
        ("phasenet", "9", NOT_FOUND, "no version 9"),
        ("", "", INVALID, "name is empty"),
        ("phasenet", "v1", INVALID, "version is 'v1'"),
    ],
)
def test_bad_questions_about_a_model_are_refused(
    stub: Any, refused: Refused, name: str, version: str, code: grpc.StatusCode, text: str
) -> None:
    found, message = refused(stub.ModelMetadata, service_pb2.ModelMetadataRequest(name=name, version=version))
    assert found is code
    assert message.startswith(text)
    if code is INVALID:
        asked = service_pb2.ModelReadyRequest(name=name, version=version)
        assert refused(stub.ModelReady, asked) == (code, message)


def test_the_index_of_a_named_repository_is_refused(stub: Any, refused: Refused) -> None:
    found, message = refused(stub.RepositoryIndex, service_pb2.RepositoryIndexRequest(repository_name="x"))
    assert found is INVALID
    assert message.startswith("repository_name is 'x'")
