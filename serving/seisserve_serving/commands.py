"""`seisserve serve`."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from seisserve.bundle import shipped
from seisserve.commands.options import setup_options
from seisserve.extras import need

__all__ = ["serve"]


@click.command()
@click.argument("repository", required=False, type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=8500, show_default=True, type=click.IntRange(0, 65535), help="gRPC; 0 for a free one.")
@setup_options
@click.option("--max_message_mb", default=256, show_default=True, type=click.IntRange(1, 2047), help="Largest message.")
@click.option("--grace_s", default=30.0, show_default=True, help="At SIGTERM: time for calls under way to finish.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def serve(
    repository: Path | None, host: str, port: int, threads: int | None, runtime: str | None, precision: str | None,
    providers: tuple[str, ...], tuned: bool, max_message_mb: int, grace_s: float, verbose: bool,
) -> None:  # fmt: skip
    """Serve the models in REPOSITORY (NAME/VERSION/ folders), by default those that come with seisserve."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    need("grpc_health", "serving")
    need("grpc_reflection", "serving")
    from seisserve_serving.models import load
    from seisserve_serving.server import Server

    models = load(repository or shipped(), runtime, threads, precision, providers or None, use_tuned=tuned)
    server = Server(models, host, port, max_message_mb << 20)
    click.echo(f"seisserve: serving {', '.join(models.served)} on {server.address}")
    server.run(grace_s)
