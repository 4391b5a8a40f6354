"""Classify, Regress and MultiInference through the official stubs: examples in, labels and scores out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from serving.plain_saved_models import add_examples
from serving.small_models import add_bundle, end, served
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from seisserve_serving.models import Models
from seisserve_serving.server import Server

Array = NDArray[np.float32]
Refused = Callable[..., tuple[grpc.StatusCode, str]]
INVALID = grpc.StatusCode.INVALID_ARGUMENT
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
ONE = {"blinding_samples": 0, "single": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    root = tmp_path_factory.mktemp("classify")
    add_bundle(root / "classifier", 1, labels=("P", "S"), **ONE)
    add_bundle(root / "regressor", 1, labels=("P",), **ONE)
    add_bundle(root / "curve", 1)
    add_examples(root / "tensorflow", 5)
    loaded = served(root)
    assert loaded.failed == {}
    yield loaded
    end(loaded)


@pytest.fixture(scope="module")
def stub(models: Models) -> Iterator[Any]:
    server = Server(models, port=0)
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)
    server.stop(grace_s=1)


def example(**features: Any) -> tf.train.Example:
    """An example; float32 arrays are floats, others whole numbers."""
    made = tf.train.Example()
    for name, values in features.items():
        feature = made.features.feature[name]
        if np.asarray(values).dtype.kind == "f":
            feature.float_list.value.extend(np.ravel(values))
        else:
            feature.int64_list.value.extend(np.ravel(values))
    return made


def given(*examples: tf.train.Example, context: tf.train.Example | None = None) -> input_pb2.Input:
    if context is None:
        return input_pb2.Input(example_list=input_pb2.ExampleList(examples=examples))
    both = input_pb2.ExampleListWithContext(examples=examples, context=context)
    return input_pb2.Input(example_list_with_context=both)


def asked(kind: Any, model: str, content: input_pb2.Input, signature: str = "") -> Any:
    request = kind(input=content)
    request.model_spec.name, request.model_spec.signature_name = model, signature
    return request


@pytest.fixture(scope="module")
def windows() -> Array:
    return np.random.default_rng(0).normal(0, 3, (3, 600, 3)).astype(np.float32)


def highest(windows: Array) -> Array:
    """What the little classifier gives: the largest |x| / (|x| + 1) of each component."""
    return (np.abs(windows) / (np.abs(windows) + 1)).max(axis=1)


def rows(answer: Any) -> list[list[tuple[str, float]]]:
    return [[(one.label, one.score) for one in row.classes] for row in answer.result.classifications]


def test_a_network_of_one_value_a_window_classifies(stub: Any, windows: Array) -> None:
    content = given(*(example(waveform=window) for window in windows))
    answer = stub.Classify(asked(classification_pb2.ClassificationRequest, "classifier", content), timeout=30)
    spec = answer.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("classifier", 1, "serving_default")
    for row, expected in zip(rows(answer), highest(windows)[:, :2], strict=True):
        assert [label for label, _ in row] == ["P", "S"]
        np.testing.assert_allclose([score for _, score in row], expected, rtol=1e-6)


def test_a_network_of_one_value_and_one_label_regresses(stub: Any, windows: Array) -> None:
    content = given(*(example(waveform=window) for window in windows))
    answer = stub.Regress(asked(regression_pb2.RegressionRequest, "regressor", content), timeout=30)
    values = [one.value for one in answer.result.regressions]
    np.testing.assert_allclose(values, highest(windows)[:, 0], rtol=1e-6)


def test_a_context_adds_what_the_examples_do_not_have(stub: Any, windows: Array) -> None:
    content = given(example(), example(waveform=windows[1]), context=example(waveform=windows[0]))
    answer = stub.Regress(asked(regression_pb2.RegressionRequest, "regressor", content), timeout=30)
    values = [one.value for one in answer.result.regressions]
    np.testing.assert_allclose(values, highest(windows)[:2, 0], rtol=1e-6)


def test_saved_models_of_these_methods_answer_as_tensorflow_serving(stub: Any) -> None:
    content = given(example(x=np.float32([1, 2])), example(x=np.float32([3, 4])))
    answer = stub.Classify(
        asked(classification_pb2.ClassificationRequest, "tensorflow", content, "classify"), timeout=30
    )
    assert rows(answer) == [[("low", 1.0), ("high", 2.0)], [("low", 3.0), ("high", 4.0)]]
    answer = stub.Classify(asked(classification_pb2.ClassificationRequest, "tensorflow", content, "scores"), timeout=30)
    assert rows(answer) == [[("", 1.0), ("", 2.0)], [("", 3.0), ("", 4.0)]]
    answer = stub.Regress(asked(regression_pb2.RegressionRequest, "tensorflow", content, "regress"), timeout=30)
    assert [one.value for one in answer.result.regressions] == [3.0, 7.0]
    assert answer.model_spec.signature_name == "regress"


def tasks(*parts: tuple[str, str, str], content: input_pb2.Input) -> Any:
    request = inference_pb2.MultiInferenceRequest(input=content)
    for model, signature, method in parts:
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = model, signature
    return request


def test_several_signatures_of_one_model_at_once(stub: Any) -> None:
    content = given(example(x=np.float32([1, 2])))
    wanted = [("tensorflow", "regress", REGRESS), ("tensorflow", "classify", CLASSIFY)]
    first, second = stub.MultiInference(tasks(*wanted, content=content), timeout=30).results
    assert (first.model_spec.signature_name, first.model_spec.version.value) == ("regress", 5)
    assert [one.value for one in first.regression_result.regressions] == [3.0]
    (classes,) = second.classification_result.classifications
    assert [(one.label, one.score) for one in classes.classes] == [("low", 1.0), ("high", 2.0)]


W = np.zeros((600, 3), np.float32)
BAD_EXAMPLES: list[tuple[str, str, Any, str]] = [
    ("nothing", "classifier", given(), "input is empty"),
    ("empty", "classifier", input_pb2.Input(), "input is empty"),
    ("other feature", "classifier", given(example(x=W)), "examples[0] has no feature 'waveform'; there is ['x']"),
    ("whole numbers", "classifier", given(example(waveform=[1, 2])), "feature 'waveform' must be a float_list"),
    ("short", "classifier", given(example(waveform=W[:7])), "input 'waveform': shape [1, 7, 3]"),
    ("no whole sample", "classifier", given(example(waveform=W.ravel()[:-1])), "examples[0] has 1799 values"),
    ("unequal", "classifier", given(example(waveform=W), example(waveform=W[:3])), "examples[1] has 9 values"),
    ("NaN", "classifier", given(example(waveform=W + np.nan)), "1800 of 1800 values are NaN"),
    ("a curve", "curve", given(example(waveform=W)), "curve gives a curve for each window"),
    ("another method", "tensorflow", given(example(x=W[0])), "must be 'tensorflow/serving/classify' for this call"),
    ("no such feature", "tensorflow:classify", given(example(y=W[0])), "tensorflow cannot compute these inputs"),
    ("no signature", "tensorflow:nope", given(example(x=W[0])), "signature_name 'nope': tensorflow has classify"),
]


@pytest.mark.parametrize(("model", "content", "text"), [b[1:] for b in BAD_EXAMPLES], ids=[b[0] for b in BAD_EXAMPLES])
def test_what_cannot_be_classified_is_refused_with_the_place(
    stub: Any, refused: Refused, model: str, content: Any, text: str
) -> None:
    name, _, signature = model.partition(":")
    code, message = refused(stub.Classify, asked(classification_pb2.ClassificationRequest, name, content, signature))
    assert code is INVALID
    assert text in message


def test_more_than_one_value_is_no_regression(stub: Any, refused: Refused) -> None:
    request = asked(regression_pb2.RegressionRequest, "classifier", given(example(waveform=W)))
    code, message = refused(stub.Regress, request)
    assert code is INVALID
    assert "'tensorflow/serving/regress' for this call: classifier gives more than one value" in message


@pytest.mark.parametrize(
    ("parts", "code", "text"),
    [
        ([], INVALID, "tasks is empty"),
        ([("tensorflow", "regress", REGRESS), ("classifier", "", CLASSIFY)], INVALID, "tasks[1].model_spec is of"),
        ([("tensorflow", "regress", REGRESS)] * 2, INVALID, "'regress' is there twice"),
        ([("tensorflow", "regress", "predict")], grpc.StatusCode.UNIMPLEMENTED, "tasks[0].method_name is 'predict'"),
        ([("nope", "", REGRESS)], grpc.StatusCode.NOT_FOUND, "no model 'nope'"),
    ],
)  # fmt: skip
def test_tasks_that_do_not_go_together_are_refused(
    stub: Any, refused: Refused, parts: list[tuple[str, str, str]], code: grpc.StatusCode, text: str
) -> None:
    found, message = refused(stub.MultiInference, tasks(*parts, content=given(example(x=np.float32([1, 2])))))
    assert found is code
    assert text in message
