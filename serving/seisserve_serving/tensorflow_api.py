"""TensorFlow Serving's PredictionService and ModelService: messages in, data plane, messages out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc

from seisserve.errors import ModelNotFound, UsageError
from seisserve.manifest import Manifest
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.proto.tensorflow_wire_pb2 import DT_FLOAT, SignatureDef, TensorInfo
from seisserve.tensors import shape_proto, to_array, to_proto
from seisserve_serving.models import Models, Served
from seisserve_serving.predict import SIGNATURES, predict, signature_names, signature_shape
from seisserve_serving.status import Methods, service

__all__ = ["MODEL_SERVICE", "PREDICTION_SERVICE", "handlers"]

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
PREDICT_METHOD = "tensorflow/serving/predict"
NOT_LOADED = 9  # FAILED_PRECONDITION, as an int: the wire message has no enum for it


def handlers(models: Models, pool: ThreadPoolExecutor) -> list[grpc.GenericRpcHandler]:
    """The services' methods."""

    def predict_call(request: wire.PredictRequest) -> wire.PredictResponse:
        served = find(models, request.model_spec)
        inputs = {name: to_array(tensor, name) for name, tensor in request.inputs.items()}
        signature = request.model_spec.signature_name
        outputs = predict(served, inputs, signature, request.output_filter, pool)
        response = wire.PredictResponse(model_spec=effective(served, signature or SIGNATURES[0]))
        for name, array in outputs.items():
            response.outputs[name].CopyFrom(to_proto(array))
        return response

    def metadata(request: wire.GetModelMetadataRequest) -> wire.GetModelMetadataResponse:
        served = find(models, request.model_spec)
        if not request.metadata_field:
            raise UsageError("metadata_field is empty; it must name signature_def")
        for field in request.metadata_field:
            if field != "signature_def":
                raise UsageError(f"metadata_field {field!r} is not supported; it must be signature_def")
        response = wire.GetModelMetadataResponse(model_spec=effective(served, ""))
        packed = response.metadata["signature_def"]
        packed.type_url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
        packed.value = signatures(served.manifest).SerializeToString(deterministic=True)
        return response

    def status(request: wire.GetModelStatusRequest) -> wire.GetModelStatusResponse:
        return wire.GetModelStatusResponse(model_version_status=statuses(models, request.model_spec))

    prediction: Methods = {
        "Predict": (predict_call, wire.PredictRequest, wire.PredictResponse),
        "GetModelMetadata": (metadata, wire.GetModelMetadataRequest, wire.GetModelMetadataResponse),
    }
    model: Methods = {"GetModelStatus": (status, wire.GetModelStatusRequest, wire.GetModelStatusResponse)}
    return [service(PREDICTION_SERVICE, prediction), service(MODEL_SERVICE, model)]


def find(models: Models, spec: wire.ModelSpec) -> Served:
    """The version that a model spec means. Raises UsageError, ModelNotFound."""
    if not spec.name:
        raise UsageError("model_spec.name is empty; it must name a model")
    if spec.version_label:
        raise UsageError(f"model_spec.version_label {spec.version_label!r}: this server has no version labels")
    if spec.HasField("version") and spec.version.value < 1:
        raise ModelNotFound(f"no version {spec.version.value} of {spec.name!r} is served")
    return models.get(spec.name, spec.version.value if spec.HasField("version") else 0)


def effective(served: Served, signature: str) -> wire.ModelSpec:
    """The spec of what answered, its version filled in."""
    spec = wire.ModelSpec(name=served.manifest.name, signature_name=signature)
    spec.version.value = served.version
    return spec


def signatures(manifest: Manifest) -> wire.SignatureDefMap:
    """The signatures, as the SavedModel has them."""
    found = wire.SignatureDefMap()
    for place, name in enumerate(sorted(signature_names(manifest))):  # TensorFlow numbers the calls in this order
        call = f"StatefulPartitionedCall_{place}" if place else "StatefulPartitionedCall"
        shape = signature_shape(manifest, name)
        signature = SignatureDef(method_name=PREDICT_METHOD)
        tensor = manifest.input
        signature.inputs[tensor.name].CopyFrom(
            TensorInfo(name=f"{name}_{tensor.name}:0", dtype=DT_FLOAT, tensor_shape=shape_proto(shape))
        )
        for number, output in enumerate(manifest.outputs):
            free = output.shape if name == SIGNATURES[0] else (-1, -1, *output.shape[2:])
            signature.outputs[output.name].CopyFrom(
                TensorInfo(name=f"{call}:{number}", dtype=DT_FLOAT, tensor_shape=shape_proto(free))
            )
        found.signature_def[name].CopyFrom(signature)
    return found


def statuses(models: Models, spec: wire.ModelSpec) -> list[wire.ModelVersionStatus]:
    """The state of each version (or the one asked for), the latest first. Raises ModelNotFound."""
    if not spec.name:
        raise UsageError("model_spec.name is empty; it must name a model")
    available, failed = models.served.get(spec.name, {}), models.failed.get(spec.name, {})
    wanted = spec.version.value if spec.HasField("version") else None
    found = []
    for version in sorted({*available, *failed}, reverse=True):
        if wanted in (None, version):
            one = wire.ModelVersionStatus(version=version)
            if version in available:
                one.state = wire.ModelVersionStatus.AVAILABLE
            else:
                one.state = wire.ModelVersionStatus.END
                one.status.error_code, one.status.error_message = NOT_LOADED, failed[version]
            one.status.SetInParent()
            found.append(one)
    if not found:
        asked = "" if wanted is None else f" version {wanted}"
        raise ModelNotFound(f"no model {spec.name!r}{asked}; there is {', '.join({*models.served, *models.failed})}")
    return found
