"""`seisserve denoise`: waveform files to waveforms without noise."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from seisserve.commands.options import Where, client_options, inputs, verbose_option, waveform_options
from seisserve.commands.work import readable, restore

__all__ = ["denoise"]


@click.command()
@inputs
@client_options("denoising")
@waveform_options
@click.option(
    "--noise", type=click.Path(path_type=Path), help="File for what was taken out (float64, offset included)."
)
@verbose_option
def denoise(
    inputs: tuple[Path, ...], where: Where, model: str, output: Path, kind: str | None, noise: Path | None,
    verbose: bool, hop_samples: int | None, resampling: Literal["zero", "causal"],
) -> int:  # fmt: skip
    """Take the noise out of waveform files (anything ObsPy reads) or folders of them.

    What is written is float32, in units of the input, without its offset, at the rate of the model. The suffix tells
    the format. Files that cannot be used are treated as by `seisserve pick`.
    """
    with where.client() as client:
        manifest = client.model(model, "denoising").manifest
        manifest.with_options(None, hop_samples)  # a wrong option fails before any work
        return restore(
            readable(inputs, verbose, "denoising"),
            lambda traces: client.restore(
                traces, model=model, hop_samples=hop_samples, resampling=resampling, on_error="skip"
            ),
            output,
            kind,
            noise,
        )
