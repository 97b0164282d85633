"""The roster: names, watchers, frozen members."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.identity import Identity
from mesh.membership import State
from mesh.records import Load
from mesh.roster import PeerEvent, Roster, unread_record
from tests.sim.swarms import record

PEERS = [Identity(random.Random(number).randbytes(32)).peer for number in range(8)]
OWN = record(PEERS[0], "own")


@pytest.fixture
def roster() -> Roster:
    return Roster(lambda: OWN)


def test_members_are_found_by_id_and_by_name(roster: Roster) -> None:
    roster.put(record(PEERS[1], "gpu"), state=State.ALIVE)
    member = roster.get(PEERS[1])
    assert member is not None
    assert member.usable
    assert roster.by_name("gpu") == roster.by_name(PEERS[1]) == member
    assert roster.by_name("cpu") is None
    assert roster.get(PEERS[2]) is None


def test_two_of_one_name_are_told_apart_while_there_are_two(roster: Roster) -> None:
    for peer in PEERS[1:3]:
        roster.put(record(peer, "gpu"), state=State.ALIVE)
    assert {member.name for member in roster.members} == {f"gpu-{peer[-4:]}" for peer in PEERS[1:3]}
    assert roster.by_name("gpu") is None
    assert roster.by_name(f"gpu-{PEERS[2][-4:]}") == roster.get(PEERS[2])
    roster.remove(PEERS[1])
    assert [member.name for member in roster.members] == ["gpu"]
    roster.put(record(PEERS[2], "renamed"))
    assert [member.name for member in roster.members] == ["renamed"]


def test_this_node_counts_when_names_are_told_apart(roster: Roster) -> None:
    assert roster.own_name == "own"
    roster.put(record(PEERS[1], "own"), state=State.ALIVE)
    assert roster.own_name == f"own-{PEERS[0][-4:]}"
    assert roster.by_name("own") == roster.get(PEERS[1])  # the only member that bears it
    assert [member.name for member in roster.members] == [f"own-{PEERS[1][-4:]}"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PEERS[1:]), st.sampled_from(["own", "a", "b", None])), max_size=20),
)
def test_names_are_unique_and_no_longer_than_needed(changes: list[tuple[str, str | None]]) -> None:
    roster = Roster(lambda: OWN)
    for peer, name in changes:
        if name is None:
            roster.remove(peer)
        else:
            roster.put(record(peer, name), state=State.ALIVE)
        shown = [member.name for member in roster.members] + [roster.own_name]
        assert len(set(shown)) == len(shown)
        borne = [member.record.name for member in roster.members] + ["own"]
        for member in roster.members:
            assert (member.name == member.record.name) == (borne.count(member.record.name) == 1)


def test_readers_keep_what_they_have(roster: Roster) -> None:
    before = roster.put(record(PEERS[1], "gpu"), state=State.ALIVE)
    roster.update(PEERS[1], loads={"m": Load("m", "ready")}, state=State.SUSPECT)
    assert (before.state, dict(before.loads)) == (State.ALIVE, {})
    after = roster.get(PEERS[1])
    assert after is not None
    assert (after.usable, list(after.loads)) == (False, ["m"])
    assert roster.update(PEERS[2], state=State.DEAD) is None


def test_a_member_of_another_version_is_shown_and_not_used(roster: Roster) -> None:
    stranger = unread_record(PEERS[1])
    member = roster.put(stranger, state=State.ALIVE, protocol_ok=False)
    assert member.name == f"peer-{PEERS[1][-6:]}"
    assert not member.usable


async def test_watchers_get_what_happens_while_they_watch(roster: Roster) -> None:
    roster.put(record(PEERS[1], "gpu"), state=State.ALIVE)
    roster.tell("joined", PEERS[1])
    async with roster.watch() as one, roster.watch() as other:
        roster.tell("load", PEERS[1])
        roster.tell("dead", PEERS[1], "gone")
        for watch in (one, other):
            assert await watch.receive() == PeerEvent("load", PEERS[1], "gpu")
            assert await watch.receive() == PeerEvent("dead", PEERS[1], "gpu", "gone")
    roster.tell("left", PEERS[1])
    with trio.move_on_after(0.01) as waited:
        await one.receive()
    assert waited.cancelled_caught


async def test_a_watcher_waits_for_news(roster: Roster, autojump_clock: trio.testing.MockClock) -> None:
    got: list[PeerEvent] = []

    async def read() -> None:
        async with roster.watch() as watch:
            async for event in watch:
                got.append(event)
                if len(got) == 3:
                    return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for kind in ("joined", "suspect", "alive"):
            await trio.sleep(1)
            roster.tell(kind, PEERS[1])
    assert [event.kind for event in got] == ["joined", "suspect", "alive"]


async def test_a_slow_watcher_loses_the_oldest_and_is_told(roster: Roster) -> None:
    async with roster.watch(limit=3) as slow, roster.watch() as quick:
        for number in range(5):
            roster.tell("load", PEERS[1], str(number))
        assert await slow.receive() == PeerEvent("missed", count=2)
        assert [(await slow.receive()).detail for _ in range(3)] == ["2", "3", "4"]
        assert [(await quick.receive()).detail for _ in range(5)] == list("01234")


async def test_a_cancelled_watcher_loses_nothing(roster: Roster) -> None:
    async with roster.watch() as watch:
        roster.tell("load", PEERS[1])
        with trio.CancelScope() as scope:
            scope.cancel()
            await watch.receive()
        assert (await watch.receive()).kind == "load"
