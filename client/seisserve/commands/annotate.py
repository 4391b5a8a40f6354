"""`seisserve annotate`: waveform files to probability curves."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from seisserve.annotations import Annotation, to_stream
from seisserve.cli import SOME_INPUTS_FAILED, fail
from seisserve.commands.options import Where, client_options, inputs, reading_options, writable
from seisserve.commands.pick import readable
from seisserve.errors import UsageError, WaveformError

__all__ = ["annotate"]


@click.command()
@inputs
@client_options
@reading_options
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="miniSEED file for the curves.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is being read.")
def annotate(
    inputs: tuple[Path, ...], where: Where, model: str, output: Path, verbose: bool, hop_samples: int | None,
    stacking: Literal["mean", "max"] | None, resampling: Literal["zero", "causal"],
) -> int:  # fmt: skip
    """Write the model's probability curves over waveform files as miniSEED (float32).

    The channel code of a curve is the band and instrument code and the label: HHP, HHS, HHN (noise).
    """
    if output.suffix.lower() not in (".mseed", ".miniseed"):
        raise UsageError(f"{output}: curves are written as miniSEED; use the suffix .mseed")
    writable(output)
    failed = 0
    found: list[Annotation] = []
    with where.client() as client:
        client.model(model)
        for traces, errors in readable(inputs, verbose):
            try:
                found.extend(
                    client.annotate(
                        traces, model=model, hop_samples=hop_samples, stacking=stacking, resampling=resampling
                    )
                )
            except WaveformError as error:
                errors.append(error)
            for problem in errors:
                failed = fail(str(problem), SOME_INPUTS_FAILED)
    if found:
        to_stream(found).write(str(output), format="MSEED")
    click.echo(f"{len(found)} segments in {output}" if found else "no segments: nothing written", err=True)
    return failed
