"""The card says what the manifest says."""

import re
from pathlib import Path

from export.small import Exported, manifest
from msgspec.structs import replace

from seisserve.manifest import Figure, Manifest, Metric, Source, Training
from seisserve_export.card import card, write


def full() -> Manifest:
    score = Metric(
        data_set="STEAD", split="test", source="all", phase="P", tolerance_s=0.5, labels=12345, precision=0.91234,
        recall=0.8, f1=0.85, f1_interval=(0.84, 0.86), residual_bias_s=-0.01, residual_mae_s=0.05,
    )  # fmt: skip
    part = replace(score, source="a|b", labels=12, f1=0.5, f1_interval=(0.4, 0.6))
    old = replace(part, method="sta-lta", f1=0.75, f1_interval=(0.7, 0.8), precision=0.6, recall=0.9)
    metrics = (score, replace(old, source="all", f1=0.1), part, old)
    noise = Figure(data_set="STEAD", split="test", source="all", quantity="false P picks", value=5,
                   interval=(1.6, 11.7), n=82, unit="in 2.67 h")  # fmt: skip
    figures = (noise, replace(noise, method="sta-lta", value=11, interval=None))
    training = Training(
        sources=(Source(name="STEAD", licence="CC-BY-4.0", traces=1200000), Source(name="Own", licence="-", traces=7)),
        config_sha256="0123456789abcdef", seed=3, code_version="1.2", windows_seen=320000, note="Stopped early",
    )  # fmt: skip
    rates = {"P": 1.25, "S": 0.5}
    return replace(manifest(), training=training, metrics=metrics, figures=figures, false_picks_per_hour=rates)


def test_card_of_a_bundle_can_be_made_anew(exported: Exported) -> None:
    path = exported.bundle.folder / "CARD.md"
    before = path.read_bytes()
    write(exported.bundle.folder)
    assert path.read_bytes() == before
    assert before.decode() == card(exported.bundle.manifest)


def test_card_has_the_figures() -> None:
    text = card(full())
    for part in (
        "# small\n\nMade-up weights.",
        "Licence: Apache-2.0",
        "float32 `[n, 1024, 3]`, components Z, N, E, 100 Hz",
        "| P | 0.4 | default | 1 |",
        "| STEAD | CC-BY-4.0 | 1,200,000 |",
        "Configuration `0123456789ab`, seed 3, code 1.2, 320,000 windows seen.",
        "Stopped early.",
        "### STEAD, split test",
        "| **small** | P | 0.5 s | 12,345 | 0.912 | 0.800 | 0.850 (0.840 to 0.860) | -0.010, 0.050, - s |",
        "| sta-lta | P | 0.5 s | 12 | 0.600 | 0.900 | 0.100 (0.700 to 0.800) | -0.010, 0.050, - s |",
        "| source | phase | within | labels | **small** | sta-lta |",
        "| a\\|b | P | 0.5 s | 12 | 0.912 / 0.800 / 0.500 (0.400 to 0.600) | 0.600 / 0.900 / 0.750 (0.700 to 0.800) |",
        "| all | false P picks | 82 | 5 (1.6 to 11.7) in 2.67 h | 11 in 2.67 h |",
        "- sta-lta: ratio of a short to a long average",
        "- sta-lta does better for P on a|b: F1 0.750 against 0.500.",
        "- Fewer than 20 labels of a phase from a|b",
        "- Weakest on a|b for P: F1 0.500",
        "- Trained on 2 sources, 1,200,007 traces",
        "- Stopped early.",
        "seisserve pick waveforms.mseed --model small",
        "256, 512 samples",
        "Nobody.",
    ):
        assert part in text, part


def test_card_of_a_bundle_names_its_files(exported: Exported) -> None:
    text = card(exported.bundle.manifest)
    for artifact in exported.bundle.manifest.artifacts.values():
        assert artifact.sha256[:12] in text
        assert f"{artifact.windows_per_second:.0f}" in text
    assert re.search(r"\| model\.onnx \| float32 \| \S+ kB \| \S+ \| 100\.00% of \d+ \|", text)


def test_card_owns_up_to_what_is_not_known() -> None:
    text = card(manifest())
    assert "no record of the training" in text
    assert "Not measured" in text
    assert "No accuracy is stated" in text
    assert "None yet." in text


def test_card_of_a_denoiser_has_its_figures_with_units() -> None:
    gain = Figure(data_set="made", split="dev", source="all", quantity="SNR gain", value=7.25, interval=(6.5, 8.0),
                  n=40, unit="dB")  # fmt: skip
    text = card(replace(manifest(), figures=(replace(gain, method="Wiener filter", value=3.0), gain)))
    assert "| source | quantity | n | **small** | Wiener filter |" in text
    assert "| all | SNR gain | 40 | 7.25 (6.5 to 8) dB | 3 (6.5 to 8) dB |" in text
    assert "All figures are of the split dev" in text
    assert "Trained elsewhere" in text


def test_without_counts_the_rates_are_stated() -> None:
    assert "False picks per hour of noise: P 1.25, S 0.5." in card(replace(full(), figures=()))


def test_tables_are_whole() -> None:
    for block in re.findall(r"(?:^\|.*\n)+", card(full()), re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_card_ends_in_one_newline(tmp_path: Path) -> None:
    text = card(full())
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "\n\n\n" not in text
