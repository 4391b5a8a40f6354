"""`seisserve train` and `seisserve evaluate`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from seisserve import bundle, manifest, runtime
from seisserve.errors import UsageError
from seisserve.extras import need

__all__ = ["evaluate", "train"]

NEEDED = ("h5py", "scipy", "tqdm", "matplotlib")
RATES_NOTE = "Precision, recall and F1 with the 95 % interval of F1 (bootstrap over traces)."


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--fresh", is_flag=True, help="Start anew where the folder holds a run of another configuration.")
def train(config: Path, output: Path, fresh: bool) -> None:
    """Train the network that CONFIG (TOML) describes; go on where a run in the output folder stopped.

    The output folder gets config.json, checkpoints, history.csv, history.png and, at the end, bundle/: a SavedModel
    with its manifest, for `seisserve export`.
    """
    for module in (*NEEDED, "tensorflow"):
        need(module, "training")
    from seisserve_training import config as configs
    from seisserve_training import training
    from seisserve_training.bundles import write_bundle

    chosen = configs.read(config)
    output.mkdir(parents=True, exist_ok=True)
    kept = output / "config.json"
    if kept.exists() and not fresh and msgspec.json.decode(kept.read_bytes(), type=configs.Config) != chosen:
        raise UsageError(f"{output} holds a run of another configuration; use another folder, or --fresh")
    if fresh:
        training.forget(output)
    kept.write_bytes(msgspec.json.format(msgspec.json.encode(chosen), indent=2))
    traces = training.load(chosen, config.parent)
    network = training.train(chosen, output, traces)
    write_bundle(network, chosen, traces, output / "bundle")
    click.echo(f"trained: {output / 'bundle'}; next: seisserve export {output / 'bundle'} -o models/{chosen.name}/1")


@click.command()
@click.argument("bundles", nargs=-1, required=True)
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["train", "dev", "test"]), default="dev", show_default=True)
@click.option("--source", "only", multiple=True, help="Only these sources of the data set.")
@click.option("--incomplete", multiple=True, default=("auto_pal_associated", "auto_quakemigrate"),
              show_default=True, help="Label qualities whose traces hold arrivals that nobody labelled.")  # fmt: skip
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True), help="In place of the bundles' own.")
@click.option(
    "--runtime", "runtime_name", type=click.Choice(["onnxruntime", "tensorflow"]), help="[default: what is there]"
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the table there (Markdown).")
@click.option("--write", is_flag=True, help="Keep the figures in the bundle's manifest (one bundle).")
def evaluate(
    bundles: tuple[str, ...], dataset: Path, split: str, only: tuple[str, ...], incomplete: tuple[str, ...],
    threshold: float | None, runtime_name: str | None, output: Path | None, write: bool,
) -> None:  # fmt: skip
    """Score BUNDLES (folders, or NAME[:VERSION] of the shipped models) on a labelled DATASET, side by side.

    Precision, recall and F1 at 0.1 s and 0.5 s, residuals, per source and overall, with bootstrap intervals, and
    false picks per hour on its noise.
    """
    for module in NEEDED:
        need(module, "training")
    from tqdm import tqdm

    from seisserve_training.datasets import Dataset, read_rows
    from seisserve_training.evaluation import Evaluation, curves, metrics, summarise
    from seisserve_training.evaluation import evaluate as scored

    if write and len(bundles) != 1:
        raise UsageError(f"--write keeps the figures of one bundle; {len(bundles)} are named")
    rows = [row for row in read_rows(dataset, split) if not only or row.source in only]
    if not rows:
        raise UsageError(f"{dataset} has no traces in split {split!r}" + (f" of {', '.join(only)}" if only else ""))
    found: dict[str, Evaluation] = {}
    for name in bundles:
        one = bundle.read(Path(name)) if Path(name).is_dir() else bundle.find(name)
        model = one.manifest
        if threshold is not None:
            model = model.with_options(dict.fromkeys(model.labels, threshold))
        data = Dataset(rows, model.sampling_rate_hz, model.components)
        traces = [data.load(row) for row in tqdm(rows, desc="reading", disable=None, leave=False)]
        has_onnx = any(artifact.format == "onnx" for artifact in model.artifacts.values())
        transport = runtime.load(one, runtime_name or ("onnxruntime" if has_onnx else "tensorflow"))
        evaluation = scored(traces, curves(traces, model, transport), model, incomplete=incomplete)
        found[model.name if model.name not in found else name] = evaluation
        if write:
            kept = [m for m in one.manifest.metrics if (m.data_set, m.split) != (dataset.name, split)]
            figures = (*kept, *metrics(evaluation, dataset.name, split))
            manifest.write(
                one.folder,
                msgspec.structs.replace(
                    one.manifest, metrics=figures, false_picks_per_hour=evaluation.false_picks_per_hour
                ),
            )
    table = f"Split `{split}` of `{dataset.name}`, {len(rows)} traces. {RATES_NOTE}\n\n{summarise(found)}"
    if output:
        output.write_text(table)
    click.echo(table)
