"""Two hundred nodes with churn: views converge, and what a node costs grows as mesh/heartbeat.py says."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from mesh.membership import State
from mesh.timing import LAN
from tests.sim.swarms import converged, simulation, until

COUNT = 200
CALM = replace(LAN, beats_per_s=20.0)
"""A little calmer than LAN itself, for this test's own time."""
WINDOW_S = 3.0


@pytest.fixture
def no_gc() -> Iterator[None]:
    """40,000 tasks are not garbage, and the collector looks at each of them again and again."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_two_hundred_nodes_with_churn_converge(no_gc: None, autojump_clock: MockClock) -> None:
    async with simulation(timing=CALM, seed=7) as sim:
        first = await sim.start(0)
        for number in range(1, COUNT):
            await sim.start(number, bootstrap=[first])
        await until(lambda: converged(sim.nodes), within=10.0)
        await trio.sleep(2)  # of their first pace, 10 s

        before = [(node.transport.sent_bytes, node.transport.sends) for node in sim.nodes]
        await trio.sleep(WINDOW_S)
        after = [(node.transport.sent_bytes, node.transport.sends) for node in sim.nodes]
        sends = [(b[1] - a[1]) / WINDOW_S for a, b in zip(before, after, strict=True)]
        sizes = [(b[0] - a[0]) / WINDOW_S for a, b in zip(before, after, strict=True)]
        # Not one message per peer and second, but beats_per_s, however many peers there are (and their moments vary).
        assert sum(sends) / COUNT <= 1.6 * CALM.beats_per_s
        assert sum(sizes) / COUNT <= 1.6 * CALM.beats_per_s * 37

        gone = sim.rng.sample(sim.nodes[1:], 24)
        for node in gone[:8]:
            sim.crash(node)
            await trio.sleep(0.05)
        for node in gone[8:16]:
            await node.swarm.leave()
            sim.stop(node)
        for number in range(COUNT, COUNT + 8):
            await sim.start(number, bootstrap=[sim.rng.choice(sim.nodes)])
        for node in gone[16:]:
            sim.crash(node)
            await sim.start(int(node.name.removeprefix("node")), after=node)
        await until(lambda: converged(sim.nodes), within=10.0)
        assert len(sim.nodes) == COUNT - 8
        for node in sim.nodes[:20]:
            assert {node.sees(dead) for dead in gone[:8]} <= {State.DEAD, State.UNKNOWN}  # unknown to newcomers
            assert {node.sees(left) for left in gone[8:16]} <= {State.LEFT, State.UNKNOWN}
