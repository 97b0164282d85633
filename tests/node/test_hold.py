"""Those who wait get what comes free, in turn, and take nothing with them when they go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.types import Busy
from node.hold import WaitingRoom


class Desk:
    """Slots that a test frees."""

    def __init__(self) -> None:
        self.free = 0
        self.taken: list[str] = []

    def place(self, name: str) -> Callable[[], bool]:
        def take() -> bool:
            if not self.free:
                return False
            self.free -= 1
            self.taken.append(name)
            return True

        return take


async def test_what_is_free_already_is_taken_at_once() -> None:
    room, desk = WaitingRoom(limit=4, patience_s=1), Desk()
    desk.free = 1
    await room.wait("m", "c", desk.place("a"))
    assert desk.taken == ["a"]
    assert len(room) == 0


async def test_clients_take_turns(autojump_clock: MockClock) -> None:
    room, desk = WaitingRoom(limit=8, patience_s=99), Desk()
    async with trio.open_nursery() as nursery:
        for name in ("a1", "a2", "a3", "b1"):
            nursery.start_soon(room.wait, "m", name[0], desk.place(name))
            await wait_all_tasks_blocked()
        assert room.occupied("m")
        assert not room.occupied("other")
        for _ in range(4):
            desk.free = 1
            room.poke()
            await wait_all_tasks_blocked()
    assert desk.taken == ["a1", "b1", "a2", "a3"]
    assert not room.occupied("m")


async def test_lanes_do_not_wait_for_each_other(autojump_clock: MockClock) -> None:
    room, one, two = WaitingRoom(limit=8, patience_s=99), Desk(), Desk()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.wait, "one", "c", one.place("first"))
        await wait_all_tasks_blocked()
        nursery.start_soon(room.wait, "two", "c", two.place("second"))
        await wait_all_tasks_blocked()
        two.free = 1
        room.poke()
        await wait_all_tasks_blocked()
        assert two.taken == ["second"]
        one.free = 1
        room.poke()


async def test_patience_ends(autojump_clock: MockClock) -> None:
    room, desk = WaitingRoom(limit=4, patience_s=30), Desk()
    with pytest.raises(Busy, match="stayed busy") as caught:
        await room.wait("m", "c", desk.place("a"))
    assert trio.current_time() == pytest.approx(30)
    assert caught.value.retry_after_s == 30
    assert len(room) == 0
    desk.free = 1
    room.poke()
    assert desk.taken == []


async def test_a_full_room_turns_away_the_newcomer_or_who_has_most(autojump_clock: MockClock) -> None:
    room, desk = WaitingRoom(limit=2, patience_s=99), Desk()
    turned_away: dict[str, Busy] = {}

    async def wait(client: str, name: str) -> None:
        try:
            await room.wait("m", client, desk.place(name))
        except Busy as error:
            turned_away[name] = error

    async with trio.open_nursery() as nursery:
        for client, name in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")):
            nursery.start_soon(wait, client, name)
            await wait_all_tasks_blocked()
        assert list(turned_away) == ["a3", "a2"]
        assert len(room) == 2
        desk.free = 2
        room.poke()
    assert sorted(desk.taken) == ["a1", "b1"]
    for error in turned_away.values():
        assert "Too many" in error.message
        assert (error.retry_after_s or 0) >= 1


async def test_who_is_cancelled_leaves_no_trace(autojump_clock: MockClock) -> None:
    room, desk = WaitingRoom(limit=4, patience_s=99), Desk()
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(1):
            await room.wait("m", "c", desk.place("gone"))
        nursery.start_soon(room.wait, "m", "c", desk.place("stays"))
        await wait_all_tasks_blocked()
        desk.free = 1
        room.poke()
    assert desk.taken == ["stays"]
