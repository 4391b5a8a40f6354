"""Picks and detections as tables: CSV, JSON lines, and picks through ObsPy's catalog as QuakeML and the rest."""

from __future__ import annotations

import csv
import io
import json
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TextIO, TypeVar

import numpy as np

from seisserve.detections import Detection
from seisserve.errors import UsageError
from seisserve.extras import need
from seisserve.picks import Pick
from seisserve.results import Results
from seisserve.turns import turn

if TYPE_CHECKING:
    from obspy.core.event import Catalog

__all__ = ["COLUMNS", "DETECTION_COLUMNS", "Detections", "Picks", "Table", "format_of", "time_text"]

COLUMNS = (
    "trace_id", "phase", "time", "probability", "uncertainty_s", "snr_db", "flags", "model", "version",
)  # fmt: skip
DETECTION_COLUMNS = ("trace_id", "start", "end", "probability", "flags", "model", "version")
TEXT_FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
FORMATS = tuple(dict.fromkeys(TEXT_FORMATS.values()))
CATALOG_FORMATS = {".xml": "QUAKEML", ".qml": "QUAKEML", ".quakeml": "QUAKEML", ".scml": "SC3ML"}
Row = dict[str, str | float | int | None]
Item = TypeVar("Item")


class Table(Results[Item], ABC):
    """Results that can be written as a table: `what` they are, and its `columns`."""

    what: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]

    @abstractmethod
    def rows(self) -> list[Row]:
        """One dictionary for each result, keys as in `columns`."""

    def to_csv(self, header: bool = True) -> str:
        """Comma-separated values with the columns in `columns`."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue()

    def to_jsonl(self) -> str:
        """One JSON object a line."""
        return "".join(json.dumps(row) + "\n" for row in self.rows())

    def write(self, target: Path | TextIO, kind: str | None = None) -> None:
        """Write to a file (or an open text file) in a format by name, or by the file's suffix: csv, jsonl, and picks in
        any that ObsPy can write a catalog in (QUAKEML, SC3ML, NORDIC, ...). Raises UsageError."""
        chosen = kind or (format_of(target) if isinstance(target, Path) else "csv")
        self.check_format(chosen)
        text = self._text(chosen)
        if isinstance(target, Path):
            target.write_text(text)
        else:
            target.write(text)

    @classmethod
    def check_format(cls, kind: str) -> None:
        """Raises UsageError for a format that these results cannot be written in."""
        if kind not in FORMATS:
            raise UsageError(f"format {kind!r}: {cls.what} can be written as {', '.join(FORMATS)}")

    def _text(self, kind: str) -> str:
        return self.to_csv() if kind == "csv" else self.to_jsonl()


class Detections(Table[Detection]):
    """Detections that know where they come from, see `Results`."""

    what = "detections"
    columns = DETECTION_COLUMNS

    def rows(self) -> list[Row]:
        """One dictionary for each detection, keys as in `columns`."""
        return [
            {
                "trace_id": detection.trace_id,
                "start": time_text(detection.start_ns),
                "end": time_text(detection.end_ns),
                "probability": round(detection.probability, 6),
                "flags": "|".join(detection.flags),
                "model": self.model,
                "version": self.version,
            }
            for detection in self
        ]


class Picks(Table[Pick]):
    """Picks that know where they come from, see `Results`."""

    what = "picks"
    columns = COLUMNS

    def rows(self) -> list[Row]:
        """One dictionary for each pick, keys as in `columns`; an unknown SNR is None."""
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

    @classmethod
    def check_format(cls, kind: str) -> None:
        """Raises UsageError for a format that does not exist, MissingExtra for one that needs ObsPy where it is not."""
        if kind in FORMATS:
            return
        offered = need("obspy.core.util.base", "obspy").ENTRY_POINTS["event_write"]
        if kind.upper() not in offered:
            raise UsageError(f"format {kind!r}: picks can be written as {', '.join([*FORMATS, *sorted(offered)])}")

    def _text(self, kind: str) -> str:
        return super()._text(kind) if kind in FORMATS else self._catalog_text(kind)

    def _catalog_text(self, kind: str) -> str:
        content = io.BytesIO()
        catalog = self.to_catalog()
        try:
            with turn():  # which keeps its warnings, too: it has a newer name for SC3ML; older ObsPy has not
                catalog.write(content, format=kind.upper())
        except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
            raise UsageError(f"picks cannot be written as {kind!r}: {error}") from error
        return content.getvalue().decode()


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
