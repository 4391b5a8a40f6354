"""Chains: recover, denoise, then pick and detect. The waveforms that one stage makes are the traces of the next."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from seisserve import pipeline
from seisserve.detections import Detection
from seisserve.errors import UsageError
from seisserve.manifest import DETECTION, Manifest, Task
from seisserve.picks import Pick
from seisserve.resample import Phase
from seisserve.restoration import Restored, restore
from seisserve.traces import Trace, handed_over
from seisserve.transport import Transport

__all__ = ["RESTORING", "STAGES", "Options", "Outcome", "Stage", "process", "provenances", "returned", "with_options"]

Stage = Literal["recover", "denoise", "pick", "detect"]
STAGES: dict[Stage, Task] = {
    "recover": "recovery", "denoise": "denoising", "pick": "picking", "detect": "detection",
}  # fmt: skip
RESTORING: tuple[Stage, ...] = ("recover", "denoise")


class Options(NamedTuple):
    """Of picking and detection; None is what the model says. thresholds: by label."""

    thresholds: dict[str, float] | None = None
    hop_samples: int | None = None
    stacking: str | None = None


class Outcome(NamedTuple):
    """What the stages made of one instrument: waveforms by stage, picks, detections, and what the user should know."""

    waveforms: dict[Stage, list[Trace]]
    picks: list[Pick]
    detections: list[Detection]
    warnings: list[str]


def with_options(models: Mapping[Stage, Manifest], options: Options) -> dict[Stage, Manifest]:
    """The models of the stages, in order, with these options.

    Thresholds of phases are for picking, that of `detection` is for detection. They are rounded to float32, which is
    how messages carry them: a chain has one provenance wherever it runs. Raises UsageError for no stage at all, and
    for what the models cannot take.
    """
    if not models:
        raise UsageError(f"no stage is asked for; there is {', '.join(STAGES)}")
    labels: dict[Stage, list[str]] = {}
    if "pick" in models:
        labels["pick"] = list(models["pick"].phases)
    if "detect" in models:
        labels["detect"] = [DETECTION]
    thresholds = {label: float(np.float32(value)) for label, value in (options.thresholds or {}).items()}
    _check(thresholds, options, labels)
    found: dict[Stage, Manifest] = {}
    for stage in (stage for stage in STAGES if stage in models):
        found[stage] = models[stage]
        if stage in labels:
            own = {label: value for label, value in thresholds.items() if label in labels[stage]}
            found[stage] = models[stage].with_options(own, options.hop_samples, options.stacking)
    return found


def _check(thresholds: dict[str, float], options: Options, labels: dict[Stage, list[str]]) -> None:
    """labels: that the stages have which read something."""
    given = {"thresholds": thresholds or None, "hop_samples": options.hop_samples, "stacking": options.stacking}
    if not labels and any(value is not None for value in given.values()):
        named = ", ".join(name for name, value in given.items() if value is not None)
        raise UsageError(f"{named}: for picking and detection, and neither of these stages is asked for")
    known = [label for found in labels.values() for label in found]
    for label in thresholds:
        if label not in known:
            raise UsageError(f"threshold for {label!r}: {' and '.join(labels)} have {', '.join(known)}")


def provenances(models: Mapping[Stage, Manifest], phase: Phase = "zero") -> dict[Stage, str]:
    """For each stage the digest of all that decides its results: of its own, and of the stages before it."""
    found: dict[Stage, str] = {}
    before = ""
    for stage, model in models.items():
        own = pipeline.provenance(model, phase)
        found[stage] = hashlib.sha256(f"{before} {own}".encode()).hexdigest() if before else own
        if stage in RESTORING:
            before = found[stage]
    return found


def returned(stages: Iterable[Stage], return_waveforms: bool) -> list[Stage]:
    """The stages whose waveforms are wanted: all if asked for, else those that nothing is read from."""
    asked = list(stages)
    restoring = [stage for stage in asked if stage in RESTORING]
    return restoring if return_waveforms else restoring[-1:] if restoring == asked else []


def process(
    traces: Iterable[Trace],
    stages: Mapping[Stage, tuple[Manifest, Transport]],
    *,
    phase: Phase = "zero",
    keep: Iterable[Stage] = (),
) -> Outcome:
    """What the stages, in order, make of the traces of one instrument. Raises WaveformError.

    keep: the stages whose waveforms are wanted. Waveforms are those of `restore`, with the gaps of the traces: no stage
    looks across one, not even where the waveforms on both sides touch because the gap was shorter than a sample.
    """
    wanted, last = set(keep), list(stages)[-1]
    parts = [list(traces)]
    outcome = Outcome({}, [], [], [])
    for stage, (model, transport) in stages.items():
        if stage in RESTORING:
            parts, warnings = _restored(parts, model, transport, phase)
            outcome.warnings.extend(warnings)
            if stage in wanted:
                outcome.waveforms[stage] = sorted(
                    (trace for part in parts for trace in part), key=lambda trace: trace.start_ns
                )
            continue
        for part in parts:
            given = handed_over(part) if stage == last else part
            if stage == "pick":
                picks, warnings = pipeline.pick(given, model, transport, phase=phase)
                outcome.picks.extend(picks)
            else:
                detections, warnings = pipeline.detect(given, model, transport, phase=phase)
                outcome.detections.extend(detections)
            outcome.warnings.extend(warnings)
    return outcome._replace(
        picks=sorted(outcome.picks, key=lambda pick: (pick.time_ns, pick.phase)),
        detections=sorted(outcome.detections, key=lambda detection: detection.start_ns),
        warnings=list(dict.fromkeys(outcome.warnings)),  # two stages may say the same of one trace
    )


def _restored(
    parts: list[list[Trace]], model: Manifest, transport: Transport, phase: Phase
) -> tuple[list[list[Trace]], list[str]]:
    """The traces that a model makes of each part, parted anew, and warnings. Empties the parts."""
    made: list[Restored] = []
    warnings: list[str] = []
    for part in parts:
        restored, more = restore(handed_over(part), model, transport, phase=phase)
        made += restored
        warnings += more
    return _apart(sorted(made, key=lambda item: item.segment.grid_index)), warnings


def _apart(made: list[Restored]) -> list[list[Trace]]:
    """The traces of the segments in one list, or in two where there are gaps that can no longer be seen.

    Segments touch where a component comes or goes: the others go on, and are to be joined again. Where the same
    components touch there is a gap shorter than a sample (a sample that got lost at a higher rate, a change of rate):
    the sides of it go into different lists, and what is in one list is never joined across it.
    """
    sides: list[list[Trace]] = [made[0].traces() if made else [], []]
    side = 0
    for before, after in pairwise(made):
        first, second = before.segment, after.segment
        if first.grid_index + first.samples.shape[1] == second.grid_index and first.live == second.live:
            side = 1 - side
        sides[side] += after.traces()
    return [traces for traces in sides if traces] or [[]]
