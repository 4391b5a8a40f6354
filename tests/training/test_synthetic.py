"""Properties of made-up seismograms."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seisserve_training.synthetic import (
    SyntheticEvent,
    synthetic_event,
    synthetic_noise,
    synthetic_signal,
    write_dataset,
)

SAMPLES = 3000
RATE = 100.0

seeds = st.integers(0, 2**32 - 1)
rates = st.sampled_from([10.0, 20.0, 50.0, 100.0, 250.0, 1000.0])


@pytest.fixture(scope="module")
def signals() -> list[SyntheticEvent]:
    rng = np.random.default_rng(0)
    return [synthetic_signal(rng, SAMPLES) for _ in range(150)]


@given(seed=seeds, rate=rates, seconds=st.floats(4, 20))
@settings(max_examples=40, deadline=None)
def test_event_is_finite_labelled_and_reproducible(seed: int, rate: float, seconds: float) -> None:
    samples = math.ceil(seconds * rate)
    event = synthetic_event(np.random.default_rng(seed), samples, rate)
    again = synthetic_event(np.random.default_rng(seed), samples, rate)
    assert event.waveform.shape == (samples, 3) and event.waveform.dtype == np.float32
    assert np.isfinite(event.waveform).all() and event.waveform.any(axis=0).all()
    assert 0.1 * samples - 1 <= event.p_sample <= 0.7 * samples
    assert event.p_sample < event.s_sample
    assert 20 * math.log10(1.5) <= event.snr_db <= 20 * math.log10(300)
    assert event.sampling_rate_hz == rate
    np.testing.assert_array_equal(event.waveform, again.waveform)
    assert (event.p_sample, event.s_sample) == (again.p_sample, again.s_sample)


@given(seed=seeds, rate=rates)
@settings(max_examples=40, deadline=None)
def test_signal_is_zero_before_p_and_starts_at_it(seed: int, rate: float) -> None:
    event = synthetic_signal(np.random.default_rng(seed), int(20 * rate), rate)
    assert not event.waveform[: event.p_sample].any()
    assert event.waveform[event.p_sample].any()


def test_s_is_inside_most_records(signals: list[SyntheticEvent]) -> None:
    assert np.mean([event.s_sample < SAMPLES for event in signals]) > 0.9


def test_p_is_mainly_vertical(signals: list[SyntheticEvent]) -> None:
    peaks = [np.abs(e.waveform[e.p_sample : min(e.s_sample, e.p_sample + 100)]).max(axis=0) for e in signals]
    z, n, e = np.log(np.array(peaks) + 1e-30).T
    assert (z > np.maximum(n, e)).mean() > 0.6


def test_s_rises_on_the_horizontals_at_its_onset(signals: list[SyntheticEvent]) -> None:
    """Energy of the 0.3 s after S over the 0.3 s before it: larger than the same ratio 0.3 s earlier."""

    def rise(event: SyntheticEvent, at: int) -> float:
        energy = (event.waveform[:, 1:].astype(np.float64) ** 2).sum(axis=1)
        return math.log(energy[at : at + 30].sum() / energy[at - 30 : at].sum())

    far = [e for e in signals if e.s_sample - e.p_sample > 100 and e.s_sample + 30 < SAMPLES]
    at_s = np.array([rise(e, e.s_sample) for e in far])
    before_s = np.array([rise(e, e.s_sample - 35) for e in far])
    assert np.median(at_s) > math.log(3)
    assert abs(np.median(before_s)) < math.log(1.5)


def test_event_is_the_signal_scaled_plus_noise() -> None:
    """Same labels from the same seed; where the noise is weak the waveforms agree."""
    for seed in range(40):
        event = synthetic_event(np.random.default_rng(seed), SAMPLES)
        signal = synthetic_signal(np.random.default_rng(seed), SAMPLES)
        assert (event.p_sample, event.s_sample) == (signal.p_sample, signal.s_sample)
        assert signal.snr_db == math.inf
        if event.snr_db > 45:
            part = slice(event.p_sample, None)
            assert np.corrcoef(event.waveform[part].ravel(), signal.waveform[part].ravel())[0, 1] > 0.5


def test_noise_has_no_onset() -> None:
    """Noise hardly ever rises as suddenly as an earthquake does at P."""

    def rises(waveform: np.ndarray, at: Any) -> Any:
        """Energy of the 0.5 s after `at` over that of the 2 s before it, of differences: long periods go."""
        energy = np.concatenate([[0.0], np.cumsum((np.diff(waveform, axis=0).astype(np.float64) ** 2).sum(axis=1))])
        return 4 * (energy[at + 50] - energy[at]) / (energy[at] - energy[at - 200])

    rng = np.random.default_rng(1)
    noise = [rises(synthetic_noise(rng, SAMPLES), np.arange(200, SAMPLES - 60)).max() for _ in range(80)]
    events = [synthetic_event(rng, SAMPLES) for _ in range(80)]
    at_p = [rises(event.waveform, event.p_sample) for event in events if event.snr_db > 30]
    assert np.quantile(noise, 0.95) < 6
    assert np.median(at_p) > 10 * np.median(noise)


def test_noise_is_finite_and_reproducible() -> None:
    for seed in range(20):
        noise = synthetic_noise(np.random.default_rng(seed), SAMPLES)
        assert noise.shape == (SAMPLES, 3) and noise.dtype == np.float32
        assert np.isfinite(noise).all() and noise.any(axis=0).all()
        np.testing.assert_array_equal(noise, synthetic_noise(np.random.default_rng(seed), SAMPLES))


def read(folder: Path) -> tuple[list[dict[str, str]], list[np.ndarray]]:
    with open(folder / "metadata.csv", newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    waveforms = []
    with h5py.File(folder / "waveforms.hdf5") as file:
        assert file["data_format/component_order"].asstr()[()] == "ZNE"
        assert file["data_format/dimension_order"].asstr()[()] == "CW"
        for row in rows:
            bucket, place = row["trace_name"].split("$")
            number, components, samples = place.split(",")
            assert (components, samples) == (":3", f":{row['trace_npts']}")
            waveforms.append(file[f"data/{bucket}"][int(number)])
    return rows, waveforms


def test_dataset_reads_back(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", 150, 7, samples=600, noise_share=0.2, dev_share=0.1, test_share=0.2)
    rows, waveforms = read(tmp_path / "a")
    assert len({row["trace_name"] for row in rows}) == len(rows) == 150
    assert {row["trace_name"].split("$")[0] for row in rows} == {"bucket0", "bucket1"}
    splits = [row["split"] for row in rows]
    assert [splits.count(name) for name in ("train", "dev", "test")] == [105, 15, 30]
    assert sum(row["trace_category"] == "noise" for row in rows) == 30
    for i, (row, waveform) in enumerate(zip(rows, waveforms, strict=True)):
        rng = np.random.default_rng([7, i])
        assert row["source_dataset"] == "synthetic" and row["label_quality"] == "exact"
        assert float(row["trace_sampling_rate_hz"]) == RATE
        if row["trace_category"] == "noise":
            np.testing.assert_array_equal(waveform, synthetic_noise(rng, 600).T)
            assert row["trace_p_arrival_sample"] == row["trace_s_arrival_sample"] == row["source_id"] == ""
            continue
        event = synthetic_event(rng, 600)
        np.testing.assert_array_equal(waveform, event.waveform.T)
        assert float(row["trace_p_arrival_sample"]) == event.p_sample
        assert row["trace_s_arrival_sample"] == (str(float(event.s_sample)) if event.s_sample < 600 else "")
        assert bool(row["trace_s_status"]) == (event.s_sample < 600)


def test_dataset_depends_on_its_seed_alone_and_is_never_overwritten(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_dataset(tmp_path / name, 6, seed, samples=400)
    (rows_a, a), (rows_b, b), (rows_c, c) = (read(tmp_path / name) for name in "abc")
    assert rows_a == rows_b != rows_c
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    with pytest.raises(FileExistsError):
        write_dataset(tmp_path / "a", 6, 1, samples=400)


@pytest.mark.parametrize("make", [synthetic_event, synthetic_signal, synthetic_noise])
@pytest.mark.parametrize(
    ("name", "samples", "rate"),
    [
        ("samples", 399, 100.0),
        ("samples", 0, 100.0),
        ("sampling_rate_hz", 6000, 0.0),
        ("sampling_rate_hz", 6000, math.nan),
    ],
)
def test_bad_record_names_the_argument(make: Callable[..., Any], name: str, samples: int, rate: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        make(np.random.default_rng(0), samples, rate)


@pytest.mark.parametrize(
    "bad",
    [{"count": 0}, {"seed": -1}, {"samples": 3}, {"noise_share": 1.1}, {"dev_share": -0.1}, {"test_share": math.nan}],
)
def test_bad_dataset_names_the_argument_and_writes_nothing(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(bad))} "):
        write_dataset(tmp_path / "x", **({"count": 3, "seed": 0} | bad))
    assert not (tmp_path / "x").exists()
