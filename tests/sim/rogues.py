"""Peers that do not run our program: each speaks as much of the protocols as its bad manners need."""

from __future__ import annotations

import msgspec
import trio

from mesh import admission, heartbeat
from mesh.admission import Challenger
from mesh.errors import PeerError, PeerGone
from mesh.identity import Identity
from mesh.memory import MemoryTransport
from mesh.records import sign_record
from mesh.token import SwarmKeys
from mesh.transport import Stream
from tests.sim.swarms import KEYS, Sim, SimNode, identity, record


class Rogue:
    """A transport, a key, and no swarm."""

    def __init__(self, who: Identity, transport: MemoryTransport, keys: SwarmKeys) -> None:
        self.identity = who
        self.transport = transport
        self.keys = keys
        self.heard = b""
        """All bytes that came during the challenge."""

    @classmethod
    async def start(cls, sim: Sim, number: int, keys: SwarmKeys = KEYS) -> Rogue:
        who = identity(number)
        transport = sim.network.join(who.peer)
        await sim.nursery.start(transport.run)
        return cls(who, transport, keys)

    async def connect(self, node: SimNode) -> None:
        await self.transport.dial((node.address,), node.peer, timeout_s=5.0)

    async def prove(self, node: SimNode) -> None:
        """Pass the challenge, or raise what it raises."""
        await self.connect(node)
        stream = await self.transport.open(node.peer, admission.PROTOCOL)
        challenger = Challenger(
            self.keys.membership, self.identity.peer, node.peer, dialler=True, protocols=range(1, 2)
        )
        await stream.send(challenger.start())
        while challenger.result is None:
            data = await stream.receive()
            if not data:
                raise PeerGone("broken off")
            self.heard += data
            await stream.send(challenger.receive(data))
        await stream.aclose()

    async def beats(self, node: SimNode) -> Stream:
        """Become a member as far as the node can tell: challenge and first record; then it is up to the caller."""
        await self.prove(node)
        stream = await self.transport.open(node.peer, heartbeat.PROTOCOL)
        await stream.send(self.record_frame())
        return stream

    async def knock(self, node: SimNode, protocol: str) -> bytes:
        """All that comes on a new stream of `protocol` before it ends or breaks; nothing if it is not even opened."""
        try:
            return await bytes_until_end(await self.transport.open(node.peer, protocol))
        except PeerGone:
            return b""

    def record_frame(self, *, sequence: int = 0, name: str = "rogue") -> bytes:
        mine = msgspec.structs.replace(record(self.identity.peer, name), sequence=sequence)
        return heartbeat.record_frame(sign_record(self.identity, mine))


async def bytes_until_end(stream: Stream) -> bytes:
    """What comes, until the stream ends or breaks."""
    got = b""
    try:
        with trio.fail_after(60):
            while data := await stream.receive():
                got += data
    except PeerError:
        pass
    return got
