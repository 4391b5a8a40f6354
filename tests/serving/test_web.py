"""The HTTP port as a whole: limits, deadlines, callers who go, who may call, health, the page, waveforms, the stop."""

from __future__ import annotations

import io
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import httpx
import msgspec
import numpy as np
import obspy
import pytest
from numpy.typing import NDArray

from seisserve import Client, FakeTransport, ServerError
from seisserve.bundle import Bundle
from seisserve.traces import from_stream
from seisserve_serving import web as web_module
from seisserve_serving.calls import Call, Priority
from seisserve_serving.errors import PermissionDenied, Unauthenticated
from seisserve_serving.front import Arrival, Done, Front
from seisserve_serving.lanes import Batching, Lanes
from seisserve_serving.models import Models
from seisserve_serving.web import Web

Array = NDArray[np.float32]
Code = grpc.StatusCode
PREDICT = "/v1/models/phasenet:predict"
WAIT_S = 30.0


class Site:
    """A server of one model whose network is a function, and what it tells of its calls."""

    def __init__(self, bundle: Bundle, network: Callable[[Array], Array], lanes: int = 1, **options: Any) -> None:
        self.done: Queue[Done] = Queue()
        self.models = Models(Lanes(lanes))
        self.models.add(1, bundle.manifest, FakeTransport(network), options.pop("batching", None))
        self.front = Front(options.pop("guards", ()), options.pop("most_calls", 256), [self.done.put])
        self.web = Web(self.models, self.front, self.models.lanes, port=0, **options)

    def __enter__(self) -> Site:
        self.web.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.web.stop(grace_s=1)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=f"http://{self.web.address}", timeout=WAIT_S, **options)

    def told(self) -> Done:
        return self.done.get(timeout=WAIT_S)


def same(windows: Array) -> Array:
    return windows


class Gate:
    """A network that says when it has been called, and waits until it may go on."""

    def __init__(self) -> None:
        self.called, self.open = threading.Semaphore(0), threading.Event()

    def __call__(self, windows: Array) -> Array:
        self.called.release()
        assert self.open.wait(WAIT_S)
        return windows


@pytest.fixture
def site(bundle: Bundle) -> Iterator[Site]:
    with Site(bundle, same, max_message=1 << 20, metrics=lambda: b"metric 1\n") as started:
        yield started


@pytest.fixture(scope="module")
def http(models: Models) -> Iterator[httpx.Client]:
    """All shipped models."""
    web = Web(models, Front(), models.lanes, port=0)
    web.start()
    with httpx.Client(base_url=f"http://{web.address}", timeout=60) as client:
        yield client
    web.stop(grace_s=1)


@pytest.fixture(scope="module")
def body(windows: Array) -> bytes:
    return json.dumps({"inputs": windows[:1].tolist()}).encode()


def raw(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_S)


def test_the_request_id_comes_back_and_is_made_where_there_is_none(site: Site, body: bytes) -> None:
    with site.client() as client:
        assert (
            client.post(PREDICT, content=body, headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
        )
        assert site.told().call.request_id == "mine-7"
        assert client.get("/v1/models/nope").headers["x-request-id"] == site.told().call.request_id != ""


def test_a_call_is_told_of_under_the_name_that_it_has_in_grpc(site: Site, body: bytes) -> None:
    with site.client() as client:
        client.post(PREDICT, content=body, headers={"seisserve-priority": "archive"})
    done = site.told()
    assert done.arrival.method == "/tensorflow.serving.PredictionService/Predict"
    assert done.arrival.peer.startswith("ipv4:127.0.0.1:")
    assert (done.arrival.size, done.code, done.call.priority) == (len(body), Code.OK, Priority.ARCHIVE)
    assert (done.call.model, done.call.version) == ("phasenet", 1)


def test_unknown_priorities_and_deadlines_are_refused(site: Site, body: bytes) -> None:
    with site.client() as client:
        for headers in (
            {"seisserve-priority": "soon"}, {"x-request-timeout-ms": "0"}, {"x-request-timeout-ms": "1.5"},
            {"x-request-timeout-ms": "-3"}, {"x-request-timeout-ms": "99999999999999999999"},
        ):  # fmt: skip
            response = client.post(PREDICT, content=body, headers=headers)
            assert response.status_code == 400
            assert next(iter(headers)) in response.json()["error"]


def test_an_inner_error_stays_inside_and_the_caller_gets_its_id(
    bundle: Bundle, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(windows: Array) -> Array:
        raise RuntimeError("the secret is 42")

    with Site(bundle, broken) as site, site.client() as client:
        response = client.post(PREDICT, content=body)
        assert response.status_code == 500
        assert "secret" not in response.text
        assert response.headers["x-request-id"] in response.json()["error"]
    assert "the secret is 42" in caplog.text


def waiting(site: Site) -> None:
    """Until a call waits for a lane."""
    end = time.monotonic() + WAIT_S
    while not site.models.get("phasenet").queue.waiting:
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("by_default", [True, False])
def test_the_deadline_ends_a_call_that_waits(bundle: Bundle, body: bytes, by_default: bool) -> None:
    gate = Gate()
    with Site(bundle, gate, **{"timeout_s": 0.3} if by_default else {}) as site, site.client() as client:
        patient = {"content": body, "headers": {"x-request-timeout-ms": "60000"}}
        first = threading.Thread(target=client.post, args=(PREDICT,), kwargs=patient)
        first.start()
        assert gate.called.acquire(timeout=WAIT_S)
        response = client.post(PREDICT, content=body, headers={} if by_default else {"x-request-timeout-ms": "300"})
        assert response.status_code == 504
        assert site.told().code is Code.DEADLINE_EXCEEDED
        gate.open.set()
        first.join()
    assert not gate.called.acquire(blocking=False)  # what had expired was never computed


def test_a_caller_who_goes_cancels_the_call_and_no_other(bundle: Bundle, body: bytes) -> None:
    gate = Gate()
    with Site(bundle, gate) as site, site.client() as client:
        answers: Queue[int] = Queue()
        first = threading.Thread(target=lambda: answers.put(client.post(PREDICT, content=body).status_code))
        first.start()
        assert gate.called.acquire(timeout=WAIT_S)
        with raw(site.web.address) as leaving:
            head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            leaving.sendall(head.encode() + body)
            waiting(site)
        assert site.told().code is Code.CANCELLED
        assert site.models.get("phasenet").queue.waiting == 0
        gate.open.set()
        first.join()
        assert answers.get() == 200


def test_a_caller_who_goes_while_sending_is_told_of_as_cancelled(site: Site) -> None:
    with raw(site.web.address) as leaving:
        leaving.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc".encode())
        end = time.monotonic() + WAIT_S
        while not site.front.under_way:
            assert time.monotonic() < end
            time.sleep(0.005)
    assert site.told().code is Code.CANCELLED
    assert site.front.wait(WAIT_S)


def test_overload_is_429_with_the_time_to_come_back(bundle: Bundle, body: bytes) -> None:
    gate = Gate()
    with Site(bundle, gate, most_calls=1) as site, site.client() as client:
        first = threading.Thread(target=client.post, args=(PREDICT,), kwargs={"content": body})
        first.start()
        assert gate.called.acquire(timeout=WAIT_S)
        response = client.post(PREDICT, content=body)
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):  # busy is not dead
            assert client.get(path).status_code == 200
        gate.open.set()
        first.join()


def test_a_full_queue_is_429(bundle: Bundle, windows: Array) -> None:
    gate = Gate()
    batching = Batching(max_batch_size=1, max_enqueued_batches=1)
    body = json.dumps({"inputs": windows[:1].tolist()}).encode()
    with Site(bundle, gate, batching=batching) as site, site.client() as client:
        threads = []
        for step in (gate.called.acquire, lambda: waiting(site)):
            threads.append(threading.Thread(target=client.post, args=(PREDICT,), kwargs={"content": body}))
            threads[-1].start()
            step()
        response = client.post(PREDICT, content=body)
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        gate.open.set()
        for thread in threads:
            thread.join()


def token(arrival: Arrival, call: Call) -> None:
    if arrival.metadata.get("authorization") != "Bearer secret-of-seven":
        raise Unauthenticated("this server wants a token")
    call.user = "seven"


def no_changes(arrival: Arrival, call: Call) -> None:
    if arrival.method.endswith("RepositoryModelUnload"):
        raise PermissionDenied("not for you")


def test_guards_refuse_before_the_body_is_read(bundle: Bundle) -> None:
    with Site(bundle, same, guards=[token], metrics=lambda: b"x 1\n") as site:
        with raw(site.web.address) as caller:  # the body never comes
            caller.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
            answer = caller.recv(4096)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"www-authenticate: Bearer" in answer
        assert site.told().code is Code.UNAUTHENTICATED
        with site.client() as client:
            for path, status in (("/", 401), ("/metrics", 401), ("/v2", 401), ("/healthz", 200), ("/readyz", 200)):
                assert client.get(path).status_code == status
        with site.client(headers={"authorization": "Bearer secret-of-seven"}) as client:
            for path in ("/", "/metrics", "/v2", "/healthz"):
                assert client.get(path).status_code == 200


def test_admin_calls_are_guarded_under_their_name_in_grpc(bundle: Bundle) -> None:
    with Site(bundle, same, guards=[no_changes]) as site, site.client() as client:
        assert client.post("/v2/repository/models/phasenet/unload").status_code == 403


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_with_the_reason(
    site: Site, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    monkeypatch.setattr(web_module, "DISCARD_S", 30.0)
    content: Any = iter([bytes(1 << 18)] * 5) if chunked else bytes((1 << 20) + 1)
    with site.client() as client:
        response = client.post(PREDICT, content=content)
        assert response.status_code == 413
        assert str(1 << 20) in response.json()["error"]
        assert site.told().code is Code.RESOURCE_EXHAUSTED
        assert client.get("/healthz").status_code == 200


def test_a_body_that_is_said_to_be_huge_is_refused_at_once(site: Site) -> None:
    with raw(site.web.address) as caller:
        caller.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 60}\r\n\r\n".encode())
        assert caller.recv(4096).startswith(b"HTTP/1.1 413 ")
        while caller.recv(4096):
            pass


def closed(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    found = b""
    while part := connection.recv(4096):
        found += part
    return found


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: "])
def test_headers_that_do_not_come_are_not_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(web_module, "HEADERS_S", 1.0)
    with raw(site.web.address) as caller:
        caller.sendall(sent)
        assert closed(caller) == b""
    with raw(site.web.address) as caller:  # nor after a first request on the connection
        caller.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + (sent or b"G"))
        assert closed(caller).endswith(b"ok\n")


def test_a_body_that_trickles_ends_with_the_deadline(site: Site) -> None:
    with raw(site.web.address) as caller:
        caller.sendall(
            f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nX-Request-Timeout-Ms: 200\r\nContent-Length: 99\r\n\r\n[".encode()
        )
        assert caller.recv(4096).startswith(b"HTTP/1.1 504 ")
    assert site.told().code is Code.DEADLINE_EXCEEDED


def test_a_caller_who_never_takes_the_answer_is_let_go(
    bundle: Bundle, windows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_module, "UNREAD_S", 0.2)
    monkeypatch.setattr(web_module, "KEEP_ALIVE_S", 0.2)
    body = json.dumps({"inputs": np.tile(windows[:1], (100, 1, 1)).tolist()}).encode()
    with Site(bundle, same) as site, raw(site.web.address) as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        assert site.told().code is Code.OK
        end = time.monotonic() + WAIT_S
        while site.web.connections:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\xff\xfe\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http_is_refused(site: Site, sent: bytes) -> None:
    with raw(site.web.address) as caller:
        caller.sendall(sent)
        assert caller.recv(4096).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))


def test_pages_of_other_sites_cannot_make_a_browser_call(site: Site, body: bytes) -> None:
    with site.client() as client:
        assert client.post(PREDICT, content=body, headers={"origin": "http://evil.example"}).status_code == 403
        own = {"origin": f"http://{site.web.address}"}
        assert client.post(PREDICT, content=body, headers=own).status_code == 200


def test_health_fails_when_a_lane_has_died(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Site(bundle, same) as site, site.client() as client:
        paths = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
        assert [client.get(path).status_code for path in paths] == [200] * 4
        site.models.lanes.close()
        assert [client.get(path).status_code for path in paths] == [503] * 4


def test_the_metrics_are_those_that_were_given(site: Site, http: httpx.Client) -> None:
    with site.client() as client:
        for path in ("/metrics", "/monitoring/prometheus/metrics"):
            response = client.get(path)
            assert (response.status_code, response.text) == (200, "metric 1\n")
            assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert http.get("/metrics").status_code == 404


def test_the_page_tells_of_every_model_and_loads_nothing_from_elsewhere(http: httpx.Client, models: Models) -> None:
    response = http.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    for name, versions in models.served.items():
        assert f">{name}</a>" in response.text
        for label, reading in versions[max(versions)].manifest.labels.items():
            assert f"{label} {reading.threshold:g}" in response.text
    for sign in ("http:", "https:", "//", "<script", "@import", "src="):
        assert sign not in response.text.replace("http://HOST:PORT", "")


def test_the_page_says_why_a_model_could_not_be_loaded_and_escapes_it(bundle: Bundle) -> None:
    with Site(bundle, same) as site, site.client() as client:
        manifest = msgspec.structs.replace(bundle.manifest, summary="<script>alert(1)</script>")
        site.models.add(2, manifest, FakeTransport(same))
        text = client.get("/").text
        assert "<script>" not in text
        assert "&lt;script&gt;" in text
        assert client.get("/?x=1").status_code == 400


def miniseed(stream: obspy.Stream) -> bytes:
    content = io.BytesIO()
    stream.write(content, format="MSEED")
    return content.getvalue()


@pytest.fixture(scope="module")
def record() -> obspy.Stream:
    """ObsPy's local earthquake, 30 s of three components, as counts."""
    stream = obspy.read()
    for trace in stream:
        trace.data = np.round(trace.data * 100).astype(np.int32)
    return stream


def test_picks_come_as_the_table_that_is_wanted(http: httpx.Client, record: obspy.Stream) -> None:
    with Client() as here:
        expected = here.pick(record, model="phasenet")
    assert expected
    for accept, text in (
        ("text/csv", expected.to_csv()), ("*/*", expected.to_csv()), ("text/*;q=0.5, image/png", expected.to_csv()),
        ("application/x-ndjson", expected.to_jsonl()), ("text/csv;q=0.1, application/jsonl", expected.to_jsonl()),
    ):  # fmt: skip
        response = http.post("/seisserve/v1/pick?model=phasenet", content=miniseed(record), headers={"accept": accept})
        assert response.status_code == 200, response.text
        assert response.text == text
        assert response.headers["seisserve-model"] == "phasenet:1"
        assert response.headers["seisserve-provenance"] == expected.provenance
    response = http.post("/seisserve/v1/pick", content=miniseed(record), headers={"accept": "application/xml"})
    (event,) = obspy.read_events(io.BytesIO(response.content), format="QUAKEML")
    assert len(event.picks) == len(expected)


def test_options_are_those_of_the_client(http: httpx.Client, record: obspy.Stream) -> None:
    with Client() as here:
        expected = here.pick(record, thresholds={"P": 0.875}, hop_samples=1000, stacking="max", resampling="causal")
    query = {"threshold.P": "0.875", "hop_samples": "1000", "stacking": "max", "resampling": "causal"}
    response = http.post("/seisserve/v1/pick", params=query, content=miniseed(record))
    assert response.text == expected.to_csv()
    assert response.headers["seisserve-provenance"] == expected.provenance


def test_detections_come_as_a_table(http: httpx.Client, record: obspy.Stream) -> None:
    with Client() as here:
        expected = here.detect(record)
    assert http.post("/seisserve/v1/detect", content=miniseed(record)).text == expected.to_csv()


@pytest.mark.parametrize("task", ["denoise", "recover"])
def test_waveforms_come_back_as_miniseed(http: httpx.Client, record: obspy.Stream, task: str) -> None:
    with Client() as here:
        expected = from_stream(getattr(here, task)(record))
    response = http.post(f"/seisserve/v1/{task}", content=miniseed(record))
    assert response.headers["content-type"] == "application/vnd.fdsn.mseed"
    found = from_stream(obspy.read(io.BytesIO(response.content), format="MSEED"))
    assert [trace[:3] for trace in found] == [trace[:3] for trace in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.samples, theirs.samples)


def test_curves_come_as_miniseed_or_json_lines(http: httpx.Client, record: obspy.Stream) -> None:
    with Client() as here:
        (expected,) = here.annotate(record)
    response = http.post("/seisserve/v1/annotate", content=miniseed(record), headers={"accept": "application/x-ndjson"})
    (line,) = response.text.splitlines()
    np.testing.assert_array_equal(np.array(json.loads(line)["values"], np.float32), expected.values, strict=True)
    response = http.post("/seisserve/v1/annotate", content=miniseed(record))
    found = obspy.read(io.BytesIO(response.content), format="MSEED")
    np.testing.assert_array_equal(np.array([trace.data for trace in found]).T, expected.values)


@pytest.mark.parametrize(
    ("query", "content", "text"),
    [
        ("", b"", "the body is empty"),
        ("", b"no records", "not a waveform file"),
        ("?modell=phasenet", b"x", "query parameter 'modell' is unknown"),
        ("?model=a&model=b", b"x", "'model' is there twice"),
        ("?version=x", b"x", "version is 'x'"),
        ("?hop_samples=-1", b"x", "hop_samples is '-1'"),
        ("?hop_samples=99999999999", b"x", "hop_samples is 99999999999"),
        ("?threshold.P=x", b"x", "threshold.P is 'x'"),
        ("?threshold.P=nan", b"x", "threshold.P is 'nan'"),
        ("?threshold.P=1e300", b"x", "threshold.P is '1e300'"),
        ("?threshold.Q=0.5", None, "'Q'"),
        ("?stacking=sum", None, "stacking"),
        ("?resampling=x", None, "resampling"),
        ("?model=deepdenoiser", None, "deepdenoiser"),
    ],
)
def test_bad_requests_for_picks_are_refused(
    http: httpx.Client, record: obspy.Stream, query: str, content: bytes | None, text: str
) -> None:
    response = http.post(f"/seisserve/v1/pick{query}", content=miniseed(record) if content is None else content)
    assert response.status_code == 400
    assert text in response.json()["error"]


def test_a_form_that_picks_cannot_have_is_not_acceptable(http: httpx.Client, record: obspy.Stream) -> None:
    for accept, status in (("image/png", 406), ("text/csv;q=0", 406), ("text/csv;q=x", 400)):
        response = http.post("/seisserve/v1/pick", content=miniseed(record), headers={"accept": accept})
        assert response.status_code == status


def test_the_manifest_of_a_model(http: httpx.Client, bundle: Bundle) -> None:
    found = http.get("/seisserve/v1/models/phasenet")
    assert msgspec.json.decode(found.content, type=type(bundle.manifest)) == bundle.manifest
    assert http.get("/seisserve/v1/models/nope").status_code == 404


def test_no_accepted_call_is_lost_when_the_server_stops(bundle: Bundle, body: bytes) -> None:
    gate = Gate()
    site = Site(bundle, gate)
    site.web.start()
    answers: Queue[int] = Queue()
    stopped: Queue[bool] = Queue()
    with site.client() as client, site.client() as other:
        assert other.get("/readyz").status_code == 200
        first = threading.Thread(target=lambda: answers.put(client.post(PREDICT, content=body).status_code))
        first.start()
        assert gate.called.acquire(timeout=WAIT_S)
        stop = threading.Thread(target=lambda: stopped.put(site.web.stop(grace_s=WAIT_S)))
        stop.start()
        end = time.monotonic() + WAIT_S
        while not site.front.draining:
            assert time.monotonic() < end
            time.sleep(0.005)
        assert other.get("/readyz").status_code == 503
        assert other.get("/healthz").status_code == 200
        refused = other.post(PREDICT, content=body)
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        gate.open.set()
        first.join()
        stop.join()
    assert answers.get() == 200
    assert stopped.get() is True
    with pytest.raises(OSError, match="refused"):
        raw(site.web.address)


def test_a_call_that_outlasts_the_grace_period_does_not_hold_the_stop(bundle: Bundle, body: bytes) -> None:
    gate = Gate()
    site = Site(bundle, gate)
    site.web.start()
    with site.client() as client:

        def call() -> None:
            with pytest.raises((httpx.HTTPError, AssertionError)):
                assert client.post(PREDICT, content=body).status_code == 200

        first = threading.Thread(target=call)
        first.start()
        assert gate.called.acquire(timeout=WAIT_S)
        assert site.web.stop(grace_s=0.2) is False
        gate.open.set()
        first.join()


def test_a_port_that_is_taken_is_an_error_that_names_it(site: Site) -> None:
    port = int(site.web.address.rpartition(":")[2])
    with pytest.raises(ServerError, match=rf"cannot listen for HTTP on 127\.0\.0\.1:{port}"):
        Web(site.models, site.front, site.models.lanes, port=port)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of it for a server and a caller."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "2")
    for name in ("server", "station-7"):
        openssl(
            "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", "-days", "2",
            "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1",
            "-addext", "basicConstraints=critical,CA:FALSE",
        )  # fmt: skip
    return folder


def test_tls_tells_the_guards_whose_certificate_it_is(bundle: Bundle, body: bytes, authority: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    context.load_verify_locations(authority / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    mine = ssl.create_default_context(cafile=str(authority / "ca.pem"))
    with Site(bundle, same, tls=context) as site:
        url = f"https://{site.web.address}{PREDICT}"
        with httpx.Client(verify=mine) as client, pytest.raises(httpx.TransportError):
            client.post(url, content=body)
        mine.load_cert_chain(authority / "station-7.pem", authority / "station-7.key")
        with httpx.Client(verify=mine, timeout=WAIT_S) as client:
            assert client.post(url, content=body).status_code == 200
        assert site.told().arrival.certificate == "station-7"


def test_small_answers_are_not_held_back(site: Site) -> None:
    """asyncio turns TCP_NODELAY on only for sockets that say that they are TCP's; else each answer waits 40 ms."""
    with raw(site.web.address) as caller:
        caller.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert caller.recv(4096)
        (connection,) = site.web._server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
