"""Pictures: waveforms, probability curves, picks and detections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from seisserve.annotations import Annotation
from seisserve.detections import Detection
from seisserve.errors import UsageError
from seisserve.extras import need
from seisserve.manifest import DETECTION
from seisserve.picks import Pick
from seisserve.segments import by_instrument
from seisserve.tables import time_text
from seisserve.traces import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Shown", "check_suffix", "draw", "save"]

COLOURS = {"P": "tab:blue", "S": "tab:red", DETECTION: "tab:orange"}
SUFFIXES = (".png", ".svg", ".pdf")


class Shown(NamedTuple):
    """What a picture is made of."""

    traces: list[Trace]
    annotations: list[Annotation]
    picks: list[Pick]
    detections: list[Detection]


def save(figure: Figure, path: Path) -> None:
    """Write a picture; the suffix says in which format. Raises UsageError."""
    check_suffix(path)
    figure.savefig(path, dpi=120)


def check_suffix(path: Path) -> None:
    """Raises UsageError for a suffix that means no kind of picture."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: pictures are written as {', '.join(SUFFIXES)}")


def draw(
    traces: Sequence[Trace],
    annotated: Sequence[Annotation],
    picks: Sequence[Pick],
    detections: Sequence[Detection] = (),
) -> Figure:
    """Each instrument in a block: one panel for each channel, and one with the probability curves; picks as lines and
    detections as boxes across all.

    Traces have their mean removed for the picture and nothing else.
    """
    groups = by_instrument(traces)
    channels = {name: sorted({trace.id for trace in group}, key=_order) for name, group in groups.items()}
    rows = sum(len(ids) + 1 for ids in channels.values())
    if not rows:
        raise UsageError("nothing to draw: there are no traces")
    origin = min(trace.start_ns for trace in traces)
    figure: Figure = need("matplotlib.figure", "obspy").Figure((11, 1.1 * rows + 1), layout="constrained")
    panels = iter(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for name, ids in channels.items():
        own = [pick for pick in picks if pick.trace_id == name]
        boxes = [detection for detection in detections if detection.trace_id == name]
        for channel in ids:
            panel = next(panels)
            for trace in groups[name]:
                if trace.id == channel:
                    _line(
                        panel,
                        trace.start_ns - origin,
                        trace.sampling_rate_hz,
                        trace.samples - trace.samples.mean(),
                        "k",
                    )
            panel.set_ylabel(channel, rotation=0, ha="right", va="center", fontsize=8)
            panel.set_yticks([])
            _mark(panel, own, origin)
            _box(panel, boxes, origin)
        panel = next(panels)
        for item in annotated:
            if item.trace_id == name:
                for label, values in zip(item.labels, item.values.T, strict=True):
                    if label in COLOURS:
                        _line(panel, item.start_ns - origin, item.sampling_rate_hz, values, COLOURS[label])
        panel.set_ylim(0, 1.05)
        panel.set_ylabel("probability", rotation=0, ha="right", va="center", fontsize=8)
        _mark(panel, own, origin, text=True)
        _box(panel, boxes, origin)
    panel.set_xlabel(f"seconds after {time_text(origin)}")
    return figure


def _order(channel: str) -> tuple[str, int]:
    return channel[:-1], "Z3N1E2".find(channel[-1])


def _line(panel: Any, start_ns: int, rate_hz: float, values: Any, colour: str) -> None:
    panel.plot(start_ns / 1e9 + np.arange(len(values)) / rate_hz, values, color=colour, linewidth=0.7)


def _box(panel: Any, detections: Sequence[Detection], origin: int) -> None:
    for detection in detections:
        begin, end = (detection.start_ns - origin) / 1e9, (detection.end_ns - origin) / 1e9
        panel.axvspan(begin, end, facecolor=COLOURS[DETECTION], edgecolor=COLOURS[DETECTION], alpha=0.2)


def _mark(panel: Any, picks: Sequence[Pick], origin: int, text: bool = False) -> None:
    for pick in picks:
        at, colour = (pick.time_ns - origin) / 1e9, COLOURS.get(pick.phase, "tab:green")
        panel.axvline(at, color=colour, linewidth=1, alpha=0.8)
        if text:
            left = pick.phase == "P"  # P to the left of its line, S to the right: close pairs stay legible
            panel.annotate(
                f"{pick.phase} {pick.probability:.2f}", (at, 0.9), xytext=(-3 if left else 3, 0),
                textcoords="offset points", ha="right" if left else "left", color=colour, fontsize=8,
            )  # fmt: skip
