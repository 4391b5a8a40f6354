"""`seisserve demo`: a server, real earthquakes, picks, pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import click

from seisserve import Client, bundle, plots
from seisserve.errors import SeisserveError
from seisserve.extras import need
from seisserve.reading import read_file
from seisserve.tables import Picks, time_text
from seisserve.traces import Trace, to_traces

__all__ = ["demo"]


class Event(NamedTuple):
    """Records that come with ObsPy, below its own folder."""

    name: str
    what: str
    files: tuple[str, ...]


EVENTS = (
    Event("rjob", "local earthquake, Bavaria, 2009-08-24 (ObsPy's example)", ()),
    Event(
        "unterhaching", "small earthquakes near a geothermal plant, Bavaria, 2010-05-27; one station of four has "
        "three components", tuple(
            f"signal/tests/data/BW.{name}.D.2010.147.cut.slist.gz"
            for name in ("UH1._.SHZ", "UH2._.SHZ", "UH3._.SHZ", "UH3._.SHN", "UH3._.SHE", "UH4._.EHZ")
        ),
    ),
    Event(
        "cer", "earthquake at 150 Hz under strong microseism, 2005-07-23 (SEISAN's example)",
        ("io/seisan/tests/data/2005-07-23-1452-04S.CER___030",),
    ),
)  # fmt: skip


@click.command()
@click.option("-o", "--output", default="seisserve-demo", show_default=True, type=click.Path(path_type=Path))
def demo(output: Path) -> None:
    """Start a server, send it real earthquakes, print and draw what it picks. Takes seconds."""
    need("obspy", "obspy")
    need("grpc_health", "serving")
    from seisserve_serving.repository import load
    from seisserve_serving.server import Server

    output.mkdir(parents=True, exist_ok=True)
    server = Server(load(bundle.shipped(), "onnxruntime", None), port=0)
    server.start()
    click.echo(f"a server is listening on {server.address}")
    try:
        with Client(server.address) as client:
            for event in EVENTS:
                _show(client, event, output)
    finally:
        server.stop(grace_s=1)
    click.echo(TRY_NEXT)


def _show(client: Client, event: Event, output: Path) -> None:
    try:
        traces = _traces(event)
    except SeisserveError as error:  # a future ObsPy may leave its test data out
        click.echo(f"\n{event.name}: left out ({error})")
        return
    picks = client.pick(traces)
    click.echo(f"\n{event.what}\n{_table(picks)}")
    picks.write(output / f"{event.name}.xml")
    picks.write(output / f"{event.name}.csv")
    plots.save(plots.draw(traces, client.annotate(traces), picks), output / f"{event.name}.png")
    click.echo(f"  -> {output / event.name}.xml (QuakeML), .csv, .png")


def _traces(event: Event) -> list[Trace]:
    obspy = need("obspy", "obspy")
    if not event.files:
        return to_traces(obspy.read())
    root = Path(str(obspy.__file__)).parent
    return [trace for file in event.files for trace in read_file(root / file)[0]]


def _table(picks: Picks) -> str:
    lines = [f"  {'trace':<14} {'phase':<6} {'time':<28} {'probability':>11} {'+- s':>6} {'SNR dB':>7}  flags"]
    lines += [
        f"  {pick.trace_id:<14} {pick.phase:<6} {time_text(pick.time_ns):<28} {pick.probability:>11.2f} "
        f"{pick.uncertainty_s:>6.2f} {'' if math.isnan(pick.snr_db) else format(pick.snr_db, '.1f'):>7}  "
        f"{' '.join(pick.flags)}"
        for pick in picks
    ]
    return "\n".join(lines)


TRY_NEXT = """
Try next:
  seisserve pick FILE.mseed -o picks.csv       pick your own records, in this process
  seisserve plot FILE.mseed -o picture.png     look at them
  seisserve serve                              serve the models on port 8500; then add --server localhost:8500
  seisserve models list                        what is there
"""
