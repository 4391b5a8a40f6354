"""`seisserve train`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from seisserve.errors import UsageError
from seisserve.extras import need

__all__ = ["train"]

NEEDED = ("h5py", "scipy", "tqdm", "matplotlib")


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--fresh", is_flag=True, help="Start anew where the folder holds a run of another configuration.")
@click.option("--dry-run", is_flag=True, help="Take one step, say what there is, and write nothing.")
def train(config: Path, output: Path, fresh: bool, dry_run: bool) -> None:
    """Train the network that CONFIG (TOML) describes; go on where a run in the output folder stopped.

    The output folder gets config.json, checkpoints, history.csv, history.png and, at the end, bundle/: a SavedModel
    with its manifest, for `seisserve export`. With several seeds each has a folder, and seeds.md their dev scores.
    """
    for module in (*NEEDED, "tensorflow"):
        need(module, "training")
    from seisserve_training import config as configs
    from seisserve_training import training
    from seisserve_training.bundles import write_bundle
    from seisserve_training.seeds import train_seeds
    from seisserve_training.trial import trial

    chosen = configs.read(config)
    if dry_run:
        click.echo(trial(chosen, training.load(chosen, config.parent), config.parent))
        return
    output.mkdir(parents=True, exist_ok=True)
    kept = output / "config.json"
    if kept.exists() and not fresh and msgspec.json.decode(kept.read_bytes(), type=configs.Config) != chosen:
        raise UsageError(f"{output} holds a run of another configuration; use another folder, or --fresh")
    if fresh:
        training.forget(output)
    kept.write_bytes(msgspec.json.format(msgspec.json.encode(chosen), indent=2))
    traces = training.load(chosen, config.parent)
    best = chosen
    if chosen.schedule.seeds:
        network, best = train_seeds(chosen, output, traces, config.parent)
        click.echo((output / "seeds.md").read_text())
    else:
        network = training.train(chosen, output, traces, config.parent)
    write_bundle(network, best, traces, output / "bundle")
    click.echo(f"trained: {output / 'bundle'}; next: seisserve export {output / 'bundle'} -o models/{chosen.name}/1")
