"""Build hook: the wheel carries of the shipped models what serving them on onnxruntime needs, not the SavedModels."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PATTERNS = ("manifest.json", "golden.npz", "CARD.md", "*.onnx")


class ShippedModels(BuildHookInterface):
    """Adds models/NAME/VERSION/... as seisserve/models/NAME/VERSION/..."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        for pattern in PATTERNS:
            for path in sorted((root / "models").glob(f"*/*/{pattern}")):
                build_data["force_include"][str(path)] = f"seisserve/{path.relative_to(root)}"
