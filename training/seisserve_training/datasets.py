"""Labelled waveforms: read data sets in SeisBench's format as they lie on disk."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from seisserve.errors import UsageError
from seisserve.resample import exact_rate, resample
from seisserve.segments import SLOT_CODES

__all__ = ["Dataset", "LabelledTrace", "Row", "of_split", "read_rows", "rows_of"]

SPLITS = ("train", "dev", "test")
# SeisBench data sets name the first arrival in many ways; the earliest of these columns that has a value is it. Depth
# phases (pP, sP) and later ones (P2, PcP) are none.
P_COLUMNS = tuple(
    f"trace_{name}_arrival_sample"
    for name in ("p", "P", "P1", "Pg", "pg", "Pn", "pn", "Pb", "pb", "PmP", "pwP", "pwPm", "Pdiff", "PKP", "PKIKP")
)
S_COLUMNS = tuple(
    f"trace_{name}_arrival_sample"
    for name in ("s", "S", "S1", "Sg", "sg", "Sn", "sn", "Sb", "sb", "SmS", "Sdiff", "SKS")
)
SNR_COLUMNS = ("trace_snr_db", "trace_Z_snr_db", "trace_P_snr_db")
OPEN: dict[str, Callable[..., Any]] = {".csv": open, ".gz": gzip.open, ".bz2": bz2.open}


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
    station: str = ""  # NET.STA, where it is known
    magnitude: float = np.nan
    snr_db: float = np.nan
    samples: int = 0  # of its own rate, 0 where the metadata does not say
    dimension_order: str = "CW"


class LabelledTrace(NamedTuple):
    """A trace at the model's rate. waveform: float32 [components, n]; p, s: onsets in samples, NaN if not labelled."""

    row: Row
    waveform: NDArray[np.float32]
    live: tuple[bool, ...]
    p: float
    s: float


def rows_of(traces: Sequence[LabelledTrace]) -> list[Row]:
    """The rows of traces, without reading the waveforms of those that are not in memory."""
    return traces.rows if isinstance(traces, Dataset) else [trace.row for trace in traces]


def of_split(traces: Sequence[LabelledTrace], split: str) -> Sequence[LabelledTrace]:
    """Those of one split; what is not in memory stays where it is."""
    if isinstance(traces, Dataset):
        rows = [row for row in traces.rows if row.split == split]
        return Dataset(rows, traces.sampling_rate_hz, traces.components)
    return [trace for trace in traces if trace.row.split == split]


class Dataset(Sequence[LabelledTrace]):
    """The traces of one or more data sets, read when asked for.

    Any sampling rate is resampled to `sampling_rate_hz`, any component order is put into `components`; a component
    that is missing or was not recorded is zero.
    """

    def __init__(self, rows: list[Row], sampling_rate_hz: float, components: str) -> None:
        self.rows, self.sampling_rate_hz, self.components = rows, sampling_rate_hz, components
        self._files: dict[tuple[int, int, Path], h5py.File] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        return self.load(self.rows[number])

    def __iter__(self) -> Iterator[LabelledTrace]:
        return map(self.load, self.rows)

    @property
    def size_bytes(self) -> int:
        """Memory that all waveforms would take; where the metadata has no lengths, as much as their files at least."""
        rates = {row.sampling_rate_hz: self.sampling_rate_hz / row.sampling_rate_hz for row in self.rows}
        known = sum(row.samples * rates[row.sampling_rate_hz] for row in self.rows) * len(self.components) * 4
        return round(known) + sum(file.stat().st_size for file in {row.file for row in self.rows if not row.samples})

    def load(self, row: Row) -> LabelledTrace:
        """The samples of one row. Raises UsageError if the file does not hold what the metadata promises."""
        raw = _samples(self._open(row.file), row)
        waveform: list[NDArray[np.float32]] = []
        live: list[bool] = []
        for component in self.components:
            code = next((code for code in SLOT_CODES[component] if code in row.component_order), None)
            alive = code is not None and code in row.live
            samples = raw[row.component_order.index(code)] if code is not None and alive else np.zeros(raw.shape[1])
            live.append(alive and bool(samples.any()))  # sets fill what is missing with zeros
            waveform.append(self._at_rate(samples, row.sampling_rate_hz))
        scale = float(exact_rate(self.sampling_rate_hz) / exact_rate(row.sampling_rate_hz))
        return LabelledTrace(row, np.stack(waveform), tuple(live), row.p * scale, row.s * scale)

    def _at_rate(self, samples: NDArray[np.float64], rate_hz: float) -> NDArray[np.float32]:
        if exact_rate(rate_hz) != exact_rate(self.sampling_rate_hz):
            samples, _ = resample(samples, 0, rate_hz, self.sampling_rate_hz)
        middle: float = samples.max() / 2 + samples.min() / 2
        return np.asarray(samples - middle, np.float32)

    def _open(self, path: Path) -> h5py.File:
        key = os.getpid(), threading.get_ident(), path  # a handle must not cross a fork; a thread has its own
        if key not in self._files:
            self._files[key] = h5py.File(path, "r")
        return self._files[key]


def read_rows(folder: Path, split: str | None = None) -> list[Row]:
    """The rows of a data set folder: metadata<chunk>.csv (or .csv.gz, .csv.bz2) beside waveforms<chunk>.hdf5.

    Chunks are those that a file `chunks` lists, a name a line, or else all that there are. Without a `split` column
    rows are split 8:1:1 by event, or by station and day where the event is not known: the same event never lands in two
    splits. Earthquakes that nobody picked are left out: they are neither noise nor labelled. Raises UsageError if the
    folder holds no data set.
    """
    if split is not None and split not in SPLITS:
        raise UsageError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    rows: list[Row] = []
    for table in _tables(folder):
        chunk = table.name.removeprefix("metadata").partition(".csv")[0]
        waveforms = folder / f"waveforms{chunk}.hdf5"
        if not waveforms.is_file():
            raise UsageError(f"{table} has no {waveforms.name} beside it")
        form = _data_format(waveforms)
        with OPEN[table.suffix](table, "rt", newline="", encoding="utf-8") as lines:
            rows.extend(_row(record, waveforms, form, folder.name) for record in csv.DictReader(lines))
    return [row for row in rows if row.noise or np.isfinite(row.p) or np.isfinite(row.s) if split in (None, row.split)]


def _tables(folder: Path) -> list[Path]:
    """The metadata files of a folder, one a chunk."""
    found = sorted(path for path in folder.glob("metadata*.csv*") if path.suffix in OPEN)
    listed = folder / "chunks"
    if listed.is_file() and (names := listed.read_text().split()):
        by_chunk = {path.name.removeprefix("metadata").partition(".csv")[0]: path for path in found}
        missing = [name for name in names if name not in by_chunk]
        if missing:
            raise UsageError(f"{listed} names {missing[0]!r}, but there is no metadata{missing[0]}.csv")
        return [by_chunk[name] for name in names]
    if not found:
        raise UsageError(f"{folder} holds no data set: there is no metadata.csv (SeisBench format)")
    return found


def _data_format(waveforms: Path) -> dict[str, str]:
    """What the group data_format of a file says, as text."""
    with h5py.File(waveforms, "r") as file:
        group = file.get("data_format", {})
        values = {key: group[key][()] for key in group}
    return {key: value.decode() if isinstance(value, bytes) else str(value) for key, value in values.items()}


def _row(record: dict[str, str], waveforms: Path, form: dict[str, str], folder: str) -> Row:
    order = record.get("trace_component_order") or form.get("component_order", "ZNE")
    samples = _length(record)
    p, s = (_earliest(record, columns, samples) for columns in (P_COLUMNS, S_COLUMNS))
    return Row(
        file=waveforms,
        name=record["trace_name"],
        split=record.get("split") or _split(record),
        source=record.get("source_dataset") or folder,
        licence=record.get("licence", "not stated"),
        quality=record.get("label_quality") or _status(record) or "not stated",
        noise=_is_noise(record),
        p=p,
        s=s,
        sampling_rate_hz=_rate(record, form),
        component_order=order,
        live=record.get("trace_components_live") or order,
        station=_station(record),
        magnitude=_number(record.get("source_magnitude")),
        snr_db=_snr_db(record),
        samples=samples,
        dimension_order=form.get("dimension_order", "CW"),
    )


def _rate(record: dict[str, str], form: dict[str, str]) -> float:
    """Of the trace, or of the whole set; 100 Hz where neither says it."""
    rate, interval = _number(record.get("trace_sampling_rate_hz")), _number(record.get("trace_dt_s"))
    if np.isfinite(rate):
        return rate
    return 1 / interval if np.isfinite(interval) else float(form.get("sampling_rate", 100.0))


def _length(record: dict[str, str]) -> int:
    """Samples of a trace, from its own column or the part of a bucket that it is; 0 if neither says it."""
    known = _number(record.get("trace_npts"))
    if np.isfinite(known):
        return int(known)
    ends = [int(end) for end in re.findall(r":(\d+)", record["trace_name"].partition("$")[2])]
    return max(ends, default=0)


def _is_noise(record: dict[str, str]) -> bool:
    """Whether a trace is noise: it says so, or there is neither an onset nor an event."""
    category = record.get("trace_category", "")
    onset = any(np.isfinite(_number(v)) for k, v in record.items() if k and k.endswith("_arrival_sample"))
    event = any(record.get(key) for key in ("source_id", "source_magnitude", "source_origin_time"))
    return "noise" in category or not (onset or event or category)


def _earliest(record: dict[str, str], columns: tuple[str, ...], samples: int) -> float:
    """The first onset inside the trace, NaN if there is none."""
    found = [_number(record.get(column)) for column in columns]
    return min((onset for onset in found if 0 <= onset < (samples or np.inf)), default=np.nan)


def _snr_db(record: dict[str, str]) -> float:
    """Signal-to-noise ratio in dB, the mean over components where there are several (`[51.2 48.0 49.9]`)."""
    for column in SNR_COLUMNS:
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", record.get(column) or "")]
        if numbers:
            return float(np.mean(numbers))
    ratio = _number(record.get("check_p_snr_0p5s"))
    return 20 * float(np.log10(ratio)) if ratio > 0 else np.nan


def _status(record: dict[str, str]) -> str:
    """How the trace was labelled (manual, automatic), where only the picks say it."""
    return next(
        (value for key, value in record.items() if key and re.fullmatch(r"trace_[PpSs]\w*_status", key) and value), ""
    )


def _number(text: str | None) -> float:
    """NaN where there is none."""
    return float(text) if text and text not in ("None", "nan", "NaN") else np.nan


def _station(record: dict[str, str]) -> str:
    network, station = record.get("station_network_code", ""), record.get("station_code", "")
    return f"{network}.{station}" if station else ""


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
    selection = tuple(
        slice(*(int(edge) if edge else None for edge in axis.split(":"))) if ":" in axis else int(axis)
        for axis in (part or ":").split(",")
    )
    samples = np.asarray(file["data"][bucket][selection], np.float64)
    dimensions = row.dimension_order.removeprefix("N")  # buckets and batches of one trace
    if samples.ndim == len(dimensions) + 1 and len(samples) == 1:
        samples = samples[0]
    if samples.ndim == 1:
        samples = samples[None, :]
    elif dimensions == "WC":
        samples = samples.T
    if samples.ndim != 2 or len(samples) != len(row.component_order):
        raise UsageError(f"{row.file}, {row.name}: shape {samples.shape} does not fit {row.component_order!r}")
    return np.nan_to_num(samples)
