"""How good restored waveforms are: denoised against the clean event, recovered against what was clipped away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seisserve import Trace, pipeline
from seisserve.manifest import Manifest
from seisserve.restoration import restore
from seisserve.transport import Transport
from seisserve_training import augment
from seisserve_training.baselines.denoising import band_pass, wiener
from seisserve_training.baselines.recovery import cubic_spline, projections
from seisserve_training.clean import clean_event
from seisserve_training.datasets import LabelledTrace
from seisserve_training.figures import Figure

__all__ = [
    "Mixture",
    "denoising_scores",
    "evaluate_denoising",
    "evaluate_recovery",
    "mixtures",
    "recovery_scores",
    "restored",
]

Array = NDArray[np.float32]
Model = tuple[Manifest, Transport]
SNR_DB = (-6.0, 0.0, 6.0, 12.0)
CLIP_LEVELS = (0.5, 0.3, 0.1)
RECOVERY_SNR_DB = 40.0  # a strong event, as clipped ones are, with some noise before it
WITHIN_S = 0.5
RESAMPLES = 1000
RECORD_S = 40.0
APART_NS = 3_600_000_000_000  # records lie an hour apart, so none has a neighbour


class Mixture(NamedTuple):
    """An event with noise added. noisy, clean: float32 [components, n]; p, s: onsets in samples, NaN where there is
    none in it; event: its number, since an event is used at several ratios."""

    noisy: Array
    clean: Array
    p: float
    s: float
    event: int


def evaluate_denoising(
    traces: Sequence[LabelledTrace], model: Manifest, transport: Transport, picker: Model | None = None, seed: int = 0
) -> list[Figure]:
    """Clean events in recorded noise at -6 to 12 dB: the input, the model, a band-pass, a Wiener filter.

    Gain in signal-to-noise ratio (dB), correlation with the clean waveform, and, with a picker, the share of P and S
    labels that it picks within 0.5 s, before and after. Ratios are of the energies of all components of records of
    40 s. The Wiener filter is given the noise before P, which the model has to find.
    """
    rate = model.sampling_rate_hz
    made = mixtures(traces, model, seed)
    events = np.array([one.event for one in made])
    methods: dict[str, list[Array]] = {
        "noisy input": [one.noisy for one in made],
        model.name: restored([one.noisy for one in made], model, transport),
        "band-pass 1-20 Hz": [band_pass(one.noisy, rate) for one in made],
        "Wiener filter": [wiener(one.noisy, rate, one.noisy[:, : int(one.p)]) for one in made],
    }
    if picker:
        methods["clean"] = [one.clean for one in made]
    figures = []
    for method, waveforms in methods.items():
        if method != "clean":
            gains = [_gain_db(one, waveform) for one, waveform in zip(made, waveforms, strict=True)]
            alike = [_correlation(one.clean, waveform) for one, waveform in zip(made, waveforms, strict=True)]
            figures.append(_figure(method, "SNR gain", np.array(gains), events, "dB"))
            figures.append(_figure(method, "correlation with clean", np.array(alike), events))
        if picker is None:
            continue
        for phase in ("P", "S"):
            onsets = np.array([getattr(one, phase.lower()) for one in made]) / rate
            known = np.isfinite(onsets)
            right = [_picked(waveform, phase, onset, model, picker) for waveform, onset, labelled
                     in zip(waveforms, onsets.tolist(), known, strict=True) if labelled]  # fmt: skip
            figures.append(_figure(method, f"{phase} picked within 0.5 s", np.array(right, float), events[known]))
    return figures


def evaluate_recovery(
    traces: Sequence[LabelledTrace], model: Manifest, transport: Transport, seed: int = 0
) -> list[Figure]:
    """Clean events clipped at 50, 30 and 10 % of their highest amplitude: the input, the model, a cubic spline, POCS.

    Of each clipped component: error of its peak amplitude (median), error of the clipped samples (root mean square,
    over that of what they should be; median), and the share of unclipped samples that came back changed. The others
    are told which samples are clipped; the model has to find them.
    """
    rate = model.sampling_rate_hz
    whole = [one.noisy for one in mixtures(traces, model, seed, (RECOVERY_SNR_DB,))]
    figures = []
    for level in CLIP_LEVELS:
        seen, masks = _clip_all(whole, level)
        methods: dict[str, list[Array]] = {
            "clipped input": seen,
            model.name: restored(seen, model, transport),
            "cubic spline": [cubic_spline(waveform, mask) for waveform, mask in zip(seen, masks, strict=True)],
            "POCS": [projections(waveform, mask, rate) for waveform, mask in zip(seen, masks, strict=True)],
        }
        at = f"clipped at {level:.0%} of the peak"
        for method, waveforms in methods.items():
            errors = _recovery_errors(whole, seen, waveforms, masks)
            events, percent = errors[:, 0].astype(np.int64), 100 * errors
            figures += [
                _figure(method, f"peak amplitude error, {at}", percent[:, 1], events, "%", np.median),
                _figure(method, f"error of clipped samples, {at}", percent[:, 2], events, "%", np.median),
                _figure(method, f"unclipped samples changed, {at}", percent[:, 3], events, "%", np.mean),
            ]
    return figures


def denoising_scores(traces: Sequence[LabelledTrace], model: Manifest, transport: Transport) -> dict[str, float]:
    """Gain in signal-to-noise ratio (dB) and correlation with the clean waveform, means over mixtures at 0 and 6 dB."""
    made = mixtures(traces, model, 0, (0.0, 6.0))
    out = restored([one.noisy for one in made], model, transport)
    both = list(zip(made, out, strict=True))
    return {
        "snr_gain_db": float(np.mean([_gain_db(one, waveform) for one, waveform in both])),
        "correlation": float(np.mean([_correlation(one.clean, waveform) for one, waveform in both])),
    }


def recovery_scores(traces: Sequence[LabelledTrace], model: Manifest, transport: Transport) -> dict[str, float]:
    """Minus the error of the clipped samples over what they should be: medians, mean over the clip levels."""
    whole = [one.noisy for one in mixtures(traces, model, 0, (RECOVERY_SNR_DB,))]
    medians = []
    for level in CLIP_LEVELS:
        seen, masks = _clip_all(whole, level)
        out = restored(seen, model, transport)
        medians.append(np.median(_recovery_errors(whole, seen, out, masks)[:, 2]))
    return {"minus_relative_error": -float(np.mean(medians))}


def mixtures(
    traces: Sequence[LabelledTrace], model: Manifest, seed: int, snr_db: Sequence[float] = SNR_DB
) -> list[Mixture]:
    """Each clean event of the traces at each ratio, in records of 40 s; the same for the same seed."""
    rate = model.sampling_rate_hz
    samples = round(RECORD_S * rate)
    noise = [trace.waveform for trace in traces if trace.row.noise]
    made = []
    for number, trace in enumerate(traces):
        clean = clean_event(trace, rate)
        if clean is None or not noise:
            continue
        for ratio in snr_db:
            rng = np.random.default_rng((seed, number, round(10 * ratio) + 1000))
            start = int(trace.p - samples * rng.uniform(0.2, 0.5))
            event = _part(clean, start, samples)
            added = _mirrored(noise[rng.integers(len(noise))], samples, rng)
            noisy, clear = augment.mix(event.T, added.T, ratio)
            live = np.array(trace.live)
            p, s = (onset - start if 0 <= onset - start < samples else np.nan for onset in (trace.p, trace.s))
            made.append(Mixture((noisy * live).T, (clear * live).T, p, s, number))
    return made


def restored(records: Sequence[Array], model: Manifest, transport: Transport) -> list[Array]:
    """What the model makes of records when they are served: float32 [components, n] each."""
    if not records:
        return []
    traces = [
        Trace(f"XX.TEST..HH{code}", number * APART_NS, model.sampling_rate_hz, row)
        for number, record in enumerate(records)
        for code, row in zip(model.components, record, strict=True)
    ]
    return [np.asarray(item.samples, np.float32) for item in restore(traces, model, transport)[0]]


def _part(waveform: Array, start: int, samples: int) -> Array:
    """[components, samples] from `start` on, zero outside the waveform."""
    out = np.zeros((len(waveform), samples), np.float32)
    begin, end = max(start, 0), min(start + samples, waveform.shape[1])
    out[:, begin - start : end - start] = waveform[:, begin:end]
    return out


def _mirrored(noise: Array, samples: int, rng: np.random.Generator) -> Array:
    """[components, samples] from anywhere in the noise, which is mirrored where it is too short."""
    longer = np.pad(noise, ((0, 0), (0, max(samples - noise.shape[1], 0))), "reflect")
    start = int(rng.integers(longer.shape[1] - samples + 1))
    return longer[:, start : start + samples]


def _gain_db(one: Mixture, waveform: Array) -> float:
    """How much less the error is than in the noisy input."""
    before, after = (np.square(np.float64(each) - one.clean).sum() for each in (one.noisy, waveform))
    return float(10 * np.log10(before / after)) if after else np.inf


def _correlation(clean: Array, waveform: Array) -> float:
    """Of all components together, about zero."""
    one, two = np.float64(clean).ravel(), np.float64(waveform).ravel()
    size = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / size if size else 0.0


def _picked(waveform: Array, phase: str, onset_s: float, model: Manifest, picker: Model) -> bool:
    """Whether the picker has a pick of the phase within 0.5 s of its onset."""
    rows = zip(model.components, waveform, strict=True)
    traces = [Trace(f"XX.TEST..HH{code}", 0, model.sampling_rate_hz, row) for code, row in rows]
    picks = pipeline.pick(traces, *picker).picks
    return any(pick.phase == phase and abs(pick.time_ns / 1e9 - onset_s) <= WITHIN_S for pick in picks)


def _clip_all(whole: Sequence[Array], level: float) -> tuple[list[Array], list[NDArray[np.int8]]]:
    """The waveforms clipped, and where: 1 at the top, -1 at the bottom, else 0."""
    seen = [np.ascontiguousarray(augment.clip(true.T, level).T) for true in whole]
    return seen, [(np.sign(true) * (true != cut)).astype(np.int8) for true, cut in zip(whole, seen, strict=True)]


def _recovery_errors(
    whole: Sequence[Array], seen: Sequence[Array], out: Sequence[Array], masks: Sequence[NDArray[np.int8]]
) -> NDArray[np.float64]:
    """[clipped components, 4]: event, error of the peak, of the clipped samples, share of the others that changed."""
    errors = []
    for event, waveforms in enumerate(zip(whole, seen, out, masks, strict=True)):
        for true, cut, made, mask in zip(*waveforms, strict=True):
            lost = mask != 0
            if not lost.any():
                continue
            scale = np.abs(true).max()
            true, cut, made = (np.float64(each) / scale for each in (true, cut, made))
            peak = abs(np.abs(made[lost]).max() / np.abs(true[lost]).max() - 1)
            error = np.linalg.norm(made[lost] - true[lost]) / np.linalg.norm(true[lost])
            errors.append((event, peak, error, np.mean(made[~lost] != cut[~lost])))
    return np.array(errors).reshape(-1, 4)


def _figure(
    method: str,
    quantity: str,
    values: NDArray[np.float64],
    events: NDArray[np.int64],
    unit: str = "",
    average: Callable[..., Any] = np.mean,
) -> Figure:
    """The average with its interval: events are drawn anew, each with all of its values."""
    if not len(values):
        return Figure("all", method, quantity, float("nan"), None, 0, unit)
    groups = [values[events == event] for event in np.unique(events)]
    rng = np.random.default_rng(0)
    draws = [
        average(np.concatenate([groups[k] for k in rng.integers(len(groups), size=len(groups))]))
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Figure("all", method, quantity, float(average(values)), (float(low), float(high)), len(values), unit)
