"""The commands `export`, `import` and `card`. Everything heavy is imported when a command runs."""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from seisserve.errors import UsageError
from seisserve.extras import need
from seisserve.runtimes.setup import PRECISIONS

__all__ = ["card", "export", "import_weights"]

DIRECTORY = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
KINDS = {  # of published weights: what loads them, and the manifest of the bundle; looked up when they are wanted
    "eqtransformer-h5": (
        "importers.eqtransformer:load_eqtransformer_h5",
        "importers.eqtransformer:EQTRANSFORMER_ORIGINAL",
    ),
    "gpd-hdf5": ("importers.gpd:load_gpd_keras_h5", "importers.gpd:GPD_ORIGINAL"),
    "phasenet-keras": ("importers.phasenet:load_phasenet_keras_h5", "bundles:PHASENET_ORIGINAL"),
    "phasenet-tf1": ("importers.phasenet:load_phasenet_tf1", "bundles:PHASENET_ORIGINAL"),
}
SEISBENCH = "seisbench"  # a kind of its own: a description beside the weights says what the manifest has to


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", "destination", type=DIRECTORY, required=True, help="Folder to make.")
@click.option(
    "--windows", type=FILE, help="More windows to compare on: an .npz file, float32 [n, samples, components]."
)
@click.option("--edge", is_flag=True, help="Make a folder that picks without seisserve, of a bundle or shipped model.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="float32",
    show_default=True,
    help="With --edge: which of the bundle's artifacts.",
)
@click.option("--force", is_flag=True, help="Replace the folder that is there.")
def export(source: Path, destination: Path, windows: Path | None, edge: bool, precision: str, force: bool) -> None:
    """Make the full bundle, ONNX file and card included, of the SavedModel and manifest in SOURCE.

    The ONNX file is compared with the SavedModel on the golden windows and on those of --windows; what was measured
    goes into the manifest. If the two differ by more than rounding, nothing is written.

    With --edge SOURCE is the folder of a bundle, or NAME or NAME:VERSION of a shipped model; the folder made of it has
    a streaming picker in one Python file that needs numpy and onnxruntime only, and the same in C++.
    """
    if edge:
        if windows is not None:
            raise UsageError("--windows is for the conversion; with --edge nothing is converted anew")
        from seisserve.bundle import find, read
        from seisserve_export.edge_export import export_edge

        bundle = read(source) if source.is_dir() else find(str(source))
        export_edge(bundle, destination, precision=precision, replace=force)
        click.echo(str(destination))
        return
    if precision != "float32":
        raise UsageError("--precision is for --edge; `seisserve quantize` adds an artifact in fewer bits to a bundle")
    if not source.is_dir():
        raise click.BadParameter(f"{source} is no folder", param_hint="SOURCE")
    need("tensorflow", "export")
    from seisserve_export.bundles import export_bundle, read_windows

    more = None if windows is None else read_windows(windows)
    report = export_bundle(source, destination, windows=more, replace=force)
    click.echo(f"{destination}\n{report.text()}")


@click.command("import")
@click.argument("kind", type=click.Choice(sorted([*KINDS, SEISBENCH])))
@click.argument("weights", type=click.Path(path_type=Path))
@click.option("-o", "--output", "destination", type=DIRECTORY, required=True, help="Folder of the bundle to make.")
@click.option(
    "--windows", type=FILE, help="More windows to compare on: an .npz file, float32 [n, samples, components]."
)
@click.option("--force", is_flag=True, help="Replace the bundle that is there.")
@click.option("--repository", metavar="URL", help="Where SeisBench weights are fetched from; default: their home.")
def import_weights(
    kind: str, weights: Path, destination: Path, windows: Path | None, force: bool, repository: str | None
) -> None:
    """Make a bundle of the published network KIND from its WEIGHTS.

    phasenet-tf1: the folder of the original TensorFlow 1 checkpoint. phasenet-keras: the same as a Keras HDF5 file.
    gpd-hdf5: the file model_pol_best.hdf5 of GPD's authors. eqtransformer-h5: EqT_model.h5 or EqT_model2.h5 of
    EQTransformer's.

    seisbench: the .json file of a SeisBench weight set, its .pt file beside it; or NETWORK/WEIGHTS[:VERSION], as
    phasenet/instance, to fetch them. The model gets the name of its folder where that is NAME/VERSION.
    """
    need("tensorflow", "export")
    from seisserve_export.bundles import export_bundle, read_windows, save_bundle

    more = None if windows is None else read_windows(windows)
    if kind == SEISBENCH:
        module, manifest = _seisbench(weights, repository, destination)
    else:
        if repository is not None:
            raise UsageError(f"--repository is for {SEISBENCH}; {kind} takes a file or folder of yours")
        load, manifest = (_named(place) for place in KINDS[kind])
        try:
            module = load(weights)
        except (FileNotFoundError, ValueError) as error:
            raise UsageError(str(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(module, manifest, Path(folder))
        report = export_bundle(Path(folder), destination, windows=more, replace=force)
    click.echo(f"{destination}\n{report.text()}")


def _seisbench(weights: Path, repository: str | None, destination: Path) -> tuple[Any, Any]:
    """Module and manifest of a SeisBench weight set."""
    from seisserve_export.importers.seisbench import load_seisbench
    from seisserve_export.importers.seisbench_files import REPOSITORY, fetch, find

    name = destination.absolute().parent.name if destination.name.isdecimal() else None
    if weights.exists() or weights.suffix == ".json" or ".json." in weights.name:
        return load_seisbench(find(weights), name)
    with tempfile.TemporaryDirectory() as folder:
        return load_seisbench(fetch(weights.as_posix(), Path(folder), repository or REPOSITORY, _progress), name)


def _progress(name: str, done: int, total: int) -> None:
    if sys.stderr.isatty() or done >= total:
        size = f"{done / 1e6:.2f} of {total / 1e6:.2f} MB" if total else f"{done / 1e6:.2f} MB"
        click.echo(f"\r{name}: {size}" if sys.stderr.isatty() else f"{name}: {size}", err=True, nl=done >= total)


def _named(place: str) -> Any:
    """`module:name` of this package."""
    module, name = place.split(":")
    return getattr(import_module(f"seisserve_export.{module}"), name)


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
def card(bundle: Path) -> None:
    """Write CARD.md of a BUNDLE anew from its manifest."""
    from seisserve_export.card import write

    write(bundle)
    click.echo(str(bundle / "CARD.md"))
