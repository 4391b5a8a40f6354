"""`seisserve evaluate`: networks and baselines of one task, side by side on the same traces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from seisserve import bundle, manifest, runtime
from seisserve.bundle import Bundle
from seisserve.errors import UsageError
from seisserve.extras import need

if TYPE_CHECKING:
    from seisserve.transport import Transport
    from seisserve_training.side_by_side import Network

__all__ = ["BASELINES", "evaluate"]

TASKS = ("picking", "detection", "denoising", "recovery")
BASELINES = {  # what each is good for
    "sta-lta": ("picking", "detection"),
    "ar-aic": ("picking",),
    "template-matching": ("picking", "detection"),
    "band-pass": ("denoising",),
    "wiener": ("denoising",),
    "spline": ("recovery",),
    "pocs": ("recovery",),
}
NEEDED = {"h5py": "training", "scipy": "training", "tqdm": "training", "obspy": "obspy"}
RATES_NOTE = "Precision, recall and F1 with the 95 % interval of F1 (bootstrap over traces)."
FIGURES_NOTE = "Values with their 95 % interval (bootstrap over traces; of false alarms per hour Poisson's)."


class Entrant(NamedTuple):
    """A model to score. one: its bundle, None for a baseline. tasks: what it can do, its own first."""

    name: str
    one: Bundle | None
    tasks: tuple[str, ...]


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="MODEL...")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["train", "dev", "test"]), default="dev", show_default=True)
@click.option("--task", "wanted", type=click.Choice(TASKS), help="Where all can do several. [default: the first's]")
@click.option("--source", "only", multiple=True, help="Only these sources of the data set.")
@click.option("--exclude-source", "without", multiple=True, help="All sources but these.")
@click.option("--incomplete", multiple=True, default=("auto_pal_associated", "auto_quakemigrate"),
              show_default=True, help="Label qualities whose traces hold arrivals that nobody labelled.")  # fmt: skip
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True), help="In place of the networks' own.")
@click.option("--picker", default="phasenet", show_default=True, help="Picks what denoisers make of the waveforms.")
@click.option(
    "--runtime", "runtime_name", type=click.Choice(["onnxruntime", "tensorflow"]), help="[default: what is there]"
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the table there (Markdown).")
@click.option("--write", is_flag=True, help="Keep the figures in the manifests of the bundles.")
def evaluate(
    names: tuple[str, ...], dataset: Path, split: str, wanted: str | None, only: tuple[str, ...],
    without: tuple[str, ...], incomplete: tuple[str, ...], threshold: float | None, picker: str,
    runtime_name: str | None, output: Path | None, write: bool,
) -> None:  # fmt: skip
    """Score models of one task on a labelled DATASET, side by side.

    MODEL is a bundle's folder, NAME[:VERSION] of a shipped model, or a baseline: sta-lta, ar-aic, template-matching
    (picking; the first and last also detection), band-pass, wiener (denoising), spline, pocs (recovery).

    Picking: precision, recall and F1 at 0.1 s and 0.5 s, residuals, false picks per hour of noise. Detection: recall
    and F1 at equal false alarms per hour. Denoising and recovery: clean events with noise added, or clipped. All with
    bootstrap intervals. Thresholds of baselines are chosen on the dev split of DATASET, whatever the split to score.
    """
    for module, extra in NEEDED.items():
        need(module, extra)
    if write and (only or without or threshold):
        raise UsageError("--write keeps figures of a whole split at the models' own thresholds: leave out the options "
                         "--source, --exclude-source and --threshold")  # fmt: skip
    entrants = _entrants(names)
    task = _task(entrants, wanted)
    from seisserve_training import side_by_side
    from seisserve_training.datasets import read_rows

    everything = read_rows(dataset)
    rows = [row for row in everything if row.split == split and row.source not in without]
    rows = [row for row in rows if not only or row.source in only]
    if not rows:
        left = "".join(f" {word} {', '.join(some)}" for word, some in (("of", only), ("without", without)) if some)
        raise UsageError(f"{dataset} has no traces in split {split!r}{left}")
    networks = [_network(one, threshold, runtime_name) for one in entrants if one.one]
    baselines = [one.name for one in entrants if not one.one]
    data, where = side_by_side.Data(everything, rows), (dataset.name, split)
    if task == "picking":
        scored = side_by_side.picking(networks, baselines, data, incomplete, where)
    elif task == "detection":
        scored = side_by_side.detection(networks, baselines, data)
    elif networks:
        scored = side_by_side.waveforms(task, networks, data, _picker(picker, runtime_name))
    else:
        raise UsageError(f"{', '.join(baselines)}: evaluated beside a network for {task}; name one")
    note = RATES_NOTE if task == "picking" else FIGURES_NOTE
    table = f"Split `{split}` of `{dataset.name}`, {len(rows)} traces. {note}\n\n{scored.text}"
    if write:
        for network, one in zip(networks, (one.one for one in entrants if one.one), strict=True):
            manifest.write(one.folder, side_by_side.kept(scored, network, where, one.manifest))
    if output:
        output.write_text(table)
    click.echo(table)


def _entrants(names: Sequence[str]) -> list[Entrant]:
    """The models by name; a second one of the same name is called by what it was asked for as."""
    found: dict[str, Entrant] = {}
    for name in names:
        if name in BASELINES and not Path(name).is_dir():
            found[name] = Entrant(name, None, BASELINES[name])
            continue
        one = bundle.read(Path(name)) if Path(name).is_dir() else bundle.find(name)
        shown = one.manifest.name if one.manifest.name not in found else name
        found[shown] = Entrant(shown, one, one.manifest.tasks)
    return list(found.values())


def _task(entrants: Sequence[Entrant], wanted: str | None) -> str:
    """The task that all of them can do, or UsageError."""
    cannot = [one.name for one in entrants if wanted and wanted not in one.tasks]
    if cannot:
        raise UsageError(f"--task is {wanted!r}; {', '.join(cannot)} cannot do it")
    shared = [task for task in entrants[0].tasks if all(task in one.tasks for one in entrants)]
    if not shared:
        each = ", ".join(f"{one.name} ({' or '.join(one.tasks)})" for one in entrants)
        raise UsageError(f"models of one task are compared, these are of several: {each}")
    return wanted or shared[0]


def _network(entrant: Entrant, threshold: float | None, runtime_name: str | None) -> Network:
    from seisserve_training.side_by_side import Network

    assert entrant.one is not None
    model = entrant.one.manifest
    if threshold is not None:
        model = model.with_options(dict.fromkeys(model.labels, threshold))
    return Network(entrant.name, model, _load(entrant.one, runtime_name))


def _load(one: Bundle, runtime_name: str | None) -> Transport:
    has_onnx = any(artifact.format == "onnx" for artifact in one.manifest.artifacts.values())
    return runtime.load(one, runtime_name or ("onnxruntime" if has_onnx else "tensorflow"))


def _picker(name: str, runtime_name: str | None) -> tuple[manifest.Manifest, Transport]:
    one = bundle.read(Path(name)) if Path(name).is_dir() else bundle.find(name)
    return one.manifest, _load(one, runtime_name)
