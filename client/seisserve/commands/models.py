"""`seisserve models`: look at a repository of models, and prove them."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from seisserve import bundle, runtime
from seisserve.bundle import Bundle
from seisserve.cli import FAILED, fail
from seisserve.errors import BundleError
from seisserve.manifest import Artifact

__all__ = ["models"]

repository_option = click.option(
    "--repository", type=click.Path(path_type=Path), help="Folder of models [default: the shipped]."
)


@click.group()
def models() -> None:
    """The models in a repository."""


@models.command("list")
@repository_option
def list_models(repository: Path | None) -> None:
    """Name, version, task and artifacts of every model."""
    for one in _all(repository):
        artifacts = ", ".join(name for name in one.manifest.artifacts)
        click.echo(f"{one.name}:{one.version}  {one.manifest.task}  [{artifacts}]  {one.manifest.summary}")


@models.command()
@click.argument("model")
@repository_option
def show(model: str, repository: Path | None) -> None:
    """The manifest of MODEL (NAME or NAME:VERSION)."""
    click.echo(msgspec.json.format(msgspec.json.encode(bundle.find(model, repository).manifest), indent=2).decode())


@models.command()
@click.argument("names", nargs=-1)
@repository_option
def verify(names: tuple[str, ...], repository: Path | None) -> int:
    """Check digests and golden outputs of the models (all, or those named), on every runtime that is installed.

    An artifact that its own runtime does not reproduce is a failure. Another that does not is told of: nothing runs the
    model there.
    """
    failed = 0
    for one in [bundle.find(name, repository) for name in names] or _all(repository):
        for name, artifact in one.manifest.artifacts.items():
            what = f"{one.name}:{one.version} {name}"
            if not one.has(artifact):
                click.echo(f"{what}: not here (a wheel carries ONNX files only)")
                continue
            for runner, kind in runtime.RUNTIMES.items():
                if kind.format == artifact.format:
                    failed = _verify(one, artifact, runner, what) or failed
    return failed


def _verify(one: Bundle, artifact: Artifact, runner: str, what: str) -> int:
    """Prove an artifact on a runtime, and say so; the exit code."""
    if not runtime.installed(runner):
        click.echo(f"{what}: not run, {runner} is not installed")
        return 0
    try:
        error = runtime.golden_error(one, runtime.load(one, runner, 1, artifact.precision))
    except BundleError as problem:
        if runner in ("tensorflow", "openvino" if artifact.precision == "bfloat16" else "onnxruntime"):
            return fail(str(problem), FAILED)
        click.echo(f"{what}: not for {runner}: {' '.join(str(problem).split())[:200]}")
        return 0
    click.echo(f"{what}: on {runner} digest right, golden outputs within {error:.1e}")
    return 0


def _all(repository: Path | None) -> list[Bundle]:
    found = bundle.models(repository or bundle.shipped())
    return [bundle.find(f"{name}:{version}", repository) for name, versions in found.items() for version in versions]
