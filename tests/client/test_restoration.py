"""Properties of denoised and recovered waveforms."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import obspy
import pytest
from client.small_bundles import waveform_model
from client.waveforms import NS, START_NS, Array, part, pieces, record, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from seisserve.errors import UsageError
from seisserve.manifest import Manifest
from seisserve.restoration import restore
from seisserve.traces import Trace, from_stream, to_obspy
from seisserve.transport import FakeTransport
from seisserve.writing import check_waveform_format, waveform_format, write_waveforms

DENOISE, RECOVER = waveform_model("half", "denoising"), waveform_model("same", "recovery", blinding_samples=50)
SAME = FakeTransport(lambda waveform: waveform)
HALF = FakeTransport(lambda waveform: waveform / 2)


def tapered(waveform: Array) -> Array:
    """What depends on the whole window and on the place in it."""
    place = np.linspace(0.2, 0.8, waveform.shape[1], dtype=np.float32)[:, None]
    return waveform * place * (1 + 1 / (2 + np.abs(waveform).max(axis=(1, 2), keepdims=True)))


def results(traces: list[Trace], model: Manifest, network: Callable[[Array], Array]) -> list[Trace]:
    return [trace for item in restore(traces, model, FakeTransport(network))[0] for trace in item.traces()]


def by_time(traces: list[Trace]) -> dict[tuple[str, int], float]:
    """Every sample by channel and number since 1970."""
    return {
        (trace.id, round(trace.start_ns / 1e7) + k): value
        for trace in traces
        for k, value in enumerate(trace.samples.tolist())
    }


@given(
    seed=seeds,
    cuts=st.lists(st.integers(1, 2999), max_size=4),
    shift=st.integers(-(2**31) + 10**6, 2**31 - 10**6),
    width=st.sampled_from([10, 2**20, 2**31]),
)
@settings(max_examples=50, deadline=None)
def test_samples_that_recovery_leaves_alone_come_back_bit_by_bit(
    seed: int, cuts: list[int], shift: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    low, high = max(-(2**31), shift - width), min(2**31 - 1, shift + width)
    given_traces = [t._replace(samples=rng.integers(low, high, 3000, np.int32)) for t in record(0, 30)]
    found = results([p for t in given_traces for p in pieces(t, cuts)], RECOVER, lambda waveform: waveform)
    assert [trace.id for trace in found] == [trace.id for trace in given_traces]
    for trace, before in zip(found, given_traces, strict=True):
        assert (trace.start_ns, trace.sampling_rate_hz) == (before.start_ns, before.sampling_rate_hz)
        assert trace.samples.dtype == np.float64
        np.testing.assert_array_equal(trace.samples, before.samples)


def test_what_recovery_changes_is_changed_by_that_much() -> None:
    def taller(waveform: Array) -> Array:
        return np.where(np.abs(waveform) >= 4000, waveform * np.float32(1.25), waveform)

    samples = np.random.default_rng(0).integers(-100, 100, 3000).astype(np.int32) + 1_000_000
    samples[[1500, 1501]] = 1_005_000, 995_000
    (found,) = results([Trace("XX.STA..HHZ", START_NS, 100.0, samples)], RECOVER, taller)
    assert found.samples[1500] == 1_006_250
    assert found.samples[1501] == 993_750
    others = np.delete(np.arange(3000), [1500, 1501])
    np.testing.assert_array_equal(found.samples[others], samples[others])


@given(scale=st.sampled_from([1e-14, 1.0, 1e9]), offset=st.sampled_from([0.0, 1e3]))
@settings(max_examples=10, deadline=None)
def test_denoised_waveforms_are_float32_in_units_of_the_input_and_the_rest_is_noise(
    scale: float, offset: float
) -> None:
    traces = [t._replace(samples=(t.samples + offset * 1e3) * scale) for t in record(0, 30)]
    restored, warnings = restore(traces, DENOISE, HALF)
    assert not warnings
    for signal, noise, before in zip(restored[0].traces(), restored[0].removed(), traces, strict=True):
        assert signal[:3] == noise[:3] == before[:3]
        assert (signal.samples.dtype, noise.samples.dtype) == (np.float32, np.float64)
        np.testing.assert_allclose(signal.samples + noise.samples, before.samples, rtol=1e-12)
        assert np.abs(signal.samples).max() < 10_000 * scale  # the offset is noise
        assert np.abs(signal.samples).max() > 500 * scale


@pytest.mark.parametrize("model", [DENOISE, RECOVER], ids=["denoising", "recovery"])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_cutting_a_record_changes_nothing_and_a_gap_nothing_a_window_away(model: Manifest, data: st.DataObject) -> None:
    traces = record(1, 40)
    whole = by_time(results(traces, model, tapered))
    cut = data.draw(st.lists(st.integers(1, 3999), max_size=3))
    assert by_time(results([p for t in traces for p in pieces(t, cut)], model, tapered)) == whole

    begin = data.draw(st.integers(0, 3990))
    end = begin + data.draw(st.integers(1, 500))
    sides = [s for t in traces for s in (part(t, 0, begin), part(t, end, 4000)) if len(s.samples)]
    found = by_time(results(sides, model, tapered))
    first = START_NS // 10_000_000
    assert len(found) == sum(len(side.samples) for side in sides)
    for (name, index), value in found.items():
        place = index - first
        if (place < begin - 600 or place >= end + 600) and 600 <= place < 3400:
            assert value == whole[name, index]


def test_missing_components_are_left_out_and_codes_stay_as_they_were() -> None:
    traces = record(0, 30, codes="31")
    found = results(traces, RECOVER, lambda waveform: waveform)
    assert [trace.id[-1] for trace in found] == ["3", "1"]
    late = part(traces[1], 1000, 3000)
    found = results([traces[0], late], RECOVER, lambda waveform: waveform)
    shape = [(t.id[-1], len(t.samples), (t.start_ns - START_NS) // NS) for t in found]
    assert shape == [("3", 1000, 0), ("3", 2000, 10), ("1", 2000, 10)]


@pytest.mark.parametrize("rate", [50.0, 200.0])
def test_other_rates_come_back_at_the_rate_of_the_model(rate: float) -> None:
    for trace in results(record(0, 30, rate), DENOISE, lambda waveform: waveform):
        assert trace.sampling_rate_hz == 100
        assert trace.start_ns % 10_000_000 == 0
        assert abs(len(trace.samples) - 3000) <= 2


def test_fragments_come_back_in_full() -> None:
    for length in (1, 50, 599):
        traces = [part(trace, 0, length) for trace in record(0, 30)]
        for trace, before in zip(results(traces, RECOVER, lambda waveform: waveform), traces, strict=True):
            np.testing.assert_array_equal(trace.samples, before.samples)


def test_no_traces_give_no_waveforms() -> None:
    assert restore([], RECOVER, SAME) == ([], [])


def test_batches_and_lanes_change_no_bit() -> None:
    traces = record(0, 60)
    one = results(traces, DENOISE, tapered)
    other = [t for item in restore(traces, DENOISE, FakeTransport(tapered, lanes=4))[0] for t in item.traces()]
    for a, b in itertools.zip_longest(one, other):
        np.testing.assert_array_equal(a.samples, b.samples)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stacking": "max"}, "stacking must be 'mean'"),
        ({"components": "ZN"}, "one value for each sample and component"),
    ],
)
def test_a_manifest_that_cannot_give_waveforms_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        waveform_model("x", "denoising", **change)
    with pytest.raises(UsageError, match="can only be averaged"):
        DENOISE.with_options(stacking="max")


def test_traces_go_to_obspy_and_back() -> None:
    traces = record(0, 3)
    for before, after in zip(traces, from_stream(to_obspy(traces)), strict=True):
        assert before[:3] == after[:3]
        np.testing.assert_array_equal(before.samples, after.samples)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.mseed", "MSEED"), ("a.miniseed", "MSEED"), ("a.MSEED", "MSEED"), ("a.slist", "SLIST"), ("a.sac", "SAC")],
)
def test_waveforms_are_written_in_the_format_of_the_suffix(tmp_path: Path, name: str, kind: str) -> None:
    assert waveform_format(tmp_path / name) == kind
    (trace, *_) = results(record(0, 3), DENOISE, lambda waveform: waveform)
    write_waveforms([trace], tmp_path / name, kind)
    (read,) = obspy.read(str(tmp_path / name))
    np.testing.assert_allclose(read.data, trace.samples, rtol=1e-5)
    assert read.id == trace.id


def test_formats_that_are_none_or_cannot_hold_them_are_refused(tmp_path: Path) -> None:
    traces = results(record(0, 3), DENOISE, lambda waveform: waveform)
    with pytest.raises(UsageError, match=r"suffix '\.csv' means no waveform format"):
        waveform_format(tmp_path / "a.csv")
    with pytest.raises(UsageError, match="format 'bogus'"):
        check_waveform_format("bogus")
    with pytest.raises(UsageError, match="cannot be written as GSE2"):
        write_waveforms(traces, tmp_path / "a.gse2", "GSE2")
    assert not list(tmp_path.iterdir())
