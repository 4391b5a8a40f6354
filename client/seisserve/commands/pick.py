"""`seisserve pick`: waveform files to a table of picks."""

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
from seisserve.tables import Picks

__all__ = ["pick"]


@click.command()
@inputs
@client_options("picking")
@reading_options
@table_options
@verbose_option
def pick(
    inputs: tuple[Path, ...], where: Where, model: str, output: str, kind: str | None, limits: tuple[str, ...],
    verbose: bool, hop_samples: int | None, stacking: Literal["mean", "max"] | None,
    resampling: Literal["zero", "causal"],
) -> int:  # fmt: skip
    """Pick arrivals in waveform files (anything ObsPy reads) or folders of them.

    Components of a station may be spread over several files. A file that cannot be used is reported and left out;
    the exit code is then 3.
    """
    target = table_target(Picks, output, kind)
    with where.client() as client:
        manifest = client.model(model, "picking").manifest
        limit_by_label = thresholds(limits, manifest.phases)
        manifest.with_options(limit_by_label, hop_samples, stacking)  # a wrong option fails before any work
        return tabulate(
            readings(inputs, verbose, "picking"),
            lambda traces: client.pick(
                traces, model=model, thresholds=limit_by_label, hop_samples=hop_samples, stacking=stacking,
                resampling=resampling, on_error="skip",
            ),
            target,
        )  # fmt: skip
