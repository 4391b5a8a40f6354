"""What denoising and recovery networks are compared with, and the scores of both."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("tensorflow")

from seisserve.manifest import Manifest, Tensor
from seisserve.transport import FakeTransport
from seisserve_training import augment, training
from seisserve_training.baselines.denoising import band_pass, wiener
from seisserve_training.baselines.recovery import cubic_spline, projections
from seisserve_training.clipping import clipped
from seisserve_training.config import Config, Data, Network
from seisserve_training.datasets import LabelledTrace, Row
from seisserve_training.evaluation_waveforms import (
    SNR_DB,
    denoising_scores,
    evaluate_denoising,
    evaluate_recovery,
    mixtures,
    recovery_scores,
)
from seisserve_training.examples import Examples
from seisserve_training.figures import Figure
from seisserve_training.synthetic import synthetic_noise, synthetic_signal
from seisserve_training.tasks.denoising import DENOISING
from seisserve_training.tasks.recovery import CLIP_RECOVERY

RATE, SAMPLES = 100.0, 1024


def config(kind: str) -> Config:
    data = Data(synthetic_share=1.0, synthetic_events=8)
    return Config(name=kind, network=Network(kind=kind, window_samples=SAMPLES, filters=4), data=data)


def traces(events: int = 4, noise: int = 3) -> list[LabelledTrace]:
    """Clean events of 40 s and noise of 8 s: shorter than a window."""
    row = Row(Path("x"), "x", "dev", "made", "none", "exact", False, 0.0, 0.0, RATE, "ZNE", "ZNE")
    rng, made = np.random.default_rng(0), []
    while len(made) < events:
        event = synthetic_signal(rng, 4000)
        if 700 < event.p_sample < 2000:
            waveform = event.waveform.T / np.abs(event.waveform).max() + 1e-4 * rng.normal(size=(3, 4000))
            made.append(LabelledTrace(row, waveform.astype(np.float32), (True,) * 3, event.p_sample, event.s_sample))
    for _ in range(noise):
        made.append(LabelledTrace(row._replace(noise=True), synthetic_noise(rng, 800).T, (True,) * 3, np.nan, np.nan))
    return made


def whole_records(model: Manifest) -> dict[str, object]:
    """The fields of a manifest whose windows are as long as a record."""
    shape = (-1, 4000, 3)
    output = msgspec.structs.replace(model.output, shape=shape)
    return {"window_samples": 4000, "input": Tensor(name="waveform", shape=shape), "outputs": (output,)}


def test_both_filters_make_events_clearer_at_any_amplitude() -> None:
    rng = np.random.default_rng(0)
    clean = np.zeros((3, 3000))
    clean[:, 1000:2500] = np.sin(2 * np.pi * 5 * np.arange(1500) / RATE) * np.exp(-np.arange(1500) / 400)
    noise = rng.normal(size=(3, 3000)) * 0.3 + 2 * np.sin(2 * np.pi * 0.2 * np.arange(3000) / RATE)
    for scale in (1e-14, 1.0, 1e9):
        noisy = ((clean + noise) * scale).astype(np.float32)
        before = noisy[:, :900]
        for out in (band_pass(noisy, RATE), wiener(noisy, RATE), wiener(noisy, RATE, before)):
            assert out.shape == noisy.shape and out.dtype == np.float32
            assert np.square(out / scale - clean).sum() < 0.2 * np.square(noise).sum()
    assert not wiener(np.zeros((3, 3000), np.float32), RATE).any()


def test_knowing_the_noise_helps_wiener() -> None:
    made = mixtures(traces(8), training.contract(config("dncnn")), 0, (0.0,))
    errors = [[np.square(out - one.clean).sum() / np.square(one.clean).sum()
               for out in (wiener(one.noisy, RATE), wiener(one.noisy, RATE, one.noisy[:, : int(one.p)]))]
              for one in made]  # fmt: skip
    blind, told = np.median(errors, axis=0)
    assert told < blind
    assert told < 1


@pytest.mark.parametrize("scale", [1e-14, 1.0, 1e9])
def test_spline_and_projections_keep_what_is_known_and_find_what_is_not(scale: float) -> None:
    time = np.arange(1500) / RATE
    true = np.stack([np.sin(2 * np.pi * f * time) * np.exp(-((time - 7) ** 2) / 8) for f in (1.0, 2.0, 3.0)])
    true = (true * scale).astype(np.float32)
    cut = augment.clip(true.T, 0.7).T
    sign = clipped(cut)
    lost = true != cut
    for out in (cubic_spline(cut, sign), projections(cut, sign, RATE)):
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out[sign == 0], cut[sign == 0])
        assert (np.abs(out) >= np.abs(cut))[sign != 0].all()
        assert np.linalg.norm((out - true)[lost] / scale) < 0.5 * np.linalg.norm((cut - true)[lost] / scale)


def test_without_clipped_samples_nothing_changes() -> None:
    waveform = np.random.default_rng(0).normal(size=(3, 500)).astype(np.float32)
    none = np.zeros((3, 500), np.int8)
    np.testing.assert_array_equal(cubic_spline(waveform, none), waveform)
    np.testing.assert_array_equal(projections(waveform, none, RATE), waveform)


def test_mixtures_are_the_same_for_the_same_seed_and_as_noisy_as_asked() -> None:
    model = training.contract(config("dncnn"))
    made, again, other = (mixtures(traces(), model, seed) for seed in (0, 0, 1))
    assert len(made) == 4 * len(SNR_DB)
    for number, (one, same) in enumerate(zip(made, again, strict=True)):
        np.testing.assert_array_equal(one.noisy, same.noisy)
        ratio = np.square(one.clean).sum() / np.square(np.float64(one.noisy) - one.clean).sum()
        assert 10 * np.log10(ratio) == pytest.approx(SNR_DB[number % len(SNR_DB)], abs=0.1)
        assert not one.clean[:, : int(one.p) - 60].any() and one.clean[:, int(one.p) :].any()
    assert not np.array_equal(made[0].noisy, other[0].noisy)


def test_scores_of_a_network_that_does_nothing_and_of_one_that_knows() -> None:
    model = training.contract(config("dncnn"))
    made = mixtures(traces(), model, 0, (0.0, 6.0))
    # One window a record, so that the answer can be looked up.
    model = msgspec.structs.replace(model, **whole_records(model))
    idle = FakeTransport(lambda windows: windows - windows.mean(axis=1, keepdims=True))
    assert denoising_scores(traces(), model, idle)["snr_gain_db"] == pytest.approx(0, abs=0.1)
    answers = iter([one.clean.T * np.float32(0.9) for one in made])
    knows = FakeTransport(lambda windows: np.stack([next(answers) for _ in windows]))
    best = denoising_scores(traces(), model, knows)
    assert best["snr_gain_db"] == pytest.approx(20 - 3, abs=0.1)
    assert best["correlation"] == pytest.approx(1)


def test_figures_of_denoising() -> None:
    model = training.contract(config("dncnn"))
    figures = evaluate_denoising(traces(), model, FakeTransport(lambda windows: windows * 0))
    by = {(figure.method, figure.quantity): figure for figure in figures}
    assert by["noisy input", "SNR gain"].value == 0
    silent = by["dncnn", "SNR gain"]
    assert silent.value == pytest.approx(-np.mean(SNR_DB), abs=0.1)
    assert silent.interval is not None and silent.interval[0] <= silent.value <= silent.interval[1]
    assert (silent.n, silent.unit) == (16, "dB")
    assert by["dncnn", "correlation with clean"].value == 0
    assert by["Wiener filter", "SNR gain"].value > 0
    assert all(isinstance(figure, Figure) for figure in figures)


def test_figures_of_recovery() -> None:
    model = msgspec.structs.replace(training.contract(config("recovery")), name="idle")
    figures = evaluate_recovery(traces(), model, FakeTransport(lambda windows: windows))
    by = {(figure.method, figure.quantity): figure.value for figure in figures}
    for level in (10, 30, 50):
        at = f"clipped at {level}% of the peak"
        assert by["idle", f"error of clipped samples, {at}"] == by["clipped input", f"error of clipped samples, {at}"]
        assert by["POCS", f"peak amplitude error, {at}"] < by["clipped input", f"peak amplitude error, {at}"]
        for method in ("idle", "cubic spline", "POCS", "clipped input"):
            assert by[method, f"unclipped samples changed, {at}"] == 0
    changed = evaluate_recovery(traces(), model, FakeTransport(lambda windows: windows * 2))
    assert max(figure.value for figure in changed if figure.method == "idle" and "changed" in figure.quantity) > 50
    scores = recovery_scores(traces(), model, FakeTransport(lambda windows: windows))
    assert -1 < scores["minus_relative_error"] < 0


@pytest.mark.parametrize("task", [DENOISING, CLIP_RECOVERY])
def test_pairs_are_windows_and_what_should_become_of_them(task) -> None:  # type: ignore[no-untyped-def]
    examples = Examples([], config("recovery"))
    changed = 0
    for number in range(30):
        waveform, target = task.pair(examples, examples.generator(number))
        again, _ = task.pair(examples, examples.generator(number))
        np.testing.assert_array_equal(waveform, again)
        for array in (waveform, target):
            assert array.shape == (SAMPLES, 3) and array.dtype == np.float32 and np.isfinite(array).all()
        changed += not np.array_equal(waveform, target)
        if task is CLIP_RECOVERY:
            beyond = waveform != target
            assert (np.abs(target) >= np.abs(waveform) - 1e-6)[beyond].all()
    assert changed > 20
