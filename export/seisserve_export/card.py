"""The model card: what the manifest says, for people. Made from the manifest alone, so it cannot say anything else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from seisserve import manifest as manifests
from seisserve.manifest import Manifest, Metric, Output

__all__ = ["card", "write"]

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
    return "\n".join([*lines, *([f"\n{_sentence(made.note)}"] if made.note else [])])


def _measured(model: Manifest) -> str:
    lines = []
    if model.metrics:
        heads = ("data", "split", "source", "phase", "tolerance", "labels", "precision", "recall", "F1 (95 %)")
        lines.append(_table((*heads, "residual bias, MAE, std"), map(_metric, model.metrics)))
    else:
        lines.append("Not measured against labelled data.")
    if model.false_picks_per_hour:
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in model.false_picks_per_hour.items())
        lines.append(f"\nFalse picks per hour of noise: {rates}.")
    return "\n".join(lines)


def _metric(metric: Metric) -> tuple[str, ...]:
    residuals = (metric.residual_bias_s, metric.residual_mae_s, metric.residual_std_s)
    low, high = metric.f1_interval
    return (
        metric.data_set,
        metric.split,
        metric.source,
        metric.phase,
        f"{metric.tolerance_s:g} s",
        f"{metric.labels:,}",
        f"{metric.precision:.3f}",
        f"{metric.recall:.3f}",
        f"{metric.f1:.3f} ({low:.3f} to {high:.3f})",
        ", ".join("-" if value is None else f"{value:.3f}" for value in residuals) + " s",
    )


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
    if not model.metrics:
        lines.append("- No accuracy is stated here: measure it on your own data before you rely on it.")
    elif model.training is not None and len(model.training.sources) == 1:
        lines.append(f"- Trained on {model.training.sources[0].name} only: expect less elsewhere.")
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join('n' if size < 0 else str(size) for size in shape)}]"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
