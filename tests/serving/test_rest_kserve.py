"""The V2 protocol over HTTP against Triton's official client, bit for bit what its gRPC client gets."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from serving.small_models import add_bundle, add_onnx, end, served
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor

import seisserve
from seisserve.bundle import Bundle
from seisserve.errors import UsageError
from seisserve.proto import inference_wire_pb2 as wire
from seisserve_serving.calls import Call
from seisserve_serving.front import Front
from seisserve_serving.kserve_api import INFERENCE_SERVICE
from seisserve_serving.lanes import Lanes
from seisserve_serving.models import Models
from seisserve_serving.rest_kserve import HEADER_LENGTH, routes
from seisserve_serving.rest_routes import Asked
from seisserve_serving.server import Server
from seisserve_serving.web import Web

Array = NDArray[Any]
INFER = "/v2/models/phasenet/infer"
W = [1, 3072, 3]


@pytest.fixture(scope="module")
def web(models: Models) -> Iterator[Web]:
    started = Web(models, Front(), models.lanes, port=0, max_message=64 << 20)
    started.start()
    yield started
    started.stop(grace_s=1)


@pytest.fixture(scope="module")
def http(web: Web) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{web.address}", timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(web: Web) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(web.address, network_timeout=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def grpc_client(server: Server) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    with tritonclient.grpc.InferenceServerClient(server.address) as opened:
        yield opened


def tensor(kind: Any, windows: Array, **options: Any) -> Any:
    made = kind("waveform", windows.shape, "FP32")
    made.set_data_from_numpy(windows, **options)
    return made


@pytest.fixture(scope="module")
def expected(grpc_client: Any, windows: Array) -> Array:
    """What gRPC gives for three windows."""
    found = grpc_client.infer("phasenet", [tensor(tritonclient.grpc.InferInput, windows[:3])], client_timeout=60)
    return np.asarray(found.as_numpy("probability"))


def test_every_model_gives_the_bits_of_grpc(client: InferenceServerClient, grpc_client: Any, models: Models) -> None:
    rng = np.random.default_rng(3)
    for name, versions in models.served.items():
        contract = versions[max(versions)].manifest
        given = rng.normal(0, 300, (2, contract.window_samples, len(contract.components))).astype(np.float32)
        theirs = grpc_client.infer(name, [tensor(tritonclient.grpc.InferInput, given)], client_timeout=60)
        ours = client.infer(name, [tensor(InferInput, given)])
        for output in contract.outputs:
            np.testing.assert_array_equal(ours.as_numpy(output.name), theirs.as_numpy(output.name), strict=True)
        assert client.get_model_metadata(name) == json_of(grpc_client.get_model_metadata(name, as_json=True))


def json_of(metadata: Any) -> Any:
    """gRPC's metadata as JSON has whole numbers: as words."""
    for field in ("inputs", "outputs"):
        for one in metadata[field]:
            one["shape"] = [int(size) for size in one["shape"]]
    return metadata


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_bytes_and_json_compressed_or_not_give_the_same_bits(
    client: InferenceServerClient, windows: Array, expected: Array, binary_in: bool, binary_out: bool, compression: Any
) -> None:
    found = client.infer(
        "phasenet",
        [tensor(InferInput, windows[:3], binary_data=binary_in)],
        outputs=[InferRequestedOutput("probability", binary_data=binary_out)],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    np.testing.assert_array_equal(found.as_numpy("probability"), expected, strict=True)
    (output,) = found.get_response()["outputs"]
    assert ("data" in output) is not binary_out


@pytest.mark.parametrize(("version", "request_id"), [("", ""), ("1", "mine-7")])
def test_the_answer_names_the_version_that_served_and_the_request(
    client: InferenceServerClient, windows: Array, version: str, request_id: str
) -> None:
    found = client.infer("phasenet", [tensor(InferInput, windows[:1])], version, request_id=request_id).get_response()
    assert (found["model_name"], found["model_version"], found.get("id", "")) == ("phasenet", "1", request_id)


def test_nested_data_and_flat_data_mean_the_same(http: httpx.Client, windows: Array, expected: Array) -> None:
    for data in (windows[:3].tolist(), windows[:3].ravel().tolist()):
        one = {"name": "waveform", "datatype": "FP32", "shape": [3, 3072, 3], "data": data}
        response = http.post(INFER, json={"inputs": [one]})
        (output,) = response.json()["outputs"]
        found = np.array(output["data"], np.float32).reshape(output["shape"])
        np.testing.assert_array_equal(found, expected, strict=True)


def test_health_metadata_and_index(client: InferenceServerClient, models: Models) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("phasenet") and client.is_model_ready("phasenet", "1")
    assert not client.is_model_ready("nope") and not client.is_model_ready("phasenet", "9")
    found = client.get_server_metadata()
    assert (found["name"], found["version"]) == ("seisserve", seisserve.__version__)
    assert "binary_tensor_data" in found["extensions"]
    index = client.get_model_repository_index()
    assert {(one["name"], one["state"]) for one in index} == {(name, "READY") for name in models.served}


def test_a_server_without_models_is_live_but_not_ready() -> None:
    empty = Models(Lanes(1))
    web = Web(empty, Front(), empty.lanes, port=0)
    web.start()
    with InferenceServerClient(web.address) as client:
        assert client.is_server_live() and not client.is_server_ready()
    web.stop(grace_s=1)


class TwoOutputs:
    """A network with two outputs: its input, and twice that."""

    lanes, batch_samples = 1, 65_536

    def predict(self, model: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"once": inputs["waveform"], "twice": 2 * inputs["waveform"]}


@pytest.fixture(scope="module")
def two(bundle: Bundle) -> Iterator[InferenceServerClient]:
    """A server of a model of two outputs."""
    once, twice = (msgspec.structs.replace(bundle.manifest.output, name=name) for name in ("once", "twice"))
    models = Models(Lanes(2))
    models.add(2, msgspec.structs.replace(bundle.manifest, name="two", outputs=(once, twice)), TwoOutputs())
    web = Web(models, Front(), models.lanes, port=0)
    web.start()
    with InferenceServerClient(web.address) as client:
        yield client
    web.stop(grace_s=1)


@pytest.mark.parametrize("binary", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("names", [["once", "twice"], ["twice", "once"], ["twice"]])
def test_requested_outputs_come_in_their_order_each_in_its_form(
    two: InferenceServerClient, windows: Array, names: list[str], binary: tuple[bool, bool]
) -> None:
    outputs = [InferRequestedOutput(name, binary_data=how) for name, how in zip(names, binary, strict=False)]
    answer = two.infer("two", [tensor(InferInput, windows[:2])], outputs=outputs)
    assert [output["name"] for output in answer.get_response()["outputs"]] == names
    for name in names:
        factor = {"once": 1, "twice": 2}[name]
        np.testing.assert_array_equal(answer.as_numpy(name), factor * windows[:2], strict=True)


def one(**changes: Any) -> dict[str, Any]:
    """A request that is good, or not any more."""
    given = {"name": "waveform", "datatype": "FP32", "shape": W, "data": [0.0] * 9216, **changes}
    return {"inputs": [{key: value for key, value in given.items() if value is not None}]}


def parameters(**given: Any) -> dict[str, Any]:
    return one(parameters=given)


BAD: list[tuple[str, Any, str]] = [
    ("no inputs", {}, "missing required field `inputs`"),
    ("empty inputs", {"inputs": []}, "inputs is empty"),
    ("inputs type", {"inputs": 1}, "$.inputs"),
    ("input type", {"inputs": [1]}, "$.inputs[0]"),
    ("no name", {"inputs": [{"datatype": "FP32", "shape": W, "data": [1]}]}, "`name`"),
    ("other name", one(name="x"), "'waveform'"),
    ("datatype", one(datatype="FP31"), "input 'waveform': datatype is 'FP31'"),
    ("datatype type", one(datatype=3), "$.inputs[0].datatype"),
    ("other datatype", one(datatype="INT32", data=[1] * 9216), "input 'waveform'"),
    ("shape type", one(shape="x"), "$.inputs[0].shape"),
    ("shape of words", one(shape=["x"]), "$.inputs[0].shape[0]"),
    ("negative", one(shape=[-1, 3072, 3]), "input 'waveform': shape [-1, 3072, 3]"),
    ("huge", one(shape=[1 << 70]), "negative or too large"),
    ("huge product", one(shape=[1 << 40, 1 << 40], data=[]), "input 'waveform': data has 0 values"),
    ("other shape", one(shape=[9216]), "input 'waveform': shape [9216]"),
    ("too few", one(data=[1.0]), "input 'waveform': data has 1 values"),
    ("no data", one(data=None), "input 'waveform': has neither data"),
    ("data of words", one(data=["x"] * 9216), "input 'waveform': data: Expected `float`, got `str`"),
    ("data type", one(data={"x": 1}), "input 'waveform': data"),
    ("ragged", one(data=[[1.0], [1.0, 2.0]]), "different lengths"),
    ("beyond", one(data=[1e39] * 9216), "beyond float32"),
    ("parameters type", one(parameters=[]), "$.inputs[0].parameters"),
    ("parameter type", parameters(x=[1]), "input 'waveform': parameter 'x' is '[1]'"),
    ("both", parameters(binary_data_size=4), "both data and the parameter binary_data_size"),
    ("no bytes", one(data=None, parameters={"binary_data_size": 36864}), "0 bytes are left"),
    ("bytes type", one(data=None, parameters={"binary_data_size": True}), "binary_data_size is True"),
    ("bytes word", one(data=None, parameters={"binary_data_size": "x"}), "binary_data_size is 'x'"),
    ("shared memory", parameters(shared_memory_region="x"), "'shared_memory_region' is not supported"),
    ("sequence", {**one(), "parameters": {"sequence_id": 3}}, "'sequence_id' is not supported"),
    ("output flag", {**one(), "parameters": {"binary_data_output": 1}}, "binary_data_output is '1'"),
    ("outputs type", {**one(), "outputs": [1]}, "$.outputs[0]"),
    ("unknown output", {**one(), "outputs": [{"name": "x"}]}, "'x'"),
    ("one output flag", {**one(), "outputs": [{"name": "probability", "parameters": {"binary_data": "x"}}]}, "'x'"),
    ("id type", {**one(), "id": 3}, "$.id"),
    ("list", [], "Expected `object`"),
    ("null", None, "Expected `object`"),
]


@pytest.mark.parametrize(("body", "text"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_a_bad_body_is_refused_with_the_place_at_fault(http: httpx.Client, body: Any, text: str) -> None:
    response = http.post(INFER, content=json.dumps(body).encode())
    assert response.status_code == 400, response.text
    assert text in response.json()["error"]


def test_the_request_that_the_bad_ones_are_made_of_is_good(http: httpx.Client) -> None:
    assert http.post(INFER, json=one()).status_code == 200


HEAD = json.dumps(one(data=None, parameters={"binary_data_size": 36864})).encode()
TAIL = bytes(36864)


@pytest.mark.parametrize(
    ("headers", "body", "text"),
    [
        ({HEADER_LENGTH: "x"}, HEAD + TAIL, HEADER_LENGTH),
        ({HEADER_LENGTH: "0"}, HEAD + TAIL, HEADER_LENGTH),
        ({HEADER_LENGTH: "-1"}, HEAD + TAIL, HEADER_LENGTH),
        ({HEADER_LENGTH: str(1 << 80)}, HEAD + TAIL, HEADER_LENGTH),
        ({HEADER_LENGTH: str(len(HEAD + TAIL) + 1)}, HEAD + TAIL, f"the body has {len(HEAD + TAIL)} bytes"),
        ({HEADER_LENGTH: str(len(HEAD) - 1)}, HEAD + TAIL, "the body: "),
        ({HEADER_LENGTH: str(len(HEAD))}, HEAD + TAIL[:-1], "36863 bytes are left"),
        ({HEADER_LENGTH: str(len(HEAD))}, HEAD + TAIL + b"x", "1 bytes more"),
        ({}, HEAD + TAIL, "the body: "),
        ({HEADER_LENGTH: str(len(HEAD)), "content-encoding": "gzip"}, HEAD + TAIL, "no gzip"),
        ({"content-encoding": "deflate"}, gzip.compress(HEAD), "no deflate"),
        ({"content-encoding": "br"}, HEAD, "content-encoding is 'br'"),
        ({"content-encoding": "gzip"}, gzip.compress(json.dumps(one()).encode())[:-9], "cut short"),
    ],
)
def test_bad_halves_are_refused(http: httpx.Client, headers: dict[str, str], body: bytes, text: str) -> None:
    response = http.post(INFER, content=body, headers=headers)
    assert response.status_code == 400
    assert text in response.json()["error"]


def test_a_small_body_that_becomes_a_large_one_is_refused(http: httpx.Client) -> None:
    response = http.post(INFER, content=zlib.compress(bytes(65 << 20)), headers={"content-encoding": "deflate"})
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [
        ("GET", "/v2/models/nope", 404),
        ("GET", "/v2/models/phasenet/versions/9", 404),
        ("GET", "/v2/models/phasenet/versions/x", 400),
        ("POST", "/v2/models/nope/infer", 404),
        ("GET", INFER, 405),
        ("GET", "/v2/nope", 404),
        ("POST", "/v2/repository/models/nope/load", 400),
    ],
)
def test_what_is_not_there(http: httpx.Client, verb: str, path: str, status: int) -> None:
    response = http.request(verb, path, json=one() if "infer" in path and verb == "POST" else None)
    assert list(response.json()) == ["error"]
    assert response.status_code == status or (path.endswith("/load") and response.status_code in (404, 409, 501))


def test_the_clients_errors_are_its_own(client: InferenceServerClient, windows: Array) -> None:
    with pytest.raises(InferenceServerException, match="no model 'nope'") as caught:
        client.infer("nope", [tensor(InferInput, windows[:1])])
    assert caught.value.status() == "404"


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(W)
anything = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.sampled_from(["inputs", "outputs", "parameters", "id"]),
    key=st.sampled_from([None, "name", "datatype", "shape", "data", "parameters"]),
    value=anything,
    size=st.none()
    | st.integers(-5, 1 << 66)
    | st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=4),
)
def test_no_value_in_any_field_is_an_internal_error(
    http: httpx.Client, place: str, key: str | None, value: Any, size: Any
) -> None:
    body = one() | {"outputs": [{"name": "probability"}]}
    if key is None or place not in ("inputs", "outputs"):
        body = body | {place: value}
    else:
        body[place][0] = body[place][0] | {key: value}
    headers = {} if size is None else {HEADER_LENGTH: str(size)}
    response = http.post(INFER, content=json.dumps(body).encode(), headers=headers)
    assert response.status_code in (200, 400, 404)
    assert ("error" in response.json()) is (response.status_code != 200)


# A model that this server could not have, but the protocol has: the answer of the method is the question.
def echoed(body: Any, tail: bytes = b"") -> tuple[dict[str, Any], bytes]:
    def infer(request: wire.ModelInferRequest, call: Call) -> wire.ModelInferResponse:
        response = wire.ModelInferResponse(
            model_name=request.model_name, raw_output_contents=request.raw_input_contents
        )
        for each in request.inputs:
            response.outputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        return response

    services = {INFERENCE_SERVICE: {"ModelInfer": (infer, None, None)}}
    (work,) = [route.work for route in routes(services) if route.path == "/v2/models/{model:servable}/infer"]
    text = json.dumps(body).encode()
    headers = {HEADER_LENGTH: str(len(text))} if tail else {}
    reply = work(Asked({"model": "echo"}, {}, headers, text + tail), Call())
    size = int(reply.headers.get(HEADER_LENGTH, len(reply.body)))
    return json.loads(reply.body[:size]), reply.body[size:]


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False]), ("UINT8", [0, 255]), ("INT8", [-128, 127]), ("UINT16", [0, 65535]),
        ("INT16", [-32768, 1]), ("UINT32", [0, (1 << 32) - 1]), ("INT32", [-(1 << 31), 1]),
        ("UINT64", [0, (1 << 64) - 1]), ("INT64", [-(1 << 63), 1]), ("FP16", [0.5, -2.0]), ("FP32", [0.5, -2.0]),
        ("FP64", [1e300, 0.1]), ("BYTES", ["a", "ä"]), ("FP32", [float("inf"), 1.0]),
    ],
)  # fmt: skip
def test_every_type_of_json_comes_back(datatype: str, data: list[Any]) -> None:
    given = {"name": "x", "datatype": datatype, "shape": [2], "data": data}
    found, _ = echoed({"inputs": [given]})
    assert found["outputs"] == [given]
    found, tail = echoed({"inputs": [given], "parameters": {"binary_data_output": True}})
    assert found["outputs"][0]["parameters"] == {"binary_data_size": len(tail)}
    if datatype == "BYTES":
        assert deserialize_bytes_tensor(tail).tolist() == [text.encode() for text in data]


def test_bytes_and_json_inputs_can_be_mixed() -> None:
    sized = {"name": "a", "datatype": "BF16", "shape": [2], "parameters": {"binary_data_size": 4}}
    inputs = [sized, {"name": "b", "datatype": "INT8", "shape": [1], "data": [7]}, {**sized, "name": "c"}]
    outputs = [{"name": name, "parameters": {"binary_data": name != "b"}} for name in "abc"]
    found, tail = echoed({"inputs": inputs, "outputs": outputs}, b"ABCDEFGH")
    assert tail == b"ABCDEFGH"
    assert found["outputs"][1]["data"] == [7]


def test_bytes_that_are_no_text_cannot_be_json() -> None:
    body = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}]}
    with pytest.raises(UsageError, match="'x' is no text; ask for it with binary_data"):
        echoed(body, b"\x01\x00\x00\x00\xff")


def test_a_type_that_json_does_not_have_must_be_asked_for_as_bytes() -> None:
    sized = {"name": "a", "datatype": "BF16", "shape": [1], "parameters": {"binary_data_size": 2}}
    with pytest.raises(UsageError, match="'a' is BF16, not for JSON; ask with binary_data"):
        echoed({"inputs": [sized]}, b"AB")


def test_models_are_unloaded_and_loaded_and_their_answers_are_of_their_types(tmp_path: Path) -> None:
    add_bundle(tmp_path / "picker", 1)
    add_onnx(tmp_path / "sum", 3)
    models = served(tmp_path)
    web = Web(models, Front(), models.lanes, port=0)
    web.start()
    with InferenceServerClient(web.address) as client:
        counts = np.array([[1, -(1 << 60)]], np.int64)
        inputs = [InferInput(name, counts.shape, "INT64") for name in "ab"]
        for binary in (True, False):
            for one_input in inputs:
                one_input.set_data_from_numpy(counts, binary_data=binary)
            outputs = [InferRequestedOutput("sum", binary_data=binary)]
            found = client.infer("sum", inputs, outputs=outputs).as_numpy("sum")
            np.testing.assert_array_equal(found, 2 * counts, strict=True)
        client.unload_model("picker")
        assert not client.is_model_ready("picker")
        states = {one["name"]: one["state"] for one in client.get_model_repository_index()}
        assert states == {"picker": "UNAVAILABLE", "sum": "READY"}
        client.load_model("picker")
        assert client.is_model_ready("picker")
        with pytest.raises(InferenceServerException, match="nope") as caught:
            client.load_model("nope")
        assert caught.value.status() == "404"
        with pytest.raises(InferenceServerException, match="config"):
            client.load_model("picker", config="{}")
    web.stop(grace_s=1)
    end(models)
