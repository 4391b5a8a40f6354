"""Who gets in: tokens, rights, rates, TLS and mutual TLS, and that no secret is ever told."""

from __future__ import annotations

import io
import json
import logging
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from serving.papers import Papers
from serving.small_models import eventually

from seisserve import FakeTransport
from seisserve.bundle import Bundle
from seisserve.errors import UsageError
from seisserve.proto import inference_wire_pb2 as inference
from seisserve.proto import tensorflow_serving_wire_pb2 as wire
from seisserve.tensors import to_proto
from seisserve_serving import logs
from seisserve_serving.admin import ADMIN_METHODS
from seisserve_serving.assembly import channel_options
from seisserve_serving.calls import Call, Priority
from seisserve_serving.errors import Overloaded, PermissionDenied, Unauthenticated
from seisserve_serving.front import Arrival, Done, Front
from seisserve_serving.lanes import Lanes
from seisserve_serving.models import Models
from seisserve_serving.security import Bucket, Guard, Rate, read_tokens
from seisserve_serving.server import Server
from seisserve_serving.settings import Limits
from seisserve_serving.tls import Certificates, Tls
from seisserve_serving.tls import read as read_certificates

PREDICT = "/tensorflow.serving.PredictionService/Predict"
LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
OPERATOR, READER, OLD = "operator-0123456789abcdef", "reader-0123456789abcdef", "expired-0123456789abcdef"
TOKENS = f"""
[[token]]
name = "operator"
token = "{OPERATOR}"
admin = true

[[token]]
name = "reader"
sha256 = "{sha256(READER.encode()).hexdigest()}"
models = ["eqt*", "gpd"]
priority = "archive"
calls_per_s = 2

[[token]]
name = "old"
token = "{OLD}"
expires = 2020-01-01T00:00:00Z

[[token]]
name = "datalogger"
certificate = "datalogger-7"
"""
Windows = NDArray[np.float32]


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.toml"
    file.write_text(TOKENS)
    file.chmod(0o600)
    return file


def arrival(token: str | None = None, method: str = PREDICT, peer: str = "ipv4:10.0.0.1:1", name: str = "") -> Arrival:
    return Arrival(method, {} if token is None else {"authorization": f"Bearer {token}"}, peer, certificate=name)


def let_in(guard: Guard, arrived: Arrival) -> Call:
    call = Call("id", peer=arrived.peer)
    guard(arrived, call)
    return call


def test_a_token_by_text_or_digest_names_its_caller(tokens: Path) -> None:
    guard = Guard(tokens)
    assert let_in(guard, arrival(OPERATOR)).user == "operator"
    assert let_in(guard, arrival(READER)).user == "reader"
    lower = Arrival(PREDICT, {"authorization": f"bearer   {READER} "}, "unix:")
    assert let_in(guard, lower).user == "reader"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "wants a token"), ("", "no bearer token"), ("Bearer", "no bearer token"),
        ("Bearer  ", "no bearer token"), (f"Basic {OPERATOR}", "no bearer token"),
        (OPERATOR, "no bearer token"), ("Bearer nope", "nobody here has"),
        (f"Bearer {OPERATOR}x", "nobody here has"), (f"Bearer {OPERATOR[:-1]}", "nobody here has"),
        (f"Bearer {OPERATOR} {OPERATOR}", "nobody here has"), (f"Bearer {OLD}", "of old has expired, at 2020-01-01"),
        (f"Bearer {sha256(READER.encode()).hexdigest()}", "nobody here has"), (b"Bearer \xff", "nobody here has"),
    ],
)  # fmt: skip
def test_anything_else_is_unauthenticated_and_never_repeated(header: str | None, reason: str, tokens: Path) -> None:
    arrived = Arrival(PREDICT, {} if header is None else {"authorization": header}, "ipv4:10.0.0.1:1")
    with pytest.raises(Unauthenticated, match=reason) as caught:
        let_in(Guard(tokens), arrived)
    assert OPERATOR not in str(caught.value)


def test_a_certificate_is_as_good_as_a_token_where_its_name_is_known(tokens: Path) -> None:
    guard = Guard(tokens)
    assert let_in(guard, arrival(name="datalogger-7")).user == "datalogger"
    with pytest.raises(Unauthenticated, match="nobody here has this certificate"):
        let_in(guard, arrival(name="datalogger-8"))
    with pytest.raises(
        Unauthenticated, match="nobody here has this token"
    ):  # a wrong token is no reason to look further
        let_in(guard, arrival("wrong", name="datalogger-7"))


def test_without_a_file_everybody_may_call_but_not_administer() -> None:
    guard = Guard(None, ADMIN_METHODS)
    assert let_in(guard, arrival()).user == ""
    for method in ADMIN_METHODS:
        for peer in ("ipv4:127.0.0.1:9", "ipv6:%5B::1%5D:9", "ipv4:10.0.0.1:9"):
            with pytest.raises(PermissionDenied, match="needs an admin's token"):
                let_in(guard, arrival(method=method, peer=peer))
        let_in(guard, arrival(method=method, peer="unix:"))
        let_in(Guard(None, ADMIN_METHODS, admin_for_all=True), arrival(method=method))


def test_with_a_file_only_an_admin_may_administer_over_whatever(tokens: Path) -> None:
    guard = Guard(tokens, ADMIN_METHODS)
    for peer in ("unix:", "ipv4:127.0.0.1:9"):
        for method in ADMIN_METHODS:
            let_in(guard, arrival(OPERATOR, method, peer))
            with pytest.raises(PermissionDenied, match="reader may not do"):
                let_in(guard, arrival(READER, method, peer))
            with pytest.raises(Unauthenticated):
                let_in(guard, arrival(None, method, peer))
    with pytest.raises(UsageError, match="contradicts tokens_file"):
        Guard(tokens, ADMIN_METHODS, admin_for_all=True)


def test_rights_are_those_of_the_token(tokens: Path) -> None:
    guard = Guard(tokens)
    reader = let_in(guard, arrival(READER))
    reader.about("eqtransformer", 1)
    reader.about("gpd", 1)
    for model in ("phasenet", "gpd2", "GPD", ""):
        with pytest.raises(PermissionDenied, match="reader may not use the model"):
            reader.about(model, 1)
    assert (reader.model, reader.version) == ("gpd", 1)
    let_in(guard, arrival(OPERATOR)).about("phasenet", 2)


@pytest.mark.parametrize(
    ("token", "asked", "given_one"),
    [
        (OPERATOR, "realtime", Priority.REALTIME),
        (OPERATOR, None, Priority.NORMAL),
        (READER, "realtime", Priority.ARCHIVE),
        (READER, None, Priority.ARCHIVE),
    ],
)
def test_nobody_is_more_urgent_than_the_token_allows(
    token: str, asked: str | None, given_one: Priority, tokens: Path
) -> None:
    metadata = {"authorization": f"Bearer {token}"} | ({"seisserve-priority": asked} if asked else {})
    with Front([Guard(tokens)]).call(Arrival(PREDICT, metadata, "ipv4:10.0.0.1:1"), None) as call:
        assert call.priority is given_one


FILES = [
    ("", "missing required field `token`"), ("token = []", "length >= 1"), ("[[token", "not a TOML file"),
    ("[[token]]\nname = 'a'\n", "a: give exactly one of"),
    ("[[token]]\nname = 'a'\ntoken = '0123456789abcdef'\nsha256 = '" + "0" * 64 + "'\n", "a: give exactly one of"),
    ("[[token]]\nname = 'a'\ntoken = 'short-secret'\n", r"token\[0\]\.token"),
    ("[[token]]\nname = 'a b'\ntoken = '0123456789abcdef'\n", r"token\[0\]\.name"),
    ("[[token]]\nname = 'a'\ntoken = \"0123456789abcde\\n\"\n", r"token\[0\]\.token"),
    ("[[token]]\nname = 'a'\nsha256 = '0123'\n", r"token\[0\]\.sha256"),
    ("[[token]]\nname = 'a'\ntoken = '0123456789abcdef'\nadmn = true\n", "unknown field `admn`"),
    ("[[token]]\nname = 'a'\ntoken = '0123456789abcdef'\npriority = 'high'\n", "'high'"),
    ("[[token]]\nname = 'a'\ntoken = '0123456789abcdef'\nmodels = []\n", "models is empty"),
    ("[[token]]\nname = 'a'\ntoken = '0123456789abcdef'\nexpires = 2030-01-01T00:00:00\n", "no time zone"),
    ("[[token]]\nname = 'a'\ntoken = '0123456789abcdef'\nexpires = 'soon'\n", r"token\[0\]\.expires"),
    ("[[token]]\nname = 'a'\ntoken = '0123456789abcdef'\ncalls_per_s = -1\n", r"token\[0\]\.calls_per_s"),
    ("[[token]]\nname = 'a'\ntoken = '0123456789abcdef'\n" * 2, "a: its name is there twice"),
    ("[[token]]\nname = 'a'\ntoken = '0123456789abcdef'\n[[token]]\nname = 'b'\nsha256 = '"
     + sha256(b"0123456789abcdef").hexdigest() + "'\n", "a: its token is there twice"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "reason"), FILES)
def test_a_file_of_tokens_is_held_to_its_form_and_never_quoted(content: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(content)
    with pytest.raises(UsageError, match=reason) as caught:
        read_tokens(file)
    assert str(file) in str(caught.value)
    assert "0123456789abcde" not in str(caught.value)
    assert "short-secret" not in str(caught.value)


def test_a_readable_file_of_clear_tokens_is_warned_of(tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_tokens(tokens)
    assert not caplog.records
    tokens.chmod(0o644)
    read_tokens(tokens)
    assert "chmod 600" in caplog.text


def test_reloading_takes_new_tokens_and_a_bad_file_leaves_the_old(tokens: Path) -> None:
    guard = Guard(tokens)
    tokens.write_text("[[token]")
    with pytest.raises(UsageError):
        guard.reload()
    assert let_in(guard, arrival(OPERATOR)).user == "operator"
    tokens.write_text(TOKENS.replace(OPERATOR, "another-0123456789abcdef"))
    guard.reload()
    assert let_in(guard, arrival("another-0123456789abcdef")).user == "operator"
    with pytest.raises(Unauthenticated):
        let_in(guard, arrival(OPERATOR))


@given(rate=st.floats(0.1, 100), waits=st.lists(st.floats(0, 3), min_size=1, max_size=200), sizes=st.integers(1, 50))
def test_in_any_time_no_more_is_had_than_the_rate_and_one_second_and_one_call(
    rate: float, waits: list[float], sizes: int
) -> None:
    clock = Clock()
    bucket = Bucket(rate, clock)
    had = 0
    for wait in waits:
        clock.now += wait
        if not bucket.wait_s():
            bucket.take(sizes)
            had += sizes
        assert had <= rate * clock.now + max(rate, 1.0) + sizes + 1e-6
    left = bucket.wait_s()
    if left:
        clock.now += left * 1.000001
        assert not bucket.wait_s()  # what it says is enough, and
        assert left <= sizes * len(waits) / rate + 1  # not for ever


def test_calls_over_the_rate_are_refused_with_when_to_come_again() -> None:
    clock = Clock()
    guard = Guard(rate=Rate(calls_per_s=2), clock=clock)
    for _ in range(2):
        let_in(guard, arrival())
    with pytest.raises(Overloaded, match=r"ipv4:10\.0\.0\.1 may have 2 calls per second") as caught:
        let_in(guard, arrival(peer="ipv4:10.0.0.1:2"))  # another connection of the same host
    assert caught.value.retry_ms == 500
    let_in(guard, arrival(peer="ipv4:10.0.0.2:1"))
    clock.now += 0.5
    let_in(guard, arrival())


def test_windows_are_paid_for_after_they_were_computed() -> None:
    clock = Clock()
    guard = Guard(rate=Rate(windows_per_s=10), clock=clock)
    call = let_in(guard, arrival())
    call.charge(60)
    assert call.windows == 60
    with pytest.raises(Overloaded, match="10 windows per second") as caught:
        let_in(guard, arrival())
    assert caught.value.retry_ms == 5100
    clock.now += 5.2
    let_in(guard, arrival())


def test_a_token_has_its_own_rate_wherever_it_comes_from(tokens: Path) -> None:
    clock = Clock()
    guard = Guard(tokens, rate=Rate(calls_per_s=1), clock=clock)
    for number in range(2):
        let_in(guard, arrival(READER, peer=f"ipv4:10.0.0.{number}:1"))
    with pytest.raises(Overloaded, match="reader may have 2 calls"):
        let_in(guard, arrival(READER, peer="ipv4:10.0.0.9:1"))
    let_in(guard, arrival(OPERATOR))
    with pytest.raises(Overloaded, match="operator may have 1 calls"):
        let_in(guard, arrival(OPERATOR))


def test_the_memory_of_clients_is_bounded() -> None:
    guard = Guard(rate=Rate(calls_per_s=1))
    for number in range(10_000):
        let_in(guard, arrival(peer=f"ipv4:10.{number // 65536}.{number // 256 % 256}.{number % 256}:1"))
    assert len(guard._budgets) == 4096


# ---- over real connections ----


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


@contextmanager
def serving(bundle: Bundle, guard: Guard | None = None, **options: Any) -> Iterator[Server]:
    """A server whose network gives back what it gets."""
    models = Models(Lanes(1))
    models.add(1, bundle.manifest, FakeTransport(lambda waveform: waveform))
    told = options.pop("told", [])
    server = Server(models, Front([guard] if guard else [], told=told), port=0, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop(grace_s=1)
        models.lanes.close()


def predict(channel: grpc.Channel, windows: Windows, token: str | None = None, name: str = "phasenet") -> Any:
    request = wire.PredictRequest(model_spec=wire.ModelSpec(name=name))
    request.inputs["waveform"].CopyFrom(to_proto(windows[:1]))
    call = channel.unary_unary(
        PREDICT, request_serializer=wire.PredictRequest.SerializeToString,
        response_deserializer=wire.PredictResponse.FromString,
    )  # fmt: skip
    return call(request, timeout=20, metadata=None if token is None else [("authorization", f"Bearer {token}")])


def code(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    found: grpc.StatusCode = caught.value.code()
    return found


def test_tls_is_spoken_to_who_trusts_it_and_nothing_else_is(bundle: Bundle, windows: Windows, papers: Papers) -> None:
    tls = Tls(papers.file(papers.folder / "tls", papers.server))
    with serving(bundle, tls=tls) as server:
        with grpc.secure_channel(server.address, grpc.ssl_channel_credentials(papers.good.encode())) as channel:
            assert predict(channel, windows).model_spec.version.value == 1
        with grpc.secure_channel(server.address, grpc.ssl_channel_credentials(papers.bad.encode())) as channel:
            assert code(lambda: predict(channel, windows)) is grpc.StatusCode.UNAVAILABLE
        with grpc.insecure_channel(server.address) as channel:
            assert code(lambda: predict(channel, windows)) is grpc.StatusCode.UNAVAILABLE


def test_mutual_tls_lets_in_who_has_a_certificate_of_the_authority(
    bundle: Bundle, windows: Windows, papers: Papers, tokens: Path
) -> None:
    tls = Tls(papers.file(papers.folder / "mtls", papers.server, papers.good, True))
    done: list[Done] = []
    with serving(bundle, Guard(tokens), tls=tls, told=[done.append]) as server:
        for key, chain in (papers.stranger, (None, None)):
            held = [None if text is None else text.encode() for text in (key, chain)]
            credentials = grpc.ssl_channel_credentials(papers.good.encode(), *held)
            with grpc.secure_channel(server.address, credentials) as channel:
                assert code(lambda channel=channel: predict(channel, windows)) is grpc.StatusCode.UNAVAILABLE
        assert not done  # none of them came as far as the door
        held = [text.encode() for text in papers.logger]
        with grpc.secure_channel(server.address, grpc.ssl_channel_credentials(papers.good.encode(), *held)) as channel:
            assert predict(channel, windows)
            assert predict(channel, windows, OPERATOR)
            eventually(lambda: len(done) == 2)  # they are told of after they are answered
            assert code(lambda: predict(channel, windows, "wrong")) is grpc.StatusCode.UNAUTHENTICATED
    assert [one.call.user for one in done] == ["datalogger", "operator", ""]


def test_new_connections_get_new_certificates_after_a_reload(bundle: Bundle, windows: Windows, papers: Papers) -> None:
    file = papers.file(papers.folder / "reloaded", papers.server)
    tls = Tls(file)
    with serving(bundle, tls=tls, reloads=[tls.reload]) as server:
        trusted = {name: grpc.ssl_channel_credentials(getattr(papers, name).encode()) for name in ("good", "bad")}
        with grpc.secure_channel(server.address, trusted["good"]) as old:
            assert predict(old, windows)
            file.write_text("server_key: 'rubbish'")
            server.reload()
            assert predict(old, windows)
            papers.file(file, papers.newer)
            server.reload()
            assert predict(old, windows)
            with grpc.secure_channel(server.address, trusted["bad"]) as new:
                assert predict(new, windows)
    papers.file(file, papers.newer, papers.bad, True)
    with pytest.raises(UsageError, match="client_verify cannot change"):
        tls.reload()


def test_an_authority_that_is_gone_after_a_reload_is_trusted_no_more(
    bundle: Bundle, windows: Windows, papers: Papers
) -> None:
    file = papers.file(papers.folder / "rotated", papers.server, papers.good, True)
    tls = Tls(file)

    own = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each channel

    def credentials(mine: tuple[str, str]) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(papers.good.encode(), *[text.encode() for text in mine])

    def trusted_and_not(server: Server, trusted: tuple[str, str], other: tuple[str, str]) -> None:
        with grpc.secure_channel(server.address, credentials(trusted), options=own) as channel:
            assert predict(channel, windows)
        with (
            grpc.secure_channel(server.address, credentials(other), options=own) as channel,
            pytest.raises(grpc.FutureTimeoutError),
        ):
            grpc.channel_ready_future(channel).result(timeout=1)

    with serving(bundle, tls=tls, reloads=[tls.reload]) as server:
        trusted_and_not(server, papers.logger, papers.stranger)
        papers.file(file, papers.server, papers.bad, True)
        server.reload()
        trusted_and_not(server, papers.stranger, papers.logger)


def https_name(context: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """The name in the certificate that a server with this context shows, once both have shaken hands."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    back, forth = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = client.wrap_bio(back, forth, server_hostname="localhost")
    ours.close()
    theirs.close()
    done: set[str] = set()
    for _ in range(10):
        for name, side in (("caller", caller), ("server", server)):
            try:
                side.do_handshake()
                done.add(name)
            except ssl.SSLWantReadError:
                pass
            incoming.write(forth.read())
            back.write(outgoing.read())
        if len(done) == 2:
            found = caller.getpeercert()
            assert found
            return dict(pair[0] for pair in found["subject"])["commonName"]  # type: ignore[misc]
    raise AssertionError("no handshake")


def test_http_gets_the_same_certificates_and_forgets_an_authority_that_is_gone(papers: Papers, tmp_path: Path) -> None:
    def client(ca: str, mine: tuple[str, str]) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=ca)
        (tmp_path / "mine.pem").write_text("".join(mine))
        context.load_cert_chain(tmp_path / "mine.pem")
        return context

    file = papers.file(tmp_path / "ssl", papers.server, papers.good, True)
    tls = Tls(file)
    assert https_name(tls.context, client(papers.good, papers.logger)) == "server"
    with pytest.raises(ssl.SSLError):
        https_name(tls.context, client(papers.good, papers.stranger))
    papers.file(file, papers.newer, papers.bad, True)
    tls.reload()
    assert https_name(tls.context, client(papers.bad, papers.stranger)) == "newer"
    with pytest.raises(ssl.SSLError):
        https_name(tls.context, client(papers.bad, papers.logger))


def test_a_wrong_ssl_config_is_refused_without_what_is_in_it(papers: Papers, tmp_path: Path) -> None:
    key, chain = papers.server
    secret = key.splitlines()[1]
    file = tmp_path / "ssl"
    for content, reason in (
        ("server_kei: 'x'", "not an SSLConfig"), (f"server_key: {secret}", "not an SSLConfig"),
        (f"server_key: {json.dumps(key)}", "server_cert is missing"),
        (f"server_key: {json.dumps(papers.newer[0])} server_cert: {json.dumps(chain)}", "OpenSSL refuses"),
        (f"server_key: {json.dumps(key)} server_cert: {json.dumps(chain)} client_verify: true", "needs custom_ca"),
    ):  # fmt: skip
        file.write_text(content)
        with pytest.raises(UsageError, match=reason) as caught:
            read_certificates(file)
        assert secret not in str(caught.value)
    papers.file(file, papers.server, papers.good, True)
    assert read_certificates(file) == Certificates(key, chain, papers.good, True)


def test_tokens_rights_and_rates_hold_for_real_calls(bundle: Bundle, windows: Windows, tokens: Path) -> None:
    clock = Clock()
    tokens.write_text(TOKENS.replace('models = ["eqt*", "gpd"]', 'models = ["eqt*"]'))
    with (
        serving(bundle, Guard(tokens, ADMIN_METHODS, clock=clock)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert predict(channel, windows, OPERATOR).model_spec.version.value == 1
        assert code(lambda: predict(channel, windows)) is grpc.StatusCode.UNAUTHENTICATED
        assert code(lambda: predict(channel, windows, OLD)) is grpc.StatusCode.UNAUTHENTICATED
        assert code(lambda: predict(channel, windows, READER)) is grpc.StatusCode.PERMISSION_DENIED
        load = channel.unary_unary(LOAD, inference.RepositoryModelLoadRequest.SerializeToString)
        asked = inference.RepositoryModelLoadRequest(model_name="phasenet")
        header = [("authorization", f"Bearer {READER}")]
        assert code(lambda: load(asked, metadata=header)) is grpc.StatusCode.PERMISSION_DENIED
        predict_again = lambda: predict(channel, windows, READER)  # noqa: E731
        assert code(predict_again) is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.RpcError) as caught:
            predict_again()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "500"
        # health needs no token: orchestrators have none
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20).status == 1


def test_the_unix_socket_is_the_owners_and_administers(bundle: Bundle, windows: Windows, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(bundle, Guard(None, ADMIN_METHODS), host="", socket_path=str(path)) as server:
        assert server.address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        with grpc.insecure_channel(server.address) as channel:
            assert predict(channel, windows)
            load = channel.unary_unary(LOAD, inference.RepositoryModelLoadRequest.SerializeToString)
            asked = inference.RepositoryModelLoadRequest(model_name="phasenet")
            assert code(lambda: load(asked)) is not grpc.StatusCode.PERMISSION_DENIED
    there = tmp_path / "file"
    there.write_text("precious")
    with pytest.raises(UsageError, match="is no socket"):
        Server(Models(Lanes(1)), host="", socket_path=str(there))
    assert there.read_text() == "precious"


def test_connections_beyond_the_limit_are_closed_and_the_others_go_on(bundle: Bundle, windows: Windows) -> None:
    own = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each channel
    with serving(bundle, options=channel_options(Limits(max_connections=2))) as server:
        channels = [grpc.insecure_channel(server.address, options=own) for _ in range(3)]
        try:
            assert predict(channels[0], windows)
            assert predict(channels[1], windows)
            assert code(lambda: predict(channels[2], windows)) is grpc.StatusCode.UNAVAILABLE
            assert predict(channels[0], windows)
            channels[1].close()
            end = time.monotonic() + 20
            while True:  # the server notices in its own time
                try:
                    assert predict(channels[2], windows)
                    break
                except grpc.RpcError:
                    assert time.monotonic() < end
                    time.sleep(0.1)
        finally:
            for channel in channels:
                channel.close()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_token_and_no_key_is_in_any_line_of_the_log(
    log_format: Any, bundle: Bundle, windows: Windows, tokens: Path, papers: Papers
) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    written = io.StringIO()
    file = papers.file(papers.folder / "logged", papers.server, papers.good)
    try:
        logs.configure(log_format, "debug", written)
        guard, tls = Guard(tokens, ADMIN_METHODS), Tls(file)
        with serving(bundle, guard, tls=tls, told=[logs.tell], reloads=[guard.reload, tls.reload]) as server:
            credentials = grpc.ssl_channel_credentials(papers.good.encode())
            with grpc.secure_channel(server.address, credentials) as channel:
                predict(channel, windows, OPERATOR)
                for token in (READER, OLD, "wrong-0123456789abcdef", f"{OPERATOR} {OPERATOR}", None):
                    code(lambda token=token: predict(channel, windows, token))
                tokens.write_text(TOKENS + "[[token]]\ntoken = 'broken-0123456789abcdef'\n")
                file.write_text(file.read_text().replace("server_cert", "server_cart"))
                server.reload()
    finally:
        root.handlers = before
        root.setLevel(level)
    log = written.getvalue()
    assert log.count("not reloaded") == 2
    assert log.count("PermissionDenied") + log.count("PERMISSION_DENIED") >= 1
    assert "operator" in log
    for secret in ("0123456789abcdef", *papers.server[0].splitlines()[1:2]):
        assert secret not in log
