"""Tensors in shared memory, by Triton's own functions for it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
import pytest
import tritonclient.utils.shared_memory as shm
from fuzz.targets import add_onnx_texts
from numpy.typing import NDArray
from serving.small_models import HOW, eventually
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from seisserve.errors import SeisserveError, UsageError
from seisserve_serving import shared_memory
from seisserve_serving.calls import Call
from seisserve_serving.errors import Overloaded, PermissionDenied
from seisserve_serving.lanes import Batching, Lanes
from seisserve_serving.models import Models
from seisserve_serving.repository import Repository, Source
from seisserve_serving.server import Server
from seisserve_serving.shared_memory import Regions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the server reads the segments of Linux only")

Array = NDArray[np.float32]
Refused = Callable[..., tuple[grpc.StatusCode, str]]
INVALID = grpc.StatusCode.INVALID_ARGUMENT
LARGEST = 4 << 20
HERE = Call(peer="ipv4:127.0.0.1:5")


@pytest.fixture(scope="module")
def sharing(models: Models) -> Iterator[Server]:
    started = Server(models, port=0, max_message=LARGEST, shared_memory=True)
    started.start()
    yield started
    started.stop(grace_s=1)


@pytest.fixture(scope="module")
def client(sharing: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(sharing.address) as opened:
        yield opened


@pytest.fixture
def stub(sharing: Server) -> Iterator[Any]:
    with grpc.insecure_channel(sharing.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@contextmanager
def segment(size: int) -> Iterator[Any]:
    """A segment of that many bytes; its name as its key, too."""
    name = f"seisserve-test-{uuid4().hex}"
    made = shm.create_shared_memory_region(name, f"/{name}", size)
    try:
        yield made
    finally:
        shm.destroy_shared_memory_region(made)


def name_of(made: Any) -> str:
    name: str = made._triton_shm_name
    return name


def path_of(made: Any) -> Path:
    return Path("/dev/shm") / name_of(made)


def opened(made: Any) -> int:
    """How often this process, which is the server's too, has the segment open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += os.readlink(f"/proc/self/fd/{name}") == str(path_of(made))
    return count


def given(windows: Array, region: str = "", offset: int = 0) -> InferInput:
    """The windows as raw bytes, or in a region."""
    tensor = InferInput("waveform", windows.shape, "FP32")
    if region:
        tensor.set_shared_memory(region, windows.nbytes, offset)
    else:
        tensor.set_data_from_numpy(windows)
    return tensor


@pytest.mark.parametrize("count", [1, 33])
@pytest.mark.parametrize("way", ["in", "out", "both"])
def test_answers_are_those_of_bytes_that_are_sent(
    client: InferenceServerClient, windows: Array, way: str, count: int
) -> None:
    windows = windows[:count]
    expected = client.infer("phasenet", [given(windows)]).as_numpy("probability")
    with segment(2 * windows.nbytes + 8) as made:
        client.register_system_shared_memory(name_of(made), f"/{name_of(made)}", 2 * windows.nbytes, offset=8)
        shm.set_shared_memory_region(made, [windows], offset=8)
        wanted = InferRequestedOutput("probability")
        if way != "in":
            wanted.set_shared_memory(name_of(made), windows.nbytes, windows.nbytes)
        tensor = given(windows, name_of(made) if way != "out" else "")
        found = client.infer("phasenet", [tensor], outputs=[wanted])
        if way == "in":
            answer = found.as_numpy("probability")
        else:
            parameters = found.get_output("probability").parameters
            assert parameters["shared_memory_byte_size"].int64_param == expected.nbytes
            assert list(found.get_response().raw_output_contents) == [b""]
            answer = shm.get_contents_as_numpy(made, np.float32, expected.shape, offset=8 + windows.nbytes).copy()
        client.unregister_system_shared_memory(name_of(made))
    np.testing.assert_array_equal(answer, expected, strict=True)


def test_regions_are_listed_until_they_are_forgotten(client: InferenceServerClient) -> None:
    with segment(64) as one, segment(64) as other:
        own = opened(one), opened(other)
        for made, size in ((one, 64), (other, 32)):
            client.register_system_shared_memory(name_of(made), f"/{name_of(made)}", size)
        listed = client.get_system_shared_memory_status().regions
        assert {name: region.byte_size for name, region in listed.items()} == {name_of(one): 64, name_of(other): 32}
        listed = client.get_system_shared_memory_status(name_of(one)).regions
        assert [(region.name, region.key) for region in listed.values()] == [(name_of(one), f"/{name_of(one)}")]
        client.unregister_system_shared_memory(name_of(one))
        client.unregister_system_shared_memory(name_of(one))  # once more does no harm
        assert list(client.get_system_shared_memory_status().regions) == [name_of(other)]
        client.unregister_system_shared_memory()
        assert not client.get_system_shared_memory_status().regions
        assert (opened(one), opened(other)) == own


def test_the_metadata_say_whether_it_may_be_used(client: InferenceServerClient, channel: grpc.Channel) -> None:
    assert "system_shared_memory" in client.get_server_metadata().extensions
    without = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    assert "system_shared_memory" not in without.ServerMetadata(service_pb2.ServerMetadataRequest()).extensions


def test_a_server_that_was_not_told_to_takes_none(channel: grpc.Channel, refused: Refused) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    for method, request in (
        (stub.SystemSharedMemoryRegister, service_pb2.SystemSharedMemoryRegisterRequest(name="a", key="b")),
        (stub.SystemSharedMemoryUnregister, service_pb2.SystemSharedMemoryUnregisterRequest()),
        (stub.SystemSharedMemoryStatus, service_pb2.SystemSharedMemoryStatusRequest()),
    ):
        code, text = refused(method, request)
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "shared_memory" in text


REGISTERED = [
    ("no name", {"name": ""}, "name is empty"),
    ("no key", {"key": ""}, "key is ''"),
    ("a path", {"key": "../etc/passwd"}, "key is '../etc/passwd'"),
    ("a folder above", {"key": ".."}, "key is '..'"),
    (
        "not there",
        {"key": "/seisserve-nobody"},
        "key is '/seisserve-nobody'; the segment cannot be opened: No such file",
    ),
    ("too long", {"key": "n" * 300}, "cannot be opened: File name too long"),
    ("no bytes", {"byte_size": 0}, "byte_size is 0"),
    ("beyond", {"byte_size": 101}, "offset 0 and byte_size 101 reach beyond"),
    ("far beyond", {"offset": 2**64 - 1, "byte_size": 2**64 - 1}, "which has 100 bytes"),
]


@pytest.mark.parametrize(("changed", "text"), [row[1:] for row in REGISTERED], ids=[row[0] for row in REGISTERED])
def test_what_cannot_be_registered_is_refused(stub: Any, refused: Refused, changed: dict[str, Any], text: str) -> None:
    with segment(100) as made:
        fields = {"name": "region", "key": name_of(made), "byte_size": 100, **changed}
        code, message = refused(
            stub.SystemSharedMemoryRegister, service_pb2.SystemSharedMemoryRegisterRequest(**fields)
        )
    assert (code, text in message) == (INVALID, True), message


def test_only_segments_are_opened() -> None:
    regions = Regions(LARGEST)
    with segment(100) as made:
        link, pipe, folder = (path_of(made).with_suffix(f".{kind}") for kind in ("link", "pipe", "folder"))
        link.symlink_to("/etc/hostname")
        os.mkfifo(pipe)
        folder.mkdir()
        try:
            for other in (link, pipe, folder):
                with pytest.raises(UsageError, match=f"key is {other.name!r}"):
                    regions.register("region", other.name, 0, 1, HERE)
        finally:
            link.unlink()
            pipe.unlink()
            folder.rmdir()


def test_a_name_is_taken_once(client: InferenceServerClient) -> None:
    with segment(100) as made:
        client.register_system_shared_memory("once", name_of(made), 100)
        with pytest.raises(
            InferenceServerException, match="name is 'once'; it is registered already: unregister it first"
        ):
            client.register_system_shared_memory("once", name_of(made), 50)
        client.unregister_system_shared_memory("once")


def placed(kind: str = "input", **parameters: Any) -> Any:
    """A request for one window, with the parameters of shared memory of its input or output."""
    request = service_pb2.ModelInferRequest(model_name="phasenet")
    tensor = request.inputs.add(name="waveform", datatype="FP32", shape=[1, 3072, 3])
    if kind == "output":
        request.raw_input_contents.append(bytes(36864))
        tensor = request.outputs.add(name="probability")
    for name, value in parameters.items():
        field = {str: "string_param", bool: "bool_param"}.get(type(value), "int64_param")
        setattr(tensor.parameters[f"shared_memory_{name}"], field, value)
    return request


def with_contents() -> Any:
    request = placed(region="there", byte_size=36864)
    request.inputs[0].contents.fp32_contents.append(1)
    return request


def with_raw() -> Any:
    request = placed(region="there", byte_size=36864)
    request.raw_input_contents.append(bytes(36864))
    return request


def twice() -> Any:
    request = placed("output", region="there", byte_size=36864)
    request.outputs.add(name="probability")
    return request


def whole() -> Any:
    request = placed(region="there", byte_size=36864)
    request.parameters["shared_memory_region"].string_param = "there"
    return request


PLACES = [
    ("unknown", placed(region="x", byte_size=9), "input 'waveform': shared_memory_region is 'x'; no such region"),
    ("no name", placed(region="", byte_size=9), "shared_memory_region is ''; no such region"),
    ("a number", placed(region=7, byte_size=9), "parameter 'shared_memory_region' is int64_param; it must be a string"),
    ("no size", placed(region="there"), "parameter 'shared_memory_byte_size' is missing"),
    ("a wrong size", placed(region="there", byte_size=True), "'shared_memory_byte_size' is bool_param"),
    ("zero", placed(region="there", byte_size=0), "they must be at least 0 and 1"),
    ("negative", placed(region="there", byte_size=9, offset=-1), "shared_memory_offset is -1"),
    ("beyond", placed(region="there", byte_size=36864, offset=1 << 62), "reach beyond the region 'there'"),
    ("too large", placed(region="there", byte_size=LARGEST + 1), f"it may be {LARGEST}, like a message"),
    ("not the shape's", placed(region="there", byte_size=36860),
     "input 'waveform': shared_memory_region has 36860 bytes; shape [1, 3072, 3] needs 36864"),
    ("contents too", with_contents(), "contents must be absent where there is shared_memory_region"),
    ("raw too", with_raw(), "raw_input_contents has 1 entries for 0 inputs"),
    ("no place for an output", placed("output", region="x", byte_size=36864), "output 'probability': shared_memo"),
    ("an output twice", twice(), "output 'probability' is there twice"),
    ("of the whole request", whole(), "parameter 'shared_memory_region' is not supported"),
    ("too small a place", placed("output", region="there", byte_size=36860), "the output has 36864 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "text"), [row[1:] for row in PLACES], ids=[row[0] for row in PLACES])
def test_a_wrong_place_is_refused_with_the_tensor_and_the_parameter(
    client: InferenceServerClient, stub: Any, refused: Refused, request_: Any, text: str
) -> None:
    with segment(LARGEST + 4096) as made:
        client.register_system_shared_memory("there", name_of(made), LARGEST + 4096)
        code, message = refused(stub.ModelInfer, request_)
        client.unregister_system_shared_memory("there")
    assert (code, text in message) == (INVALID, True), message


def test_a_segment_that_is_cut_short_is_an_error_and_no_more(
    client: InferenceServerClient, stub: Any, refused: Refused, windows: Array
) -> None:
    with segment(40_000) as made:
        client.register_system_shared_memory("short", name_of(made), 40_000)
        os.truncate(path_of(made), 20_000)
        for kind in ("input", "output"):
            code, message = refused(stub.ModelInfer, placed(kind, region="short", byte_size=36864))
            assert (code, "has been cut short; 16864 bytes are missing" in message) == (INVALID, True), message
        assert path_of(made).stat().st_size == 20_000
        os.truncate(path_of(made), 40_000)
        client.unregister_system_shared_memory("short")
    assert client.infer("phasenet", [given(windows[:1])]).as_numpy("probability") is not None


def test_the_bytes_of_a_call_are_those_that_it_reads_and_writes() -> None:
    request = placed(region="there", byte_size=200 << 20)
    request.outputs.add().CopyFrom(placed("output", region="there", byte_size=-(200 << 20)).outputs[0])
    assert shared_memory.shared_bytes(request) == 200 << 20
    assert shared_memory.shared_bytes(service_pb2.ModelInferRequest()) == 0


def test_large_archive_calls_take_turns_there_too(
    client: InferenceServerClient, sharing: Server, windows: Array
) -> None:
    """They count with what they read and write, not with the few bytes that say where it is."""
    held: list[int] = []
    turns = sharing._front._turns
    hold = turns.hold

    def noted(more: int) -> None:
        hold(more)
        held.append(turns._held)

    with segment(2 * windows[:40].nbytes) as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "hold", noted)
        client.register_system_shared_memory("turn", name_of(made), 2 * windows[:40].nbytes)
        shm.set_shared_memory_region(made, [windows[:40]])
        wanted = InferRequestedOutput("probability")
        wanted.set_shared_memory("turn", windows[:40].nbytes, windows[:40].nbytes)
        tensor = given(windows[:40], "turn")
        client.infer("phasenet", [tensor], outputs=[wanted], headers={"seisserve-priority": "archive"})
        client.unregister_system_shared_memory("turn")
        eventually(lambda: held[-1] == 0)  # after the answer
    assert max(held) >= 2 * windows[:40].nbytes


def test_one_of_two_outputs_may_be_there(tmp_path: Path) -> None:
    """The other is sent, at its place; texts go too."""
    base = tmp_path / "texts"
    add_onnx_texts(base, 1)
    models = Models(Lanes(1))
    Repository(models, HOW._replace(batching=Batching()), Source(tmp_path, True)).wait()
    server = Server(models, port=0, shared_memory=True)
    server.start()
    try:
        with InferenceServerClient(server.address) as client, segment(100) as made:
            client.register_system_shared_memory("texts", name_of(made), 100)
            inputs = []
            for name, text in (("a", b"north"), ("b", b"east")):
                inputs.append(InferInput(name, [1, 1], "BYTES"))
                inputs[-1].set_data_from_numpy(np.array([[text]], object))
            first = InferRequestedOutput("x")
            first.set_shared_memory("texts", 50, 10)
            found = client.infer("texts", inputs, outputs=[first, InferRequestedOutput("y")])
            assert found.as_numpy("y").tolist() == [[b"east"]]
            assert bytes(made._mpsm_handle.buf[10:19]) == b"\5\0\0\0north"
    finally:
        server.stop(1)
        models.close()
        models.lanes.close()


def test_regions_belong_to_the_token_that_registered_them() -> None:
    regions = Regions(LARGEST)
    anna, bert = (Call(peer="unix:", user=user) for user in ("anna", "bert"))
    with segment(100) as made:
        regions.register("mine", name_of(made), 0, 100, anna)
        assert regions.find("mine", "name", anna).size == 100
        with pytest.raises(UsageError, match="no such region"):
            regions.find("mine", "name", bert)
        regions.unregister("", bert)
        assert not regions.status("", bert).regions
        assert list(regions.status("", anna).regions) == ["mine"]


@pytest.mark.parametrize("peer", ["ipv4:127.0.0.1:4", "ipv6:%5B::1%5D:4", "ipv6:[::1]:4", "unix:", "unix:/run/x"])
def test_callers_on_this_machine_may_register(peer: str) -> None:
    with segment(100) as made:
        Regions(LARGEST).register("region", name_of(made), 0, 100, Call(peer=peer))


@pytest.mark.parametrize("peer", ["ipv4:10.0.0.1:4", "ipv6:%5B2001:db8::1%5D:4", "ipv4:128.127.0.1:4", ""])
def test_callers_from_elsewhere_may_do_nothing(peer: str) -> None:
    regions, there = Regions(LARGEST), Call(peer=peer)
    with segment(100) as made:
        regions.register("region", name_of(made), 0, 100, HERE)
        for call in (
            lambda: regions.register("more", name_of(made), 0, 100, there),
            lambda: regions.unregister("", there),
            lambda: regions.status("", there),
            lambda: regions.find("region", "name", there),
        ):
            with pytest.raises(PermissionDenied, match="on the same machine"):
                call()
        assert list(regions.status("", HERE).regions) == ["region"]


def test_only_so_many_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "MOST_REGIONS", 3)
    regions = Regions(LARGEST)
    with segment(100) as made:
        for number in range(3):
            regions.register(str(number), name_of(made), 0, 100, HERE)
        with pytest.raises(Overloaded, match="3 regions are registered") as caught:
            regions.register("more", name_of(made), 0, 100, HERE)
        assert isinstance(caught.value, SeisserveError)
