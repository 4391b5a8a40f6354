"""`seisserve recover`: waveform files to waveforms with what was clipped."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from seisserve.commands.options import Where, client_options, inputs, verbose_option, waveform_options
from seisserve.commands.work import readable, restore

__all__ = ["recover"]


@click.command()
@inputs
@client_options("recovery")
@waveform_options
@verbose_option
def recover(
    inputs: tuple[Path, ...], where: Where, model: str, output: Path, kind: str | None, verbose: bool,
    hop_samples: int | None, resampling: Literal["zero", "causal"],
) -> int:  # fmt: skip
    """Restore what the instrument clipped in waveform files (anything ObsPy reads) or folders of them.

    What is written is float64; samples that were not clipped are as they were. Waveforms at another rate come back at
    the model's. The suffix tells the format. Files that cannot be used are treated as by `seisserve pick`.
    """
    with where.client() as client:
        manifest = client.model(model, "recovery").manifest
        manifest.with_options(None, hop_samples)  # a wrong option fails before any work
        return restore(
            readable(inputs, verbose, "recovering"),
            lambda traces: client.restore(
                traces, model=model, hop_samples=hop_samples, resampling=resampling, on_error="skip"
            ),
            output,
            kind,
        )
