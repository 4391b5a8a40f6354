"""`seisserve serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args, get_origin

import click

from seisserve.extras import need
from seisserve_serving.settings import Field, as_toml, fields, read

__all__ = ["serve"]


class Serve(click.Command):
    """A command whose flags are the settings; yes or no may also be written as --name=true, as TensorFlow Serving
    does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [_as_flag(argument) for argument in args])


def _as_flag(argument: str) -> str:
    name, sign, value = argument.partition("=")
    field = fields().get(name.removeprefix("--").replace("-", "_")) if name.startswith("--") and sign else None
    if field is None or field.kind is not bool or value.lower() not in ("true", "false", "1", "0"):
        return argument
    return f"--{field.name}" if value.lower() in ("true", "1") else f"--no-{field.name}"


def _options(command: Any) -> Any:
    for field in reversed(fields().values()):
        if field.name != "repository":
            command = _option(field)(command)
    return command


def _option(field: Field) -> Any:
    names = f"--{field.name}/--no-{field.name}" if field.kind is bool else f"--{field.name}"
    shown = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    note = "" if shown in ("", False) else f" [default: {'on' if shown is True else shown}]"
    if field.kind is bool:
        return click.option(names, field.name, default=None, help=field.description + note)
    choices = [choice for choice in _choices(field.kind) if choice]
    kind = {int: "NUMBER", float: "NUMBER", str: "TEXT"}.get(field.kind, f"[{'|'.join(choices)}]")
    many = get_origin(field.kind) is tuple
    return click.option(names, field.name, multiple=many, default=None, metavar=kind, help=field.description + note)


def _choices(kind: Any) -> tuple[str, ...]:
    return get_args(get_args(kind)[0]) if get_origin(kind) is tuple else get_args(kind)


@click.command(cls=Serve, context_settings={"token_normalize_func": lambda name: name.replace("-", "_")})
@click.argument("repository", required=False)
@click.option("--config", type=click.Path(path_type=Path), help="TOML file of settings.")
@click.option("--print-config", is_flag=True, help="Print the settings in force and where each came from, and end.")
@click.option("-v", "--verbose", is_flag=True, help="As --log_level debug.")
@_options
def serve(repository: str | None, config: Path | None, print_config: bool, verbose: bool, **flags: Any) -> int:
    """Serve the models in REPOSITORY (NAME/VERSION/ folders), by default those that come with seisserve.

    Every setting is also an environment variable (SEISSERVE_PORT for --port) and a line of a TOML file; they are all in
    docs/settings.md.
    """
    given = {name: ",".join(value) if isinstance(value, tuple) else value for name, value in flags.items()
             if value is not None and value != ()}  # fmt: skip
    if repository is not None:
        given["repository"] = repository
    if verbose:
        given.setdefault("log_level", "debug")
    effective = read(given, os.environ, config)
    if print_config:
        click.echo(as_toml(effective), nl=False)
        return 0
    settings = effective.settings
    need("grpc_health", "serving")
    need("grpc_reflection", "serving")
    need("uvicorn", "serving")
    need("prometheus_client", "serving")
    from seisserve_serving import workers

    return workers.serve(settings)
