"""Pickers and detectors without a network: STA/LTA, AR-AIC and template matching.

A baseline looks at each trace once (the slow part) and is then read at any threshold. Thresholds are chosen on dev by
the rule that chooses those of the networks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from obspy.signal.cross_correlation import correlate_template
from obspy.signal.filter import bandpass
from obspy.signal.trigger import ar_pick, recursive_sta_lta, trigger_onset
from scipy.signal import find_peaks

from seisserve_training.datasets import LabelledTrace, Row
from seisserve_training.evaluation import Arrival

__all__ = ["PICKERS", "ArAic", "Baseline", "Seen", "StaLta", "TemplateMatching", "template_rows"]

MOST_OF_NYQUIST = 0.9  # no filter reaches further up
MOST_TEMPLATES = 20  # of a station


class Seen(NamedTuple):
    """What a baseline made of one trace. curve: its characteristic function at every sample [n] (none if it has none);
    onsets: samples at which it would pick, by phase, each with the value that a threshold is held against."""

    curve: NDArray[np.float32]
    onsets: dict[str, NDArray[np.float64]]


class Baseline(Protocol):
    """A picker without a network.

    phases: what it picks. candidates: thresholds to choose from, in rising order; none if it has no threshold.
    """

    @property
    def rate_hz(self) -> float: ...

    @property
    def phases(self) -> tuple[str, ...]: ...

    @property
    def candidates(self) -> tuple[float, ...]: ...

    def look(self, trace: LabelledTrace) -> Seen:
        """The slow part: everything that no threshold decides."""
        ...

    def read(self, seen: Seen, phase: str, threshold: float) -> list[Arrival]:
        """The arrivals of one phase at a threshold."""
        ...


class StaLta:
    """P where the ratio of a short to a long average of the vertical's power reaches the threshold.

    The recursive STA/LTA of Withers et al. (1998), doi:10.1785/BSSA0880010095, in ObsPy's implementation. Of the usual
    values for local earthquakes those that do best on dev: Butterworth band-pass of 1 to 20 Hz (4 corners, causal), STA
    0.5 s, LTA 5 s; it is on until the ratio falls below half of the threshold, and the pick is where it went on. The
    LTA needs a past: the first second of the record, mirrored over and over, stands in for the time before it. A single
    trace is not associated with others, so S and coda can trigger it too. It knows no S.
    """

    STA_S, LTA_S, BAND_HZ = 0.5, 5.0, (1.0, 20.0)
    phases = ("P",)
    candidates = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 14.0, 16.0)

    def __init__(self, rate_hz: float) -> None:
        self.rate_hz = rate_hz

    def look(self, trace: LabelledTrace) -> Seen:
        """The ratio of the vertical, or of the first component that is there."""
        component = next((row for row, live in zip(trace.waveform, trace.live, strict=True) if live), trace.waveform[0])
        past = round(self.LTA_S * self.rate_hz)
        record = _scaled(_filtered(_with_past(component, past, self.rate_hz), self.rate_hz, self.BAND_HZ))
        ratio = recursive_sta_lta(record, round(self.STA_S * self.rate_hz), past)[past:]
        return Seen(np.nan_to_num(ratio).astype(np.float32), {})

    def read(self, seen: Seen, phase: str, threshold: float) -> list[Arrival]:
        """Where the ratio reaches the threshold."""
        stretches = trigger_onset(seen.curve, threshold, threshold / 2)
        return [Arrival(phase, int(begin) / self.rate_hz) for begin, _ in stretches]


class ArAic:
    """P and S where autoregressive models of what came before and after fit best: at most one of each a trace.

    Akazawa (2004), 13th World Conference on Earthquake Engineering, paper 786, in ObsPy's implementation with the
    values of its tutorial: 1 to 20 Hz, STA and LTA of 0.1 and 1 s for P, 1 and 4 s for S, 2 and 8 coefficients,
    variance windows of 0.1 and 0.2 s. Its past is made up as for STA/LTA; picks that fall into it are none. It has no
    threshold: noise gets a P and an S as readily as an event, and of two events in a trace one goes without. Without a
    vertical it picks nothing, without horizontals no S.
    """

    BAND_HZ, LTA_S = (1.0, 20.0), 4.0
    phases = ("P", "S")
    candidates: tuple[float, ...] = ()

    def __init__(self, rate_hz: float) -> None:
        self.rate_hz = rate_hz

    def look(self, trace: LabelledTrace) -> Seen:
        """One P and one S, in seconds."""
        nothing = np.zeros(0, np.float32)
        records = _with_past(_scaled(trace.waveform.astype(np.float64)), round(self.LTA_S * self.rate_hz), self.rate_hz)
        vertical, *horizontal = records
        if not np.ptp(vertical):
            return Seen(nothing, {})
        found = {"P": self._pick(vertical, [vertical, vertical], s_pick=False)[0]}
        # ObsPy's search for S reads before its buffers where P is nearer to the begin than the LTA is long.
        if found["P"] >= self.LTA_S and np.ptp(horizontal):
            found["S"] = self._pick(vertical, horizontal, s_pick=True)[1]
        times = {phase: time - self.LTA_S for phase, time in found.items() if time >= self.LTA_S}
        return Seen(nothing, {phase: np.array([[time, 1.0]]) for phase, time in times.items()})

    def _pick(
        self, vertical: NDArray[np.float64], horizontal: list[NDArray[np.float64]], s_pick: bool
    ) -> tuple[float, float]:
        low, high = self.BAND_HZ[0], min(self.BAND_HZ[1], MOST_OF_NYQUIST * self.rate_hz / 2)
        p, s = ar_pick(
            vertical, *horizontal, self.rate_hz, low, high, 1.0, 0.1, self.LTA_S, 1.0, 2, 8, 0.1, 0.2, s_pick
        )
        return float(p), float(s)

    def read(self, seen: Seen, phase: str, threshold: float = 0.0) -> list[Arrival]:
        """What it picked: there is nothing to choose."""
        return [Arrival(phase, float(time)) for time, _ in seen.onsets.get(phase, ())]


class Template(NamedTuple):
    """A labelled event of one station: [components, n] from a second before its P, filtered; live; P and S, seconds
    from its begin (S is NaN where it has no label)."""

    waveform: NDArray[np.float64]
    live: tuple[bool, ...]
    p_s: float
    s_s: float


class TemplateMatching:
    """Where a trace looks like an event that was labelled at the same station, with that event's P and S.

    Gibbons and Ringdal (2006), doi:10.1111/j.1365-246X.2006.02865.x: normalised cross-correlation (ObsPy's), mean over
    the components that both have. Usual values: band-pass of 2 to 10 Hz (4 corners, causal), templates from 1 s before
    P to 1 s after S (4 s after P without an S), 12 s at most. Where several templates fit, the one that fits best
    within 2 s counts. A station without a template has no picks, and its labels count as missed: that is the method's
    limit, not an exception to it.

    training: traces of the training split; those of a known station with a P become templates, see `template_rows`.
    Raises ValueError for a trace of another split.
    """

    BAND_HZ = (2.0, 10.0)
    BEFORE_P_S, AFTER_S_S, WITHOUT_S_S, LONGEST_S = 1.0, 1.0, 4.0, 12.0
    APART_S = 2.0
    phases = ("P", "S")
    candidates = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)

    def __init__(self, rate_hz: float, training: Iterable[LabelledTrace] = ()) -> None:
        self.rate_hz = rate_hz
        self.templates: dict[str, list[Template]] = defaultdict(list)
        for trace in training:
            if trace.row.split != "train":
                raise ValueError(f"a template of the split {trace.row.split!r}; templates must be of the split 'train'")
            if trace.row.station and np.isfinite(trace.p):
                self.templates[trace.row.station].append(self._template(trace))

    def _template(self, trace: LabelledTrace) -> Template:
        p = trace.p / self.rate_hz
        s = trace.s / self.rate_hz
        end = s + self.AFTER_S_S if np.isfinite(s) else p + self.WITHOUT_S_S
        begin = max(p - self.BEFORE_P_S, 0.0)
        first = round(begin * self.rate_hz)
        last = round(min(end, begin + self.LONGEST_S) * self.rate_hz)
        waveform = _filtered(trace.waveform, self.rate_hz, self.BAND_HZ)[:, first:last]
        norm = np.sqrt((waveform**2).sum(axis=1, keepdims=True))
        scaled = np.divide(waveform, norm, out=np.zeros_like(waveform), where=norm > 0)
        live = tuple(bool(a and b) for a, b in zip(trace.live, norm[:, 0] > 0, strict=True))
        return Template(scaled, live, p - first / self.rate_hz, s - first / self.rate_hz)

    def look(self, trace: LabelledTrace) -> Seen:
        """The best correlation with any template, at the sample of its P, and the picks at its peaks."""
        samples = trace.waveform.shape[1]
        best, s_after = np.zeros(samples), np.full(samples, np.nan)
        record = _scaled(_filtered(trace.waveform, self.rate_hz, self.BAND_HZ))
        for template in self.templates.get(trace.row.station, ()):
            value = self._correlation(record, trace.live, template)
            first = round(template.p_s * self.rate_hz)
            here = slice(first, first + len(value))
            better = value > best[here]
            best[here][better] = value[better]
            s_after[here][better] = template.s_s - template.p_s
        peaks, _ = find_peaks(best, height=self.candidates[0], distance=round(self.APART_S * self.rate_hz))
        p = np.stack([peaks / self.rate_hz, best[peaks]], axis=1)
        s = np.stack([p[:, 0] + s_after[peaks], p[:, 1]], axis=1)
        inside = np.isfinite(s[:, 0]) & (s[:, 0] < samples / self.rate_hz)
        return Seen(best.astype(np.float32), {"P": p, "S": s[inside]})

    def _correlation(
        self, record: NDArray[np.float64], live: tuple[bool, ...], template: Template
    ) -> NDArray[np.float64]:
        """[n - m + 1], from -1 to 1; nothing for a trace shorter than the template."""
        both = [k for k, (a, b) in enumerate(zip(live, template.live, strict=True)) if a and b]
        if not both or record.shape[1] < template.waveform.shape[1]:
            return np.zeros(0)
        with np.errstate(invalid="ignore"):  # the running variance of a dead stretch may round to below zero
            each = [correlate_template(record[k], template.waveform[k], method="fft") for k in both]
        mean: NDArray[np.float64] = np.nan_to_num(np.mean(each, axis=0))
        return mean

    def read(self, seen: Seen, phase: str, threshold: float) -> list[Arrival]:
        """The picks of the templates that correlate well enough."""
        return [Arrival(phase, float(time)) for time, value in seen.onsets[phase] if value >= threshold]


def template_rows(rows: Sequence[Row], stations: Collection[str]) -> list[Row]:
    """The rows of the training split that make templates for these stations: at most 20 each, evenly taken."""
    events: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.split == "train" and row.station in stations and row.station and np.isfinite(row.p):
            events[row.station].append(row)
    return [
        found[number]
        for found in events.values()
        for number in np.unique(np.linspace(0, len(found) - 1, MOST_TEMPLATES).astype(int))
    ]


def _with_past(samples: NDArray[np.floating], past: int, rate_hz: float) -> NDArray[np.floating]:
    """The record after `past` samples more, its first second mirrored over and over: averages need a past."""
    second = samples[..., : max(round(rate_hz), 1)]
    before = np.pad(second, [(0, 0)] * (samples.ndim - 1) + [(past, 0)], mode="symmetric")[..., :past]
    return np.concatenate([before, samples], axis=-1)


def _filtered(samples: NDArray[np.floating], rate_hz: float, band_hz: tuple[float, float]) -> NDArray[np.float64]:
    """Causally band-passed along the last axis, from zero: its first value is taken off before."""
    high = min(band_hz[1], MOST_OF_NYQUIST * rate_hz / 2)
    level = samples.astype(np.float64) - samples[..., :1]
    filtered: NDArray[np.float64] = bandpass(level, band_hz[0], high, rate_hz, corners=4, zerophase=False)
    return filtered


def _scaled(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """With one as the largest amplitude, so that squares of 1e-14 do not vanish; zeros stay."""
    largest = np.abs(samples).max()
    return samples / largest if largest > 0 else samples


# By the names that `seisserve evaluate` takes: each from the sampling rate and the training split's traces.
PICKERS: dict[str, Callable[[float, Sequence[LabelledTrace]], Baseline]] = {
    "sta-lta": lambda rate_hz, training: StaLta(rate_hz),
    "ar-aic": lambda rate_hz, training: ArAic(rate_hz),
    "template-matching": TemplateMatching,
}
