"""The model card: what the manifest says, for people. Made from the manifest alone, so it cannot say anything else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from seisserve import manifest as manifests
from seisserve.manifest import Figure, Manifest, Metric, Output

__all__ = ["card", "write"]

FEW = 20  # labels
METHODS = {
    "sta-lta": "ratio of a short to a long average, its threshold chosen on dev",
    "ar-aic": "autoregressive picker of Akazawa (2004): one P and one S in every trace, noise or not",
    "template-matching": "correlation with training events of the same station, its threshold chosen on dev; stations "
    "without one have no picks",
    "phasenet_original": "PhaseNet as Zhu and Beroza (2019) published it",
}
VERBS = {"picking": "pick", "detection": "detect", "denoising": "denoise", "recovery": "recover"}


def write(folder: Path) -> None:
    """Write CARD.md of the bundle in `folder`. Raises BundleError."""
    (folder / "CARD.md").write_text(card(manifests.read(folder)), encoding="utf-8")


def card(model: Manifest) -> str:
    """The card as Markdown."""
    parts = [
        f"# {model.name}\n\n{_sentence(model.summary)}",
        f"Task: {model.task}. Licence: {model.licence}.",
        f"## Input and output\n\n{_interface(model)}",
        f"## Training\n\n{_training(model)}",
        f"## Measured\n\n{_measured(model)}",
        f"## Files\n\n{_files(model)}",
        f"## Use\n\n{_use(model)}",
        f"## Limits\n\n{_limits(model)}",
        f"## Citation\n\n{_sentence(model.citation)}",
    ]
    return "\n\n".join(parts) + "\n"


def _interface(model: Manifest) -> str:
    rate = model.sampling_rate_hz
    lines = [
        f"- Input `{model.input.name}`: {model.input.dtype} `{_shape(model.input.shape)}`, components "
        f"{', '.join(model.components)}, {rate:g} Hz, raw counts: the network normalises by itself.",
        *(f"- Output {_output(output)}" for output in model.outputs),
        f"- Windows of {model.window_samples} samples ({model.window_samples / rate:g} s), a new one every "
        f"{model.hop_samples} samples; where they overlap the {model.stacking} counts.",
    ]
    if model.fragment_windows:
        shorter = ", ".join(map(str, model.fragment_windows))
        lines.append(f"- Shorter windows, for records shorter than that: {shorter} samples.")
    if model.blinding_samples:
        lines.append(f"- The first and last {model.blinding_samples} samples of a window only count at an end of data.")
    if model.labels:
        rows = (
            (name, f"{label.threshold:g}", label.chosen_on, f"{label.uncertainty_scale:g}")
            for name, label in model.labels.items()
        )
        lines.append("\n" + _table(("label", "threshold", "chosen on", "uncertainty scale"), rows))
        lines.append(f"\nPicks of one label are at least {model.minimum_pick_distance_s:g} s apart.")
    return "\n".join(lines)


def _output(output: Output) -> str:
    stride = f", one for every {output.stride} input samples" if output.stride > 1 else ""
    labels = ", ".join(output.labels)
    return f"`{output.name}`: {output.dtype} `{_shape(output.shape)}`, {labels}{stride}."


def _training(model: Manifest) -> str:
    if model.training is None:
        return "The manifest holds no record of the training."
    made = model.training
    rows = ((source.name, source.licence, f"{source.traces:,}") for source in made.sources)
    lines = [
        _table(("data", "licence", "traces"), rows),
        f"\nConfiguration `{made.config_sha256[:12]}`, seed {made.seed}, code {made.code_version}, "
        f"{made.windows_seen:,} windows seen.",
    ]
    return "\n".join(lines)


def _measured(model: Manifest) -> str:
    if not (model.metrics or model.figures):
        return "Not measured against labelled data."
    parts = []
    for data_set, split in _splits(model):
        metrics = [one for one in model.metrics if (one.data_set, one.split) == (data_set, split)]
        figures = [one for one in model.figures if (one.data_set, one.split) == (data_set, split)]
        parts.append(f"### {data_set}, split {split}")
        whole = [metric for metric in metrics if metric.source == "all"]
        if whole:
            heads = ("method", "phase", "within", "labels", "precision", "recall", "F1 (95 %)")
            rows = (_metric(metric, model.name) for metric in whole)
            parts.append(_table((*heads, "residual bias, MAE, std of matched picks"), rows))
        if len(metrics) > len(whole):
            parts.append("Source by source, precision / recall / F1 (95 %):\n\n" + _by_source(metrics, model.name))
        if figures:
            parts.append(_figures(figures, model.name))
        methods = dict.fromkeys([*(one.method for one in metrics), *(one.method for one in figures)])
        known = [f"- {name}: {METHODS[name]}." for name in methods if name in METHODS]
        if known:
            parts.append("\n".join(known))
    if model.false_picks_per_hour and not any("false" in figure.quantity for figure in model.figures):
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in model.false_picks_per_hour.items())
        parts.append(f"False picks per hour of noise: {rates}.")
    parts.append("Intervals: 95 %, bootstrap over traces; those of counts on noise are Poisson's.")
    return "\n\n".join(parts)


def _splits(model: Manifest) -> list[tuple[str, str]]:
    of_metrics = [(one.data_set, one.split) for one in model.metrics]
    return list(dict.fromkeys([*of_metrics, *((one.data_set, one.split) for one in model.figures)]))


def _metric(metric: Metric, name: str) -> tuple[str, ...]:
    residuals = (metric.residual_bias_s, metric.residual_mae_s, metric.residual_std_s)
    return (
        metric.method or f"**{name}**",
        metric.phase,
        f"{metric.tolerance_s:g} s",
        f"{metric.labels:,}",
        f"{metric.precision:.3f}",
        f"{metric.recall:.3f}",
        _f1(metric),
        ", ".join("-" if value is None else f"{value:.3f}" for value in residuals) + " s",
    )


def _f1(metric: Metric) -> str:
    low, high = metric.f1_interval
    return f"{metric.f1:.3f} ({low:.3f} to {high:.3f})"


def _by_source(metrics: Sequence[Metric], name: str) -> str:
    """A row for each source, phase and tolerance, a column for each method."""
    methods = list(dict.fromkeys(metric.method for metric in metrics))
    found = {(one.source, one.phase, one.tolerance_s, one.method): one for one in metrics}
    rows = []
    for source, phase, within in dict.fromkeys(key[:3] for key in found if key[0] != "all"):
        here = [found.get((source, phase, within, method)) for method in methods]
        labels = next(one.labels for one in here if one)
        cells = [f"{one.precision:.3f} / {one.recall:.3f} / {_f1(one)}" if one else "-" for one in here]
        rows.append((source, phase, f"{within:g} s", f"{labels:,}", *cells))
    return _table(("source", "phase", "within", "labels", *(method or f"**{name}**" for method in methods)), rows)


def _figures(figures: Sequence[Figure], name: str) -> str:
    """A row for each source and quantity, a column for each method."""
    methods = sorted(dict.fromkeys(figure.method for figure in figures), key=bool)
    found = {(one.source, one.quantity, one.method): one for one in figures}
    rows = []
    for source, quantity in sorted(dict.fromkeys(key[:2] for key in found), key=lambda key: key[0] != "all"):
        here = [found.get((source, quantity, method)) for method in methods]
        count = next(one.n for one in here if one)
        rows.append((source, quantity, f"{count:,}", *("-" if one is None else _figure(one) for one in here)))
    return _table(("source", "quantity", "n", *(method or f"**{name}**" for method in methods)), rows)


def _figure(figure: Figure) -> str:
    between = f" ({figure.interval[0]:.3g} to {figure.interval[1]:.3g})" if figure.interval else ""
    return f"{figure.value:.3g}{between} {figure.unit}".rstrip()


def _files(model: Manifest) -> str:
    rows = []
    for artifact in model.artifacts.values():
        parity = artifact.parity
        same = f"{parity['max_abs']:.1g}" if "max_abs" in parity else "reference"
        picks = f"{parity['picks_matched']:.2%} of {parity['picks']:.0f}" if parity.get("picks", 0) > 0 else "-"
        speed = "-" if artifact.windows_per_second is None else f"{artifact.windows_per_second:.0f}"
        name = "saved_model.pb, variables/" if artifact.file == "." else artifact.file
        size = f"{artifact.size_bytes / 1e3:,.0f} kB"
        rows.append((name, artifact.precision, size, same, picks, speed, f"`{artifact.sha256[:12]}`"))
    if not rows:
        return "None yet."
    heads = ("file", "precision", "size", "largest difference", "picks matched", "windows/s", "sha256")
    names = {artifact.processor for artifact in model.artifacts.values() if artifact.processor}
    speed_note = f"\n\nWindows per second of one thread on {', '.join(sorted(names))}." if names else ""
    return _table(heads, rows) + speed_note


def _use(model: Manifest) -> str:
    command = f"seisserve {VERBS[model.task]} waveforms.mseed --model {model.name}"
    return f"```\n{command}\nseisserve serve REPOSITORY\n```"


def _limits(model: Manifest) -> str:
    rate = model.sampling_rate_hz
    lines = [f"- Records of other rates than {rate:g} Hz are resampled first."]
    if len(model.components) > 1:
        lines.append(f"- Made for all of {model.components}; missing components are zero, and picks say so.")
    if model.edge_samples:
        lines.append(
            f"- Picks nearer than {model.edge_samples / rate:g} s to an end of the data or a gap are flagged `edge`."
        )
    if model.fragment_windows:
        lines.append(
            f"- Records below {model.window_samples / rate:g} s are seen in shorter windows and flagged `fragment`."
        )
    else:
        lines.append(f"- Records below {model.window_samples / rate:g} s are padded and flagged `fragment`.")
    return "\n".join([*lines, *(f"- {line}" for line in (*_limits_of_training(model), *_limits_of_figures(model)))])


def _limits_of_training(model: Manifest) -> list[str]:
    if model.training is None:
        return ["Trained elsewhere: what it has seen is not known here; on that its figures flatter it."]
    sources, lines = model.training.sources, []
    if len(sources) == 1:
        lines.append(f"Trained on {sources[0].name} only: expect less elsewhere.")
    elif sources:
        traces = sum(source.traces for source in sources)
        lines.append(
            f"Trained on {len(sources)} sources, {traces:,} traces: expect less elsewhere, and of other instruments."
        )
    return [*lines, *([_sentence(model.training.note)] if model.training.note else [])]


def _limits_of_figures(model: Manifest) -> list[str]:
    if not (model.metrics or model.figures):
        return ["No accuracy is stated here: measure it on your own data before you rely on it."]
    lines = []
    splits = {split for _, split in _splits(model)}
    if "test" not in splits:
        lines.append(
            f"All figures are of the split {', '.join(sorted(splits))}, on which choices were made: they flatter."
        )
    shown = [one for one in model.metrics if one.split == ("test" if "test" in splits else one.split)]
    own = [one for one in shown if not one.method and one.tolerance_s == max(m.tolerance_s for m in shown)]
    parts = [one for one in own if one.source != "all"]
    few = sorted({one.source for one in parts if one.labels < FEW})
    if few:
        lines.append(f"Fewer than {FEW} labels of a phase from {', '.join(few)}: those figures say little.")
    for phase in dict.fromkeys(one.phase for one in parts):
        weakest = min((one for one in parts if one.phase == phase), key=lambda one: one.f1)
        lines.append(f"Weakest on {weakest.source} for {phase}: F1 {_f1(weakest)} of {weakest.labels} labels.")
    for one in own:
        rivals = [
            other
            for other in shown
            if other.method
            and (other.data_set, other.split, other.source, other.phase, other.tolerance_s)
            == (one.data_set, one.split, one.source, one.phase, one.tolerance_s)
        ]
        best = max(rivals, key=lambda other: other.f1, default=one)
        if best.f1 > one.f1:
            where = "all sources together" if one.source == "all" else one.source
            lines.append(
                f"{best.method} does better for {one.phase} on {where}: F1 {best.f1:.3f} against {one.f1:.3f}."
            )
    return lines


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join('n' if size < 0 else str(size) for size in shape)}]"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
