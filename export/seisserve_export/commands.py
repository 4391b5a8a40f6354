"""The commands `export`, `import` and `card`. Everything heavy is imported when a command runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from seisserve.errors import UsageError
from seisserve.extras import need

__all__ = ["card", "export", "import_weights"]

DIRECTORY = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", "destination", type=DIRECTORY, required=True, help="Folder of the bundle to make.")
@click.option(
    "--windows", type=FILE, help="More windows to compare on: an .npz file, float32 [n, samples, components]."
)
@click.option("--force", is_flag=True, help="Replace the bundle that is there.")
def export(source: Path, destination: Path, windows: Path | None, force: bool) -> None:
    """Make the full bundle, ONNX file and card included, of the SavedModel and manifest in SOURCE.

    The ONNX file is compared with the SavedModel on the golden windows and on those of --windows; what was measured
    goes into the manifest. If the two differ by more than rounding, nothing is written.
    """
    need("tensorflow", "export")
    from seisserve_export.bundles import export_bundle, read_windows

    more = None if windows is None else read_windows(windows)
    report = export_bundle(source, destination, windows=more, replace=force)
    click.echo(f"{destination}\n{report.text()}")


@click.command("import")
@click.argument("kind", type=click.Choice(["phasenet-tf1", "phasenet-keras"]))
@click.argument("weights", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", "destination", type=DIRECTORY, required=True, help="Folder of the bundle to make.")
@click.option(
    "--windows", type=FILE, help="More windows to compare on: an .npz file, float32 [n, samples, components]."
)
@click.option("--force", is_flag=True, help="Replace the bundle that is there.")
def import_weights(kind: str, weights: Path, destination: Path, windows: Path | None, force: bool) -> None:
    """Make a bundle of the published network KIND from its WEIGHTS.

    phasenet-tf1: the folder of the original TensorFlow 1 checkpoint. phasenet-keras: the same as a Keras HDF5 file.
    """
    need("tensorflow", "export")
    from seisserve_export.bundles import PHASENET_ORIGINAL, export_bundle, read_windows, save_bundle
    from seisserve_export.importers.phasenet import load_phasenet_keras_h5, load_phasenet_tf1

    more = None if windows is None else read_windows(windows)
    try:
        module = {"phasenet-tf1": load_phasenet_tf1, "phasenet-keras": load_phasenet_keras_h5}[kind](weights)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(module, PHASENET_ORIGINAL, Path(folder))
        report = export_bundle(Path(folder), destination, windows=more, replace=force)
    click.echo(f"{destination}\n{report.text()}")


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
def card(bundle: Path) -> None:
    """Write CARD.md of a BUNDLE anew from its manifest."""
    from seisserve_export.card import write

    write(bundle)
    click.echo(str(bundle / "CARD.md"))
