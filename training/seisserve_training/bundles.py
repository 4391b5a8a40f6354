"""From a trained network to a bundle: thresholds chosen on dev, SavedModel, golden windows, manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import msgspec
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from seisserve import manifest as manifests
from seisserve._version import __version__
from seisserve.bundle import saved_model, write_golden
from seisserve.manifest import DETECTION, Label, Manifest, Source, Training
from seisserve.windows import Curve
from seisserve_training.augment import clip
from seisserve_training.config import Config
from seisserve_training.datasets import LabelledTrace, of_split, rows_of
from seisserve_training.evaluation import WITHIN_S, Evaluation, best_thresholds, curves, evaluate, judged, residuals
from seisserve_training.evaluation_detection import alarms, best_threshold, detection_curves
from seisserve_training.synthetic import synthetic_event, synthetic_noise
from seisserve_training.training import contract, keras_transport
from seisserve_training.uncertainty import Calibration, calibrate

__all__ = ["choose_labels", "golden_windows", "write_bundle"]

CANDIDATES = np.round(np.arange(0.15, 0.96, 0.05), 2)


def write_bundle(model: keras.Model, config: Config, traces: Sequence[LabelledTrace], folder: Path) -> Manifest:
    """Write the bundle of a trained network: SavedModel, golden.npz and manifest.json. Export adds the rest.

    traces: those that it was trained with; their dev split chooses the thresholds.
    """
    manifest = contract(config)
    dev = of_split(traces, "dev")
    if dev:
        made = curves(dev, manifest, keras_transport(model))
        labels = choose_labels(dev, made, manifest, config.data.incomplete, config.thresholds)
        manifest = msgspec.structs.replace(manifest, labels=labels)
    folder.mkdir(parents=True, exist_ok=True)
    save(model, manifest, folder)
    windows = golden_windows(manifest)
    write_golden(folder, windows, keras_transport(model).function(windows))
    schedule = config.schedule
    training = Training(
        sources=sources(traces, config),
        config_sha256=config.sha256,
        seed=schedule.seed,
        code_version=__version__,
        windows_seen=schedule.epochs * schedule.steps_per_epoch * schedule.batch_size,
        note=note(config),
    )
    manifest = msgspec.structs.replace(manifest, artifacts={"saved_model": saved_model(folder)}, training=training)
    manifests.write(folder, manifest)
    return manifest


def save(model: keras.Model, manifest: Manifest, folder: Path) -> None:
    """Write the SavedModel: `serving_default` takes whole windows, `fragment` the shorter ones too."""
    name, output = manifest.input.name, manifest.output.name
    components = len(manifest.components)
    module = tf.Module()
    module.model = model

    def run(waveform: tf.Tensor) -> dict[str, tf.Tensor]:
        return {output: model(waveform, training=False)}

    def signature(samples: int | None) -> Any:
        return tf.function(run).get_concrete_function(tf.TensorSpec((None, samples, components), tf.float32, name=name))

    signatures = {"serving_default": signature(manifest.window_samples)}
    if manifest.fragment_windows:
        signatures["fragment"] = signature(None)
    tf.saved_model.save(module, str(folder), signatures=signatures)


def note(config: Config) -> str:
    """What else it has learnt from than data, for the card."""
    found = []
    if config.fine_tune is not None:
        kept = f", of which {config.fine_tune.keep:.0%} is kept" if config.fine_tune.keep else ""
        found.append(f"begun from the weights of {_named(config.fine_tune.init_from)}{kept}")
    if config.teacher is not None:
        found.append(
            f"taught by {_named(config.teacher.bundle)}, whose curves are {config.teacher.share:.0%} of its targets"
        )
    text = "; ".join(found)
    return text[:1].upper() + text[1:]


def _named(path: str) -> str:
    """A file or bundle without the folders that it lies in here."""
    return "/".join(Path(path).parts[-2:])


def choose_labels(
    dev: Sequence[LabelledTrace],
    made: Sequence[Curve],
    manifest: Manifest,
    incomplete: Sequence[str],
    given: Mapping[str, float],
) -> dict[str, Label]:
    """For each phase the threshold with the best F1 on dev, where picks on noise traces count as false picks too, and
    the factor that makes two thirds of the residuals smaller than the stated uncertainty, and what a pick's peak is
    worth as a probability: fitted on all picks above the lowest candidate, whatever the threshold. For detections the
    threshold with the best F1 of events. given: thresholds that are not chosen."""

    def evaluate_at(threshold: float) -> Evaluation:
        read = manifest.with_options(dict.fromkeys(manifest.labels, threshold))
        return evaluate(dev, made, read, (WITHIN_S,), incomplete, resamples=0)

    best = best_thresholds(evaluate_at, CANDIDATES.tolist(), list(manifest.phases))
    best |= {label: given[label] for label in best.keys() & given.keys()}
    scales = {}
    for label, ratios in residuals(dev, made, manifest.with_options(best), WITHIN_S).items():
        scales[label] = round(float(np.quantile(ratios, 0.68)), 3) if len(ratios) > 20 else 1.0
    lowest = manifest.with_options(dict.fromkeys(manifest.labels, float(CANDIDATES[0])))
    fits = {
        label: calibrate(*np.reshape(verdicts, (-1, 2)).T)
        for label, verdicts in judged(dev, made, lowest, WITHIN_S, incomplete).items()
    }
    chosen = {
        label: Label(
            threshold=best[label],
            uncertainty_scale=scales[label],
            calibration=fits[label].knots,
            chosen_on=f"{'given' if label in given else f'dev, {len(dev)} traces'}; {_calibration_note(fits[label])}",
        )
        for label in best
    }
    if DETECTION in manifest.labels and DETECTION not in given:
        found = alarms(dev, detection_curves(made), manifest.sampling_rate_hz)
        threshold = best_threshold(found, CANDIDATES.tolist())
        chosen[DETECTION] = Label(threshold=threshold, chosen_on=f"dev, {len(dev)} traces")
    return {**manifest.labels, **chosen}


def _calibration_note(fit: Calibration) -> str:
    if not fit.knots:
        return f"probabilities as they are (calibration error {fit.error_before:.3f}, {fit.picks} picks)"
    return f"calibration error {fit.error_before:.3f}, calibrated {fit.error_after:.3f} ({fit.picks} picks)"


def golden_windows(manifest: Manifest) -> NDArray[np.float32]:
    """Made windows of every kind: events, noise, one component, a constant, the smallest and largest amplitudes.

    For recovery the events are clipped, at a tenth to a half of their peak: it leaves all others alone.
    """
    samples, rate = manifest.window_samples, manifest.sampling_rate_hz
    rng = np.random.default_rng(20_190_101)
    events = [synthetic_event(rng, samples, rate).waveform for _ in range(4)]
    events = [event / np.abs(event).max() * 1000 for event in events]
    if manifest.task == "recovery":
        events = [clip(event, level) for event, level in zip(events, (0.5, 0.3, 0.1, 0.2), strict=True)]
    windows = [
        *events,
        synthetic_noise(rng, samples, rate),
        events[0] * 1e-14,
        events[1] * 1e9,
        np.zeros_like(events[0]),
    ]
    one_component = events[2].copy()
    one_component[:, 1:] = 0
    return np.stack([*windows, one_component, np.full_like(events[0], 7)]).astype(np.float32)


def sources(traces: Sequence[LabelledTrace], config: Config) -> tuple[Source, ...]:
    """The training split's sources, with licences and counts."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows_of(traces):
        if row.split == "train":
            key = (row.source, row.licence)
            counts[key] = counts.get(key, 0) + 1
    found = [Source(name=name, licence=licence, traces=count) for (name, licence), count in sorted(counts.items())]
    if config.data.synthetic_events:
        found.append(
            Source(
                name="synthetic (seisserve_training.synthetic)",
                licence="Apache-2.0",
                traces=config.data.synthetic_events,
            )
        )
    return tuple(found)
