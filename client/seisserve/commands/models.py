"""`seisserve models`: look at a repository of models, and prove them."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from seisserve import bundle, runtime
from seisserve.bundle import Bundle
from seisserve.cli import FAILED, fail
from seisserve.errors import BundleError

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
    """Check digests and golden outputs of the models (all, or those named), on every runtime that is installed."""
    failed = 0
    for one in [bundle.find(name, repository) for name in names] or _all(repository):
        for name, artifact in one.manifest.artifacts.items():
            what = f"{one.name}:{one.version} {name}"
            runner = {"onnx": "onnxruntime", "saved_model": "tensorflow"}[artifact.format]
            if not one.has(artifact):
                click.echo(f"{what}: not here (a wheel carries ONNX files only)")
                continue
            if not runtime.installed(runner):
                click.echo(f"{what}: not run, {runner} is not installed")
                continue
            try:
                error = runtime.golden_error(one, runtime.load(one, runner, 1))
            except BundleError as problem:
                failed = fail(str(problem), FAILED)
                continue
            click.echo(f"{what}: digest right, golden outputs within {error:.1e}")
    return failed


def _all(repository: Path | None) -> list[Bundle]:
    found = bundle.models(repository or bundle.shipped())
    return [bundle.find(f"{name}:{version}", repository) for name, versions in found.items() for version in versions]
