"""Golden outputs: of probabilities as they are, of waveforms as a share of the amplitude."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from client.small_bundles import repository
from msgspec.structs import replace

from seisserve import bundle
from seisserve.errors import BundleError
from seisserve.manifest import write
from seisserve.runtime import golden_error, load
from seisserve.transport import FakeTransport


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"))


def test_every_kind_of_output_is_loaded_and_proven(folder: Path) -> None:
    for name in bundle.models(folder):
        found = bundle.find(name, folder)
        assert golden_error(found, load(found, lanes=1)) == 0


@pytest.mark.parametrize("scale", [1e-14, 1.0, 1e9])
def test_waveforms_may_differ_by_a_share_of_their_amplitude(folder: Path, scale: float) -> None:
    found = bundle.find("deepdenoiser", folder)
    windows = (np.random.default_rng(1).normal(0, 1, (3, 600, 3)) * scale).astype(np.float32)
    windows[1] = 0
    bundle.write_golden(found.folder, windows, windows / 2)
    wrong = FakeTransport(lambda waveform: waveform * np.float32(0.51))
    assert golden_error(found, wrong) == pytest.approx(0.01, rel=1e-3)
    load(found, lanes=1)


def test_an_onnx_file_without_the_outputs_of_the_manifest_is_refused(folder: Path) -> None:
    found = bundle.find("cred", folder)
    output = replace(found.manifest.output, name="other")
    write(found.folder, replace(found.manifest, outputs=(output,)))
    with pytest.raises(BundleError, match=r"model\.onnx has no output other"):
        load(bundle.find("cred", folder), lanes=1)
