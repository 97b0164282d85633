"""A head in the bench's own process: a member of a swarm of real nodes that lend their memory. It opens real engines,
over tunnels to their RPC servers, or straight at these servers' ports, which nobody but their own node is told."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import trio

from backends.process import LogRing, Worker, open_worker
from backends.registry import find_backends
from backends.types import ChatRequest, LoadSpec, Message, Sampling, Shard, encode_request
from mesh.identity import Identity
from mesh.libp2p import Libp2pTransport
from mesh.records import Hardware, PeerRecord
from mesh.swarm import Swarm
from mesh.token import JoinToken
from mesh.tunnel import LocalEnd, lease
from mesh.tunnel.direct import Carrier
from tests.bench.harness import BenchError, Session
from tests.bench.swarms import swarm, token
from tests.support.nodes import RunningNode

THREADS = 1
"""Of every engine and RPC server: those of one machine would be in each other's way."""
MIB = 1 << 20

_MEET_S = 30.0
_TARGET = "rpc"
_BACKEND = find_backends()["llama-cpp"]


@dataclass(frozen=True)
class Head:
    """A member of the swarm of `nodes`, that lends nothing."""

    swarm: Swarm
    carrier: Carrier
    nodes: tuple[RunningNode, ...]
    peers: tuple[str, ...]
    """The nodes' ids."""

    @asynccontextmanager
    async def leased(self, count: int, *, direct: bool = True) -> AsyncIterator[list[LocalEnd]]:
        """Tunnels to the servers of the first `count` nodes; without `direct` over the mesh's streams."""
        carrier = self.carrier if direct else None
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(lease(self.swarm.open, peer, _TARGET, carrier))
                for peer in self.peers[:count]
            ]


@asynccontextmanager
async def head(nodes: Sequence[RunningNode]) -> AsyncIterator[Head]:
    """Join the swarm that `nodes` are, all of which lend."""
    joined = JoinToken.parse(token(nodes[0]))
    identity = Identity.generate()
    transport = Libp2pTransport(identity, joined.keys().network, ("/ip4/127.0.0.1/tcp/0",))
    record = PeerRecord(
        peer=identity.peer,
        name="bench",
        version="0",
        protocol=1,
        incarnation=1,
        sequence=0,
        addresses=(),
        roles=(),
        hardware=Hardware(system="", processor="", cores=1, memory_bytes=0, accelerators=()),
        offers=(),
    )
    swarm = Swarm(identity, joined.keys(), transport, record)
    carrier = Carrier(hosts=lambda _: ["127.0.0.1"])
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run)
        await nursery.start(swarm.run)
        nursery.start_soon(carrier.run)
        await swarm.dial(joined.addresses)
        wanted = {node.name for node in nodes}
        with trio.fail_after(_MEET_S):
            async with swarm.events() as events:
                while not wanted <= {m.name for m in swarm.roster.members if m.usable and m.record.targets}:
                    await events.receive()
        by_name = {member.name: member.peer for member in swarm.roster.members}
        yield Head(swarm, carrier, tuple(nodes), tuple(by_name[node.name] for node in nodes))
        nursery.cancel_scope.cancel()


@contextmanager
def lenders(
    session: Session, models: Sequence[dict[str, Any] | None], *, memory_mib: int, holders: int = 0, **settings: str
) -> Iterator[list[RunningNode]]:
    """A swarm of nodes each of which lends so much; the rest is as `swarm` has it."""
    settings = {
        "rpc_worker": "true",
        "rpc_threads": str(THREADS),
        "rpc_memory_bytes": str(memory_mib * MIB),
        **settings,
    }
    with swarm(session, models, module="node.cli", holders=holders, **settings) as nodes:
        yield nodes


def server_of(node: RunningNode) -> psutil.Process:
    """Its RPC server."""
    [process] = [child for child in node.workers() if "backends.llama_cpp.rpc" in child.cmdline()]
    return process


def port_of(node: RunningNode) -> int:
    """Where its RPC server listens."""
    port: int = json.loads(server_of(node).cmdline()[-2])["port"]
    return port


def load_spec(model: Path, layers: int, ports: Sequence[int] = (), *, own: int | None = None) -> LoadSpec:
    """A model of so many layers, shared evenly with the servers behind these ports, but for `own`; without any, all of
    it here."""
    each = layers // (len(ports) + 1) if own is None else (layers - own) // len(ports)
    return LoadSpec(
        name="bench",
        path=os.fspath(model),
        context_tokens=512,
        slots=1,
        threads=THREADS,
        local_layers=layers - each * len(ports) if ports else 0,
        shards=tuple(Shard(endpoint=f"127.0.0.1:{port}", layers=each) for port in ports),
    )


@asynccontextmanager
async def engine(load: LoadSpec) -> AsyncIterator[Worker]:
    """An engine with its model open."""
    async with open_worker(_BACKEND, load, log=LogRing()) as worker:
        yield worker


async def decode_rate(worker: Worker, tokens: int) -> float:
    """Tokens a second of one sequence, from the first token on."""
    request = ChatRequest(
        model="bench",
        messages=(Message(role="user", content="Tell me about rivers, and the boats on them."),),
        max_tokens=tokens,
        sampling=Sampling(temperature=0),
        ignore_eos=True,
    )
    came_s: list[float] = []
    async with worker.call(encode_request(request)) as call:
        async for chunks in call.batches():
            came_s += [time.monotonic()] * len(chunks)
    if call.usage.completion_tokens != tokens:
        raise BenchError(f"{call.usage.completion_tokens} tokens came instead of {tokens}.")
    return (tokens - 1) / (came_s[-1] - came_s[0])
