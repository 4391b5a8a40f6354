"""What was measured is kept in the manifest and changes nothing of what the model does."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from seisserve import bundle
from seisserve.manifest import Figure
from seisserve.pipeline import provenance


def test_provenance_does_not_depend_on_what_was_measured() -> None:
    model = bundle.find("phasenet").manifest
    figure = Figure(data_set="a", split="dev", source="all", method="sta-lta", quantity="recall", value=0.5, n=3)
    measured = replace(model, figures=(figure,), metrics=(), false_picks_per_hour={"P": 1.0})
    assert provenance(measured) == provenance(model)
    assert provenance(replace(model, hop_samples=model.hop_samples - 1)) != provenance(model)


def test_a_manifest_keeps_its_own_metrics_and_those_of_what_it_was_compared_with() -> None:
    model = bundle.find("phasenet").manifest
    assert {"", "sta-lta", "ar-aic", "template-matching"} <= {metric.method for metric in model.metrics}
    text = '{"data_set": "a", "split": "b", "source": "all", "quantity": "q", "value": 1, "n": 2}'
    assert msgspec.json.decode(text, type=Figure).method == ""
