"""Who may come in when more come than there is room for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from seisserve_serving.admission import ASSUMED, Admission, Turn, Turns
from seisserve_serving.aio import AioServer
from seisserve_serving.calls import Priority
from seisserve_serving.errors import Overloaded, Unavailable
from seisserve_serving.knock import Knock, _At


def filled(admission: Admission, client: str) -> int:
    """Let a client in as often as it may."""
    count = 0
    while True:
        try:
            admission.enter(Priority.REALTIME, client)
        except Overloaded:
            return count
        count += 1


def test_a_client_alone_may_have_everything() -> None:
    admission = Admission(10)
    assert filled(admission, "one") == 10
    for _ in range(10):
        admission.leave("one")
    assert admission.wait(0)


def test_whoever_was_refused_has_its_part_when_the_first_one_ends() -> None:
    admission = Admission(10)
    assert filled(admission, "one") == 10
    assert filled(admission, "two") == 0
    for number in range(4):
        admission.leave("one")
        with pytest.raises(Overloaded, match=f"^{9 - number} calls of this client are under way, at most 5 "):
            admission.enter(Priority.REALTIME, "one")
        admission.enter(Priority.REALTIME, "two")
    assert admission.under_way == 10


def test_a_client_share_of_one_is_first_come_first_served() -> None:
    admission = Admission(10, 1.0)
    admission.enter(Priority.REALTIME, "two")
    assert filled(admission, "one") == 9


def test_the_less_urgent_leave_room() -> None:
    admission = Admission(10)
    for _ in range(8):
        admission.enter(Priority.ARCHIVE, "one")
    with pytest.raises(Overloaded):
        admission.enter(Priority.ARCHIVE, "one")
    assert (admission.over(Priority.ARCHIVE), admission.over(Priority.NORMAL)) == (True, False)
    admission.enter(Priority.NORMAL, "one")
    with pytest.raises(Overloaded):
        admission.enter(Priority.NORMAL, "one")
    admission.enter(Priority.REALTIME, "one")
    admission.drain()
    with pytest.raises(Unavailable):
        admission.check(Priority.REALTIME, "one")


def test_as_many_again_may_wait_at_the_door() -> None:
    admission, knock = Admission(10), Knock(lambda: 0)
    admission.knock = knock
    for _ in range(19):
        admission.seen()
    knock._unheard.append(_At(0, 0))
    assert not admission.over(Priority.REALTIME) and admission.over(Priority.NORMAL)
    admission.seen()
    assert admission.over(Priority.REALTIME)
    knock._heard()
    assert admission.over(Priority.REALTIME)


def test_turns_come_in_order_and_as_bytes_allow() -> None:
    async def run() -> None:
        turns, came = Turns(2 * ASSUMED, 3), []

        async def come(number: int) -> Turn:
            turn = await turns.come()
            came.append(number)
            return turn

        async def others() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        first, second = await come(0), await come(1)
        line = [asyncio.create_task(come(number)) for number in (2, 3, 4)]
        await others()
        assert came == [0, 1]
        with pytest.raises(Overloaded, match="3 calls of this priority wait"):
            await turns.come()
        line[1].cancel()
        first.read(5 * ASSUMED)
        second.read(0)
        await others()
        assert came == [0, 1]  # the first one turned out to be large
        first.read(0)
        await others()
        assert came == [0, 1, 2, 4]
        for turn in (await line[0], await line[2]):
            turn.read(0)
        (await come(5)).read(0)

    asyncio.run(run())


def test_one_that_is_long_in_coming_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seisserve_serving.admission.SLOW_S", 0.01)

    async def run() -> None:
        turns = Turns(ASSUMED, 1)
        slow = await turns.come()
        (await asyncio.wait_for(turns.come(), 30)).read(0)
        slow.read(0)

    asyncio.run(run())


class Door:
    """A server whose loop can be held, with a method that counts who was seen."""

    def __init__(self) -> None:
        self.under_way = 0
        self.server = AioServer(ThreadPoolExecutor(1), [], lambda: self.under_way)
        self.server.add_generic_rpc_handlers((_Seen(self.server),))
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}")
        self.server.start()

    def call(self) -> grpc.Future:
        return self.channel.unary_unary("/test.Door/Come").future(b"", timeout=30)


class _Seen(grpc.GenericRpcHandler):
    def __init__(self, server: AioServer) -> None:
        async def answer(body: bytes, context: object) -> bytes:
            return body

        self._server, self._handler = server, grpc.unary_unary_rpc_method_handler(answer)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != "/test.Door/Come":
            return None
        self._server.knock.seen += 1
        return self._handler


@pytest.fixture
def door() -> Iterator[Door]:
    opened = Door()
    yield opened
    opened.channel.close()
    opened.server.stop(1).result(30)


async def _soon(door: Door, count: int) -> int:
    """The most calls that were known of until it is that many."""
    most = 0
    for _ in range(3000):
        most = max(most, door.server.knock.calls)
        if most >= count:
            break
        await asyncio.sleep(0.001)
    return most


def test_a_knock_finds_those_who_wait_at_the_door(door: Door) -> None:
    door.call().result()
    door.under_way = 7
    release = threading.Event()

    async def hold() -> None:
        release.wait(30)  # the loop cannot look at anybody

    calls = [door.call()]
    holding = threading.Thread(target=lambda: door.server.run(hold()))
    holding.start()
    calls += [door.call() for _ in range(50)]
    release.set()
    holding.join()
    assert [call.result() for call in calls] == [b""] * 51
    assert 7 <= door.server.run(_soon(door, 8)) <= 7 + 51
    door.under_way = 0

    async def forgotten() -> None:
        while door.server.knock.calls:
            await asyncio.sleep(0.001)

    door.server.run(asyncio.wait_for(forgotten(), 30))


def test_nobody_else_can_knock(door: Door) -> None:
    answer = door.channel.unary_unary("/test.Door/Knock").future(b"", timeout=30)
    assert answer.code() is grpc.StatusCode.UNIMPLEMENTED
