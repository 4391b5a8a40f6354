"""Which calls change what the server serves: they may be guarded more closely than the others."""

from __future__ import annotations

from seisserve_serving.calls import Call
from seisserve_serving.errors import NotReady
from seisserve_serving.front import Arrival

__all__ = ["ADMIN_METHODS", "refuse"]

ADMIN_METHODS = frozenset({
    "/tensorflow.serving.ModelService/HandleReloadConfigRequest",
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
})  # fmt: skip


def refuse(arrival: Arrival, call: Call) -> None:
    """A guard for one of several workers. Raises NotReady for a call that would change the models of one only."""
    if arrival.method in ADMIN_METHODS:
        raise NotReady(
            "this server has several workers, and a call reaches one of them only: change the folder of models or the "
            "models.config, and have it polled (file_system_poll_wait_seconds, model_config_file_poll_wait_seconds)"
        )
