"""`seisserve study`."""

from __future__ import annotations

from pathlib import Path

import click

from seisserve.extras import need

__all__ = ["study"]


@click.group()
def study() -> None:
    """Repeat a published comparison on your own data."""


@study.command()
@click.option("-o", "--output", default="study", show_default=True, type=click.Path(path_type=Path, file_okay=False),
              help="Folder of the table, the pictures and the figures of all runs.")  # fmt: skip
@click.option("--work", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of the runs; a stopped study goes on there.  [default: OUTPUT/runs]")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="A labelled data set in SeisBench's format.  [default: synthetic events]")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each variant.")
@click.option("--quick", is_flag=True, help="A few steps only: whether it runs, not what it says.")
def augmentation(output: Path, work: Path | None, data: Path | None, seeds: int, quick: bool) -> None:
    """What each augmentation is worth: a small picker trained with and without it, scored on the dev split.

    Writes augmentation.md, augmentation.csv and pictures. 3 seeds on 2,000 traces take about half an hour on one core.
    """
    for module in ("h5py", "scipy", "tqdm", "matplotlib", "tensorflow"):
        need(module, "training")
    from seisserve_training import study as studies

    table = studies.augmentation(output, work or output / "runs", data, seeds, quick)
    click.echo(f"written: {table}")
