"""Learn from another network beside the labels (distillation: Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from seisserve import bundle
from seisserve.errors import UsageError
from seisserve.manifest import Manifest
from seisserve_training.config import Config
from seisserve_training.evaluation import PHASES
from seisserve_training.models import ARCHITECTURES

__all__ = ["teacher"]

Teach = Callable[[Any, Any], Any]


def teacher(config: Config, root: Path) -> Teach:
    """What makes of a batch of waveforms and targets the targets that are learnt; without a teacher they are the same.

    root: the folder that a relative `teacher.bundle` begins at. Raises UsageError if that is no picker that can look at
    these windows, or the network learns no phases.
    """
    if config.teacher is None:
        return lambda waveform, target: target
    share, mix = config.teacher.share, ARCHITECTURES[config.network.kind].learn.mix
    if mix is None:
        raise UsageError(f"teacher: {config.network.kind!r} learns no phases at every sample, and takes no teacher")
    there = bundle.read(root / config.teacher.bundle)
    manifest, samples = there.manifest, config.network.window_samples
    window = _window(manifest, config)
    model: Any = tf.saved_model.load(str(there.folder))
    key = "serving_default" if window == manifest.window_samples else "fragment"
    p, s = (manifest.output.labels.index(phase) for phase in PHASES)

    def teach(waveform: Any, target: Any) -> Any:
        filled = tf.concat([waveform, tf.repeat(waveform[:, -1:], window - samples, axis=1)], axis=1)
        outputs = model.signatures[key](**{manifest.input.name: filled})
        curves = outputs[manifest.output.name][:, :samples]
        return mix(target, curves[..., p], curves[..., s], share)

    return teach


def _window(manifest: Manifest, config: Config) -> int:
    """The shortest of the teacher's windows that holds one of training."""
    own = config.sampling_rate_hz, config.components
    if (manifest.sampling_rate_hz, manifest.components) != own:
        raise UsageError(
            f"teacher.bundle: {manifest.name} is for {manifest.components} at {manifest.sampling_rate_hz:g} Hz; "
            f"this network for {own[1]} at {own[0]:g} Hz"
        )
    if manifest.task != "picking" or manifest.output.single or not set(PHASES) <= set(manifest.output.labels):
        raise UsageError(f"teacher.bundle: {manifest.name} has no curves of P and S, so it cannot teach them")
    windows = sorted((*manifest.fragment_windows, manifest.window_samples))
    samples = config.network.window_samples
    if samples > windows[-1]:
        raise UsageError(f"teacher.bundle: {manifest.name} takes {windows[-1]} samples; the windows have {samples}")
    return next(window for window in windows if window >= samples)
