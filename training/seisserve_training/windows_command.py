"""The command `windows`: real windows with their labels in a file, for export to calibrate on and to compare on."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

__all__ = ["windows"]

MARGIN_S = 1.0  # between a label and the ends of its window
LEVELS = (0.05, 0.9)  # of the highest amplitude: where windows for a recovery are clipped


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", required=True, help="Folder of the bundle, or name of a shipped model: rate and components.")
@click.option("--split", type=click.Choice(["train", "dev"]), required=True, help="Test is for the final figures only.")
@click.option("--samples", type=int, help="Length of a window; by default the longest that half of the traces have.")
@click.option("--cuts", type=click.IntRange(1), default=1, show_default=True, help="Windows of each trace.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="An .npz file.")
def windows(data: Path, model: str, split: str, samples: int | None, cuts: int, seed: int, output: Path) -> None:
    """Cut windows with their labels out of the data set in DATA (SeisBench format), at random places around them.

    The file has `input` [n, samples, components], `onsets` [n, phases] in samples (NaN where there is no label),
    `phases`, and `noise` [n]. Traces shorter than a window are left out. For a recovery the windows are clipped; for
    a network that gives one value for a window they are as long as most traces, and it is cut out of them.
    """
    from seisserve.bundle import find, read
    from seisserve.errors import UsageError
    from seisserve_training.augment import clip
    from seisserve_training.datasets import Dataset, read_rows

    folder = Path(model)
    manifest = (read(folder) if folder.is_dir() else find(model)).manifest
    lengths = sorted({*manifest.fragment_windows, manifest.window_samples})
    single = manifest.output.single  # one value for a window says no time: it is cut out of longer ones
    if samples is not None and single and samples < 2 * manifest.window_samples:
        raise UsageError(f"--samples is {samples}; {manifest.name} takes {2 * manifest.window_samples} or more")
    if samples is not None and not single and samples not in lengths:
        raise UsageError(f"--samples is {samples}; {manifest.name} takes {', '.join(map(str, lengths))}")
    rng = np.random.default_rng(seed)
    traces = list(Dataset(read_rows(data, split), manifest.sampling_rate_hz, manifest.components))
    if not traces:
        raise UsageError(f"{data} has no traces of the split {split}")
    usual = float(np.median([trace.waveform.shape[1] for trace in traces]))
    longest = int(usual) if single else max((size for size in lengths if size <= usual), default=lengths[0])
    length = samples or longest
    margin = round(MARGIN_S * manifest.sampling_rate_hz)
    found, onsets, noise = [], [], []
    for trace in traces:
        last = trace.waveform.shape[1] - length
        if last < 0:
            continue
        labels = np.array([trace.p, trace.s])
        known = labels[np.isfinite(labels)]
        for _ in range(cuts):
            low, high = 0, last
            if len(known):
                # Around all labels where they fit, else around the first.
                reach = known.max() if known.max() - known.min() + 2 * margin <= length else known.min()
                low = min(max(0, int(reach) + margin - length), last)
                high = max(low, min(last, int(known.min()) - margin))
            first = int(rng.integers(low, high + 1))
            part = trace.waveform[:, first : first + length].astype(np.float64)
            middle = part.max(axis=1, keepdims=True) / 2 + part.min(axis=1, keepdims=True) / 2
            inside = labels - first
            inside[~((inside >= 0) & (inside < length))] = np.nan
            window = (part - middle).T.astype(np.float32)
            if "recovery" in manifest.tasks:
                window = clip(window, float(np.exp(rng.uniform(*np.log(LEVELS)))))
            found.append(window)
            onsets.append(inside)
            noise.append(trace.row.noise)
    if not found:
        raise UsageError(f"no trace of the split {split} is as long as {length} samples; try a shorter --samples")
    np.savez_compressed(output, input=np.stack(found), onsets=np.stack(onsets), phases=["P", "S"], noise=noise)
    click.echo(f"{output}: {len(found)} windows of {length} samples, {sum(noise)} of them noise")
