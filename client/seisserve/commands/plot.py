"""`seisserve plot`: waveforms, probability curves and picks as a picture."""

from __future__ import annotations

from pathlib import Path

import click

from seisserve import plots
from seisserve.cli import SOME_INPUTS_FAILED, fail
from seisserve.commands.options import Where, client_options, inputs, thresholds, writable
from seisserve.commands.pick import readable
from seisserve.errors import WaveformError
from seisserve.picks import Pick
from seisserve.traces import Trace

__all__ = ["plot"]


@click.command()
@inputs
@client_options
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Picture: .png, .svg or .pdf.")
@click.option("--threshold", "limits", multiple=True, metavar="[LABEL=]NUMBER", help="In place of the model's own.")
def plot(inputs: tuple[Path, ...], where: Where, model: str, output: Path, limits: tuple[str, ...]) -> int:
    """Draw waveforms with the model's probability curves and picks."""
    plots.check_suffix(writable(output))
    failed = 0
    traces: list[Trace] = []
    picks: list[Pick] = []
    curves = []
    with where.client() as client:
        client.model(model)
        for group, errors in readable(inputs, verbose=False):
            try:
                found = client.pick(group, model=model, thresholds=thresholds(limits))
                curves.extend(client.annotate(group, model=model))
                picks.extend(found)
                traces.extend(group)
            except WaveformError as error:
                errors.append(error)
            for problem in errors:
                failed = fail(str(problem), SOME_INPUTS_FAILED)
    if traces:
        plots.save(plots.draw(traces, curves, picks), output)
        click.echo(f"{len(picks)} picks drawn in {output}", err=True)
    return failed
