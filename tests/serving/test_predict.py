"""Predict without a protocol: batches of no windows, for every shape of output."""

from __future__ import annotations

import numpy as np
import pytest
from client.small_bundles import waveform_model
from client.waveforms import manifest

from seisserve.manifest import Manifest
from seisserve.transport import FakeTransport
from seisserve_serving.calls import Call
from seisserve_serving.lanes import Lanes
from seisserve_serving.models import Models
from seisserve_serving.predict import predict


@pytest.mark.parametrize(
    ("model", "samples", "shape"),
    [
        (manifest(), 600, (0, 600, 2)), (manifest(), 100, (0, 100, 2)),
        (manifest(stride=50, fragment_windows=(300,)), 600, (0, 12, 2)),
        (manifest(stride=50, fragment_windows=(300,)), 300, (0, 6, 2)),
        (manifest(single=True, fragment_windows=()), 600, (0, 2)),
        (waveform_model("x", "recovery"), 600, (0, 600, 3)),
    ],
)  # fmt: skip
def test_no_windows_have_no_outputs_of_the_right_shape(model: Manifest, samples: int, shape: tuple[int, ...]) -> None:
    models = Models(Lanes(1))
    served = models.add(1, model, FakeTransport(lambda waveform: waveform))
    signature = "serving_default" if samples == 600 else "fragment"
    (output,) = (
        predict(served, {"waveform": np.zeros((0, samples, 3), np.float32)}, signature, [], Call()).result().values()
    )
    models.lanes.close()
    assert output.shape == shape
    assert output.dtype == np.float32
