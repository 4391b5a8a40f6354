"""Picks as a table: CSV, JSON lines, and through ObsPy's catalog QuakeML, SeisComP XML and the rest."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from seisserve.errors import UsageError, WaveformError
from seisserve.extras import need
from seisserve.picks import Pick

if TYPE_CHECKING:
    from obspy.core.event import Catalog

__all__ = ["COLUMNS", "Picks", "check_format", "format_of", "time_text"]

COLUMNS = (
    "trace_id", "phase", "time", "probability", "uncertainty_s", "snr_db", "flags", "model", "version",
)  # fmt: skip
TEXT_FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
CATALOG_FORMATS = {".xml": "QUAKEML", ".qml": "QUAKEML", ".quakeml": "QUAKEML", ".scml": "SC3ML"}


class Picks(list[Pick]):
    """A list of picks that knows where they come from.

    model, version: what picked; provenance: digest of the weights and every option that decides the picks; warnings:
    what the user should know about the waveforms; errors: instruments that had to be left out.
    """

    def __init__(self, picks: Iterable[Pick], model: str, version: int, provenance: str) -> None:
        super().__init__(picks)
        self.model, self.version, self.provenance = model, version, provenance
        self.warnings: list[str] = []
        self.errors: list[WaveformError] = []

    def rows(self) -> list[dict[str, str | float | int | None]]:
        """One dictionary for each pick, keys as in `COLUMNS`; an unknown SNR is None."""
        return [
            {
                "trace_id": pick.trace_id,
                "phase": pick.phase,
                "time": time_text(pick.time_ns),
                "probability": round(pick.probability, 6),
                "uncertainty_s": pick.uncertainty_s,
                "snr_db": None if math.isnan(pick.snr_db) else pick.snr_db,
                "flags": "|".join(pick.flags),
                "model": self.model,
                "version": self.version,
            }
            for pick in self
        ]

    def to_csv(self, header: bool = True) -> str:
        """Comma-separated values with the columns in `COLUMNS`."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue()

    def to_jsonl(self) -> str:
        """One JSON object a line."""
        return "".join(json.dumps(row) + "\n" for row in self.rows())

    def to_catalog(self) -> Catalog:
        """An ObsPy catalog with one event that holds all picks, each with its model, probability and provenance."""
        event = need("obspy.core.event", "obspy")
        utc = need("obspy", "obspy").UTCDateTime
        method = event.ResourceIdentifier(id=f"smi:local/seisserve/{self.model}/{self.version}/{self.provenance[:16]}")
        found = []
        for pick, row in zip(self, self.rows(), strict=True):
            network, station, location, band = pick.trace_id.split(".")
            note = {key: row[key] for key in ("probability", "snr_db", "flags")} | {"provenance": self.provenance}
            key = f"{pick.trace_id}/{pick.phase}/{pick.time_ns}/{self.provenance[:16]}"
            found.append(
                event.Pick(
                    resource_id=event.ResourceIdentifier(id=f"smi:local/seisserve/pick/{key}"),
                    time=utc(ns=pick.time_ns),
                    time_errors=event.QuantityError(uncertainty=pick.uncertainty_s),
                    waveform_id=event.WaveformStreamID(network, station, location, band),
                    method_id=method,
                    phase_hint=pick.phase,
                    evaluation_mode="automatic",
                    comments=[event.Comment(text=json.dumps(note), force_resource_id=False)],
                )
            )
        holder = event.ResourceIdentifier(id=f"smi:local/seisserve/picks/{self.provenance[:16]}")
        return event.Catalog([event.Event(resource_id=holder, picks=found)], resource_id=holder)

    def write(self, target: Path | TextIO, kind: str | None = None) -> None:
        """Write to a file (or an open text file) in a format by name, or by the file's suffix.

        kind: csv, jsonl, or one that ObsPy can write a catalog in (QUAKEML, SC3ML, NORDIC, ...). Raises UsageError.
        """
        chosen = kind or (format_of(target) if isinstance(target, Path) else "csv")
        check_format(chosen)
        if chosen in ("csv", "jsonl"):
            text = self.to_csv() if chosen == "csv" else self.to_jsonl()
        else:
            text = self._catalog_text(chosen)
        if isinstance(target, Path):
            target.write_text(text)
        else:
            target.write(text)

    def _catalog_text(self, kind: str) -> str:
        content = io.BytesIO()
        catalog = self.to_catalog()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # ObsPy has a newer name for SC3ML; older ObsPy has not
                catalog.write(content, format=kind.upper())
        except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
            raise UsageError(f"picks cannot be written as {kind!r}: {error}") from error
        return content.getvalue().decode()


def check_format(kind: str) -> None:
    """Raises UsageError for a format that does not exist, MissingExtra for one that needs ObsPy where it is not."""
    if kind in TEXT_FORMATS.values():
        return
    offered = need("obspy.core.util.base", "obspy").ENTRY_POINTS["event_write"]
    if kind.upper() not in offered:
        raise UsageError(f"format {kind!r}: picks can be written as csv, jsonl, {', '.join(sorted(offered))}")


def format_of(path: Path) -> str:
    """The format that a file's suffix means. Raises UsageError for one that means none."""
    suffix = path.suffix.lower()
    known = TEXT_FORMATS | CATALOG_FORMATS
    if suffix not in known:
        raise UsageError(f"{path}: suffix {suffix!r} means no format; use {', '.join(known)} or name the format")
    return known[suffix]


def time_text(time_ns: int) -> str:
    """ISO 8601, UTC, microseconds and Z."""
    return f"{np.datetime64(time_ns // 1000, 'us')}Z"
