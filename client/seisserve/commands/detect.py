"""`seisserve detect`: waveform files to a table of detections."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from seisserve.commands.options import (
    Where,
    client_options,
    inputs,
    reading_options,
    table_options,
    thresholds,
    verbose_option,
)
from seisserve.commands.work import readings, table_target, tabulate
from seisserve.manifest import DETECTION
from seisserve.tables import Detections

__all__ = ["detect"]


@click.command()
@inputs
@client_options("detection")
@reading_options
@table_options
@verbose_option
def detect(
    inputs: tuple[Path, ...], where: Where, model: str, output: str, kind: str | None, limits: tuple[str, ...],
    verbose: bool, hop_samples: int | None, stacking: Literal["mean", "max"] | None,
    resampling: Literal["zero", "causal"],
) -> int:  # fmt: skip
    """Detect stretches of earthquake signal in waveform files (anything ObsPy reads) or folders of them.

    The table is CSV or JSON lines. Files that cannot be used are treated as by `seisserve pick`.
    """
    target = table_target(Detections, output, kind)
    with where.client() as client:
        manifest = client.model(model, "detection").manifest
        limit_by_label = thresholds(limits, [DETECTION])
        manifest.with_options(limit_by_label, hop_samples, stacking)  # a wrong option fails before any work
        return tabulate(
            readings(inputs, verbose, "detecting"),
            lambda traces: client.detect(
                traces, model=model, thresholds=limit_by_label, hop_samples=hop_samples, stacking=stacking,
                resampling=resampling, on_error="skip",
            ),
            target,
        )  # fmt: skip
