"""The documents say what is true: Python blocks run, commands and options exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path

import click
import obspy
import pytest

from seisserve import bundle
from seisserve.cli import ENTRY_POINTS, run, seisserve
from seisserve_serving.repository import load
from seisserve_serving.server import Server

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "models").glob("*/*/CARD.md")])
RUNNABLE = {"annotate", "models", "pick", "plot"}  # the others train, or serve until they are stopped


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def commands() -> list[str]:
    """Every line in a shell block of any document that calls seisserve."""
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("seisserve ")]


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[0])
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # TensorFlow's and its stubs' own
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server = Server(load(bundle.shipped(), "onnxruntime", 1), port=0)
    server.start()
    try:
        exec(compile(code.replace("localhost:8500", server.address), "README.md", "exec"), {})
    finally:
        server.stop(5)


def test_shell_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    obspy.read().write("station.mseed", format="MSEED")
    lines = [line for line in "\n".join(blocks("sh")).splitlines() if line.startswith("seisserve ")]
    runnable = [words for words in (shlex.split(line, comments=True)[1:] for line in lines) if words[0] in RUNNABLE]
    assert len(runnable) >= 5
    for words in runnable:
        assert run(words) in (0, 3), words  # 3: the folder by then holds what the other lines wrote
    for made in ("picks.csv", "picks.xml", "picture.png", "curves.mseed"):
        assert (tmp_path / made).stat().st_size > 100


@pytest.mark.parametrize("line", commands())
def test_commands_and_options_exist(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command = seisserve.get_command(None, words[0])  # type: ignore[arg-type]
    assert command is not None, line
    if isinstance(command, click.Group):
        command = command.commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts}
    for word in words[1:]:
        if word.startswith("-") and word != "-":
            assert word in known, f"{line}: {word}"


def test_every_command_has_help() -> None:
    for entry in entry_points(group=ENTRY_POINTS):
        command = entry.load()
        assert command.help or command.callback.__doc__, entry.name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if not target.startswith(("http", "doi")):
            assert (path.parent / target).exists(), target
