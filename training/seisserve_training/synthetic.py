"""Made-up three-component seismograms of local earthquakes, for training where no real data is at hand.

A seismogram is wave train P + wave train S + noise. A train is a direct pulse, a few later phases and scattered coda,
all convolved with one *minimum-phase* kernel holding source, path, site and instrument: nothing can precede an onset,
so the labels are exact. Every function is a pure function of the generator it is given.

Sources: Brune (1970) for the source spectrum, Aki and Richards (2002) for radiation and attenuation, Aki and Chouet
(1975) for the decay of coda, Oppenheim and Schafer (1989) for minimum phase by folding the cepstrum.
"""

from __future__ import annotations

import csv
import datetime
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from seisserve.errors import UsageError

__all__ = ["SyntheticEvent", "synthetic_event", "synthetic_noise", "synthetic_signal", "write_dataset"]

Array = NDArray[np.floating]
ComplexArray = NDArray[np.complexfloating]

SNR_RANGE = (1.5, 300.0)  # peak of P over noise rms, both in the band of P
S_MINUS_P_RANGE_S = (0.3, 25.0)
CODA_BANDS_HZ = np.array([2.0, 12.0])  # coda decays at its own pace below, above and, blended, between
ONSET_LEVEL = 0.02  # share of a kernel's peak at which it is seen to begin
MIN_RECORD_S = 4.0
BUCKET_TRACES = 128
COLUMNS = {  # of metadata.csv, with what most rows hold
    **dict.fromkeys(("trace_name", "split", "trace_category", "trace_sampling_rate_hz", "trace_npts"), ""),
    **dict.fromkeys(("trace_p_arrival_sample", "trace_s_arrival_sample", "trace_p_status", "trace_s_status"), ""),
    **dict.fromkeys(("trace_component_order", "trace_components_live"), "ZNE"),
    **dict.fromkeys(("trace_start_time", "station_code", "source_id"), ""),
    "station_network_code": "SY",
    "source_dataset": "synthetic",
    "label_quality": "exact",
}


@dataclass(frozen=True)
class SyntheticEvent:
    """One earthquake on one station.

    waveform: float32 [samples, 3], order Z, N, E. p_sample, s_sample: first sample of the wave; `s_sample` is
    `samples` or more where S comes after the record's end. snr_db: peak of P over noise rms around it, on the component
    with the largest P and in the band of P; infinite without noise.
    """

    waveform: NDArray[np.float32]
    p_sample: int
    s_sample: int
    sampling_rate_hz: float
    snr_db: float


class _Record(NamedTuple):
    """What all parts of one record share: its grid, and log amplitude [bins] of the response to ground velocity."""

    samples: int
    rate: float
    freq_hz: NDArray[np.float32]  # [bins]
    nfft: int
    instrument: Array


def synthetic_event(rng: np.random.Generator, samples: int, sampling_rate_hz: float = 100.0) -> SyntheticEvent:
    """An earthquake in noise; the same generator state gives `synthetic_signal`'s wave, scaled.

    Raises UsageError (a ValueError) naming `samples` or `sampling_rate_hz` where they make no record of at least 4 s.
    """
    record = _record(rng, samples, sampling_rate_hz)
    signal, p_sample, s_sample, p_amplitude = _signal(rng, record)
    noise = _noise(rng, record)
    p_end = min(s_sample, p_sample + int(2 * sampling_rate_hz), samples)
    component = np.abs(signal[:, p_sample:p_end]).max(axis=1).argmax()
    spectra = np.fft.rfft(np.stack([signal[component], noise[component]]), record.nfft)
    signal_p, noise_p = np.fft.irfft(spectra * p_amplitude)  # in the band of P
    noise_rms = math.sqrt(np.mean(noise_p[max(0, p_sample - int(4 * sampling_rate_hz)) : p_end] ** 2))
    snr = _log_uniform(rng, *SNR_RANGE)
    waveform = signal * (snr * noise_rms / np.abs(signal_p[p_sample:p_end]).max()) + noise
    return SyntheticEvent(_scaled(rng, waveform), p_sample, s_sample, sampling_rate_hz, 20 * math.log10(snr))


def synthetic_signal(rng: np.random.Generator, samples: int, sampling_rate_hz: float = 100.0) -> SyntheticEvent:
    """The earthquake alone: exactly zero before `p_sample`. Raises as `synthetic_event`."""
    signal, p_sample, s_sample, _ = _signal(rng, _record(rng, samples, sampling_rate_hz))
    return SyntheticEvent(_scaled(rng, signal), p_sample, s_sample, sampling_rate_hz, math.inf)


def synthetic_noise(rng: np.random.Generator, samples: int, sampling_rate_hz: float = 100.0) -> NDArray[np.float32]:
    """Noise without an earthquake, float32 [samples, 3], order Z, N, E. Raises as `synthetic_event`."""
    return _scaled(rng, _noise(rng, _record(rng, samples, sampling_rate_hz)))


def write_dataset(
    folder: str | Path,
    count: int,
    seed: int,
    *,
    samples: int = 6000,
    sampling_rate_hz: float = 100.0,
    noise_share: float = 0.2,
    dev_share: float = 0.1,
    test_share: float = 0.1,
) -> None:
    """Write `count` traces as a SeisBench data set: `metadata.csv` and `waveforms.hdf5` in `folder`.

    Every event is recorded by one station, so the split is by event. Trace i depends on (seed, i) and category only.
    Raises ValueError naming the argument that is out of range, FileExistsError if the folder holds a data set.
    """
    if count < 1:
        raise UsageError(f"count must be at least 1, got {count}")
    if seed < 0:
        raise UsageError(f"seed must not be negative, got {seed}")
    for name, share in (("noise_share", noise_share), ("dev_share", dev_share), ("test_share", test_share)):
        if not 0 <= share <= 1:
            raise UsageError(f"{name} must be in [0, 1], got {share}")
    if dev_share + test_share > 1:
        raise UsageError(f"dev_share and test_share must sum to at most 1, got {dev_share} + {test_share}")
    _record(np.random.default_rng(seed), samples, sampling_rate_hz)  # refuses a bad record before a file is made
    shuffle = np.random.default_rng(seed)
    is_noise = shuffle.permutation(count) < round(count * noise_share)
    parts = np.array([round(count * dev_share), round(count * (dev_share + test_share)), count])
    split = np.array(["dev", "test", "train"])[np.searchsorted(parts, shuffle.permutation(count), side="right")]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with h5py.File(folder / "waveforms.hdf5", "x") as file:
        data_format = {"component_order": "ZNE", "dimension_order": "CW", "measurement": "synthetic", "unit": "none"}
        for name, value in data_format.items():
            file[f"data_format/{name}"] = value
        for first in range(0, count, BUCKET_TRACES):
            bucket = f"bucket{first // BUCKET_TRACES}"
            waveforms = []  # [3, samples] each
            for i in range(first, min(first + BUCKET_TRACES, count)):
                rng = np.random.default_rng([seed, i])
                start = datetime.datetime(2000, 1, 1) + datetime.timedelta(hours=i)
                row = COLUMNS | {
                    "trace_name": f"{bucket}${i - first},:3,:{samples}",
                    "split": split[i],
                    "trace_sampling_rate_hz": float(sampling_rate_hz),
                    "trace_npts": samples,
                    "trace_start_time": start.isoformat(timespec="microseconds") + "Z",
                    "station_code": f"S{i % 1000:03d}",
                }
                if is_noise[i]:
                    waveforms.append(synthetic_noise(rng, samples, sampling_rate_hz).T)
                    row |= {"trace_category": "noise"}
                else:
                    event = synthetic_event(rng, samples, sampling_rate_hz)
                    waveforms.append(event.waveform.T)
                    row |= {"trace_category": "earthquake_local", "source_id": f"synthetic_{seed}_{i}"}
                    for phase, onset in (("p", event.p_sample), ("s", event.s_sample)):
                        if onset < samples:
                            row |= {f"trace_{phase}_arrival_sample": float(onset), f"trace_{phase}_status": "synthetic"}
                rows.append(row)
            file[f"data/{bucket}"] = np.stack(waveforms)
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, list(COLUMNS))
        writer.writeheader()
        writer.writerows(rows)


def _record(rng: np.random.Generator, samples: int, sampling_rate_hz: float) -> _Record:
    """Grid and instrument: corners, and mostly no integration (displacement) or derivative (acceleration)."""
    if not 10 <= sampling_rate_hz <= 1000:
        raise UsageError(f"sampling_rate_hz must be in [10, 1000], got {sampling_rate_hz}")
    if samples < MIN_RECORD_S * sampling_rate_hz:
        raise UsageError(f"samples must cover at least {MIN_RECORD_S} s, got {samples} at {sampling_rate_hz} Hz")
    nfft = 1 << math.ceil(math.log2(1.25 * samples))  # leaves filters a quarter of the record to ring out
    freq_hz = np.fft.rfftfreq(nfft, 1 / sampling_rate_hz).astype(np.float32)
    f = np.hypot(freq_hz, 0.02)
    high_pass_hz = _log_uniform(rng, 0.05, 2.0) if rng.random() < 0.7 else 0.05
    low_pass_hz = min(rng.uniform(15.0, 45.0) if rng.random() < 0.3 else math.inf, 0.45 * sampling_rate_hz)
    instrument = -0.5 * np.log1p((high_pass_hz / f) ** 4) - 0.5 * np.log1p((f / low_pass_hz) ** 16)
    instrument += rng.choice([-1, 0, 1], p=[0.1, 0.75, 0.15]) * np.log(f)
    return _Record(samples, sampling_rate_hz, freq_hz, nfft, instrument)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _white(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """White numbers of unit variance; uniform, since the filters that follow make them normal and this is faster."""
    return (rng.random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32(math.sqrt(12))


def _scaled(rng: np.random.Generator, waveform: Array) -> NDArray[np.float32]:
    """[3, samples] -> float32 [samples, 3] whose peak is any number between 1e-9 (m/s) and 1e6 (counts)."""
    peak = _log_uniform(rng, 1e-9, 1e6)
    return np.ascontiguousarray((waveform * (peak / np.abs(waveform).max())).T, dtype=np.float32)


def _kernel(log_amplitude: Array) -> tuple[ComplexArray, float]:
    """Minimum-phase pulse with this log amplitude [bins], its visible onset at sample 0, its peak 1.

    Returns its spectrum [bins] and its energy. The delay that anti-alias filter and attenuation put before the visible
    onset is taken off.
    """
    cepstrum = np.fft.irfft(log_amplitude)
    half = cepstrum.size // 2
    cepstrum[1:half] *= 2
    cepstrum[half + 1 :] = 0
    pulse = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)))
    pulse[half:] = 0
    magnitude = np.abs(pulse)
    pulse /= magnitude.max()
    onset = int(np.argmax(magnitude >= ONSET_LEVEL * magnitude.max()))
    pulse = np.concatenate([pulse[onset:], np.zeros_like(pulse[:onset])])
    return np.fft.rfft(pulse), float(pulse @ pulse)


def _site(rng: np.random.Generator, freq_hz: Array) -> Array:
    """Log amplitude [bins] of up to two resonances of the soil."""
    log_amplitude = np.zeros_like(freq_hz)
    log_f = np.log(np.maximum(freq_hz, 0.01))
    for _ in range(rng.integers(0, 3)):
        offset = (log_f - math.log(_log_uniform(rng, 0.7, 20.0))) / rng.uniform(0.1, 0.3)
        log_amplitude += np.log1p(_log_uniform(rng, 0.3, 6.0) * np.exp(-0.5 * offset**2))
    return log_amplitude


def _signal(rng: np.random.Generator, record: _Record) -> tuple[Array, int, int, Array]:
    """Waveform [3, samples], P and S sample, and amplitude spectrum [bins] of the P pulse."""
    samples, rate, freq_hz = record.samples, record.rate, record.freq_hz
    p_sample = int(rng.uniform(0.1, 0.7) * samples)
    room_s = (samples - p_sample) / rate - 1.0
    low_s, high_s = S_MINUS_P_RANGE_S
    s_minus_p = _log_uniform(rng, low_s, high_s if rng.random() < 0.08 else max(2 * low_s, min(high_s, room_s)))
    s_sample = p_sample + round(s_minus_p * rate)
    p_travel_s = s_minus_p / rng.uniform(0.65, 0.85)  # Vp/Vs - 1

    # Far, small events are not recorded; Brune radius from moment (N m) and stress drop (Pa), S velocity 3500 m/s.
    smallest = -0.5 + 1.1 * math.log10(s_minus_p / low_s)
    moment = 10 ** (1.5 * rng.triangular(smallest, smallest + 0.3, 5.0) + 9.1)
    radius_m = (7 * moment / (16 * _log_uniform(rng, 3e5, 3e7))) ** (1 / 3)
    s_corner_hz = 2.34 * 3500 / (2 * math.pi * radius_m)
    p_corner_hz = s_corner_hz * rng.uniform(1.2, 1.8)
    s_quality = _log_uniform(rng, 100, 1000)
    p_quality = s_quality * rng.uniform(0.9, 2.0)
    kappa_s = _log_uniform(rng, 0.008, 0.06)
    p_t_star_s = p_travel_s / p_quality + 0.6 * kappa_s
    s_t_star_s = (p_travel_s + s_minus_p) / s_quality + kappa_s
    velocity = np.log(np.hypot(freq_hz, 0.02)) + record.instrument
    kernels = [
        _kernel(velocity + _site(rng, freq_hz) - np.log1p((freq_hz / corner_hz) ** 2) - math.pi * freq_hz * t_star_s)
        for corner_hz, t_star_s in ((p_corner_hz, p_t_star_s), (s_corner_hz, s_t_star_s))
    ]

    # Double couple at a random take-off; its nodes are filled by scattering. Vectors in order Z, N, E.
    cos_theta, phi = rng.uniform(-1, 1), rng.uniform(0, 2 * math.pi)
    theta = math.acos(cos_theta)
    p_radiation = math.hypot(math.sin(2 * theta) * math.cos(phi), 0.2)
    s_radiation = math.hypot(math.cos(2 * theta) * math.cos(phi), cos_theta * math.sin(phi), 0.2)
    incidence, azimuth = math.radians(rng.triangular(5, 15, 60)), rng.uniform(0, 2 * math.pi)
    polarisation = rng.uniform(0, 2 * math.pi)
    radial = np.array([0.0, math.cos(azimuth), math.sin(azimuth)])
    transverse = np.array([0.0, -math.sin(azimuth), math.cos(azimuth)])
    up = np.array([1.0, 0.0, 0.0])
    p_vector = rng.choice([-1, 1]) * (math.cos(incidence) * up + math.sin(incidence) * radial)
    sv_vector = math.cos(incidence) * radial - math.sin(incidence) * up
    s_vector = math.cos(polarisation) * sv_vector + math.sin(polarisation) * transverse

    waveform = np.zeros((3, samples))
    s_over_p = 1.4 * s_radiation / p_radiation
    trains = [(p_sample, p_vector, kernels[0], 1.0), (s_sample, s_vector, kernels[1], s_over_p)]
    if s_minus_p > 5 and rng.random() < 0.2:  # a weak head wave (Pn) comes first and takes the label
        later = min(p_sample + int(rng.uniform(0.05, 0.25) * s_minus_p * rate), samples - 1)
        trains[0] = (later, *trains[0][1:])
        trains.append((p_sample, p_vector, kernels[0], rng.uniform(0.15, 0.5)))
    for onset, vector, kernel, strength in trains:
        if onset < samples:
            waveform[:, onset:] += strength * _wave_train(
                rng, record, samples - onset, kernel, vector, s_minus_p, p_travel_s
            )
    return waveform, p_sample, s_sample, np.abs(kernels[0][0])


def _wave_train(
    rng: np.random.Generator,
    record: _Record,
    length: int,
    kernel: tuple[ComplexArray, float],
    vector: Array,
    s_minus_p: float,
    travel_s: float,
) -> Array:
    """Direct pulse, later phases and coda [3, length], from the onset on, with peak 1; `vector` is the polarisation."""
    spectrum, energy = kernel
    rate, freq_hz = record.rate, record.freq_hz
    vector = vector.astype(np.float32)
    spikes = np.zeros((3, length), np.float32)
    direct = _log_uniform(rng, 0.1, 1.0)  # emergent to impulsive
    spikes[:, 0] = direct * vector
    for _ in range(rng.poisson(3)):  # layers under the station: the wave builds up
        lag = 1 + int(rng.exponential(0.15) * rate)
        spikes[:, min(lag, length - 1)] += rng.uniform(-0.8, 0.8) * (vector + 0.3 * rng.standard_normal(3))
    for _ in range(rng.poisson(0.7)):  # reflections, depth phases, conversions
        lag = int(rng.uniform(0.03, 0.7) * s_minus_p * rate)
        spikes[:, min(lag, length - 1)] += rng.uniform(-0.5, 0.5) * (vector + 0.5 * rng.standard_normal(3))

    t = np.arange(length, dtype=np.float32) / np.float32(rate)
    rise = 1 - rng.uniform(0.3, 1.0) * np.exp(-t / _log_uniform(rng, 0.03, 0.5))
    early = np.exp(-t / (0.1 + s_minus_p * _log_uniform(rng, 0.05, 0.5)))
    late = rng.uniform(0.4, 1.0) * (1 + t / (travel_s + 1.0)) ** -rng.uniform(0.7, 1.6)
    q_coda = _log_uniform(rng, 60, 250) * CODA_BANDS_HZ ** rng.uniform(0.5, 1.0)
    decay = np.exp((-math.pi * CODA_BANDS_HZ / q_coda).astype(np.float32)[:, None] * t)  # [bands, length]
    envelope = rise * (early + late * decay)
    envelope *= rng.uniform(0.3, 0.8) / math.sqrt(energy)
    scattered = rng.uniform(0.4, 0.9) * _white(rng, (3, length)) + vector[:, None] * _white(rng, (1, length))
    log_f = np.log(np.maximum(freq_hz, 0.01))
    total = np.zeros((3, freq_hz.size), np.complex64)
    for band, one in enumerate(np.eye(CODA_BANDS_HZ.size)):
        share = np.interp(log_f, np.log(CODA_BANDS_HZ), one).astype(np.float32)  # the shares of the bands add up to 1
        total += share * np.fft.rfft(scattered * envelope[band] + spikes, record.nfft)
    train: Array = np.fft.irfft(spectrum * total)[:, :length]
    train /= np.abs(train).max()
    return train


def _noise(rng: np.random.Generator, record: _Record) -> Array:
    """Noise [3, samples]: power law, microseism, cultural lines, slow modulation and bursts."""
    samples, rate, freq_hz = record.samples, record.rate, record.freq_hz
    f, response = np.maximum(freq_hz, 0.03), np.exp(record.instrument)
    audible = freq_hz > 1
    slope = (rng.uniform(0, 2) + rng.normal(0, 0.15, (3, 1))).astype(np.float32)
    power = f**-slope
    power /= power[:, audible].sum(axis=1, keepdims=True)
    peak = np.exp(-0.5 * (np.log(f / rng.uniform(0.1, 0.3)) / rng.uniform(0.15, 0.4)) ** 2)
    power += _log_uniform(rng, 1e-2, 1e3) * (rng.uniform(0.3, 1.5, (3, 1)) * (peak / peak.sum()))
    for _ in range(rng.poisson(1.0)):
        line = np.exp(-0.5 * ((freq_hz - _log_uniform(rng, 2, 30)) / _log_uniform(rng, 0.03, 1.0)) ** 2)
        power += _log_uniform(rng, 0.01, 2.0) * rng.uniform(0.2, 1.5, (3, 1)) * line / max(line.sum(), 1e-3)
    power *= np.exp(rng.normal(0, 0.6, (3, 1)))
    mixing = (np.eye(3) + rng.uniform(0, 0.5) * rng.standard_normal((3, 3))).astype(np.float32)
    spectrum = np.sqrt(power) * response * (mixing @ _white(rng, (3, 2 * freq_hz.size)).view(np.complex64))
    noise: Array = np.fft.irfft(spectrum)[:, :samples]
    noise /= math.sqrt(np.mean(noise**2))

    t = np.arange(samples) / rate
    knots = rng.normal(0, rng.uniform(0, 0.4), max(3, int(t[-1] / 5)))
    noise *= np.exp(np.interp(t, np.linspace(0, t[-1], knots.size), knots))
    for _ in range(rng.poisson(0.3)):  # traffic, wind: rises as slowly as it falls
        band = np.exp(-0.5 * (np.log(f / _log_uniform(rng, 2, 20)) / rng.uniform(0.1, 0.5)) ** 2)
        burst = np.fft.irfft(band * response * (mixing @ _white(rng, (3, 2 * freq_hz.size)).view(np.complex64)))[
            :, :samples
        ]
        envelope = np.exp(-0.5 * ((t - rng.uniform(0, t[-1])) / _log_uniform(rng, 1, 8)) ** 2)
        noise += _log_uniform(rng, 0.3, 4) * envelope * burst / math.sqrt(np.mean(burst**2))
    return noise
