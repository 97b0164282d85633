"""The swarm's API on the simulated network, with two or three nodes. Whole swarms and bad days: tests/sim."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from mesh.errors import NotAMember, PeerGone, PeerMisbehaved
from mesh.membership import State
from mesh.records import Load, Offer
from mesh.transport import Stream
from tests.sim.swarms import SimNode, converged, identity, simulation, until

OFFER = Offer(model="m", digest="d", backend="fake", capabilities=("chat",), context_tokens=512, slots=4)


async def greet(stream: Stream) -> None:
    await stream.send(b"hello " + stream.peer.encode())


async def read_all(stream: Stream) -> bytes:
    got = b""
    while data := await stream.receive():
        got += data
    return got


async def test_a_dial_returns_when_the_peer_is_a_member_on_both_sides(autojump_clock: MockClock) -> None:
    async with simulation(latency_s=0.05) as sim:
        one, other = await sim.start(0), await sim.start(1)
        assert await one.swarm.dial((other.address,)) == other.peer
        assert converged(sim.nodes)
        member = one.swarm.roster.get(other.peer)
        assert member is not None
        assert member.record == other.swarm.record
        assert member.rtt_s == pytest.approx(0.1)
        assert other.swarm.roster.by_name("node0") is not None
        # Again: nothing happens, at once.
        began = trio.current_time()
        assert await one.swarm.dial((other.address,)) == other.peer
        assert trio.current_time() - began < 0.15


async def test_the_round_trip_is_known_on_both_sides_after_some_beats(autojump_clock: MockClock) -> None:
    async with simulation(latency_s=0.03) as sim:
        nodes = await sim.swarm(2)
        await trio.sleep(5)
        for node in nodes:
            [member] = node.swarm.roster.members
            assert member.rtt_s == pytest.approx(0.06, abs=0.001)


async def test_streams_open_to_live_members_only(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(3)
        for node in nodes:
            node.swarm.handle("/test/1", greet)
        stream = await nodes[0].swarm.open(nodes[1].peer, "/test/1")
        assert await read_all(stream) == b"hello " + nodes[0].peer.encode()
        with pytest.raises(PeerGone):
            await nodes[0].swarm.open(nodes[1].peer, "/test/other/1")
        with pytest.raises(NotAMember):
            await nodes[0].swarm.open(identity(99).peer, "/test/1")
        sim.crash(nodes[1])
        await until(lambda: nodes[0].sees(nodes[1]) is State.DEAD, within=1.0)
        with pytest.raises(PeerGone, match="node1 is not there: dead"):
            await nodes[0].swarm.open(nodes[1].peer, "/test/1")
        nodes[0].swarm.ban(nodes[2].peer)
        with pytest.raises(NotAMember):
            await nodes[0].swarm.open(nodes[2].peer, "/test/1")


async def test_dials_that_fail_say_why(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        node = await sim.start(0)
        with pytest.raises(PeerGone):
            await node.swarm.dial(("/ip4/10.9.9.9/tcp/1",))
        with pytest.raises(PeerMisbehaved, match="own"):
            await node.swarm.dial((node.address,))


async def test_a_record_bumps_its_sequence_only_when_it_changed(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(2)
        swarm = nodes[0].swarm
        before = swarm.record.sequence
        async with nodes[1].swarm.events() as events:
            swarm.publish(offers=(OFFER,), api_url="http://10.0.0.1:8080")
            swarm.publish(offers=(OFFER,))
            swarm.publish()
            assert swarm.record.sequence == before + 1
            event = await events.receive()
            assert (event.kind, event.peer, event.name) == ("record", nodes[0].peer, "node0")
            member = nodes[1].swarm.roster.get(nodes[0].peer)
            assert member is not None
            assert (member.record.offers, member.record.api_url) == ((OFFER,), "http://10.0.0.1:8080")
            swarm.publish(loads=[Load("m", "ready")])
            assert (await events.receive()).kind == "load"
        assert swarm.record.sequence == before + 1
        with pytest.raises(ValueError, match="refused by every peer"):
            swarm.publish(api_url="javascript:alert(1)")
        assert swarm.record.api_url == "http://10.0.0.1:8080"


async def test_a_node_that_begins_with_offers_shows_them_at_once(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        first = await sim.start(0)
        first.swarm.publish(offers=(OFFER,), loads=[Load("m", "ready", slots=4)])
        second = await sim.start(1)
        async with second.swarm.events() as events:
            await second.swarm.dial((first.address,))
            member = second.swarm.roster.get(first.peer)
            assert member is not None
            assert member.record.offers == (OFFER,)
            assert [(await events.receive()).kind for _ in range(2)] == ["joined", "load"]
        member = second.swarm.roster.get(first.peer)
        assert member is not None
        assert member.loads["m"].slots == 4
        assert member.loads_at > 0


async def test_leaving_ends_run_and_says_so(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(3)
        async with nodes[0].swarm.events() as events:
            await nodes[1].swarm.leave()
            event = await events.receive()
        assert (event.kind, event.name) == ("left", "node1")
        with pytest.raises(PeerGone):
            await nodes[1].swarm.dial((nodes[0].address,))
        await nodes[1].swarm.leave()  # once more is no mistake
        await trio.sleep(10)
        assert nodes[1].peer not in nodes[0].transport.connected()


async def test_leaving_does_not_wait_for_peers_that_do_not_listen(autojump_clock: MockClock) -> None:
    async with simulation(window_bytes=100) as sim:
        nodes = await sim.swarm(3)
        sim.network.silence(nodes[2].peer)
        nodes[0].swarm.publish(offers=(OFFER,))  # more than a window: that stream is busy from now on
        await trio.sleep(0.5)
        began = trio.current_time()
        await nodes[0].swarm.leave()
        assert trio.current_time() - began == pytest.approx(1.0)
        assert nodes[1].sees(nodes[0]) is State.LEFT


async def test_both_dial_at_once_and_one_stream_is_left(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = [await sim.start(number) for number in range(2)]
        async with trio.open_nursery() as nursery:
            for node, other in (nodes, nodes[::-1]):
                nursery.start_soon(meet, node, other)
        assert converged(nodes)
        async with nodes[0].swarm.events() as events:
            await trio.sleep(20)
            with trio.move_on_after(1) as quiet:
                await events.receive()
        assert quiet.cancelled_caught
        for node in nodes:
            assert {peer: len(links) for peer, links in node.swarm._gossip.links.items()} == {
                other.peer: 1 for other in nodes if other is not node
            }


async def meet(node: SimNode, other: SimNode) -> None:
    await node.swarm.dial((other.address,))


async def test_two_dials_to_one_peer_at_once_both_succeed(autojump_clock: MockClock) -> None:
    """A node that comes back dials those it remembers and the addresses in its token: they may be the same."""
    async with simulation(latency_s=0.05) as sim:
        one, other = await sim.start(0), await sim.start(1)
        async with one.swarm.events() as events, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one.swarm.dial, (other.address,))
        assert converged(sim.nodes)
        assert (await events.receive()).kind == "joined"
        await trio.sleep(5)
        assert one.sees(other) is other.sees(one) is State.ALIVE


async def test_bootstrap_is_dialled_until_somebody_answers_there(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        first = await sim.start(0)
        sim.crash(first)
        second = await sim.start(1, bootstrap=[first.address])
        await trio.sleep(40)
        assert 3 < sim.network.dials[first.address] < 20
        await sim.start(0, after=first)
        await until(lambda: converged(sim.nodes), within=31.0)
        sim.network.dials.clear()
        await trio.sleep(100)
        assert not sim.network.dials[first.address]
        assert second.alive()


async def test_what_cannot_be_read_of_the_memory_costs_only_itself(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(2)
        await trio.sleep(10)
        sim.crash(nodes[1])
        await nodes[1].ended.wait()
        held = nodes[1].store.held
        [known] = held.records
        broken = type(known)(known.body[:-1] + b"\x00", known.signature)
        nodes[1].store.held = type(held)((broken, known), (b"rubbish",))
        await sim.start(1, after=nodes[1])
        await until(lambda: converged(sim.nodes), within=3.0)


async def test_nothing_is_left_of_members_that_came_and_went(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(2)
        for _ in range(30):
            sim.network.cut(nodes[0].peer, nodes[1].peer)
            await trio.sleep(0.5)
            await until(lambda: converged(nodes), within=2.0)
        await trio.sleep(10)
        for node in nodes:
            swarm = node.swarm
            assert len(swarm._beats._wires) == 1
            assert not swarm._dropping
            assert not swarm._door._challenged
            assert not swarm._door._strangers
            assert len(swarm._gossip.membership._heap) < 20
        tasks = trio.lowlevel.current_statistics().tasks_living
        await trio.sleep(10)
        assert trio.lowlevel.current_statistics().tasks_living <= tasks
