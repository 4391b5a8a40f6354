"""TensorFlow Serving's PredictionService and ModelService: messages in, data plane, messages out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from seisserve.errors import ModelNotFound, UsageError
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.proto.tensorflow_wire_pb2 import SignatureDef, TensorInfo, TensorProto, TensorShapeProto
from seisserve.tensors import shape_proto, to_array, to_proto, type_of
from seisserve_serving import classify
from seisserve_serving.calls import Call
from seisserve_serving.errors import NotReady, Unsupported
from seisserve_serving.front import Methods, Quick
from seisserve_serving.lanes import Later
from seisserve_serving.models import Models, Served, State
from seisserve_serving.predict import predict
from seisserve_serving.signatures import CLASSIFY, DEFAULT, REGRESS, Signature, TensorSpec
from seisserve_serving.text_config import model_configs

__all__ = ["MODEL_SERVICE", "PREDICTION_SERVICE", "services"]

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
STATES: dict[State, Any] = {state: wire.ModelVersionStatus.State.Value(state.name) for state in State}


def quick(models: Models) -> dict[str, Quick]:
    """The methods that give a `Later` in place of a response, by the service's name."""

    def predict_later(request: wire.PredictRequest, call: Call) -> Later[wire.PredictResponse]:
        served = find(models, request.model_spec, call)
        signature = served.signature(request.model_spec.signature_name)

        def answer(outputs: dict[str, NDArray[Any]]) -> wire.PredictResponse:
            response = wire.PredictResponse(model_spec=effective(served, signature.key))
            for name, array in outputs.items():
                to_proto(array, response.outputs[name])
            return response

        inputs = arrays(request.inputs, signature)
        return predict(served, inputs, signature.key, request.output_filter, call).then(answer)

    return {
        PREDICTION_SERVICE: {"Predict": (predict_later, wire.PredictRequest, wire.PredictResponse, lambda request: 0)}
    }


def services(models: Models) -> dict[str, Methods]:
    """The services' methods, by the services' names."""
    predict_later = quick(models)[PREDICTION_SERVICE]["Predict"][0]

    def predict_call(request: wire.PredictRequest, call: Call) -> wire.PredictResponse:
        response: wire.PredictResponse = predict_later(request, call).result()
        return response

    def classify_call(request: wire.ClassificationRequest, call: Call) -> wire.ClassificationResponse:
        served = find(models, request.model_spec, call)
        key = request.model_spec.signature_name or DEFAULT
        result = classify.classify(served, key, request.input, call)
        return wire.ClassificationResponse(model_spec=effective(served, key), result=result)

    def regress_call(request: wire.RegressionRequest, call: Call) -> wire.RegressionResponse:
        served = find(models, request.model_spec, call)
        key = request.model_spec.signature_name or DEFAULT
        result = classify.regress(served, key, request.input, call)
        return wire.RegressionResponse(model_spec=effective(served, key), result=result)

    def multi_inference(request: wire.MultiInferenceRequest, call: Call) -> wire.MultiInferenceResponse:
        check_tasks(request)
        response = wire.MultiInferenceResponse()
        for task in request.tasks:
            served = find(models, task.model_spec, call)
            key = task.model_spec.signature_name or DEFAULT
            result = response.results.add(model_spec=effective(served, key))
            if task.method_name == CLASSIFY:
                result.classification_result.CopyFrom(classify.classify(served, key, request.input, call))
            else:
                result.regression_result.CopyFrom(classify.regress(served, key, request.input, call))
        return response

    def metadata(request: wire.GetModelMetadataRequest, call: Call) -> wire.GetModelMetadataResponse:
        served = find(models, request.model_spec, call)
        if not request.metadata_field:
            raise UsageError("metadata_field is empty; it must name signature_def")
        for field in request.metadata_field:
            if field != "signature_def":
                raise UsageError(f"metadata_field {field!r} is not supported; it must be signature_def")
        response = wire.GetModelMetadataResponse(model_spec=effective(served, ""))
        packed = response.metadata["signature_def"]
        packed.type_url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
        packed.value = signatures(served).SerializeToString(deterministic=True)
        return response

    def status(request: wire.GetModelStatusRequest, call: Call) -> wire.GetModelStatusResponse:
        return wire.GetModelStatusResponse(model_version_status=statuses(models, request.model_spec))

    def reload(request: wire.ReloadConfigRequest, call: Call) -> wire.ReloadConfigResponse:
        if models.repository is None:
            raise NotReady("this server has no repository to load models from")
        configs = model_configs(request.config, models.repository.start, "config")
        models.repository.reload(configs, call)
        return wire.ReloadConfigResponse(status=wire.StatusProto())

    prediction: Methods = {
        "Predict": (predict_call, wire.PredictRequest, wire.PredictResponse),
        "Classify": (classify_call, wire.ClassificationRequest, wire.ClassificationResponse),
        "Regress": (regress_call, wire.RegressionRequest, wire.RegressionResponse),
        "MultiInference": (multi_inference, wire.MultiInferenceRequest, wire.MultiInferenceResponse),
        "GetModelMetadata": (metadata, wire.GetModelMetadataRequest, wire.GetModelMetadataResponse),
    }
    model: Methods = {
        "GetModelStatus": (status, wire.GetModelStatusRequest, wire.GetModelStatusResponse),
        "HandleReloadConfigRequest": (reload, wire.ReloadConfigRequest, wire.ReloadConfigResponse),
    }
    return {PREDICTION_SERVICE: prediction, MODEL_SERVICE: model}


def find(models: Models, spec: wire.ModelSpec, call: Call) -> Served:
    """The version that a model spec means. Raises as `Models.get`."""
    if not spec.name:
        raise UsageError("model_spec.name is empty; it must name a model")
    if spec.HasField("version") and spec.version.value < 1:
        raise ModelNotFound(f"no version {spec.version.value} of {spec.name!r} is served")
    if spec.WhichOneof("version_choice") == "version_label" and not spec.version_label:
        raise UsageError("model_spec.version_label is empty; it must be a label, or absent")
    return _of_spec(models, spec).of(call)


def _of_spec(models: Models, spec: wire.ModelSpec) -> Served:
    try:
        return models.get(spec.name, spec.version.value if spec.HasField("version") else 0, label=spec.version_label)
    except ModelNotFound:
        raise
    except UsageError as error:
        raise UsageError(f"model_spec.version_label: {error}") from error


def arrays(inputs: Mapping[str, TensorProto], signature: Signature) -> dict[str, NDArray[Any]]:
    """The inputs, each of the type that the signature has for it. Raises UsageError that names the input."""
    signature.check_names(inputs)
    return {tensor.name: to_array(inputs[tensor.name], tensor.name, tensor.dtype) for tensor in signature.inputs}


def effective(served: Served, signature: str) -> wire.ModelSpec:
    """The spec of what answered, its version filled in."""
    spec = wire.ModelSpec(name=served.name, signature_name=signature)
    spec.version.value = served.version
    return spec


def check_tasks(request: wire.MultiInferenceRequest) -> None:
    """Raises UsageError unless the tasks can be answered together, Unsupported for a method that is no part of this."""
    if not request.tasks:
        raise UsageError("tasks is empty; it must have one or more")
    first = request.tasks[0].model_spec
    keys = set()
    for number, task in enumerate(request.tasks):
        spec = task.model_spec
        if (spec.name, spec.version, spec.version_label) != (first.name, first.version, first.version_label):
            raise UsageError(f"tasks[{number}].model_spec is of another model or version than that of tasks[0]")
        if (key := spec.signature_name or DEFAULT) in keys:
            raise UsageError(f"tasks[{number}].model_spec.signature_name {key!r} is there twice")
        keys.add(key)
        if task.method_name not in (CLASSIFY, REGRESS):
            raise Unsupported(
                f"tasks[{number}].method_name is {task.method_name!r}; it must be {CLASSIFY!r} or {REGRESS!r}"
            )


def signatures(served: Served) -> wire.SignatureDefMap:
    """The signatures, as the SavedModel has them."""
    found = wire.SignatureDefMap()
    for key, signature in served.signatures.items():
        made = SignatureDef(method_name=signature.method)
        for tensor in signature.inputs:
            made.inputs[tensor.name].CopyFrom(tensor_info(tensor))
        for tensor in signature.outputs:
            made.outputs[tensor.name].CopyFrom(tensor_info(tensor))
        found.signature_def[key].CopyFrom(made)
    return found


def tensor_info(tensor: TensorSpec) -> TensorInfo:
    """A tensor of a signature as a message."""
    shape = TensorShapeProto(unknown_rank=True) if tensor.shape is None else shape_proto(tensor.shape)
    return TensorInfo(name=tensor.inner, dtype=type_of(tensor.dtype), tensor_shape=shape)


def statuses(models: Models, spec: wire.ModelSpec) -> list[wire.ModelVersionStatus]:
    """The state of each version (or the one asked for), the latest first. Raises ModelNotFound, UsageError."""
    if not spec.name:
        raise UsageError("model_spec.name is empty; it must name a model")
    states = models.states(spec.name)
    wanted = spec.version.value if spec.HasField("version") else None
    if spec.version_label:
        wanted = _of_spec(models, spec).version
    found = []
    for version, state in sorted(states.items(), reverse=True):
        if wanted in (None, version):
            one = wire.ModelVersionStatus(version=version, state=STATES[state.state])
            one.status.error_code, one.status.error_message = state.code, state.message
            one.status.SetInParent()
            found.append(one)
    if not found:
        raise ModelNotFound(f"no version {wanted} of {spec.name!r}; there is {sorted(states)}")
    return found
