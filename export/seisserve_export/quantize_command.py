"""The command `quantize`. Everything heavy is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from seisserve.errors import UsageError
from seisserve.extras import need

__all__ = ["quantize"]

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--precision", type=click.Choice(["bfloat16", "float16", "int8", "weights8"]), default="int8", show_default=True,
    help="int8: convolutions in whole numbers. bfloat16: computed so on OpenVINO. weights8, float16: only stored so.",
)  # fmt: skip
@click.option("--calibration", type=FILE, help="Windows of the train split to choose by; made-up ones without.")
@click.option("--windows", type=FILE, help="Windows of the dev split, with labels, to be judged on.")
@click.option(
    "--float-ends", type=(click.IntRange(0), click.IntRange(0)), metavar="FIRST LAST",
    help="How many layers stay float; by default as many as the picks need.",
)  # fmt: skip
@click.option("--dense", is_flag=True, help="Of int8: store the weights of LSTM and MatMul as int8 too, for size.")
@click.option("--study", "studied", is_flag=True, help="Write no artifact; print a table of what each step does.")
def quantize(
    bundle: Path,
    precision: Literal["bfloat16", "float16", "int8", "weights8"],
    calibration: Path | None,
    windows: Path | None,
    float_ends: tuple[int, int] | None,
    dense: bool,
    studied: bool,
) -> None:
    """Add an artifact in fewer bits to the BUNDLE in that folder: model.int8.onnx, say.

    It is compared with the SavedModel on the golden windows and those of --windows; what was measured goes into the
    manifest and the card. If it breaks a bound it is deleted, and the command fails. `seisserve windows` writes the
    files of windows.
    """
    need("tensorflow", "export")
    from seisserve_export.artifacts import add_artifact, read_labelled, study
    from seisserve_export.quantize import Ends

    chosen, labelled = (None if path is None else read_labelled(path) for path in (calibration, windows))
    if studied:
        if chosen is None or labelled is None:
            raise UsageError("--study needs --calibration and --windows")
        click.echo(study(bundle, chosen.windows, labelled), nl=False)
        return
    if precision != "int8" and (calibration or float_ends or dense):
        raise UsageError(f"--calibration, --float-ends and --dense are for int8; {precision} keeps float32 within")
    made = add_artifact(
        bundle, precision, calibration=None if chosen is None else chosen.windows, labelled=labelled,
        ends=None if float_ends is None else Ends(*float_ends), dense=dense,
        failed=lambda made: click.echo(made.text()),
    )  # fmt: skip
    click.echo(f"{bundle / f'model.{precision}.onnx'}\n{made.text()}")
