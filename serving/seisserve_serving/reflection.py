"""Server reflection under the public names, so that grpcurl and the like can list and call every service.

Public messages are compiled into this project under a package of its own, since two descriptors of one name in one
process clash. Reflection has a descriptor pool to itself, where they can carry the names they have on the wire.
"""

from __future__ import annotations

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, wrappers_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from seisserve.proto import inference_wire_pb2, seismic_pb2, tensorflow_serving_wire_pb2, tensorflow_wire_pb2
from seisserve_serving.front import Methods

__all__ = ["public_pool", "streams"]

OWN = "seisserve.wire."
MODULES = (
    any_pb2, wrappers_pb2, health_pb2, reflection_pb2, tensorflow_wire_pb2, tensorflow_serving_wire_pb2,
    inference_wire_pb2, seismic_pb2,
)  # fmt: skip


def public_pool() -> descriptor_pool.DescriptorPool:
    """All services and messages of the server under their public names."""
    pool = descriptor_pool.DescriptorPool()
    for module in MODULES:
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        _rename(file)
        pool.Add(file)
    return pool


def streams(services: list[str]) -> dict[str, Methods]:
    """The method that answers reflection for these services (and for reflection itself), by the service's name."""
    servicer = reflection.ReflectionServicer([*services, reflection.SERVICE_NAME], pool=public_pool())
    types = (reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse)
    return {reflection.SERVICE_NAME: {"ServerReflectionInfo": (servicer.ServerReflectionInfo, *types)}}


def _rename(file: descriptor_pb2.FileDescriptorProto) -> None:
    file.package = file.package.removeprefix(OWN)

    def rename_types(message: descriptor_pb2.DescriptorProto) -> None:
        for field in message.field:
            if field.type_name:  # setting it at all makes a field a message
                field.type_name = field.type_name.replace(f".{OWN}", ".", 1)
        for nested in message.nested_type:
            rename_types(nested)

    for message in file.message_type:
        rename_types(message)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(f".{OWN}", ".", 1)
            method.output_type = method.output_type.replace(f".{OWN}", ".", 1)
