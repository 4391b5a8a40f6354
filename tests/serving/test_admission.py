"""Who may come in when more come than there is room for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from serving.loopback import Loopback

from seisserve_serving.admission import ASSUMED, Admission, Turn, Turns
from seisserve_serving.calls import Priority
from seisserve_serving.errors import Overloaded, Unavailable
from seisserve_serving.grpc_server import GrpcServer, Rpc
from seisserve_serving.knock import Knock, _At
from seisserve_serving.waits import Gone, Task


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
    knock._unheard = _At(0, 0, 0)
    assert not admission.over(Priority.REALTIME) and admission.over(Priority.NORMAL)
    admission.seen()
    assert admission.over(Priority.REALTIME)
    knock._heard()
    assert admission.over(Priority.REALTIME)


def test_calls_that_are_answered_while_a_knock_is_on_its_way_did_not_wait() -> None:
    admission, knock = Admission(10), Knock(lambda: 0)
    admission.knock = knock
    knock._unheard = _At(0, 0, 0)
    for _ in range(100):
        admission.seen()
        admission.enter(Priority.NORMAL, "one")
        admission.leave("one")
    assert not admission.over(Priority.ARCHIVE)
    knock._heard()
    assert not admission.over(Priority.ARCHIVE)


class Line:
    """Calls that come for their turns."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.came = turns, dict[int, Turn]()
        self.refused: list[str] = []

    def join(self, number: int) -> Task:
        async def come() -> None:
            try:
                self.came[number] = await self.turns.come()
            except Overloaded as error:
                self.refused.append(str(error))
            except Gone:
                pass

        task = Task(come())
        task.go_on()
        return task


def test_turns_come_in_order_and_as_bytes_allow() -> None:
    line = Line(Turns(2 * ASSUMED, 3))
    tasks = [line.join(number) for number in range(6)]
    assert list(line.came) == [0, 1]
    assert line.refused == ["3 calls of this priority wait for their turn"]
    tasks[3].leave()
    line.came[0].read(5 * ASSUMED)
    line.came[1].read(0)
    assert list(line.came) == [0, 1]  # the first one turned out to be large
    line.came[0].read(0)
    assert list(line.came) == [0, 1, 2, 4]
    for number in (2, 4):
        line.came[number].read(0)
    line.join(6)
    assert list(line.came) == [0, 1, 2, 4, 6]


def test_those_who_have_gone_leave_the_line() -> None:
    line = Line(Turns(ASSUMED, 2))
    tasks = [line.join(number) for number in range(3)]
    for task in tasks[1:]:
        task.leave()
    for number in (3, 4):
        line.join(number)
    assert not line.refused
    line.came[0].read(0)
    line.came[3].read(0)
    assert list(line.came) == [0, 3, 4]


def test_one_that_is_long_in_coming_does_not_hold_up_the_others() -> None:
    line = Line(Turns(ASSUMED, 1))
    line.join(0)
    line.join(1)
    line.came[0].is_slow()
    assert list(line.came) == [0, 1]
    line.came[0].read(ASSUMED)  # it came at last
    line.came[1].read(0)
    line.came[1].is_slow()
    line.join(2)
    assert list(line.came) == [0, 1]
    line.came[0].read(0)
    assert list(line.came) == [0, 1, 2]


class Door(Loopback):
    """A server whose thread can be held, with a method that counts who was seen."""

    def __init__(self) -> None:
        self.under_way, self.release, self.most = 0, threading.Event(), 0
        super().__init__(GrpcServer([], lambda: self.under_way), {"/test.Door/Come": self.come})

    async def come(self, rpc: Rpc) -> None:
        self.server.knock.seen += 1
        self.most = max(self.most, self.server.knock.calls)
        body = await rpc.read()
        if body == b"hold":
            assert self.release.wait(30)  # the thread cannot look at anybody
        time.sleep(0.002 if body == b"slow" else 0)
        rpc.finish(body)

    def call(self, body: bytes = b"") -> grpc.Future:
        return self.channel.unary_unary("/test.Door/Come").future(body, timeout=30)


@pytest.fixture
def door() -> Iterator[Door]:
    with Door() as opened:
        yield opened


def test_a_knock_finds_those_who_wait_at_the_door(door: Door) -> None:
    door.call().result()
    door.under_way = 7
    end, sent = time.monotonic() + 30, 0
    while door.most < 8 and time.monotonic() < end:
        door.release.clear()
        calls = [door.call(b"hold"), *(door.call(b"slow") for _ in range(50))]
        sent += len(calls)
        time.sleep(0.1)  # for them to come as far as the door
        door.release.set()
        assert [call.result() for call in calls] == [b"hold", *[b"slow"] * 50]
    assert 8 <= door.most <= 7 + sent
    door.under_way = 0
    while door.server.knock.calls and time.monotonic() < end:
        time.sleep(0.001)
    assert door.server.knock.calls == 0


def test_nobody_else_can_knock(door: Door) -> None:
    answer = door.channel.unary_unary("/test.Door/Knock").future(b"", timeout=30)
    assert answer.code() is grpc.StatusCode.UNIMPLEMENTED
