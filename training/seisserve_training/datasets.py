"""Labelled waveforms: read data sets in SeisBench's format as they lie on disk."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from seisserve.errors import UsageError
from seisserve.resample import exact_rate, resample
from seisserve.segments import SLOT_CODES

__all__ = ["Dataset", "LabelledTrace", "Row", "read_rows"]

SPLITS = ("train", "dev", "test")
# SeisBench data sets name the first arrival in many ways; the first of these columns that has a value is it.
P_COLUMNS = tuple(f"trace_{name}_arrival_sample" for name in ("p", "P", "Pg", "Pn", "pg", "pn", "P1", "PmP", "pwP"))
S_COLUMNS = tuple(f"trace_{name}_arrival_sample" for name in ("s", "S", "Sg", "Sn", "sg", "sn", "S1", "SmS"))


class Row(NamedTuple):
    """One trace of a data set, without its samples. Onsets in samples of its own rate, NaN where there is no label."""

    file: Path
    name: str
    split: str
    source: str
    licence: str
    quality: str
    noise: bool
    p: float
    s: float
    sampling_rate_hz: float
    component_order: str
    live: str


class LabelledTrace(NamedTuple):
    """A trace at the model's rate. waveform: float32 [components, n]; p, s: onsets in samples, NaN if not labelled."""

    row: Row
    waveform: NDArray[np.float32]
    live: tuple[bool, ...]
    p: float
    s: float


class Dataset(Sequence[LabelledTrace]):
    """The traces of one or more data sets, read when asked for.

    Any sampling rate is resampled to `sampling_rate_hz`, any component order is put into `components`; a component
    that is missing or was not recorded is zero.
    """

    def __init__(self, rows: list[Row], sampling_rate_hz: float, components: str) -> None:
        self.rows, self.sampling_rate_hz, self.components = rows, sampling_rate_hz, components
        self._files: dict[Path, h5py.File] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        return self.load(self.rows[number])

    def __iter__(self) -> Iterator[LabelledTrace]:
        return map(self.load, self.rows)

    def load(self, row: Row) -> LabelledTrace:
        """The samples of one row. Raises UsageError if the file does not hold what the metadata promises."""
        raw = _samples(self._open(row.file), row)
        waveform: list[NDArray[np.float32]] = []
        live: list[bool] = []
        for component in self.components:
            code = next((code for code in SLOT_CODES[component] if code in row.component_order), None)
            alive = code is not None and code in row.live
            live.append(alive)
            samples = raw[row.component_order.index(code)] if code is not None and alive else np.zeros(raw.shape[1])
            waveform.append(self._at_rate(samples, row.sampling_rate_hz))
        scale = float(exact_rate(self.sampling_rate_hz) / exact_rate(row.sampling_rate_hz))
        return LabelledTrace(row, np.stack(waveform), tuple(live), row.p * scale, row.s * scale)

    def _at_rate(self, samples: NDArray[np.float64], rate_hz: float) -> NDArray[np.float32]:
        if exact_rate(rate_hz) != exact_rate(self.sampling_rate_hz):
            samples, _ = resample(samples, 0, rate_hz, self.sampling_rate_hz)
        middle: float = samples.max() / 2 + samples.min() / 2
        return np.asarray(samples - middle, np.float32)

    def _open(self, path: Path) -> h5py.File:
        if path not in self._files:
            self._files[path] = h5py.File(path, "r")
        return self._files[path]


def read_rows(folder: Path, split: str | None = None) -> list[Row]:
    """The rows of a data set folder (metadata*.csv beside waveforms*.hdf5, in one piece or in chunks).

    Without a `split` column rows are split 8:1:1 by event, or by station and day where the event is not known: the
    same event never lands in two splits. Raises UsageError if the folder holds no data set.
    """
    if split is not None and split not in SPLITS:
        raise UsageError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    tables = sorted(folder.glob("metadata*.csv"))
    if not tables:
        raise UsageError(f"{folder} holds no data set: there is no metadata.csv (SeisBench format)")
    rows: list[Row] = []
    for table in tables:
        waveforms = table.with_name(table.name.replace("metadata", "waveforms", 1)).with_suffix(".hdf5")
        if not waveforms.is_file():
            raise UsageError(f"{table} has no {waveforms.name} beside it")
        with h5py.File(waveforms, "r") as file:
            order = file["data_format/component_order"][()].decode() if "data_format/component_order" in file else "ZNE"
        with table.open(newline="") as lines:
            rows.extend(_row(record, waveforms, order, folder.name) for record in csv.DictReader(lines))
    return [row for row in rows if split in (None, row.split)]


def _row(record: dict[str, str], waveforms: Path, default_order: str, folder: str) -> Row:
    order = record.get("trace_component_order") or default_order
    category = record.get("trace_category", "")
    p, s = (_first_number(record, columns) for columns in (P_COLUMNS, S_COLUMNS))
    return Row(
        file=waveforms,
        name=record["trace_name"],
        split=record.get("split") or _split(record),
        source=record.get("source_dataset") or folder,
        licence=record.get("licence", "not stated"),
        quality=record.get("label_quality", "not stated"),
        noise="noise" in category or (np.isnan(p) and np.isnan(s)),
        p=p,
        s=s,
        sampling_rate_hz=float(record.get("trace_sampling_rate_hz") or 100.0),
        component_order=order,
        live=record.get("trace_components_live") or order,
    )


def _first_number(record: dict[str, str], columns: tuple[str, ...]) -> float:
    return next((float(record[column]) for column in columns if record.get(column) not in (None, "", "nan")), np.nan)


def _split(record: dict[str, str]) -> str:
    station = f"{record.get('station_network_code', '')}.{record.get('station_code', '')}"
    event = record.get("source_id") or f"{station} {record.get('trace_start_time', record['trace_name'])[:10]}"
    tenth = int(hashlib.sha256(event.encode()).hexdigest(), 16) % 10
    return "train" if tenth < 8 else "dev" if tenth == 8 else "test"


def _samples(file: h5py.File, row: Row) -> NDArray[np.float64]:
    """[components, n] of one row: `bucket3$7,:3,:6000` is a part of a bucket, any other name a data set of its own."""
    bucket, _, part = row.name.partition("$")
    if bucket not in file["data"]:
        raise UsageError(f"{row.file} has no {bucket!r}, which its metadata names")
    if part:
        selection = tuple(
            slice(*(int(edge) if edge else None for edge in axis.split(":"))) if ":" in axis else int(axis)
            for axis in part.split(",")
        )
        samples = np.asarray(file["data"][bucket][selection], np.float64)
    else:
        samples = np.asarray(file["data"][bucket], np.float64)
    if "data_format/dimension_order" in file and file["data_format/dimension_order"][()].decode().endswith("WC"):
        samples = samples.T
    if samples.ndim != 2 or len(samples) != len(row.component_order):
        raise UsageError(f"{row.file}, {row.name}: shape {samples.shape} does not fit {row.component_order!r}")
    return np.nan_to_num(samples)
