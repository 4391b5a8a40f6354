"""A small network, saved and exported once for all tests."""

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import keras
    from export.small import manifest, network

    from seisserve_export.bundles import save_bundle

    folder = tmp_path_factory.mktemp("source") / "1"
    keras.utils.set_random_seed(0)
    save_bundle(network(), manifest(), folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `source`, of a network that is one softmax."""
    from export.small import softmax, softmax_manifest

    from seisserve_export.bundles import save_bundle

    folder = tmp_path_factory.mktemp("tiny") / "1"
    save_bundle(softmax(), softmax_manifest(), folder)
    return folder


@pytest.fixture(scope="session")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from export.small import Exported, waveforms

    from seisserve.bundle import read
    from seisserve_export.bundles import export_bundle

    folder = tmp_path_factory.mktemp("models") / "small" / "1"
    report = export_bundle(source, folder, windows=waveforms(9))
    return Exported(read(folder), report)
