"""Which calls change what the server serves: they may be guarded more closely than the others."""

from __future__ import annotations

__all__ = ["ADMIN_METHODS"]

ADMIN_METHODS = frozenset({
    "/tensorflow.serving.ModelService/HandleReloadConfigRequest",
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
})  # fmt: skip
