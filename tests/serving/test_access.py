"""The project's own client at a server that wants TLS, a certificate, a token."""

from __future__ import annotations

from pathlib import Path

import pytest
from client.small_bundles import repository
from client.waveforms import record
from serving.papers import Papers

from seisserve import Client
from seisserve.access import Access, read
from seisserve.cli import run
from seisserve.errors import ServerError, UsageError
from seisserve_serving.assembly import assemble
from seisserve_serving.settings import read as read_settings

TOKEN = "operator-0123456789abcdef"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


def tokens(folder: Path) -> str:
    file = folder / "tokens.toml"
    file.write_text(f"[[token]]\nname = 'operator'\ntoken = '{TOKEN}'\n")
    file.chmod(0o600)
    return str(file)


FLAGS = {"port": "0", "rest_api_port": "0", "threads": "1"}


def test_a_client_with_all_papers_gets_what_it_gets_in_its_own_process(
    folder: Path, papers: Papers, tmp_path: Path
) -> None:
    ssl = papers.file(tmp_path / "ssl", papers.server, papers.good, True)
    flags = {**FLAGS, "repository": str(folder), "tokens_file": tokens(tmp_path), "ssl_config_file": str(ssl)}
    server = assemble(read_settings(flags, {}).settings)
    (tmp_path / "ca.pem").write_text(papers.good)
    for name, text in zip(("me.key", "me.pem"), papers.logger, strict=True):
        (tmp_path / name).write_text(text)
    (tmp_path / "token.txt").write_text(TOKEN + "\n")
    names = {"ca": "ca.pem", "certificate": "me.pem", "key": "me.key", "token_file": "token.txt"}

    def access(**changes: str) -> Access:
        file = tmp_path / "access.toml"
        file.write_text("".join(f"{name} = '{value}'\n" for name, value in {**names, **changes}.items() if value))
        return read(file)

    traces = record()
    server.start()
    try:
        with Client(server.address, access=access()) as client, Client(repository=folder) as here:
            found, expected = (one.pick(traces, model="eqtransformer") for one in (client, here))
            assert len(expected) > 0
            assert list(map(str, found)) == list(map(str, expected))
        for wrong, reason in (
            ({"token_file": ""}, "UNAUTHENTICATED"), ({"certificate": "", "key": ""}, "cannot reach a server"),
        ):  # fmt: skip
            with (
                Client(server.address, access=access(**wrong), timeout_s=30) as client,
                pytest.raises(ServerError, match=reason),
            ):
                client.model("eqtransformer")
    finally:
        server.stop(grace_s=1)


@pytest.mark.parametrize("over", ["port", "socket"])
def test_on_this_computer_a_token_needs_no_tls(over: str, folder: Path, tmp_path: Path) -> None:
    flags = {**FLAGS, "repository": str(folder), "tokens_file": tokens(tmp_path)}
    flags |= {"host": "", "grpc_socket_path": str(tmp_path / "socket")} if over == "socket" else {}
    server = assemble(read_settings(flags, {}).settings)
    server.start()
    try:
        with Client(server.address, access=Access(token=TOKEN)) as client:
            assert client.model("cred").version == 1
    finally:
        server.stop(grace_s=1)


def test_a_server_reaches_its_backend_with_a_token(folder: Path, tmp_path: Path) -> None:
    flags = {**FLAGS, "repository": str(folder)}
    backend = assemble(read_settings({**flags, "tokens_file": tokens(tmp_path)}, {}).settings)
    backend.start()
    file = tmp_path / "access.toml"
    file.write_text(f"token = '{TOKEN}'\n")
    flags |= {"remote_backend": backend.address, "remote_backend_access": str(file)}
    server = assemble(read_settings(flags, {}).settings)
    server.start()
    try:
        assert set(server.models.served) == {"eqtransformer", "cred", "deepdenoiser", "recovery"}
    finally:
        server.stop(grace_s=1)
        backend.stop(grace_s=1)


def test_a_token_never_goes_to_another_computer_in_clear_and_is_never_shown() -> None:
    with pytest.raises(UsageError, match=r"would travel in clear to example\.org:8500") as caught:
        Client("example.org:8500", access=Access(token=TOKEN))
    assert TOKEN not in str(caught.value)
    assert TOKEN not in repr(Access(token=TOKEN))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("tokn = 'secret'", "unknown field `tokn`"), ("token = 7", "not an access file"),
        ("token", "not an access file"), ("token = 'secret'\ntoken_file = 'x'", "both given"),
        ("key = 'x'", "belong together"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_and_never_quoted(content: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    file.write_text(content)
    with pytest.raises(UsageError, match=reason) as caught:
        read(file)
    assert "secret" not in str(caught.value)


def test_files_that_are_not_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"none\.pem: cannot be read"):
        Client("localhost:1", access=Access(ca=str(tmp_path / "none.pem")))
    waveforms = tmp_path / "x.mseed"
    waveforms.write_bytes(b"")
    file = str(tmp_path / "none.toml")
    assert run(["pick", str(waveforms), "--server", "localhost:1", "--access", file]) == 2
    assert "none.toml: cannot be read" in capsys.readouterr().err
    with pytest.raises(UsageError, match="none is named"):
        Client(access=Access())
