"""What each augmentation of Zhu, Mousavi and Beroza (2020) is worth: a picker trained with and without it.

One small picker is trained with all of them, and once without each, from several seeds. All are scored on the dev
split. Runs are shared between the comparisons, and a finished run is not trained again.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from scipy import stats
from tqdm import tqdm

from seisserve.errors import UsageError
from seisserve.manifest import Manifest
from seisserve.transport import Transport
from seisserve_training import augment, training
from seisserve_training.augment import Example
from seisserve_training.config import Augmentation, Config, Data, Network, Schedule
from seisserve_training.datasets import LabelledTrace
from seisserve_training.evaluation import curves, evaluate
from seisserve_training.synthetic import write_dataset

__all__ = ["VARIANTS", "Measured", "augmentation", "mean_and_interval", "study_config", "summary"]

WITHIN_S = 0.5
PHASES = ("P", "S")
PLACES = np.linspace(0.02, 0.98, 25)  # of the onset in the window, as a share of it
SNR_DB = (20, 10, 5, 0, -5)
COMPONENTS = ("Z", "E", "N", "EN", "ENZ")
GAPS_PER_TRACE = 3
MADE_TRACES = 800  # of the made-up set that is used where no data is named
PRECOMPUTED = 1  # windows per trace
VARIANTS: dict[str, dict[str, float | bool | int]] = {
    "all": {},
    "precomputed shifts": {"precomputed_shifts": PRECOMPUTED},
    "no random shift": {"shift": False},
    "no superposed noise": {"superpose_noise": 0.0},
    "no false-positive noise": {"false_positive_noise": 0.0, "false_positive_noise_on_noise": 0.0},
    "no channel dropout": {"channel_dropout": 0.0},
}
MEASURED = {  # what tells each variant from "all"
    "f1": ("all", "precomputed shifts", "no random shift"),
    "recall at place": ("all", "no random shift"),
    "probability at place": ("all", "no random shift"),
    "f1 at SNR": ("all", "no superposed noise"),
    "false picks per hour": ("all", "no false-positive noise"),
    "f1 on components": ("all", "no channel dropout"),
}


class Measured(NamedTuple):
    """One figure of one run. condition: the place, SNR in dB, components or kind of noise it was taken at."""

    variant: str
    seed: int
    measure: str
    condition: str
    phase: str
    value: float


def augmentation(folder: Path, work: Path, data: Path | None, seeds: int, quick: bool = False) -> Path:
    """Run the study and write augmentation.md, .csv and three pictures to `folder`; returns the table's path.

    work: folder of the runs, from which a study that was stopped goes on. data: a labelled set with train and dev
    splits; without one a set of synthetic events is made in `work`. Raises UsageError if the set lacks a split.
    """
    if data is None:
        data = work / "made"
        if not (data / "metadata.csv").exists():
            write_dataset(data, 60 if quick else MADE_TRACES, seed=0, dev_share=0.2, test_share=0.0)
    config = study_config(data, quick)
    traces = training.load(config, Path())
    learnt, dev = ([trace for trace in traces if trace.row.split == split] for split in ("train", "dev"))
    for split, found in (("train", learnt), ("dev", dev)):
        if all(trace.row.noise for trace in found):
            raise UsageError(f"{data} has no labelled events in its split {split!r}; the study needs train and dev")
    measured: list[Measured] = []
    runs = [(variant, seed) for seed in range(1, seeds + 1) for variant in VARIANTS]
    for variant, seed in tqdm(runs, desc="runs", disable=None):
        measured += run(variant, seed, config, work, learnt, dev)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "augmentation.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Measured._fields)
        writer.writerows(measured)
    draw(measured, folder)
    table = folder / "augmentation.md"
    table.write_text(summary(measured, config, data.name, learnt, dev))
    return table


def study_config(data: Path, quick: bool) -> Config:
    """The run that all variants are variants of."""
    schedule = Schedule(epochs=1, steps_per_epoch=1000, batch_size=16, learning_rate=5e-3, average=0.99)
    if quick:
        schedule = Schedule(epochs=1, steps_per_epoch=4, batch_size=4, learning_rate=6e-3, average=0.9)
    return Config(
        name="study",
        data=Data(
            paths=(str(data.resolve()),), incomplete=("auto_pal_associated", "auto_quakemigrate"), in_memory=True
        ),
        augmentation=Augmentation(rotate=0.0, high_pass=0.0),
        network=Network(kind="phasenet", window_samples=2048, filters=4),
        schedule=schedule,
    )


def run(
    variant: str, seed: int, config: Config, work: Path, learnt: list[LabelledTrace], dev: list[LabelledTrace]
) -> list[Measured]:
    """Train one variant from one seed and take its figures, or read them if that was done before."""
    chosen = msgspec.structs.replace(
        config,
        augmentation=msgspec.structs.replace(config.augmentation, **VARIANTS[variant]),
        schedule=msgspec.structs.replace(config.schedule, seed=seed),
    )
    folder = work / f"{variant.replace(' ', '_')}_seed{seed}"
    kept, settings = folder / "figures.json", folder / "config.json"
    if settings.exists() and msgspec.json.decode(settings.read_bytes(), type=Config) != chosen:
        raise UsageError(f"{folder} holds a run of another configuration; name another folder with --work")
    if kept.exists():
        return msgspec.json.decode(kept.read_bytes(), type=list[Measured])
    folder.mkdir(parents=True, exist_ok=True)
    settings.write_bytes(msgspec.json.encode(chosen))
    model = training.train(chosen, folder, learnt)
    manifest, transport = training.contract(chosen), training.keras_transport(model)
    figures = [
        Measured(variant, seed, *figure)
        for measure, take in TAKEN.items()
        if variant in MEASURED[measure]
        for figure in take(dev, manifest, transport, chosen)
    ]
    kept.write_bytes(msgspec.json.encode(figures))
    training.forget(folder)
    return figures


Figure = tuple[str, str, str, float]  # measure, condition, phase, value


def overall(dev: Sequence[LabelledTrace], manifest: Manifest, transport: Transport, config: Config) -> Iterator[Figure]:
    """F1 at 0.5 s on the dev traces as they are."""
    for phase, value in _f1(dev, manifest, transport, config).items():
        yield "f1", "", phase, value


def at_places(
    dev: Sequence[LabelledTrace], manifest: Manifest, transport: Transport, config: Config
) -> Iterator[Figure]:
    """Share of onsets seen, and mean probability at them, by where in the window they lie (one window each).

    Traces that are long enough for all places only.
    """
    samples, rate = manifest.window_samples, manifest.sampling_rate_hz
    near = round(WITHIN_S * rate)
    for phase in PHASES:
        column, threshold = manifest.output.labels.index(phase), manifest.labels[phase].threshold
        onsets = [(trace, getattr(trace, phase.lower())) for trace in dev if not trace.row.noise]
        onsets = [
            (trace, onset) for trace, onset in onsets
            if onset >= PLACES[-1] * samples and onset + (1 - PLACES[0]) * samples <= trace.waveform.shape[1] - 1
        ]  # fmt: skip
        for place in PLACES if onsets else ():
            at = round(place * samples)
            windows = np.stack([t.waveform.T[round(onset) - at : round(onset) - at + samples] for t, onset in onsets])
            curve = transport.predict(manifest, {manifest.input.name: windows})[manifest.output.name][..., column]
            highest = curve[:, max(at - near, 0) : at + near + 1].max(axis=1)
            yield "recall at place", f"{place:.2f}", phase, float((highest >= threshold).mean())
            yield "probability at place", f"{place:.2f}", phase, float(highest.mean())


def at_snr(dev: Sequence[LabelledTrace], manifest: Manifest, transport: Transport, config: Config) -> Iterator[Figure]:
    """F1 of events under recorded noise. SNR: rms in the second after the first onset over rms of the added noise."""
    noise = [trace for trace in dev if trace.row.noise]
    events = [trace for trace in dev if not trace.row.noise]
    for level in SNR_DB if noise else ():
        rng = np.random.default_rng(0)  # the same noise on the same trace for all runs and levels
        noisy = [
            _with_noise(event, noise[rng.integers(len(noise))], level, config.sampling_rate_hz) for event in events
        ]
        for phase, value in _f1(noisy, manifest, transport, config).items():
            yield "f1 at SNR", str(level), phase, value


def on_faults(
    dev: Sequence[LabelledTrace], manifest: Manifest, transport: Transport, config: Config
) -> Iterator[Figure]:
    """False picks per hour of noise as it is, with a gap in each trace, and with any fault in each."""
    noise = [trace for trace in dev if trace.row.noise]
    for kind, fault in (("as it is", None), ("gaps", augment.gap), ("all faults", augment.false_positive_noise)):
        rng, spoilt = np.random.default_rng(0), []
        for trace in noise * (1 if fault is None else GAPS_PER_TRACE):
            example = Example(trace.waveform.T, (), (), np.ones(trace.waveform.shape[1], bool))
            made = example if fault is None else fault(example, rng, config.sampling_rate_hz)
            spoilt.append(trace._replace(waveform=np.ascontiguousarray(made.waveform.T)))
        if spoilt:
            found = evaluate(spoilt, curves(spoilt, manifest, transport), manifest, (WITHIN_S,), resamples=0)
            yield "false picks per hour", kind, "P and S", sum(found.false_picks_per_hour.values())


def on_components(
    dev: Sequence[LabelledTrace], manifest: Manifest, transport: Transport, config: Config
) -> Iterator[Figure]:
    """F1 where only some components were recorded; the others are zero."""
    for components in COMPONENTS:
        alive = np.array([code in components for code in config.components])
        masked = [
            trace._replace(
                waveform=trace.waveform * alive[:, None].astype(np.float32),
                live=tuple(bool(live and there) for live, there in zip(trace.live, alive, strict=True)),
            )
            for trace in dev
        ]
        for phase, value in _f1(masked, manifest, transport, config).items():
            yield "f1 on components", components, phase, value


TAKEN = {
    "f1": overall,
    "recall at place": at_places,
    "f1 at SNR": at_snr,
    "false picks per hour": on_faults,
    "f1 on components": on_components,
}


def _f1(traces: Sequence[LabelledTrace], manifest: Manifest, transport: Transport, config: Config) -> dict[str, float]:
    made = curves(traces, manifest, transport)
    found = evaluate(traces, made, manifest, (WITHIN_S,), config.data.incomplete, resamples=0)
    scores = {phase: found.scores.get(("all", phase, WITHIN_S)) for phase in PHASES}
    return {phase: score.f1 for phase, score in scores.items() if score}


def _with_noise(event: LabelledTrace, noise: LabelledTrace, snr_db: float, rate_hz: float) -> LabelledTrace:
    length = event.waveform.shape[1]
    added = noise.waveform[:, :length]
    added = np.pad(added, ((0, 0), (0, length - added.shape[1])), mode="symmetric")  # no steps where it begins again
    first = int(np.nanmin([event.p, event.s]))
    after = event.waveform[:, first : first + round(rate_hz)].astype(np.float64)
    signal, strength = after.std(axis=1).mean(), added.astype(np.float64).std(axis=1).mean()
    scale = signal / strength * 10 ** (-snr_db / 20) if strength else 0.0
    return event._replace(waveform=np.asarray(event.waveform + added * scale, np.float32))


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval by Student's t (NaN for a single value)."""
    if len(values) < 2:
        return float(np.mean(values)), np.nan
    spread = float(np.std(values, ddof=1)) / np.sqrt(len(values))
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * spread)


def summary(
    measured: Sequence[Measured],
    config: Config,
    data: str,
    learnt: Sequence[LabelledTrace],
    dev: Sequence[LabelledTrace],
) -> str:
    """The study as Markdown."""
    seeds = len({one.seed for one in measured})
    schedule, network = config.schedule, config.network
    windows = schedule.epochs * schedule.steps_per_epoch * schedule.batch_size
    lines = [
        "# What each augmentation is worth",
        "",
        f"`seisserve study augmentation` on `{data}`: PhaseNet with {network.filters} filters on windows of"
        f" {network.window_samples} samples, {windows:,} windows a run, {len(learnt)} traces of the train split, scored"
        f" on {len(dev)} traces of the dev split. {seeds} seeds; ± is half of the 95 % interval of the mean over seeds"
        " (Student's t), and differences are taken seed by seed. Threshold 0.3, tolerance 0.5 s. Published figures are"
        " of Zhu, Mousavi and Beroza (2020), other networks and data: compare the differences, not the levels."
        " All runs: [augmentation.csv](augmentation.csv).",
        "",
    ]  # fmt: skip
    for title, measure, other, published, note in SECTIONS:
        lines += [f"## {title}", "", note, ""] if note else [f"## {title}", ""]
        lines += _table(measured, measure, other, published)
    return "\n".join(lines).rstrip() + "\n"


SECTIONS: tuple[tuple[str, str, str, dict[tuple[str, str], str], str], ...] = (
    ("1. Random shift: on the fly or computed before", "f1", "precomputed shifts",
     {("", "P"): "0.712 / 0.685", ("", "S"): "0.647 / 0.616"},
     f"F1. Precomputed: {PRECOMPUTED} window of each trace, drawn once."),
    ("2. Random shift: where the onset lies in the window", "recall at place", "no random shift", {},
     "Recall of single windows by the place of the onset in the window (0 its begin, 1 its end); without random shift"
     " the first onset is always at a third of the window. ![](augmentation_place.png)"),
    ("3. Superposed noise", "f1 at SNR", "no superposed noise", {},
     "F1 under noise of the dev split. SNR in dB: rms in the second after the first onset over rms of the added noise."
     " ![](augmentation_snr.png)"),
    ("4. False-positive noise", "false picks per hour", "no false-positive noise", {},
     "Picks on an hour of noise as it is, with a gap in each trace, and with a gap, step, spikes, repeat or pulse in"
     " each."),
    ("5. Channel dropout", "f1 on components", "no channel dropout",
     {("Z", "P"): "0.948 / 0.936", ("Z", "S"): "0.476 / 0.036", ("ENZ", "P"): "0.950 / 0.938",
      ("ENZ", "S"): "0.818 / 0.796"},
     "F1 with some components only, the others zero. ![](augmentation_components.png)"),
)  # fmt: skip


def _table(
    measured: Sequence[Measured], measure: str, other: str, published: Mapping[tuple[str, str], str]
) -> Iterator[str]:
    if not _conditions(measured, measure):
        yield from ("Not measured: the dev split has no noise, or no trace that is long enough.", "")
        return
    head = ["condition", "phase", "all augmentations", other, "difference"]
    shown = published != {}
    head += ["published: with / without"] if shown else []
    yield "| " + " | ".join(head) + " |"
    yield "| " + " | ".join("---" for _ in head) + " |"
    for condition, phase in _conditions(measured, measure):
        if measure == "recall at place" and condition not in PLACES_SHOWN:
            continue
        ours, theirs = (_by_seed(measured, variant, measure, condition, phase) for variant in ("all", other))
        cells = [_cell(list(ours.values())), _cell(list(theirs.values()))]
        cells.append(_cell([ours[seed] - theirs[seed] for seed in ours if seed in theirs], sign=True))
        row = [condition or "dev as it is", phase, *cells]
        yield "| " + " | ".join(row + ([published.get((condition, phase), "")] if shown else [])) + " |"
    yield ""


PLACES_SHOWN = tuple(f"{place:.2f}" for place in PLACES[::4])


def _conditions(measured: Sequence[Measured], measure: str) -> list[tuple[str, str]]:
    return list(dict.fromkeys((one.condition, one.phase) for one in measured if one.measure == measure))


def _by_seed(measured: Sequence[Measured], variant: str, measure: str, condition: str, phase: str) -> dict[int, float]:
    wanted = variant, measure, condition, phase
    return {m.seed: m.value for m in measured if (m.variant, m.measure, m.condition, m.phase) == wanted}


def _cell(values: Sequence[float], sign: bool = False) -> str:
    if not values:
        return "not measured"
    mean, half = mean_and_interval(values)
    digits = 1 if max(abs(value) for value in values) >= 2 else 3
    text = f"{mean:{'+' if sign else ''}.{digits}f}"
    return text if np.isnan(half) else f"{text} ± {half:.{digits}f}"


def draw(measured: Sequence[Measured], folder: Path) -> None:
    """The curves of the study as pictures; bands and bars are 95 % intervals over the seeds."""
    from matplotlib.figure import Figure as Picture

    picture = Picture((9, 6), layout="constrained")
    panels = picture.subplots(2, 2, sharex=True, sharey=True)
    for row, measure in zip(panels, ("recall at place", "probability at place"), strict=True):
        for panel, phase in zip(row, PHASES, strict=True):
            for variant, colour in (("all", "C0"), ("no random shift", "C3")):
                x, mean, half = _line(measured, variant, measure, phase)
                panel.plot(x, mean, color=colour, label=variant)
                panel.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
            panel.set(ylim=(0, 1), ylabel=f"{measure.split()[0]}, {phase}")
    for panel in panels[1]:
        panel.set_xlabel("place of the onset in the window")
    panels[0, 0].legend()
    picture.savefig(folder / "augmentation_place.png", dpi=100)

    picture = Picture((9, 3.5), layout="constrained")
    for panel, phase in zip(picture.subplots(1, 2, sharey=True), PHASES, strict=True):
        for variant in MEASURED["f1 at SNR"]:
            panel.errorbar(*_line(measured, variant, "f1 at SNR", phase), capsize=3, marker="o", label=variant)
        panel.set(ylim=(0, 1), xlabel="SNR in dB", ylabel=f"F1, {phase}")
        panel.legend()
    picture.savefig(folder / "augmentation_snr.png", dpi=100)

    picture = Picture((9, 3.5), layout="constrained")
    for panel, phase in zip(picture.subplots(1, 2, sharey=True), PHASES, strict=True):
        for number, variant in enumerate(MEASURED["f1 on components"]):
            found = [_by_seed(measured, variant, "f1 on components", c, phase) for c in COMPONENTS]
            bars = [mean_and_interval(list(one.values())) if one else (np.nan, np.nan) for one in found]
            x = np.arange(len(COMPONENTS)) + 0.4 * number - 0.2
            panel.bar(x, [bar[0] for bar in bars], 0.4, yerr=np.nan_to_num([bar[1] for bar in bars]), label=variant)
        panel.set(ylim=(0, 1), ylabel=f"F1, {phase}")
        panel.set_xticks(range(len(COMPONENTS)), COMPONENTS)
        panel.legend()
    picture.savefig(folder / "augmentation_components.png", dpi=100)


def _line(
    measured: Sequence[Measured], variant: str, measure: str, phase: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, mean and half interval of a curve, [points] each."""
    conditions = [condition for condition, of in _conditions(measured, measure) if of == phase]
    found = [(float(c), list(_by_seed(measured, variant, measure, c, phase).values())) for c in conditions]
    points = [(x, *mean_and_interval(values)) for x, values in found if values]
    x, mean, half = np.array(points).reshape(-1, 3).T
    return x, mean, np.nan_to_num(half)
