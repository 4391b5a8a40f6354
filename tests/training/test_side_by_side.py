"""What is measured goes into the manifest of the network that it is about."""

from __future__ import annotations

import numpy as np
import pytest

from seisserve.errors import UsageError
from seisserve.manifest import DETECTION, Label, Manifest, Output, Tensor
from seisserve.transport import FakeTransport
from seisserve_training.datasets import read_rows
from seisserve_training.figures import Figure
from seisserve_training.side_by_side import Data, Network, Scored, detection, figure_table, kept, waveforms
from seisserve_training.synthetic import write_dataset

WINDOW = 3000
WHERE = ("made", "dev")


def model(task: str, channels: tuple[str, ...], **options: object) -> Manifest:
    return Manifest(
        name="net", task=task, summary="-", licence="-", citation="-", sampling_rate_hz=100.0, components="ZNE",
        window_samples=WINDOW, hop_samples=WINDOW // 2, input=Tensor(name="waveform", shape=(-1, WINDOW, 3)),
        outputs=(Output(name="out", shape=(-1, WINDOW, len(channels)), labels=channels),), **options,
    )  # type: ignore[arg-type]  # fmt: skip


def loudness(windows: np.ndarray) -> np.ndarray:
    """A detector: how loud each sample is beside the loudest that there may be."""
    loud = np.abs(windows).max(axis=2, keepdims=True)
    return np.asarray(loud / (loud + np.median(loud, axis=1, keepdims=True) * 20 + 1e-30), np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data") / "made"
    write_dataset(folder, 90, seed=5)
    rows = read_rows(folder)
    return Data(rows, [row for row in rows if row.split == "dev"])


def test_a_detector_beside_sta_lta(data: Data) -> None:
    described = model("detection", (DETECTION,), labels={DETECTION: Label(threshold=0.5)})
    one, two = (Network(name, described, FakeTransport(loudness)) for name in ("one", "two"))
    scored = detection([one, two], ["sta-lta"], data)
    assert "F1 at the false alarms per hour of one" in scored.text
    new = kept(scored, one, WHERE, described)
    # both come without a record of training, as published ones do: each is shown beside the other
    assert {figure.method for figure in new.figures} == {"", "two", "sta-lta"}
    assert not any(figure.quantity.endswith("of two") for figure in new.figures)
    assert kept(scored, one, WHERE, new) == new


@pytest.mark.parametrize("task", ["denoising", "recovery"])
def test_waveforms_are_held_against_the_classical_methods(data: Data, task: str) -> None:
    described = model(task, ("Z", "N", "E"))
    same = FakeTransport(lambda windows: windows)
    silent = FakeTransport(np.zeros_like)
    networks = [Network("same", described, same), Network("silent", described, silent)]
    picks = model("picking", ("P", "S"), labels={"P": Label(threshold=0.5)})
    picker = (picks, FakeTransport(lambda windows: np.zeros((*windows.shape[:2], 2), np.float32)))
    scored = waveforms(task, networks, data, picker)
    heads = next(line for line in scored.text.splitlines() if line.startswith("| source"))
    assert "same" in heads
    assert "silent" in heads
    figures = kept(scored, networks[0], WHERE, described).figures
    assert "" in {figure.method for figure in figures}
    assert "silent" not in {figure.method for figure in figures}
    assert len({figure.method for figure in figures}) > 2


def test_without_clean_events_there_is_nothing_to_say(data: Data) -> None:
    noise = Data([], [row for row in data.chosen if row.noise])
    network = Network("net", model("recovery", ("Z", "N", "E")), FakeTransport(lambda windows: windows))
    with pytest.raises(UsageError, match="clean events"):
        waveforms("recovery", [network], noise, (network.model, network.transport))


def test_newer_figures_replace_older_ones_of_the_same_split_only() -> None:
    described = model("detection", (DETECTION,), labels={DETECTION: Label(threshold=0.5)})
    network = Network("net", described, FakeTransport(loudness))

    def scored(value: float, quantity: str = "recall") -> Scored:
        figure = Figure("all", "net", quantity, value, (0.0, 1.0), 3, "")
        return Scored("", {}, {"net": (figure,)}, {})

    first = kept(scored(0.1), network, ("made", "test"), described)
    second = kept(scored(0.2), network, WHERE, first)
    third = kept(scored(0.3), network, WHERE, second)
    other = kept(scored(0.4, "F1"), network, WHERE, third)
    assert [(one.split, one.quantity, one.value) for one in other.figures] == [
        ("test", "recall", 0.1), ("dev", "recall", 0.3), ("dev", "F1", 0.4),
    ]  # fmt: skip
    assert kept(scored(float("nan"), "F1"), network, WHERE, third).figures == third.figures  # JSON has no NaN


def test_a_figure_that_a_method_has_not_is_a_dash() -> None:
    table = figure_table([Figure("all", "a", "x", 1.0, None, 2, "dB"), Figure("all", "b", "y", 2.0, (1.0, 3.0), 2, "")])
    assert table.splitlines()[2:] == ["| all | x | 2 | 1 dB | - |", "| all | y | 2 | - | 2 [1, 3] |"]
