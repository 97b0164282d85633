"""Twenty nodes under an autojump clock: join, leave, crash, silence, partition, restart, skew, ghosts, bans."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from mesh.errors import Incompatible, NotAMember, PeerGone
from mesh.membership import State
from mesh.records import Load, Offer, sign_record
from mesh.remembered import Remembered
from mesh.timing import LAN
from mesh.transport import Stream
from tests.sim.swarms import OTHER_KEYS, SimNode, converged, identity, record, simulation, until

COUNT = 20


def all_see(nodes: list[SimNode], other: SimNode, *states: State) -> bool:
    return all(node.sees(other) in states for node in nodes)


async def test_twenty_nodes_that_know_one_of_them_all_meet(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        first = await sim.start(0)
        for number in range(1, COUNT):
            await sim.start(number, bootstrap=[first])
        assert await until(lambda: converged(sim.nodes), within=3.0) < 3.0
        names = {member.name for member in first.swarm.roster.members}
        assert names == {f"node{number}" for number in range(1, COUNT)}


async def test_a_crashed_process_is_dead_to_all_within_a_second(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(COUNT)
        victim = nodes[7]
        async with nodes[3].swarm.events() as events:
            sim.crash(victim)
            assert await until(lambda: all_see(sim.nodes, victim, State.DEAD), within=1.0) < 1.0
            kinds = [(await events.receive()).kind for _ in range(2)]
        assert kinds == ["suspect", "dead"]
        assert all(node.alive() == {n.peer for n in sim.nodes} - {node.peer} for node in sim.nodes)


async def test_it_is_back_after_a_restart_within_two_seconds_of_answering(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(COUNT)
        sim.crash(nodes[7])
        await trio.sleep(20)
        await sim.start(7, after=nodes[7])
        assert await until(lambda: converged(sim.nodes), within=2.0) < 2.0


async def test_a_restart_that_nobody_noticed_replaces_the_old_start(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(5)
        nodes[2].swarm.publish(loads=[Load("m", "ready")])
        await until(lambda: all("m" in load for load in loads_of(nodes[2], nodes)), within=2.0)
        sim.vanish(nodes[2])  # no reset is seen
        await trio.sleep(0.5)
        sim.network.heal()
        again = await sim.start(2, after=nodes[2])
        await until(lambda: converged(sim.nodes), within=2.0)
        members = [node.swarm.roster.get(again.peer) for node in sim.nodes if node is not again]
        assert {member.record.incarnation for member in members if member is not None} == {2}
        assert not any("m" in load for load in loads_of(again, sim.nodes))
        await trio.sleep(10)
        assert converged(sim.nodes)


async def test_a_silent_machine_is_suspect_and_then_dead_within_four_seconds(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(COUNT)
        victim = nodes[4]
        sim.vanish(victim)
        suspected = await until(lambda: all_see(sim.nodes, victim, State.SUSPECT, State.DEAD), within=4.0)
        dead = suspected + await until(lambda: all_see(sim.nodes, victim, State.DEAD), within=4.0)
        assert suspected < 2.5
        assert dead < 4.0


async def test_a_link_that_is_cut_and_whole_again_is_back_within_two_seconds(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(COUNT)
        one, other = nodes[1], nodes[2]
        sim.network.cut(one.peer, other.peer)
        await until(lambda: one.sees(other) is not State.ALIVE, within=0.1)
        assert await until(lambda: converged(nodes), within=2.0) < 2.0


async def test_a_cable_that_was_out_for_a_minute_is_noticed_within_two_seconds(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(COUNT)
        sim.network.silence(nodes[9].peer)
        await trio.sleep(45)
        assert all_see(nodes[:9], nodes[9], State.DEAD)
        sim.network.heal()
        assert await until(lambda: converged(nodes), within=2.0) < 2.0


async def test_a_cable_out_for_two_seconds_kills_nobody(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(COUNT)
        async with nodes[0].swarm.events() as events:
            sim.network.silence(nodes[9].peer)
            await trio.sleep(2.0)
            sim.network.heal()
            await trio.sleep(3.0)
            with trio.move_on_after(0.1):
                while (event := await events.receive()).kind in ("suspect", "alive"):
                    pass
                raise AssertionError(f"told of {event}")
        assert converged(nodes)


async def test_a_loop_that_stood_still_blames_nobody(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(5)
        async with nodes[0].swarm.events() as events:
            for stall_s in (0.3, 0.9, 1.9, 2.5, 3.7, 5.0, 30.0, 3600.0):
                autojump_clock.jump(stall_s)  # no task ran meanwhile
                await trio.sleep(3)
            with trio.move_on_after(0.1) as quiet:
                raise AssertionError(f"told of {await events.receive()}")
        assert quiet.cancelled_caught
        assert converged(nodes)


async def test_both_halves_of_a_partition_serve_and_then_merge(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(COUNT)
        halves = nodes[: COUNT // 2], nodes[COUNT // 2 :]
        for half in halves:
            for node in half:
                serve_echo(node)
        sim.network.partition(*({node.peer for node in half} for half in halves))
        await until(lambda: all(converged(half) for half in halves), within=4.0)
        for half in halves:
            assert await ask_echo(half[0], half[1]) == b"hello"
            # What happens in a half during the partition is known to both after it.
            half[0].swarm.publish(offers=(offer("new"),))
        newcomer = await sim.start(COUNT, bootstrap=[halves[1][3]])
        sim.network.partition({node.peer for node in halves[0]}, {*(node.peer for node in halves[1]), newcomer.peer})
        await trio.sleep(30)
        sim.network.heal()
        assert await until(lambda: merged(nodes), within=2.0) < 2.0
        await until(lambda: converged(sim.nodes), within=5.0)
        for half in halves:
            member = nodes[5].swarm.roster.get(half[0].peer)
            assert member is not None
            assert [offer.model for offer in member.record.offers] == ["new"]
        assert await ask_echo(halves[0][0], halves[1][0]) == b"hello"
        assert [node.starts for node in nodes] == [1] * COUNT


async def test_a_long_partition_heals_too_only_later(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(4)
        sim.network.partition({nodes[0].peer, nodes[1].peer})
        await trio.sleep(600)
        sim.network.heal()
        await until(lambda: converged(nodes), within=61.0)


async def test_good_bye_is_heard_at_once_and_not_redialled(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(COUNT)
        leaver = nodes[5]
        await leaver.swarm.leave()
        sim.nodes.remove(leaver)
        assert await until(lambda: all_see(sim.nodes, leaver, State.LEFT), within=0.1) < 0.1
        sim.network.dials.clear()
        await trio.sleep(120)
        assert all_see(sim.nodes, leaver, State.LEFT)
        assert not sim.network.dials[leaver.address]
        # It may come back.
        sim.stop(leaver)
        await sim.start(5, after=leaver)
        await until(lambda: converged(sim.nodes), within=2.0)


async def test_a_ghost_is_dialled_for_a_while_and_never_shown(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(4)
        gone = identity(99)
        ghost = sign_record(gone, record(gone.peer, "ghost", addresses=("/ip4/10.9.9.9/tcp/1",)))
        # A member that passes on what it should not: the record of a peer that it is not in contact with.
        store = nodes[3].store
        sim.crash(nodes[3])
        await nodes[3].ended.wait()
        store.held = Remembered((*store.held.records, ghost))
        liar = await sim.start(3, after=nodes[3])
        liar.swarm._gossip.membership.contacts.add(gone.peer)
        liar.swarm._gossip._view = b"differs!"
        await until(lambda: any(known(node, gone.peer) is State.KNOWN for node in nodes[:3]), within=5.0)
        await trio.sleep(300)
        for node in nodes[:3]:
            assert node.swarm.roster.get(gone.peer) is None
            assert known(node, gone.peer) is State.UNKNOWN
        assert converged(sim.nodes)


async def test_a_dead_member_is_listed_as_dead_and_in_the_end_forgotten(autojump_clock: MockClock) -> None:
    async with simulation(timing=replace(LAN, forget_s=200.0)) as sim:
        nodes = await sim.swarm(3)
        sim.crash(nodes[2])
        await trio.sleep(190)
        assert nodes[0].sees(nodes[2]) is State.DEAD
        await trio.sleep(20)
        assert nodes[0].swarm.roster.get(nodes[2].peer) is None


async def test_another_protocol_version_is_named_and_nothing_else_happens(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(COUNT)
        async with nodes[0].swarm.events() as events:
            newer = await sim.start(50, name="from-the-future", protocols=range(2, 4))
            with pytest.raises(Incompatible, match=r"version 1 .*versions 2 to 3"):
                await newer.swarm.dial((nodes[0].address,))
            event = await events.receive()
        assert (event.kind, event.peer) == ("incompatible", newer.peer)
        assert "versions 2 to 3" in event.detail
        member = nodes[0].swarm.roster.get(newer.peer)
        assert member is not None
        assert (member.state, member.protocol_ok, member.usable) == (State.INCOMPATIBLE, False, False)
        seen = newer.swarm.roster.get(nodes[0].peer)
        assert seen is not None
        assert not seen.protocol_ok
        await trio.sleep(70)
        assert all(node.alive() == {n.peer for n in nodes} - {node.peer} for node in nodes)
        # After an upgrade of its own (here: a downgrade) it is a member like any other.
        sim.crash(newer)
        await sim.start(50, after=newer, bootstrap=[nodes[0]])
        await until(lambda: converged(sim.nodes), within=3.0)


async def test_versions_that_overlap_work_together(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        first = await sim.start(0)
        await sim.start(1, bootstrap=[first], protocols=range(1, 3))
        await until(lambda: converged(sim.nodes), within=3.0)


async def test_a_ban_spreads_and_holds_over_restarts(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(COUNT)
        outcast, rest = nodes[11], [*nodes[:11], *nodes[12:]]
        nodes[2].swarm.ban(outcast.peer)
        await until(lambda: all(node.swarm.banned == {outcast.peer} for node in rest), within=1.0)
        await until(lambda: all_see(rest, outcast, State.UNKNOWN), within=1.0)
        assert outcast.swarm.banned == {outcast.peer}  # it was told, too
        await trio.sleep(30)
        assert not outcast.alive()
        for node in (nodes[0], nodes[19]):
            with pytest.raises((NotAMember, PeerGone)):
                await outcast.swarm.dial((node.address,))
        # Over a restart of one who did not pronounce it, and for one who was not there.
        sim.crash(nodes[5])
        again = await sim.start(5, after=nodes[5])
        late = await sim.start(60, bootstrap=[nodes[0]])
        rest = [node for node in sim.nodes if node is not outcast]
        await until(lambda: converged(rest), within=3.0)
        assert again.swarm.banned == late.swarm.banned == {outcast.peer}
        # And it can be lifted, by anybody.
        late.swarm.pardon(outcast.peer)
        await until(lambda: not any(node.swarm.banned for node in rest), within=2.0)
        await until(lambda: converged(sim.nodes), within=62.0)


async def test_away_until_all_have_forgotten_it_and_one_address_left(autojump_clock: MockClock) -> None:
    """Everybody but one has moved meanwhile; the sleeper remembers the old addresses, and has no token any more."""
    async with simulation(timing=replace(LAN, forget_s=120.0)) as sim:
        nodes = await sim.swarm(6)
        await trio.sleep(10)  # saved
        sleeper = nodes[5]
        sim.crash(sleeper)
        for node in nodes[1:5]:
            sim.crash(node)
            await sim.start(int(node.name.removeprefix("node")), after=node, move=True)
        await until(lambda: converged(sim.nodes), within=5.0)
        await trio.sleep(180)
        assert nodes[0].sees(sleeper) is State.UNKNOWN
        await sim.start(5, after=sleeper)
        assert await until(lambda: converged(sim.nodes), within=3.0) < 3.0


async def test_members_of_another_swarm_stay_out(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(3)
        stranger = await sim.start(70, keys=OTHER_KEYS)
        with pytest.raises(NotAMember, match="tokens differ"):
            await stranger.swarm.dial((nodes[0].address,))
        await trio.sleep(10)
        assert converged(nodes)
        assert not stranger.swarm.roster.members


async def test_loads_arrive_with_the_next_beat_and_changes_of_state_at_once(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(COUNT)
        busy = nodes[0]
        busy.swarm.publish(offers=(offer("m"),), loads=[Load("m", "loading")])
        await until(lambda: all(load["m"].state == "loading" for load in loads_of(busy, nodes) if load), within=0.1)
        await until(lambda: all(loads_of(busy, nodes)), within=0.1)
        busy.swarm.publish(loads=[Load("m", "ready", slots=4)])
        await until(lambda: all(load["m"].state == "ready" for load in loads_of(busy, nodes)), within=0.1)
        busy.swarm.publish(loads=[Load("m", "ready", slots=4, slots_used=3)])
        await until(lambda: all(load["m"].slots_used == 3 for load in loads_of(busy, nodes)), within=1.3)
        busy.swarm.publish(loads=[])
        await until(lambda: not any(loads_of(busy, nodes)), within=0.1)
        # A late joiner gets all of them.
        busy.swarm.publish(loads=[Load("m", "ready"), Load("n", "absent")])
        await sim.start(80, bootstrap=[nodes[4]])
        await until(lambda: all(len(load) == 2 for load in loads_of(busy, sim.nodes)), within=3.0)


async def test_bytes_of_an_idle_and_of_a_busy_swarm(autojump_clock: MockClock) -> None:
    """The cost model of mesh/heartbeat.py, in bytes counted on the network."""
    async with simulation() as sim:
        nodes = await sim.swarm(COUNT)
        others, seconds = COUNT - 1, 30
        await trio.sleep(5)

        async def measure() -> tuple[float, float]:
            before = [(n.transport.sent_bytes, n.transport.sends) for n in nodes]
            await trio.sleep(seconds)
            sent = [(n.transport.sent_bytes, n.transport.sends) for n in nodes]
            per = [(a - c, b - d) for (a, b), (c, d) in zip(sent, before, strict=True)]
            return max(size for size, _ in per) / seconds / others, max(sends for _, sends in per) / seconds / others

        size, messages = await measure()
        assert size <= 37
        assert messages <= 1.1

        async def keep_busy() -> None:
            for used in range(10_000):
                for node in nodes:
                    node.swarm.publish(loads=[Load(f"m{i}", "ready", slots=64, slots_used=used % 60) for i in range(8)])
                await trio.sleep(0.05)

        sim.nursery.start_soon(keep_busy)
        await trio.sleep(2)
        size, messages = await measure()
        assert size <= 2000
        assert messages <= 1.1


# -- helpers --


def merged(nodes: list[SimNode]) -> bool:
    everybody = {node.peer for node in nodes}
    return all(node.alive() >= everybody - {node.peer} for node in nodes)


def offer(model: str) -> Offer:
    return Offer(model=model, digest="d", backend="fake", capabilities=("chat",), context_tokens=512, slots=4)


def loads_of(node: SimNode, nodes: list[SimNode]) -> list[dict[str, Load]]:
    members = [other.swarm.roster.get(node.peer) for other in nodes if other is not node]
    return [dict(member.loads) if member is not None else {} for member in members]


def known(node: SimNode, peer: str) -> State:
    return node.swarm._gossip.membership.state(peer)


def serve_echo(node: SimNode) -> None:
    async def echo(stream: Stream) -> None:
        await stream.send(await stream.receive())

    node.swarm.handle("/test/echo/1", echo)


async def ask_echo(node: SimNode, other: SimNode) -> bytes:
    stream = await node.swarm.open(other.peer, "/test/echo/1")
    await stream.send(b"hello")
    try:
        return await stream.receive()
    finally:
        await stream.aclose()
