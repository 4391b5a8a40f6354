"""SeisBench's own data sets as they lie on disk: every layout that they come in gives the same trace."""

from __future__ import annotations

import bz2
import csv
import gzip
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest

from seisserve.errors import UsageError
from seisserve_training.datasets import Dataset, Row, of_split, read_rows, rows_of

WAVES = np.random.default_rng(1).normal(size=(3, 400))


def write(
    folder: Path, rows: list[dict[str, object]], arrays: dict[str, np.ndarray], chunk: str = "", **form: object
) -> Path:
    """A chunk of a data set: metadata, waveforms and the group data_format."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"metadata{chunk}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    with h5py.File(folder / f"waveforms{chunk}.hdf5", "w") as file:
        for name, array in arrays.items():
            file[f"data/{name}"] = array
        for key, value in form.items():
            file[f"data_format/{key}"] = value
    return folder


def read_one(folder: Path) -> Row:
    (row,) = read_rows(folder)
    return row


def waveform(folder: Path) -> np.ndarray:
    return Dataset(read_rows(folder), 100.0, "ZNE")[0].waveform


@pytest.mark.parametrize(
    ("order", "name", "array"),
    [
        ("CW", "t", WAVES),
        ("WC", "t", WAVES.T),
        ("NCW", "t", WAVES[None]),
        ("NWC", "t", WAVES.T[None]),
        ("CW", "bucket0$1,:3,:400", np.stack([0 * WAVES, WAVES])),
        ("NCW", "bucket0$1,:3,:400", np.stack([0 * WAVES, WAVES])),
        ("WC", "bucket0$1,:400,:3", np.stack([0 * WAVES.T, WAVES.T])),
        ("NWC", "bucket0$1,:400,:3", np.stack([0 * WAVES.T, WAVES.T])),
        ("CW", "bucket0$1,:3,50:450", np.stack([np.zeros((3, 450)), np.pad(WAVES, ((0, 0), (50, 0)))])),
    ],
)
def test_dimension_orders_and_buckets(tmp_path: Path, order: str, name: str, array: np.ndarray) -> None:
    plain = write(tmp_path / "plain", [{"trace_name": "t", "trace_p_arrival_sample": 9}], {"t": WAVES})
    other = write(
        tmp_path / "other", [{"trace_name": name, "trace_p_arrival_sample": 9}], {name.split("$")[0]: array},
        dimension_order=order, component_order="ZNE",
    )  # fmt: skip
    np.testing.assert_array_equal(waveform(other), waveform(plain))


def test_component_order_of_the_set_and_of_the_trace(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"trace_name": "a", "trace_p_arrival_sample": 9, "trace_component_order": ""},
        {"trace_name": "b", "trace_p_arrival_sample": 9, "trace_component_order": "ZNE"},
        {"trace_name": "c", "trace_p_arrival_sample": 9, "trace_component_order": "Z12H"},
    ]
    arrays = {"a": WAVES[::-1], "b": WAVES, "c": np.concatenate([WAVES, WAVES[:1]])}
    data = Dataset(read_rows(write(tmp_path, rows, arrays, component_order="ENZ")), 100.0, "ZNE")
    for number in (1, 2):
        np.testing.assert_array_equal(data[0].waveform, data[number].waveform)


def test_what_was_filled_with_zeros_is_not_live(tmp_path: Path) -> None:
    part = WAVES.copy()
    part[1:] = 0
    folder = write(tmp_path, [{"trace_name": "t", "trace_s_arrival_sample": 9}], {"t": part}, component_order="ZNE")
    assert Dataset(read_rows(folder), 100.0, "ZNE")[0].live == (True, False, False)


def test_chunks_are_those_that_are_listed(tmp_path: Path) -> None:
    for chunk in ("2019", "2020", "_old"):
        write(tmp_path, [{"trace_name": chunk, "trace_P_arrival_sample": 5}], {chunk: WAVES}, chunk)
    assert [row.name for row in read_rows(tmp_path)] == ["2019", "2020", "_old"]
    (tmp_path / "chunks").write_text("2020\n2019\n")
    assert [row.name for row in read_rows(tmp_path)] == ["2020", "2019"]
    (tmp_path / "chunks").write_text("2021\n")
    with pytest.raises(UsageError, match="2021"):
        read_rows(tmp_path)


def test_noise_beside_the_events(tmp_path: Path) -> None:
    write(tmp_path, [{"trace_name": "e", "trace_P_arrival_sample": 5, "source_id": "x"}], {"e": WAVES}, "_events")
    write(tmp_path, [{"trace_name": "n", "station_code": "ABC"}], {"n": WAVES}, "_noise")
    assert [(row.name, row.noise) for row in read_rows(tmp_path)] == [("e", False), ("n", True)]


@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, ".gz"), (bz2.compress, ".bz2")])
def test_packed_metadata(tmp_path: Path, pack: object, suffix: str) -> None:
    folder = write(tmp_path, [{"trace_name": "t", "trace_P_arrival_sample": 5}], {"t": WAVES}, "A")
    plain = folder / "metadataA.csv"
    (folder / f"metadataA.csv{suffix}").write_bytes(pack(plain.read_bytes()))  # type: ignore[operator]
    plain.unlink()
    assert read_one(folder).p == 5


@pytest.mark.parametrize(
    ("row", "form", "rate"),
    [
        ({"trace_sampling_rate_hz": 40}, {"sampling_rate": 20}, 40),
        ({"trace_sampling_rate_hz": ""}, {"sampling_rate": 20}, 20),
        ({"trace_dt_s": 0.005}, {}, 200),
        ({}, {"sampling_rate": 40}, 40),
        ({}, {}, 100),
    ],
)
def test_sampling_rates(tmp_path: Path, row: dict[str, object], form: dict[str, object], rate: float) -> None:
    folder = write(tmp_path, [{"trace_name": "t", "trace_p_arrival_sample": 7, **row}], {"t": WAVES}, **form)
    assert read_one(folder).sampling_rate_hz == rate


@pytest.mark.parametrize(
    ("columns", "p", "s"),
    [
        ({"trace_P_arrival_sample": 5, "trace_S_arrival_sample": 9}, 5, 9),  # INSTANCE, SCEDC, Iquique
        ({"trace_p_arrival_sample": 5, "trace_s_arrival_sample": ""}, 5, np.nan),  # STEAD, LENDB, NEIC
        ({"trace_Pg_arrival_sample": 8, "trace_Pn_arrival_sample": 5, "trace_Sg_arrival_sample": 9}, 5, 9),  # the first
        ({"trace_P1_arrival_sample": 5, "trace_P2_arrival_sample": 3, "trace_S1_arrival_sample": 9}, 5, 9),  # ETHZ
        ({"trace_pP_arrival_sample": 3, "trace_P_arrival_sample": 5}, 5, np.nan),  # GEOFON: a depth phase is no P
        ({"trace_P_arrival_sample": -3, "trace_S_arrival_sample": 9}, np.nan, 9),  # before the trace
        ({"trace_P_arrival_sample": 5, "trace_S_arrival_sample": 4000, "trace_npts": 400}, 5, np.nan),  # after it
        ({"trace_P_arrival_sample": "nan", "trace_S_arrival_sample": "9.0"}, np.nan, 9),
    ],
)
def test_phase_columns(tmp_path: Path, columns: dict[str, object], p: float, s: float) -> None:
    row = read_one(write(tmp_path, [{"trace_name": "t", **columns}], {"t": WAVES}))
    np.testing.assert_array_equal([row.p, row.s], [p, s])
    assert not row.noise


def test_an_earthquake_that_nobody_picked_is_neither_noise_nor_labelled(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"trace_name": "depth", "trace_pP_arrival_sample": 5},
        {"trace_name": "event", "source_id": "x"},
        {"trace_name": "quake", "trace_category": "earthquake_local"},
        {"trace_name": "noise", "trace_category": "noise"},
    ]
    assert [row.name for row in read_rows(write(tmp_path, rows, {}))] == ["noise"]


def test_magnitude_snr_and_status(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"trace_name": "a", "source_magnitude": 2.5, "trace_snr_db": "[56.0 55.0 48.0]", "trace_p_status": "manual"},
        {"trace_name": "b", "trace_Z_snr_db": 12.5},
        {"trace_name": "c", "check_p_snr_0p5s": 10},
        {"trace_name": "d"},
    ]
    found = read_rows(write(tmp_path, [{**row, "trace_p_arrival_sample": 5} for row in rows], {}))
    np.testing.assert_allclose([row.snr_db for row in found], [53.0, 12.5, 20.0, np.nan])
    np.testing.assert_allclose([row.magnitude for row in found], [2.5, np.nan, np.nan, np.nan])
    assert [row.quality for row in found] == ["manual", "not stated", "not stated", "not stated"]


def test_sizes_are_known_without_reading(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"trace_name": "a$0,:3,:400", "trace_sampling_rate_hz": 50, "split": "train", "trace_p_arrival_sample": 5},
        {"trace_name": "b", "trace_npts": 400, "split": "dev", "trace_p_arrival_sample": 5},
    ]
    data = Dataset(read_rows(write(tmp_path, rows, {"b": WAVES})), 100.0, "ZNE")
    assert data.size_bytes == 3 * 4 * (800 + 400)
    part = of_split(data, "dev")
    assert isinstance(part, Dataset)
    assert [row.name for row in rows_of(part)] == ["b"]


def test_threads_read_side_by_side(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"trace_name": f"t{k}", "trace_p_arrival_sample": 5} for k in range(20)]
    data = Dataset(read_rows(write(tmp_path, rows, {f"t{k}": WAVES * (k + 1) for k in range(20)})), 100.0, "ZNE")
    wanted = [trace.waveform for trace in data]
    wrong: list[int] = []

    def read() -> None:
        for _ in range(5):
            wrong.extend(k for k in range(20) if not np.array_equal(data[k].waveform, wanted[k]))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
