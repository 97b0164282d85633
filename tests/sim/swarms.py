"""Many nodes in one process, on the simulated network, under trio's MockClock: real swarms, simulated time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from mesh.identity import Identity
from mesh.membership import State
from mesh.memory import MemoryTransport, Network
from mesh.records import Hardware, PeerRecord
from mesh.remembered import Remembered
from mesh.swarm import Limits, Swarm
from mesh.timing import LAN, Timing
from mesh.token import JoinToken, SwarmKeys
from mesh.transport import Address, PeerId

KEYS = JoinToken(secret=bytes(range(32)), addresses=()).keys()
OTHER_KEYS = JoinToken(secret=bytes(32), addresses=()).keys()


def identity(number: int) -> Identity:
    """The same one for the same number."""
    return Identity(random.Random(number).randbytes(32))


def record(peer: PeerId, name: str, *, incarnation: int = 1, **fields: Any) -> PeerRecord:
    """Of a node that offers nothing."""
    hardware = Hardware(system="sim", processor="none", cores=1, memory_bytes=1)
    given: dict[str, Any] = {"addresses": (), "offers": (), **fields}
    return PeerRecord(
        peer=peer,
        name=name,
        version="0",
        protocol=1,
        incarnation=incarnation,
        sequence=0,
        roles=(),
        hardware=hardware,
        **given,
    )


class Store:
    """A memory that outlives its node."""

    def __init__(self) -> None:
        self.held = Remembered()

    def load(self) -> Remembered:
        return self.held

    async def save(self, remembered: Remembered) -> None:
        self.held = remembered


@dataclass(eq=False)
class SimNode:
    """A node that runs."""

    name: str
    identity: Identity
    transport: MemoryTransport
    swarm: Swarm
    store: Store
    scope: trio.CancelScope
    starts: int = 1
    ended: trio.Event = field(default_factory=trio.Event)

    @property
    def peer(self) -> PeerId:
        return self.identity.peer

    @property
    def address(self) -> Address:
        return self.transport.addresses()[0]

    def sees(self, other: SimNode) -> State:
        """In what state the other is, here."""
        member = self.swarm.roster.get(other.peer)
        return member.state if member is not None else State.UNKNOWN

    def alive(self) -> set[PeerId]:
        return {member.peer for member in self.swarm.roster.members if member.usable}


class Sim:
    """The nodes and their network."""

    def __init__(self, nursery: trio.Nursery, network: Network, timing: Timing, seed: int) -> None:
        self.nursery = nursery
        self.network = network
        self.timing = timing
        self.rng = random.Random(seed)
        self.nodes: list[SimNode] = []

    async def start(
        self,
        number: int,
        *,
        bootstrap: Iterable[SimNode | Address] = (),
        keys: SwarmKeys = KEYS,
        after: SimNode | None = None,
        name: str = "",
        protocols: range = range(1, 2),
        limits: Limits | None = None,
        move: bool = False,
    ) -> SimNode:
        """A node with the identity of that number; `after` restarts one, with its memory, at its address unless it
        moves."""
        who = identity(number)
        addresses = after.transport.addresses() if after is not None and not move else None
        transport = self.network.join(who.peer, addresses=addresses)
        store = after.store if after is not None else Store()
        starts = after.starts + 1 if after is not None else 1
        swarm = Swarm(
            who,
            keys,
            transport,
            record(who.peer, name or f"node{number}", incarnation=starts),
            timing=self.timing,
            limits=limits or Limits(),
            bootstrap=tuple(b.address if isinstance(b, SimNode) else b for b in bootstrap),
            memory=store,
            protocols=protocols,
            rng=random.Random(number),
        )
        node = SimNode(swarm.record.name, who, transport, swarm, store, trio.CancelScope(), starts)
        await self.nursery.start(self._run, node)
        self.nodes.append(node)
        return node

    async def _run(self, node: SimNode, task_status: trio.TaskStatus[None]) -> None:
        try:
            with node.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(node.transport.run)
                    await nursery.start(node.swarm.run)
                    task_status.started()
        finally:
            node.ended.set()

    async def swarm(self, count: int, first: int = 0) -> list[SimNode]:
        """So many nodes, all told of the first; returns when all see all."""
        nodes = [await self.start(first)]
        nodes += [await self.start(first + n, bootstrap=nodes[:1]) for n in range(1, count)]
        await until(lambda: converged(nodes), within=10.0)
        return nodes

    def crash(self, node: SimNode) -> None:
        """Its process dies; its machine answers with resets."""
        self.network.crash(node.peer)
        self.stop(node)

    def vanish(self, node: SimNode) -> None:
        """Its machine loses its power: silence."""
        self.network.silence(node.peer)
        self.stop(node)

    def stop(self, node: SimNode) -> None:
        node.scope.cancel()
        if node in self.nodes:
            self.nodes.remove(node)


@asynccontextmanager
async def simulation(
    *, timing: Timing = LAN, latency_s: float = 0.002, seed: int = 0, **network: Any
) -> AsyncIterator[Sim]:
    """An empty one. Everything in it ends with it."""
    async with trio.open_nursery() as nursery:
        net = Network(latency_s=latency_s, **network)
        await nursery.start(net.run)
        yield Sim(nursery, net, timing, seed)
        nursery.cancel_scope.cancel()


async def until(true: Callable[[], bool], *, within: float) -> float:
    """Wait for it; how long that took, to 10 ms. Simulated seconds, all of them."""
    began = trio.current_time()
    while not true():
        if trio.current_time() - began > within:
            raise AssertionError(f"not within {within:g} s")
        await trio.sleep(0.01)
    return trio.current_time() - began


def converged(nodes: Iterable[SimNode]) -> bool:
    """Whether each of them sees exactly the others alive."""
    everybody = {node.peer for node in nodes}
    return all(node.alive() == everybody - {node.peer} for node in nodes)
