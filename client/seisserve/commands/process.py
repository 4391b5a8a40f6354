"""`seisserve process`: waveform files through a chain of models: recover, denoise, then pick and detect."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import click

from seisserve.chain import STAGES, Options, Stage, with_options
from seisserve.client import DEFAULT_MODELS, Client
from seisserve.commands.options import (
    Command,
    Where,
    inputs,
    reading_options,
    thresholds,
    verbose_option,
    where_options,
    writable,
)
from seisserve.commands.work import Target, readable, report, table_target
from seisserve.errors import UsageError
from seisserve.manifest import DETECTION
from seisserve.results import Processed, Waveforms
from seisserve.tables import Detections, Picks, Table
from seisserve.traces import handed_over
from seisserve.writing import check_waveform_format, waveform_format, write_waveforms

__all__ = ["process"]

Made = Literal["picks", "detections", "recovered", "denoised"]
MAKES: dict[Stage, Made] = {"recover": "recovered", "denoise": "denoised", "pick": "picks", "detect": "detections"}
TABLES: dict[Made, type[Table[Any]]] = {"picks": Picks, "detections": Detections}
PATH = click.Path(path_type=Path)


def _stage_option(stage: Stage) -> Command:
    task = STAGES[stage]
    return click.option(
        f"--{stage}", is_flag=False, flag_value=DEFAULT_MODELS[task], metavar="[MODEL]",
        help=f"The stage of {task} [model if none is named: {DEFAULT_MODELS[task]}].",
    )  # fmt: skip


@click.command()
@inputs
@_stage_option("recover")
@_stage_option("denoise")
@_stage_option("pick")
@_stage_option("detect")
@where_options
@reading_options
@click.option("--threshold", "limits", multiple=True, metavar="[LABEL=]NUMBER", help="In place of the models'.")
@click.option("--recovered", type=PATH, help="File for the waveforms after recovery.")
@click.option("--denoised", type=PATH, help="File for the waveforms after denoising.")
@click.option("--detections", type=PATH, help="File for the detections, where -o has the picks.")
@click.option("--format", "kind", help="Of -o [default: by the suffix; csv on standard output].")
@click.option("-o", "--output", default="-", show_default=True, help="File for the result; - for standard output.")
@verbose_option
def process(
    inputs: tuple[Path, ...], recover: str | None, denoise: str | None, pick: str | None, detect: str | None,
    where: Where, hop_samples: int | None, stacking: Literal["mean", "max"] | None,
    resampling: Literal["zero", "causal"], limits: tuple[str, ...], recovered: Path | None, denoised: Path | None,
    detections: Path | None, kind: str | None, output: str, verbose: bool,
) -> int:  # fmt: skip
    """Recover what was clipped in waveform files, take out the noise, then pick and detect.

    Each stage runs if its option is given, in this order; the waveforms that one makes are what the next one takes. -o
    has the picks, without --pick the detections, without both the waveforms of the last stage. Name the inputs before
    the stages. Files that cannot be used are treated as by `seisserve pick`.
    """
    named: dict[Stage, str | None] = {"recover": recover, "denoise": denoise, "pick": pick, "detect": detect}
    stages = {stage: model for stage, model in named.items() if model is not None}
    targets = _targets(stages, output, kind, {"recovered": recovered, "denoised": denoised, "detections": detections})
    with where.client() as client:
        limit_by_label = _check(client, stages, limits, hop_samples=hop_samples, stacking=stacking)
        found: Processed | None = None
        failed = 0
        try:
            for traces, errors in readable(inputs, verbose, "processing"):
                more = client.process(
                    handed_over(traces), recover=recover or False, denoise=denoise or False, pick=pick or False,
                    detect=detect or False, thresholds=limit_by_label, hop_samples=hop_samples, stacking=stacking,
                    resampling=resampling, return_waveforms=recovered is not None or denoised is not None,
                    on_error="skip",
                )  # fmt: skip
                failed = report(more.warnings, [*errors, *more.errors]) or failed
                found = more if found is None else _joined(found, more, targets)
        finally:  # what was done is not lost where something ends it half-way
            if found is not None:
                for made, target in targets.items():
                    _write(getattr(found, made), target)
        return failed


def _targets(
    stages: dict[Stage, str], output: str, kind: str | None, files: dict[Made, Path | None]
) -> dict[Made, Target]:
    """What goes where. Raises UsageError before any work."""
    if not stages:
        raise UsageError("no stage: give one or more of " + ", ".join(f"--{stage}" for stage in STAGES))
    for stage, model in stages.items():
        if Path(model).is_file():
            raise UsageError(f"--{stage} {model}: that is a file, and no model; name the inputs before the stages")
    result = MAKES["pick" if "pick" in stages else "detect" if "detect" in stages else list(stages)[-1]]
    targets = {result: _target(result, output, kind)}
    for made, path in files.items():
        stage = next(stage for stage, makes in MAKES.items() if makes == made)
        if path is None:
            continue
        if stage not in stages:
            raise UsageError(f"--{made} {path}: there is no stage --{stage}")
        if made == result:
            raise UsageError(f"--{made} {path}: -o has the {made} here")
        targets[made] = _target(made, str(path), None)
    if "detect" in stages and "detections" not in targets:
        raise UsageError("-o has the picks; give --detections FILE, too")
    return targets


def _target(made: Made, output: str, kind: str | None) -> Target:
    if made in TABLES:
        return table_target(TABLES[made], output, kind)
    if output == "-":
        raise UsageError("the result is waveforms; name a file for them with -o")
    chosen = kind or waveform_format(Path(output))
    check_waveform_format(chosen)
    return Target(writable(Path(output)), chosen)


def _check(client: Client, stages: dict[Stage, str], limits: tuple[str, ...], **options: Any) -> dict[str, float]:
    """The thresholds by label. Raises UsageError for a model or an option that is wrong, before any work."""
    models = {stage: client.model(model, STAGES[stage]).manifest for stage, model in stages.items()}
    labels = [*models["pick"].phases] if "pick" in models else []
    found = thresholds(limits, [*labels, *([DETECTION] if "detect" in models else [])])
    with_options(models, Options(found, **options))
    return found


def _joined(found: Processed, more: Processed, targets: Iterable[Made]) -> Processed:
    for made in targets:
        getattr(found, made).extend(getattr(more, made))
    return found


def _write(results: Table[Any] | Waveforms, target: Target) -> None:
    if isinstance(results, Table):
        results.write(target.file, target.kind)
    elif results:
        write_waveforms(results, Path(str(target.file)), target.kind)
    if isinstance(target.file, Path):
        what = results.what if isinstance(results, Table) else "traces"
        there = f"{len(results)} {what} in {target.file}"
        click.echo(there if results or isinstance(results, Table) else f"no traces: no {target.file} written", err=True)
