"""TensorFlow Serving's REST API on a real server: the numbers of gRPC, and an answer to every wrong question."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from serving.small_models import add_bundle, add_onnx, end, served, window
from tensorflow_serving.apis import get_model_metadata_pb2, prediction_service_pb2_grpc

from seisserve.errors import UsageError
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.proto.tensorflow_wire_pb2 import DT_FLOAT, DT_INT64, DT_STRING
from seisserve.tensors import to_array, to_proto
from seisserve_serving import rest_json
from seisserve_serving.calls import Call
from seisserve_serving.front import Front
from seisserve_serving.models import Models
from seisserve_serving.rest_routes import Asked
from seisserve_serving.rest_tensorflow import routes
from seisserve_serving.tensorflow_api import MODEL_SERVICE, PREDICTION_SERVICE
from seisserve_serving.web import Web

Array = NDArray[Any]
PREDICT = "/v1/models/phasenet:predict"


@pytest.fixture(scope="module")
def http(models: Models) -> Iterator[httpx.Client]:
    web = Web(models, Front(), models.lanes, port=0, max_message=64 << 20)
    web.start()
    with httpx.Client(base_url=f"http://{web.address}", timeout=60) as client:
        yield client
    web.stop(grace_s=1)


def predicted(channel: grpc.Channel, name: str, windows: Array) -> dict[str, Array]:
    """What the Predict of the gRPC service gives."""
    call = channel.unary_unary(
        f"/{PREDICTION_SERVICE}/Predict",
        request_serializer=wire.PredictRequest.SerializeToString,
        response_deserializer=wire.PredictResponse.FromString,
    )
    request = wire.PredictRequest(model_spec=wire.ModelSpec(name=name))
    request.inputs["waveform"].CopyFrom(to_proto(windows))
    return {alias: to_array(tensor, alias) for alias, tensor in call(request, timeout=60).outputs.items()}


def shapes(windows: Array) -> dict[str, Any]:
    """One and the same request in every form."""
    nested = windows.tolist()
    return {
        "rows": {"instances": nested},
        "named rows": {"instances": [{"waveform": window} for window in nested]},
        "columns": {"inputs": nested},
        "named columns": {"inputs": {"waveform": nested}, "signature_name": "serving_default"},
    }


@pytest.mark.parametrize("form", list(shapes(np.zeros((0,)))))
def test_every_form_gives_the_bits_of_grpc(
    http: httpx.Client, channel: grpc.Channel, windows: Array, form: str
) -> None:
    body = shapes(windows[:3])[form]
    response = http.post(PREDICT, json=body)
    assert response.status_code == 200, response.text
    (key,) = response.json()
    assert key == ("predictions" if "instances" in body else "outputs")
    found = np.array(response.json()[key], np.float32)
    np.testing.assert_array_equal(found, predicted(channel, "phasenet", windows[:3])["probability"], strict=True)


def test_every_model_gives_the_bits_of_grpc(http: httpx.Client, channel: grpc.Channel, models: Models) -> None:
    rng = np.random.default_rng(3)
    for name, versions in models.served.items():
        contract = versions[max(versions)].manifest
        given = rng.normal(0, 300, (2, contract.window_samples, len(contract.components))).astype(np.float32)
        response = http.post(f"/v1/models/{name}/versions/{max(versions)}:predict", json={"inputs": given.tolist()})
        assert response.status_code == 200, response.text
        expected = predicted(channel, name, given)
        found = response.json()["outputs"]
        if len(expected) == 1:
            found = {next(iter(expected)): found}
        assert set(found) == set(expected)
        for alias, values in expected.items():
            np.testing.assert_array_equal(np.array(found[alias], np.float32), values, strict=True)


def test_the_metadata_are_those_of_grpc(http: httpx.Client, channel: grpc.Channel) -> None:
    found = http.get("/v1/models/phasenet/versions/1/metadata").json()
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "phasenet"
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    expected = get_model_metadata_pb2.SignatureDefMap()
    assert stub.GetModelMetadata(request, timeout=30).metadata["signature_def"].Unpack(expected)
    assert found["model_spec"] == {"name": "phasenet", "signature_name": "", "version": "1"}
    signatures = found["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == set(expected.signature_def)
    dims = signatures["serving_default"]["inputs"]["waveform"]["tensor_shape"]["dim"]
    assert [dim["size"] for dim in dims] == ["-1", "3072", "3"]


@pytest.mark.parametrize("path", ["/v1/models/phasenet", "/v1/models/phasenet/versions/1"])
def test_the_status(http: httpx.Client, path: str) -> None:
    (status,) = http.get(path).json()["model_version_status"]
    assert status == {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}


BAD = [
    ("empty", b"", "the body is empty"),
    ("no JSON", b"{", "the body: "),
    ("a list", b"[]", "Expected `object`, got `array`"),
    ("null", b"null", "Expected `object`"),
    ("not UTF-8", b'{"signature_name": "\xff"}', "the body: "),
    ("rest", b'{"inputs": 1} 2', "trailing characters"),
    ("nothing", b"{}", "neither instances (rows) nor inputs (columns)"),
    ("both", b'{"instances": [1], "inputs": [1]}', "both instances"),
    ("unknown key", b'{"instances": [1], "signature": "x"}', "signature"),
    ("signature type", b'{"instances": [1], "signature_name": 3}', "$.signature_name"),
    ("unknown signature", b'{"instances": [1], "signature_name": "x"}', "signature_name is 'x'"),
    ("no rows", b'{"instances": []}', "instances is empty"),
    ("rows type", b'{"instances": {"waveform": 1}}', "instances: Expected `array`"),
    ("row of words", b'{"instances": ["a"]}', "instances: Expected `float`, got `str`"),
    ("row of true", b'{"instances": [[[true]]]}', "instances: Expected `float`, got `bool`"),
    ("row of null", b'{"instances": [[[null]]]}', "instances: Expected `float`, got `null`"),
    ("mixed rows", b'{"instances": [{"waveform": 1}, [1]]}', "instances[1]: Expected `object`"),
    ("mixed rows 2", b'{"instances": [[1], {"waveform": 1}]}', "instances: Expected `float`, got `object`"[:20]),
    ("row keys", b'{"instances": [{"x": 1}]}', "instances[0] has ['x']; it must have ['waveform']"),
    ("row of base64", b'{"instances": [{"b64": "AAAA"}]}', "instances: Expected `float`, got `object`"),
    ("ragged", b'{"instances": [[[1], [2]], [[1]]]}', "instances: its lists have different lengths"),
    ("ragged depth", b'{"instances": [[1], [[2]]]}', "instances: Expected `float`, got `array`"),
    ("shape", b'{"instances": [[[1, 2, 3]]]}', "input 'waveform': shape [1, 1, 3]; expected [-1, 3072, 3]"),
    ("scalar", b'{"inputs": 1}', "input 'waveform': shape []"),
    ("column keys", b'{"inputs": {"x": [1]}}', "inputs has ['x']; it must have ['waveform']"),
    ("column type", b'{"inputs": {"waveform": "x"}}', "input 'waveform': Expected `float`, got `str`"),
    ("beyond float32", b'{"inputs": [1e39]}', "inputs: a value is beyond float32"),
    ("beyond float64", b'{"inputs": [1e999]}', "Number out of range"),
    ("many digits", b'{"inputs": [' + b"9" * 10_000 + b"]}", "inputs: Number out of range"),
    ("deep", b'{"inputs": ' + b"[" * 100_000, "the body: "),
    ("deep and closed", b'{"inputs": ' + b"[" * 40 + b"]" * 40 + b"}", "40 lists in one another"),
    ("deep objects", b'{"a":' * 100_000, "the body: "),
    ("NaN", json.dumps({"inputs": [[[float("nan")] * 3] * 3072]}).encode(), "9216 of 9216 values are NaN"),
    ("infinite", json.dumps({"inputs": [[[float("-inf"), 1, 1]] * 3072]}).encode(), "3072 of 9216 values are NaN"),
    ("NaN in a word", b'{"inputs": ["NaN", NaN]}', "Invalid enum value 'NaN'"),
    ("NaN outside", b"NaN", "the body: "),
]  # fmt: skip


@pytest.mark.parametrize(("body", "text"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_a_bad_body_is_refused_with_the_place_at_fault(http: httpx.Client, body: bytes, text: str) -> None:
    response = http.post(PREDICT, content=body)
    assert response.status_code == 400
    assert text in response.json()["error"]


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [
        ("POST", "/v1/models/nope:predict", 404),
        ("POST", "/v1/models/phasenet/versions/9:predict", 404),
        ("POST", "/v1/models/phasenet/versions/x:predict", 400),
        ("POST", "/v1/models/phasenet/versions/99999999999999999999:predict", 400),
        ("POST", "/v1/models/phasenet/labels/nope:predict", 400),
        ("POST", f"{PREDICT}?pretty=1", 400),
        ("GET", PREDICT, 405),
        ("POST", "/v1/models/phasenet", 405),
        ("POST", "/v1/models/phasenet:explain", 404),
        ("GET", "/v1/models", 404),
        ("GET", "/v1/models/nope", 404),
        ("GET", "/v1/models/nope/metadata", 404),
        ("GET", "/v1/models/phasenet/versions/9", 404),
        ("GET", "/v1/models/%00%ff:x", 404),
    ],
)
def test_what_is_not_there(http: httpx.Client, verb: str, path: str, status: int) -> None:
    content = b'{"instances": [1]}' if verb == "POST" else None
    response = http.request(verb, path, content=content)
    assert response.status_code == status
    assert list(response.json()) == ["error"]


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("b64"), inner),
    max_leaves=8,
)
bodies = st.dictionaries(
    st.sampled_from(["instances", "inputs", "signature_name", "examples", "context", "waveform"]), nested, max_size=3
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies, method=st.sampled_from(["predict", "classify", "regress"]))
def test_no_body_is_an_internal_error(http: httpx.Client, body: Any, method: str) -> None:
    response = http.post(f"/v1/models/phasenet:{method}", content=json.dumps(body).encode())
    assert response.status_code in (400, 409, 501)
    assert response.json()["error"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=60))
def test_no_bytes_are_an_internal_error(http: httpx.Client, body: bytes) -> None:
    assert http.post(PREDICT, content=body).status_code == 400


# A model that this server could not have, but the protocol has: the answer of a method is the question.
SIGNATURE = {"words": DT_STRING, "counts": DT_INT64, "values": DT_FLOAT}


def echo(names: tuple[str, ...]) -> Mapping[str, Any]:
    """The gRPC methods of a model that gives what it gets."""

    def metadata(request: wire.GetModelMetadataRequest, call: Call) -> wire.GetModelMetadataResponse:
        found = wire.SignatureDefMap()
        for name in names:
            found.signature_def["serving_default"].inputs[name].dtype = SIGNATURE[name]
        response = wire.GetModelMetadataResponse()
        response.metadata["signature_def"].value = found.SerializeToString()
        return response

    def predict(request: wire.PredictRequest, call: Call) -> wire.PredictResponse:
        return wire.PredictResponse(outputs=request.inputs)

    def classify(request: wire.ClassificationRequest, call: Call) -> wire.ClassificationResponse:
        response = wire.ClassificationResponse()
        for example in request.input.example_list.examples:
            found = response.result.classifications.add()
            for name in sorted(example.features.feature):
                found.classes.add(label=name, score=len(example.features.feature[name].WhichOneof("kind") or ""))
        return response

    def regress(request: wire.RegressionRequest, call: Call) -> wire.RegressionResponse:
        response = wire.RegressionResponse()
        context = request.input.example_list_with_context
        offset = context.context.features.feature["offset"].float_list.value[0]
        for example in context.examples:
            response.result.regressions.add(value=offset + example.features.feature["x"].int64_list.value[0])
        return response

    prediction = {"Predict": predict, "GetModelMetadata": metadata, "Classify": classify, "Regress": regress}
    return {
        PREDICTION_SERVICE: {name: (method, None, None) for name, method in prediction.items()},
        MODEL_SERVICE: {"GetModelStatus": (metadata, None, None)},
    }


def ask(method: str, body: Any, *names: str) -> Any:
    (work,) = [route.work for route in routes(echo(names)) if route.path == f"/v1/models/{{model:servable}}:{method}"]
    return json.loads(work(Asked({"model": "echo"}, {}, {}, json.dumps(body).encode()), Call()).body)


def test_inputs_of_all_types_come_back_in_rows_and_columns() -> None:
    columns = {"words": ["a", "ä"], "counts": [1, -(1 << 60)], "values": [0.5, 2.0]}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    assert ask("predict", {"inputs": columns}, *columns) == {"outputs": columns}
    assert ask("predict", {"instances": rows}, *columns) == {"predictions": rows}


def test_not_a_number_and_infinity_are_tokens_both_ways() -> None:
    found = ask("predict", {"instances": [float("nan"), float("inf"), -float("inf"), 0.5]}, "values")["predictions"]
    np.testing.assert_array_equal(found, [np.nan, np.inf, -np.inf, 0.5])


def test_bytes_are_base64_where_they_are_no_text() -> None:
    content = {"b64": base64.b64encode(b"\xff\x00").decode()}
    assert ask("predict", {"instances": [content, "x"]}, "words") == {"predictions": [content, "x"]}
    assert ask("predict", {"inputs": content}, "words") == {"outputs": content}


def test_rows_of_different_numbers_are_refused_as_rows() -> None:
    with pytest.raises(UsageError, match="its lists have different lengths"):
        ask("predict", {"instances": [["a"], ["a", "b"]]}, "words")


@pytest.mark.parametrize("body", [{"instances": [1]}, {"inputs": [1]}])
def test_values_must_be_named_where_there_are_several_inputs(body: Any) -> None:
    with pytest.raises(UsageError, match="must name its values"):
        ask("predict", body, "counts", "values")


@pytest.mark.parametrize(
    ("value", "text"), [(1.5, "Expected `int`"), (True, "Expected `int`"), (1 << 70, "beyond|range")]
)
def test_whole_numbers_must_be_whole(value: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        ask("predict", {"instances": [value]}, "counts")


def test_examples_are_classified_and_regressed() -> None:
    examples = [{"a": [1, 2], "b": 1.5, "c": ["x", {"b64": "AAAA"}]}, {"a": []}]
    lengths = {"int64_list": 10.0, "float_list": 10.0, "bytes_list": 10.0}
    assert ask("classify", {"examples": examples}) == {
        "results": [[["a", lengths["int64_list"]], ["b", 10.0], ["c", 10.0]], [["a", 0.0]]]
    }
    body = {"examples": [{"x": 1}, {"x": 2}], "context": {"offset": 0.5}}
    assert ask("regress", body) == {"results": [1.5, 2.5]}


@pytest.mark.parametrize(
    "body",
    [
        {}, {"examples": []}, {"examples": 1}, {"examples": [1]}, {"examples": [{"a": None}]},
        {"examples": [{"a": [[1]]}]}, {"examples": [{"a": [1, "x"]}]}, {"examples": [{"a": 1 << 63}]},
        {"examples": [{"a": {"b64": 1}}]}, {"examples": [{"a": {"x": 1}}]}, {"examples": [{"a": 1}], "context": 3},
        {"examples": [{"a": {"b64": "%"}}]}, {"examples": [{}], "more": 1},
    ],
)  # fmt: skip
def test_bad_examples_are_refused(body: Any) -> None:
    with pytest.raises(UsageError):
        ask("classify", body)


@settings(deadline=None)
@given(values=st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), min_size=1, max_size=5))
def test_arrays_survive_json_bit_for_bit(values: list[list[float]]) -> None:
    given_array = np.array(values, np.float32)
    text = rest_json.dump({"a": given_array}, [given_array])
    found = rest_json.array(rest_json.document(text, dict[str, msgspec.Raw])["a"], np.dtype(np.float32), "a")
    np.testing.assert_array_equal(found, given_array, strict=True)


def test_versions_states_and_types_are_those_of_the_models(tmp_path: Path) -> None:
    add_bundle(tmp_path / "picker", 1)
    add_bundle(tmp_path / "picker", 2, scale=3)
    (tmp_path / "picker" / "2" / "golden.npz").write_bytes(b"")
    add_onnx(tmp_path / "sum", 3)
    models = served(tmp_path)
    web = Web(models, Front(), models.lanes, port=0)
    web.start()
    with httpx.Client(base_url=f"http://{web.address}", timeout=60) as client:
        states = {
            one["version"]: (one["state"], one["status"])
            for one in client.get("/v1/models/picker").json()["model_version_status"]
        }
        assert states["2"][0] == "END"
        assert states["2"][1]["error_code"] != "OK"
        assert "golden.npz" in states["2"][1]["error_message"]
        rows = [{"a": [1, 2], "b": [3, -(1 << 60)]}, {"a": [0, 0], "b": [0, 1]}]
        found = client.post("/v1/models/sum/versions/3:predict", json={"instances": rows})
        assert found.json() == {"predictions": [[4, 2 - (1 << 60)], [0, 1]]}
        for bad in (1.5, True, 1 << 63):
            response = client.post("/v1/models/sum:predict", json={"inputs": {"a": [[bad, 1]], "b": [[1, 1]]}})
            assert response.status_code == 400
            assert "input 'a'" in response.json()["error"]
    web.stop(grace_s=1)
    end(models)


def test_a_label_names_its_version(tmp_path: Path) -> None:
    for version, scale in ((1, 1.0), (2, 3.0)):
        add_bundle(tmp_path / "picker", version, scale)
    config = tmp_path / "models.config"
    config.write_text(
        'model_config_list { config { name: "picker" base_path: "picker" model_platform: "tensorflow" '
        'model_version_policy { all {} } version_labels { key: "stable" value: 1 } } }'
    )
    models = served(config)
    web = Web(models, Front(), models.lanes, port=0)
    web.start()
    with httpx.Client(base_url=f"http://{web.address}", timeout=60) as client:
        ones = {"inputs": window().tolist()}
        for choice, expected in (("/labels/stable", 0.5), ("/versions/1", 0.5), ("", 0.25)):
            response = client.post(f"/v1/models/picker{choice}:predict", json=ones)
            assert np.all(np.array(response.json()["outputs"], np.float32) == expected)
        assert client.get("/v1/models/picker/labels/stable/metadata").json()["model_spec"]["version"] == "1"
        response = client.post("/v1/models/picker/labels/best:predict", json=ones)
        assert response.status_code == 400
        assert "'best'" in response.json()["error"]
    web.stop(grace_s=1)
    end(models)
