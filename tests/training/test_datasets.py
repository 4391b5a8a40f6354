"""Data sets in SeisBench's format: any rate, order, layout and naming comes out the same."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest

from seisserve.errors import UsageError
from seisserve_training.datasets import Dataset, read_rows
from seisserve_training.synthetic import write_dataset

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data" / "waveforms"


def write(folder: Path, rows: list[dict[str, object]], waveforms: dict[str, np.ndarray], **form: str) -> Path:
    """A data set of these rows and arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    with h5py.File(folder / "waveforms.hdf5", "w") as file:
        for name, array in waveforms.items():
            file[f"data/{name}"] = array
        for key, value in form.items():
            file[f"data_format/{key}"] = value
    return folder


def ramp(components: int, samples: int) -> np.ndarray:
    return np.arange(components)[:, None] * 1000.0 + np.linspace(-1, 1, samples)


def load(folder: Path) -> list:
    return list(Dataset(read_rows(folder), 100.0, "ZNE"))


def test_bucketed_and_plain_names_agree(tmp_path: Path) -> None:
    array = ramp(3, 500)
    row = {"trace_sampling_rate_hz": 100, "trace_component_order": "ZNE", "trace_p_arrival_sample": 30}
    bucket = write(
        tmp_path / "a", [{**row, "trace_name": "bucket0$1,:3,:500"}], {"bucket0": np.stack([array * 0, array])}
    )
    plain = write(tmp_path / "b", [{**row, "trace_name": "one"}], {"one": array})
    (one,), (two,) = load(bucket), load(plain)
    np.testing.assert_array_equal(one.waveform, two.waveform)
    assert one.p == two.p == 30


@pytest.mark.parametrize(
    ("order", "wanted"), [("ZNE", (0, 1, 2)), ("ENZ", (2, 1, 0)), ("Z12", (0, 1, 2)), ("12Z", (2, 0, 1))]
)
def test_components_land_in_their_slots(tmp_path: Path, order: str, wanted: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=(3, 400))
    write(tmp_path, [{"trace_name": "t", "trace_component_order": order, "trace_p_arrival_sample": 1}], {"t": array})
    (trace,) = load(tmp_path)
    for row, k in zip(trace.waveform, wanted, strict=True):
        expected = array[k] - (array[k].max() / 2 + array[k].min() / 2)
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_missing_components_are_zero_and_marked(tmp_path: Path) -> None:
    row = {"trace_name": "t", "trace_component_order": "ZNE", "trace_components_live": "Z", "trace_p_arrival_sample": 1}
    write(tmp_path, [row], {"t": ramp(3, 300)})
    (trace,) = load(tmp_path)
    assert trace.live == (True, False, False)
    assert trace.waveform[0].any()
    assert not trace.waveform[1:].any()


def test_dimension_order_samples_first(tmp_path: Path) -> None:
    array = ramp(3, 300)
    row = {"trace_name": "t", "trace_component_order": "ZNE", "trace_p_arrival_sample": 1}
    one = write(tmp_path / "a", [row], {"t": array}, dimension_order="CW")
    two = write(tmp_path / "b", [row], {"t": array.T}, dimension_order="WC")
    np.testing.assert_array_equal(load(one)[0].waveform, load(two)[0].waveform)


@pytest.mark.parametrize("rate", [20, 50, 200, 250])
def test_other_rates_are_resampled_and_onsets_with_them(tmp_path: Path, rate: int) -> None:
    onset_s = 4.0
    time = np.arange(10 * rate) / rate
    array = np.tile(np.where(time >= onset_s, np.sin(2 * np.pi * 2 * (time - onset_s)), 0), (3, 1))
    row = {"trace_name": "t", "trace_sampling_rate_hz": rate, "trace_p_arrival_sample": onset_s * rate}
    write(tmp_path, [row], {"t": array})
    (trace,) = load(tmp_path)
    assert trace.p == onset_s * 100
    onset = int(trace.p)
    wave = trace.waveform[0] - np.median(trace.waveform[0][:300])
    assert np.abs(wave[: onset - 30]).max() < 0.02
    assert np.abs(wave[onset : onset + 30]).max() > 0.8


def test_onset_columns_of_seisbench_are_understood(tmp_path: Path) -> None:
    rows = [
        {"trace_name": "a", "trace_Pg_arrival_sample": 10, "trace_Sn_arrival_sample": 20},
        {"trace_name": "b", "trace_P_arrival_sample": 11, "trace_S_arrival_sample": 21},
    ]
    write(tmp_path, rows, {"a": ramp(3, 100), "b": ramp(3, 100)})
    assert [(row.p, row.s) for row in read_rows(tmp_path)] == [(10, 20), (11, 21)]


def test_chunks_are_read_as_one_set(tmp_path: Path) -> None:
    for chunk in "AB":
        part = write(tmp_path / chunk, [{"trace_name": chunk, "trace_P_arrival_sample": 5}], {chunk: ramp(3, 200)})
        (part / "metadata.csv").rename(tmp_path / f"metadata_{chunk}.csv")
        (part / "waveforms.hdf5").rename(tmp_path / f"waveforms_{chunk}.hdf5")
    assert [row.name for row in read_rows(tmp_path)] == ["A", "B"]
    assert len(load(tmp_path)) == 2


def test_an_event_never_lands_in_two_splits(tmp_path: Path) -> None:
    rows = [{"trace_name": f"t{k}", "source_id": f"event{k % 40}", "trace_p_arrival_sample": 5} for k in range(200)]
    write(tmp_path, rows, {f"t{k}": ramp(3, 10) for k in range(200)})
    splits: dict[int, set[str]] = {}
    for k, row in enumerate(read_rows(tmp_path)):
        splits.setdefault(k % 40, set()).add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {"train"} < set().union(*splits.values())


def test_made_up_sets_are_read_back(tmp_path: Path) -> None:
    write_dataset(tmp_path / "made", 20, seed=1)
    traces = load(tmp_path / "made")
    assert len(traces) == 20
    assert any(trace.row.noise for trace in traces)
    assert any(np.isfinite(trace.p) for trace in traces)


@pytest.mark.parametrize("spoil", ["empty", "no_waveforms", "no_trace", "wrong_components", "wrong_split"])
def test_errors_say_what_is_wrong(tmp_path: Path, spoil: str) -> None:
    folder = write(tmp_path, [{"trace_name": "t", "trace_component_order": "ZNE"}], {"t": ramp(3, 50)})
    split = None
    if spoil == "empty":
        (folder / "metadata.csv").unlink()
    elif spoil == "no_waveforms":
        (folder / "waveforms.hdf5").unlink()
    elif spoil == "no_trace":
        write(folder, [{"trace_name": "other"}], {"t": ramp(3, 50)})
    elif spoil == "wrong_components":
        write(folder, [{"trace_name": "t", "trace_component_order": "ZN"}], {"t": ramp(3, 50)})
    else:
        split = "everything"
    with pytest.raises(UsageError):
        list(Dataset(read_rows(folder, split), 100.0, "ZNE"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here")
def test_the_shared_set_is_read_whole() -> None:
    rows = read_rows(SHARED)
    assert len(rows) == 2428
    assert sum(np.isfinite(row.p) for row in rows) == 1319
    assert sum(np.isfinite(row.s) for row in rows) == 925
    trace = Dataset(rows, 100.0, "ZNE").load(next(row for row in rows if row.sampling_rate_hz == 250))
    assert trace.waveform.dtype == np.float32
    assert np.isfinite(trace.waveform).all()
