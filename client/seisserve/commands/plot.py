"""`seisserve plot`: waveforms, probability curves, picks and detections as a picture."""

from __future__ import annotations

from pathlib import Path

import click

from seisserve import plots
from seisserve.commands.options import Where, client_options, inputs, thresholds, writable
from seisserve.commands.work import readable, report
from seisserve.errors import WaveformError

__all__ = ["plot"]


@click.command()
@inputs
@client_options("picking")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Picture: .png, .svg or .pdf.")
@click.option("--threshold", "limits", multiple=True, metavar="[LABEL=]NUMBER", help="In place of the model's own.")
def plot(inputs: tuple[Path, ...], where: Where, model: str, output: Path, limits: tuple[str, ...]) -> int:
    """Draw waveforms with the model's probability curves, picks and detections."""
    plots.check_suffix(writable(output))
    failed = 0
    shown = plots.Shown([], [], [], [])
    with where.client() as client:
        manifest = client.model(model).manifest
        limit_by_label = thresholds(limits, manifest.labels)
        manifest.with_options(limit_by_label)  # a wrong option fails before any work
        for group, errors in readable(inputs, verbose=False, doing="drawing"):
            try:
                shown.annotations.extend(client.annotate(group, model=model))
                if "picking" in manifest.tasks:
                    shown.picks.extend(client.pick(group, model=model, thresholds=limit_by_label))
                if "detection" in manifest.tasks:
                    shown.detections.extend(client.detect(group, model=model, thresholds=limit_by_label))
                shown.traces.extend(group)
            except WaveformError as error:
                errors.append(error)
            failed = report([], errors) or failed
    if shown.traces:
        plots.save(plots.draw(*shown), output)
        drawn = {"picking": f"{len(shown.picks)} picks", "detection": f"{len(shown.detections)} detections"}
        what = " and ".join(drawn[task] for task in manifest.tasks) or "curves"
        click.echo(f"{what} drawn in {output}", err=True)
    return failed
