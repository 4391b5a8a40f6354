"""TensorFlow Serving's ModelService and version labels, through the official stubs on a real server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from serving.small_models import add_bundle, add_onnx, end, eventually, served, window
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from seisserve_serving.admin import ADMIN_METHODS
from seisserve_serving.models import Models
from seisserve_serving.server import Server

Refused = Callable[..., tuple[grpc.StatusCode, str]]
Code = grpc.StatusCode


@pytest.fixture
def root(tmp_path: Path) -> Path:
    add_bundle(tmp_path / "picker", 1)
    add_bundle(tmp_path / "picker", 2, scale=3)
    return tmp_path


@pytest.fixture
def models(root: Path) -> Iterator[Models]:
    loaded = served(root)
    yield loaded
    end(loaded)


@pytest.fixture
def channel(models: Models) -> Iterator[grpc.Channel]:
    server = Server(models, port=0)
    server.start()
    with grpc.insecure_channel(server.address) as opened:
        yield opened
    server.stop(grace_s=1)


@pytest.fixture
def service(channel: grpc.Channel) -> Any:
    return model_service_pb2_grpc.ModelServiceStub(channel)


@pytest.fixture
def prediction(channel: grpc.Channel) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def reload(*configs: dict[str, Any]) -> Any:
    """A request for these models and no others."""
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.SetInParent()
    for fields in configs:
        request.config.model_config_list.config.add(**{"model_platform": "tensorflow", **fields})
    return request


def status(service: Any, name: str = "picker", **version: Any) -> dict[int, tuple[str, int]]:
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = name
    if "version" in version:
        asked.model_spec.version.value = version["version"]
    found = service.GetModelStatus(asked, timeout=30).model_version_status
    return {one.version: (one.State.Name(one.state), one.status.error_code) for one in found}


def predict(label: str = "", version: int = 0) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "picker"
    if label:
        request.model_spec.version_label = label
    if version:
        request.model_spec.version.value = version
    request.inputs["waveform"].CopyFrom(tf.make_tensor_proto(window()))
    return request


ALL: dict[str, Any] = {"all": {}}


def test_a_reload_changes_policy_and_gives_labels_to_what_is_available(
    service: Any, prediction: Any, root: Path, refused: Refused
) -> None:
    assert status(service) == {2: ("AVAILABLE", 0)}
    both = {"name": "picker", "base_path": str(root / "picker"), "model_version_policy": ALL}
    labelled = {**both, "version_labels": {"stable": 1, "canary": 2}}
    code, message = refused(service.HandleReloadConfigRequest, reload(labelled))
    assert code is Code.FAILED_PRECONDITION
    assert "label 'stable' of 'picker': version 1 is not available" in message
    assert status(service) == {2: ("AVAILABLE", 0)}
    assert service.HandleReloadConfigRequest(reload(both), timeout=30).status.error_code == 0
    assert status(service) == {1: ("AVAILABLE", 0), 2: ("AVAILABLE", 0)}
    service.HandleReloadConfigRequest(reload(labelled), timeout=30)
    for label, version, expected in (("stable", 1, 0.5), ("canary", 2, 0.25)):
        answer = prediction.Predict(predict(label), timeout=30)
        assert answer.model_spec.version.value == version
        assert float(tf.make_ndarray(answer.outputs["probability"])[0, 0, 0]) == expected
    code, message = refused(prediction.Predict, predict("best"))
    assert code is Code.INVALID_ARGUMENT
    assert "no label 'best' of 'picker'; there is" in message


def test_the_new_configuration_supersedes_and_what_is_left_out_ends(
    service: Any, prediction: Any, root: Path, refused: Refused
) -> None:
    add_bundle(root / "other", 7)
    service.HandleReloadConfigRequest(reload({"name": "other", "base_path": "other"}), timeout=30)
    assert status(service, "other") == {7: ("AVAILABLE", 0)}
    eventually(lambda: status(service) == {2: ("END", 0)})
    assert status(service, version=2) == {2: ("END", 0)}
    assert refused(prediction.Predict, predict())[0] is Code.NOT_FOUND


def test_a_labelled_version_that_goes_is_failed_precondition(
    service: Any, prediction: Any, models: Models, root: Path, refused: Refused
) -> None:
    both = {"name": "picker", "base_path": str(root / "picker"), "model_version_policy": ALL}
    service.HandleReloadConfigRequest(reload(both), timeout=30)
    service.HandleReloadConfigRequest(reload({**both, "version_labels": {"stable": 1}}), timeout=30)
    shutil.rmtree(root / "picker" / "1")
    service.HandleReloadConfigRequest(reload(both | {"version_labels": {"stable": 1}}), timeout=30)
    code, message = refused(prediction.Predict, predict("stable"))
    assert code is Code.FAILED_PRECONDITION
    assert "label 'stable' of 'picker' is version 1, which is not available" in message


def test_a_new_model_that_cannot_be_loaded_is_told_and_ends_with_the_reason(
    service: Any, root: Path, refused: Refused
) -> None:
    add_bundle(root / "bad", 1)
    (root / "bad" / "1" / "golden.npz").write_bytes(b"")
    configs = [{"name": name, "base_path": str(root / name)} for name in ("picker", "bad")]
    code, message = refused(service.HandleReloadConfigRequest, reload(*configs))
    assert code is Code.FAILED_PRECONDITION
    assert "bad: " in message and "golden.npz" in message
    assert status(service, "bad") == {1: ("END", 9)}
    assert status(service) == {2: ("AVAILABLE", 0)}


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"name": "picker", "base_path": "/etc"}, "base_path '/etc' is not inside"),
        ({"name": "picker", "base_path": "picker/../../x"}, "has '..' in it"),
        ({"name": "picker", "base_path": "nothing"}, "No such file"),
        ({"name": "", "base_path": "picker"}, "config: config 0 (''): name and base_path must be there"),
        ({"name": "picker", "base_path": "picker", "model_platform": "torch"}, "model_platform is 'torch'"),
    ],
)
def test_a_bad_configuration_is_refused_and_changes_nothing(
    service: Any, models: Models, refused: Refused, config: dict[str, Any], text: str
) -> None:
    before = models.served
    code, message = refused(service.HandleReloadConfigRequest, reload(config))
    assert code is Code.INVALID_ARGUMENT
    assert text in message
    assert models.served is before


def test_a_request_without_a_list_is_refused(service: Any, refused: Refused) -> None:
    empty = model_management_pb2.ReloadConfigRequest()
    assert refused(service.HandleReloadConfigRequest, empty)[0] is Code.INVALID_ARGUMENT
    empty.config.custom_model_config.type_url = "x"
    assert refused(service.HandleReloadConfigRequest, empty)[0] is Code.INVALID_ARGUMENT


def test_calls_go_on_while_versions_change(service: Any, prediction: Any, root: Path) -> None:
    answers = []
    for version in range(3, 9):
        calls = [prediction.Predict.future(predict(), timeout=30) for _ in range(8)]
        add_bundle(root / "picker", version, scale=float(version))
        service.HandleReloadConfigRequest(reload({"name": "picker", "base_path": str(root / "picker")}), timeout=30)
        answers += [call.result() for call in calls]
        assert status(service)[version] == ("AVAILABLE", 0)
    for answer in answers:
        version = answer.model_spec.version.value
        found = tf.make_ndarray(answer.outputs["probability"])[0, 0, 0]
        np.testing.assert_allclose(found, 1 / (1 + (3 if version == 2 else version)), rtol=1e-6)


def test_every_call_that_changes_what_is_served_is_marked(models: Models) -> None:
    from seisserve_serving import kserve_api, tensorflow_api

    services = {**tensorflow_api.services(models), **kserve_api.services(models)}
    there = {f"/{service}/{method}" for service, methods in services.items() for method in methods}
    assert there >= ADMIN_METHODS
    assert {name for name in there if "Reload" in name or "RepositoryModel" in name} == ADMIN_METHODS


def test_a_plain_model_in_the_list_is_served_beside_bundles(service: Any, prediction: Any, root: Path) -> None:
    add_onnx(root / "sum", 4)
    configs = [{"name": name, "base_path": str(root / name)} for name in ("picker", "sum")]
    configs[1]["model_platform"] = "onnxruntime"
    service.HandleReloadConfigRequest(reload(*configs), timeout=30)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "sum"
    for name in ("a", "b"):
        request.inputs[name].CopyFrom(tf.make_tensor_proto(np.array([[1, 2], [3, 4]], np.int64)))
    answer = prediction.Predict(request, timeout=30)
    np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["sum"]), [[2, 4], [6, 8]])
