"""`seisserve annotate`: waveform files to probability curves."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from seisserve.annotations import Annotation, to_stream
from seisserve.commands.options import Where, client_options, inputs, reading_options, verbose_option, writable
from seisserve.commands.work import readable, report
from seisserve.errors import UsageError, WaveformError

__all__ = ["annotate"]


@click.command()
@inputs
@client_options("picking")
@reading_options
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="miniSEED file for the curves.")
@verbose_option
def annotate(
    inputs: tuple[Path, ...], where: Where, model: str, output: Path, verbose: bool, hop_samples: int | None,
    stacking: Literal["mean", "max"] | None, resampling: Literal["zero", "causal"],
) -> int:  # fmt: skip
    """Write the model's probability curves over waveform files as miniSEED (float32).

    The channel code of a curve is the band and instrument code and the label's letter: HHP, HHS, HHN (noise), HHD
    (detection).
    """
    if output.suffix.lower() not in (".mseed", ".miniseed"):
        raise UsageError(f"{output}: curves are written as miniSEED; use the suffix .mseed")
    writable(output)
    failed = 0
    found: list[Annotation] = []
    with where.client() as client:
        client.model(model)
        for traces, errors in readable(inputs, verbose, "annotating"):
            try:
                found.extend(
                    client.annotate(
                        traces, model=model, hop_samples=hop_samples, stacking=stacking, resampling=resampling
                    )
                )
            except WaveformError as error:
                errors.append(error)
            failed = report([], errors) or failed
    if found:
        to_stream(found).write(str(output), format="MSEED")
    click.echo(f"{len(found)} segments in {output}" if found else "no segments: nothing written", err=True)
    return failed
