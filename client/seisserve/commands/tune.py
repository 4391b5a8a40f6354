"""`seisserve tune`: find what is fastest for a model on this machine, and keep it."""

from __future__ import annotations

from pathlib import Path

import click

from seisserve import bundle, plots, tuned
from seisserve import tune as tuning
from seisserve.client import DEFAULT_MODELS
from seisserve.commands.options import writable
from seisserve.runtimes.setup import PRECISIONS
from seisserve.windows import batch_size

__all__ = ["tune"]


@click.command()
@click.argument("model", default=DEFAULT_MODELS["picking"])
@click.option("--repository", type=click.Path(path_type=Path), help="Folder of models [default: the shipped].")
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(1), help="To measure in, about.")
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice([one for one in PRECISIONS if one not in ("float32", "best")]),
    help="Compare these artifacts, too. They change numbers: picks move, come and go as far as the model card says.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Picture of the curve: .png, .svg or .pdf.")
@click.option("--busy", is_flag=True, help="Choose although other processes are at work.")
@click.option("--dry-run", is_flag=True, help="Measure and show only.")
def tune(
    model: str, repository: Path | None, seconds: float, allow: tuple[str, ...], plot: Path | None, busy: bool,
    dry_run: bool,
) -> None:  # fmt: skip
    """Measure runtimes, threads and lengths of a call for MODEL on this machine and keep the fastest.

    Only float32 artifacts are compared, whose answers are equal up to rounding, unless --allow adds others. The
    default stays unless another setup beats it by more than the spread of the measurement. `serve`, `pick` and the like
    use what was chosen, unless --no-tuned or options of their own say otherwise.
    """
    if plot is not None:
        plots.check_suffix(writable(plot))
    found_bundle = bundle.find(model, repository)
    found = tuning.tune(found_bundle, seconds, ("float32", *allow), lambda line: click.echo(line, err=True))
    window = found_bundle.manifest.window_samples
    for line in tuning.table(found, window):
        click.echo(line)
    for what, reason in found.left_out.items():
        click.echo(f"left out: {what}: {reason}")
    if plot is not None:
        plots.save(tuning.draw(found, window, found_bundle.name), plot)
    default, best = found.entrants[0].setup, found.best
    compared = f"{found.gain:.2f} times the default, spread {found.spread:.2f}"
    if found.busy and not busy and best != default:
        best = default
        click.echo(
            f"the default stays: other processes took {1 - found.share:.0%} of the processors, and what is fastest "
            f"meanwhile may not be when they are free (best now: {compared}). Run it again then, or with --busy"
        )
    elif best == default:
        click.echo(f"the default stays; the best of the others: {compared}")
    else:
        click.echo(
            f"chosen: {best.runtime}, {best.precision}, {best.lanes} threads, "
            f"{batch_size(window, best.batch_samples)} windows a call: {compared}"
        )
    if not dry_run:
        tuned.write(tuning.choice(found_bundle, found, best))
        click.echo(f"kept in {tuned.file()}")
