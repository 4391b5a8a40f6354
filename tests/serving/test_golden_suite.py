"""One golden suite for every kind of client against one server: stock stubs, Triton's clients, and reflection alone.

Each model, each signature: bit for bit what this process computes, and within the bundle's own tolerance what the
SavedModel gave when it was exported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from numpy.typing import NDArray

from seisserve import bundle
from seisserve.bundle import Bundle
from seisserve.runtime import golden_error, golden_tolerance
from seisserve_serving.front import Front
from seisserve_serving.models import Models
from seisserve_serving.server import Server
from seisserve_serving.web import Web

tf = pytest.importorskip("tensorflow")
from tensorflow_serving.apis import (  # noqa: E402
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's own
Array = NDArray[Any]
# A client's call: of a model, a signature's name and windows; outputs by name.
Predict = Callable[[str, str, Array], dict[str, Array]]
ALL = [bundle.find(name) for name in bundle.models(bundle.shipped())]
FRAGMENT = "fragment"


def cases() -> Iterator[Any]:
    """Every model, signature and length of a window that it takes."""
    for one in ALL:
        yield pytest.param(one, "serving_default", one.manifest.window_samples, id=f"{one.name}-default")
        for samples in one.manifest.fragment_windows:
            yield pytest.param(one, FRAGMENT, samples, id=f"{one.name}-{FRAGMENT}-{samples}")


class Clients:
    """A client of each kind, by its name."""

    def __init__(self, channel: grpc.Channel, server: Server, web: Web) -> None:
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.status = model_service_pb2_grpc.ModelServiceStub(channel)
        self.channel = channel
        self.grpc = tritonclient.grpc.InferenceServerClient(server.address)
        self.http = tritonclient.http.InferenceServerClient(web.address, network_timeout=60)
        self.pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        self.by_name: dict[str, Predict] = {
            "tensorflow-serving-api": self.tensorflow, "tritonclient gRPC": self.triton_grpc,
            "tritonclient HTTP": self.triton_http, "reflection, Predict": self.reflected_predict,
            "reflection, ModelInfer": self.reflected_infer,
        }  # fmt: skip

    def tensorflow(self, model: str, signature: str, windows: Array) -> dict[str, Array]:
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        request.inputs["waveform"].CopyFrom(tf.make_tensor_proto(windows))
        answer = self.stub.Predict(request, timeout=60)
        assert (answer.model_spec.name, answer.model_spec.signature_name) == (model, signature)
        return {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}

    def triton_grpc(self, model: str, signature: str, windows: Array) -> dict[str, Array]:
        given = tritonclient.grpc.InferInput("waveform", windows.shape, "FP32")
        given.set_data_from_numpy(windows)
        answer = self.grpc.infer(model, [given], client_timeout=60)
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}

    def triton_http(self, model: str, signature: str, windows: Array) -> dict[str, Array]:
        given = tritonclient.http.InferInput("waveform", windows.shape, "FP32")
        given.set_data_from_numpy(windows)
        answer = self.http.infer(model, [given])
        return {output["name"]: answer.as_numpy(output["name"]) for output in answer.get_response()["outputs"]}

    def reflected_predict(self, model: str, signature: str, windows: Array) -> dict[str, Array]:
        call, request = self.of_reflection("tensorflow.serving.PredictionService", "Predict")
        request.model_spec.name, request.model_spec.signature_name = model, signature
        tensor = request.inputs["waveform"]
        tensor.dtype, tensor.tensor_content = 1, windows.tobytes()
        for size in windows.shape:
            tensor.tensor_shape.dim.add(size=size)
        found = {}
        for name, tensor in call(request).outputs.items():
            assert tensor.dtype == 1
            shape = [dim.size for dim in tensor.tensor_shape.dim]
            found[name] = np.frombuffer(tensor.tensor_content, np.float32).reshape(shape)
        return found

    def reflected_infer(self, model: str, signature: str, windows: Array) -> dict[str, Array]:
        call, request = self.of_reflection("inference.GRPCInferenceService", "ModelInfer")
        request.model_name = model
        request.inputs.add(name="waveform", datatype="FP32", shape=windows.shape)
        request.raw_input_contents.append(windows.tobytes())
        answer = call(request)
        return {
            output.name: np.frombuffer(content, np.float32).reshape(output.shape)
            for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }

    def of_reflection(self, service: str, name: str) -> tuple[Callable[[Any], Any], Any]:
        """A method and an empty request, of what the server tells about itself and nothing else."""
        method = self.pool.FindServiceByName(service).methods_by_name[name]
        answer = GetMessageClass(method.output_type)
        call = self.channel.unary_unary(
            f"/{service}/{name}", request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )  # fmt: skip
        return lambda request: call(request, timeout=60), GetMessageClass(method.input_type)()


@pytest.fixture(scope="module")
def clients(channel: grpc.Channel, server: Server, models: Models) -> Iterator[Clients]:
    web = Web(models, Front(), models.lanes, port=0, max_message=64 << 20)
    web.start()
    made = Clients(channel, server, web)
    yield made
    made.grpc.close()
    made.http.close()
    web.stop(grace_s=1)


@pytest.mark.parametrize(("one", "signature", "samples"), list(cases()))
def test_every_client_gets_the_golden_outputs(
    one: Bundle, signature: str, samples: int, clients: Clients, models: Models
) -> None:
    windows, _ = bundle.golden(one.folder)
    given = np.ascontiguousarray(windows[:4, :samples])
    network = models.get(one.name).transport
    assert golden_error(one, network) <= golden_tolerance(one.manifest, one.manifest.artifacts["onnx"])
    here = network.predict(one.manifest, {"waveform": given})
    for name, predict in clients.by_name.items():
        found = predict(one.name, signature, given)
        assert set(found) == set(here), name
        for output, expected in here.items():
            np.testing.assert_array_equal(found[output], expected, err_msg=name, strict=True)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_every_client_is_told_the_same_about_a_model(one: Bundle, clients: Clients) -> None:
    signature = clients.stub.GetModelMetadata(
        get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec={"name": one.name}, metadata_field=["signature_def"]
        ),
        timeout=30,
    )  # fmt: skip
    told = get_model_metadata_pb2.SignatureDefMap()
    assert signature.metadata["signature_def"].Unpack(told)
    assert set(told.signature_def) == {"serving_default", *([FRAGMENT] if one.manifest.fragment_windows else [])}
    default = told.signature_def["serving_default"]
    outputs = {name: [dim.size for dim in info.tensor_shape.dim] for name, info in default.outputs.items()}
    assert list(default.inputs) == ["waveform"]
    call, request = clients.of_reflection("inference.GRPCInferenceService", "ModelMetadata")
    request.name = one.name
    for metadata in (
        clients.grpc.get_model_metadata(one.name, as_json=True), clients.http.get_model_metadata(one.name)
    ):  # fmt: skip
        assert [each["name"] for each in metadata["inputs"]] == ["waveform"]
        assert {each["name"]: [int(size) for size in each["shape"]] for each in metadata["outputs"]} == outputs
    assert {each.name: list(each.shape) for each in call(request).outputs} == outputs
    status = clients.status.GetModelStatus(
        get_model_status_pb2.GetModelStatusRequest(model_spec={"name": one.name}), timeout=30
    )
    assert [version.state for version in status.model_version_status] == [
        get_model_status_pb2.ModelVersionStatus.AVAILABLE
    ]
    assert clients.grpc.is_model_ready(one.name) and clients.http.is_model_ready(one.name)
