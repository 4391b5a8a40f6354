"""Classify and Regress: examples in, labels with scores or one value for each example out.

A bundle takes them if it gives one value of each label for a window: the example's feature is named as the input, its
values are the window, sample after sample. A plain SavedModel takes them if it has a signature of that method.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from seisserve.errors import UsageError
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.proto.tensorflow_wire_pb2 import Example, Feature
from seisserve_serving.calls import Call
from seisserve_serving.errors import NotReady
from seisserve_serving.models import Served
from seisserve_serving.signatures import CLASSIFY, REGRESS, Signature

__all__ = ["classify", "regress"]

EXAMPLES, CLASSES, SCORES, VALUES = "inputs", "classes", "scores", "outputs"  # of TensorFlow's signatures


def classify(served: Served, key: str, given: wire.Input, call: Call) -> wire.ClassificationResult:
    """The labels of each example with their scores. Raises UsageError, NotReady; as `Queue.predict`."""
    signature = served.signature(key)
    if served.has_manifest:
        output = served.manifest.output
        if not output.single:
            _refuse(CLASSIFY, f"{served.name} gives a curve for each window, not one score for each label")
        scores = _windows(served, signature, given, call)
        labels = [list(output.labels)] * len(scores)
    else:
        found = _of_method(served, signature, CLASSIFY, given, call)
        if not found.keys() & {CLASSES, SCORES}:
            raise NotReady(f"signature {key!r} of {served.name} has none of the outputs {CLASSES!r} and {SCORES!r}")
        scores = _matrix(found.get(SCORES), SCORES)
        labels = [[_text(label) for label in row] for row in _matrix(found.get(CLASSES), CLASSES)]
        scores = scores if SCORES in found else np.zeros((len(labels), len(labels[0])), np.float32)
        labels = labels if CLASSES in found else [[""] * scores.shape[1]] * len(scores)
    return wire.ClassificationResult(
        classifications=[
            wire.Classifications(
                classes=[wire.Class(label=label, score=score) for label, score in zip(names, values, strict=True)]
            )
            for names, values in zip(labels, scores.tolist(), strict=True)
        ]
    )


def regress(served: Served, key: str, given: wire.Input, call: Call) -> wire.RegressionResult:
    """The value of each example. Raises UsageError, NotReady; as `Queue.predict`."""
    signature = served.signature(key)
    if served.has_manifest:
        output = served.manifest.output
        if not output.single or len(output.labels) != 1:
            _refuse(REGRESS, f"{served.name} gives more than one value for a window")
        values = _windows(served, signature, given, call)
    else:
        found = _of_method(served, signature, REGRESS, given, call)
        if VALUES not in found:
            raise NotReady(f"signature {key!r} of {served.name} has no output {VALUES!r}")
        values = found[VALUES]
    count = len(_examples(given))
    if values.shape not in ((count,), (count, 1)):
        raise UsageError(f"output {VALUES!r} of {served.name} has shape {values.shape}; expected one value an example")
    return wire.RegressionResult(regressions=[wire.Regression(value=value) for value in values.ravel().tolist()])


def _examples(given: wire.Input) -> list[Example]:
    """The examples, each with what the context adds. Raises UsageError if there are none."""
    if given.WhichOneof("kind") == "example_list_with_context":
        merged = []
        for example in given.example_list_with_context.examples:
            whole = Example()
            whole.CopyFrom(given.example_list_with_context.context)
            for name, feature in example.features.feature.items():
                whole.features.feature[name].CopyFrom(feature)
            merged.append(whole)
        examples = merged
    else:
        examples = list(given.example_list.examples)
    if not examples:
        raise UsageError("input is empty; it must have one or more examples")
    return examples


def _windows(served: Served, signature: Signature, given: wire.Input, call: Call) -> NDArray[np.float32]:
    """The first output of a bundle for the windows in the examples."""
    (tensor,) = signature.inputs
    components = len(served.manifest.components)
    rows = [_row(example.features.feature, tensor.name, number) for number, example in enumerate(_examples(given))]
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]) or len(row) % components:
            raise UsageError(
                f"input: examples[{number}] has {len(row)} values of {tensor.name!r}, examples[0] {len(rows[0])}; "
                f"expected equally many, {components} for each sample"
            )
    windows = np.stack(rows).reshape(len(rows), -1, components)
    signature.check_inputs({tensor.name: windows})
    return served.predict(signature.key, {tensor.name: windows}, call)[served.manifest.output.name]


def _row(features: Any, name: str, number: int) -> NDArray[np.float32]:
    if name not in features:
        raise UsageError(f"input: examples[{number}] has no feature {name!r}; there is {sorted(features)}")
    feature: Feature = features[name]
    if feature.WhichOneof("kind") != "float_list":
        raise UsageError(f"input: examples[{number}]: feature {name!r} must be a float_list")
    return np.array(feature.float_list.value, np.float32)


def _of_method(
    served: Served, signature: Signature, method: str, given: wire.Input, call: Call
) -> dict[str, NDArray[Any]]:
    """All outputs of a plain model's signature for the serialized examples."""
    if signature.method != method:
        _refuse(method, f"signature {signature.key!r} of {served.name} is {signature.method!r}")
    if [tensor.name for tensor in signature.inputs] != [EXAMPLES] or signature.inputs[0].dtype.kind != "O":
        raise NotReady(f"signature {signature.key!r} of {served.name} does not take examples as {EXAMPLES!r}")
    content = np.array([example.SerializeToString() for example in _examples(given)], object)
    return served.predict(signature.key, {EXAMPLES: content}, call)


def _matrix(values: NDArray[Any] | None, name: str) -> NDArray[Any]:
    if values is None:
        return np.zeros((0, 0))
    if values.ndim != 2:
        raise UsageError(f"output {name!r} has shape {values.shape}; expected [examples, classes]")
    return values


def _text(label: Any) -> str:
    return label.decode(errors="replace") if isinstance(label, bytes) else str(label)


def _refuse(method: str, why: str) -> NoReturn:
    raise UsageError(f"model_spec: the signature's method_name must be {method!r} for this call: {why}")
