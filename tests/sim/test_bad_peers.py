"""Peers that never read, never answer, send rubbish or lie: the node lives, and the honest go on."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from mesh import heartbeat, wire
from mesh.errors import NotAMember, PeerGone
from mesh.heartbeat import Kind
from mesh.membership import State
from mesh.records import Load, sign_record
from mesh.swarm import Limits
from mesh.transport import Stream
from tests.sim.rogues import Rogue, bytes_until_end
from tests.sim.swarms import OTHER_KEYS, SimNode, converged, identity, record, simulation, until


def state_of(node: SimNode, rogue: Rogue) -> State:
    return node.swarm._gossip.membership.state(rogue.identity.peer)


async def test_a_wrong_token_gets_a_greeting_and_a_refusal_and_not_one_byte_more(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(3)
        rogue = await Rogue.start(sim, 50, OTHER_KEYS)
        with pytest.raises(NotAMember):
            await rogue.prove(nodes[0])
        greeting, refusal = 2 + 4 + 32, 2
        assert len(rogue.heard) == rogue.transport.received_bytes == greeting + refusal
        assert converged(nodes)


async def test_protocols_are_closed_to_strangers(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(2)
        served = []

        async def serve(stream: Stream) -> None:
            served.append(stream.peer)
            await stream.send(b"secret")

        nodes[0].swarm.handle("/test/1", serve)
        rogue = await Rogue.start(sim, 50)
        await rogue.connect(nodes[0])
        for protocol in ("/test/1", heartbeat.PROTOCOL):
            assert await rogue.knock(nodes[0], protocol) == b""
        assert rogue.transport.received_bytes == 0
        # With the token it is served; nothing but the challenge stood in the way.
        await rogue.prove(nodes[0])
        assert await rogue.knock(nodes[0], "/test/1") == b"secret"
        assert served == [rogue.identity.peer]


async def test_strangers_who_never_answer_are_few_and_do_not_stay(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        node = await sim.start(0, limits=Limits(strangers=4))
        rogues = [await Rogue.start(sim, number) for number in range(50, 80)]
        for rogue in rogues:
            await rogue.connect(node)
            sim.nursery.start_soon(rogue.knock, node, "/mesh/admit/1")
        await trio.sleep(0.1)
        assert sum(rogue.transport.received_bytes > 0 for rogue in rogues) == 4  # greeted: the others were reset
        assert len(node.transport.connected()) == 30
        await until(lambda: not node.transport.connected(), within=6.0)
        await sim.start(1, bootstrap=[node])
        await until(lambda: converged(sim.nodes), within=3.0)


async def test_a_member_that_goes_silent_after_its_record_is_dead_in_time(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(3)
        rogue = await Rogue.start(sim, 50)
        await rogue.beats(nodes[0])
        await until(lambda: state_of(nodes[0], rogue) is State.ALIVE, within=0.1)
        assert await until(lambda: state_of(nodes[0], rogue) is State.DEAD, within=4.0) < 4.0
        assert rogue.identity.peer not in nodes[0].transport.connected()


async def test_a_member_that_beats_and_never_reads_is_dropped_and_costs_nobody_anything(
    autojump_clock: MockClock,
) -> None:
    async with simulation(window_bytes=2048) as sim:
        nodes = await sim.swarm(5)
        rogue = await Rogue.start(sim, 50)
        stream = await rogue.beats(nodes[0])
        pulse = heartbeat.Pulse(0.0)
        dropped = trio.Event()

        async def beat() -> None:
            try:
                while True:
                    await stream.send(pulse.beat(trio.current_time(), pace_s=1.0, view=bytes(8)))
                    await trio.sleep(1.0)
            except PeerGone:
                dropped.set()

        sim.nursery.start_soon(beat)
        used = 0
        with trio.fail_after(120):
            while not dropped.is_set():
                used += 1
                nodes[0].swarm.publish(loads=[Load("m", "ready", slots=9, slots_used=used)])
                await trio.sleep(1.0)
                assert nodes[0].alive() >= {node.peer for node in nodes[1:]}
        member = nodes[1].swarm.roster.get(nodes[0].peer)
        assert member is not None
        assert member.loads["m"].slots_used >= used - 2


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\xff" * 1000,
        bytes(1000),
        wire.encode(Kind.BEAT, b"no beat"),
        wire.encode(77, b""),
        (1 << 31).to_bytes(4, "big") + b"\x01",
        wire.encode(Kind.RECORDS, b"\x91" * 5000),
        wire.encode(Kind.ASK, b"\xc4\x03abc"),
        wire.encode(Kind.LOADS, b"\x93\xc3\x90\x90" + b"x"),
        heartbeat.record_frame(sign_record(identity(51), record(identity(51).peer, "another's"))),
    ],
    ids=["ones", "zeros", "beat", "kind", "4GB", "nested", "ask", "loads", "impostor"],
)
async def test_rubbish_on_the_beats_costs_the_sender_its_link(autojump_clock: MockClock, rubbish: bytes) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(3)
        rogue = await Rogue.start(sim, 50)
        stream = await rogue.beats(nodes[0])
        await until(lambda: state_of(nodes[0], rogue) is State.ALIVE, within=0.1)
        await stream.send(rubbish)
        await until(lambda: state_of(nodes[0], rogue) in (State.SUSPECT, State.DEAD), within=0.1)
        await bytes_until_end(stream)
        await trio.sleep(5)
        members = {member.peer for member in nodes[0].swarm.roster.members}
        assert identity(51).peer not in members
        assert all(node.alive() == {n.peer for n in nodes} - {node.peer} for node in nodes)


async def test_beats_before_the_record_are_against_the_rules(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(2)
        rogue = await Rogue.start(sim, 50)
        await rogue.prove(nodes[0])
        stream = await rogue.transport.open(nodes[0].peer, heartbeat.PROTOCOL)
        await stream.send(heartbeat.Pulse(0.0).beat(0.0, pace_s=1.0, view=bytes(8)))
        await bytes_until_end(stream)
        assert nodes[0].swarm.roster.get(rogue.identity.peer) is None


async def test_a_record_with_an_older_sequence_changes_nothing(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = await sim.swarm(2)
        rogue = await Rogue.start(sim, 50)
        stream = await rogue.beats(nodes[0])
        for sequence, name in ((5, "five"), (4, "four"), (5, "five again"), (6, "six")):
            await stream.send(rogue.record_frame(sequence=sequence, name=name))
            await trio.sleep(0.1)
            member = nodes[0].swarm.roster.get(rogue.identity.peer)
            assert member is not None
            assert member.record.name == ("six" if sequence == 6 else "five")


async def test_a_member_that_fills_the_roster_with_inventions_is_bounded(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        nodes = [await sim.start(0, limits=Limits(peers=20))]
        nodes.append(await sim.start(1, bootstrap=nodes))
        await until(lambda: converged(nodes), within=3.0)
        rogue = await Rogue.start(sim, 50)
        stream = await rogue.beats(nodes[0])
        await trio.sleep(0.1)
        invented = [identity(number) for number in range(1000, 1100)]
        records = [sign_record(who, record(who.peer, "x", addresses=("/ip4/10.9.9.9/tcp/1",))) for who in invented]
        await stream.send(heartbeat.records_frame(records))
        await trio.sleep(0.5)
        assert len(nodes[0].swarm._gossip.membership._peers) <= 20
        assert nodes[1].peer in nodes[0].alive()


async def test_streams_per_member_are_bounded(autojump_clock: MockClock) -> None:
    async with simulation() as sim:
        first = await sim.start(0, limits=Limits(streams_per_peer=5))
        second = await sim.start(1, bootstrap=[first])
        await until(lambda: converged(sim.nodes), within=3.0)
        serving = []

        async def serve(stream: Stream) -> None:
            serving.append(stream)
            await trio.sleep_forever()

        first.swarm.handle("/test/1", serve)
        turned_away = 0
        for _ in range(8):
            with trio.move_on_after(0.1):
                try:
                    stream = await second.swarm.open(first.peer, "/test/1")
                    await stream.receive()
                except PeerGone:
                    turned_away += 1
        assert (len(serving), turned_away) == (4, 4)  # the beats are one of the five
        assert converged(sim.nodes)
