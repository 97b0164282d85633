"""Stored responses of the whole swarm: this node's own from its file, others' from the node that their id names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from api.ports import ResponseStore, StoredResponse
from api.responses.ids import ResponseId
from mesh.transport import PeerId
from node.ask import ask
from node.remote import Streams

ROLE = "store:"
"""Prefix of the role under which a node's record tells the part of its ids."""

MAX_NODES = 64
"""A conversation that went from node to node more often is taken as broken off."""


class SwarmStore:
    """Implements api.ports.ResponseStore."""

    def __init__(self, own: ResponseStore, swarm: Streams, owner: Callable[[str], PeerId | None]) -> None:
        """`owner` knows which live peer made the ids with a given part."""
        self._own = own
        self._swarm = swarm
        self._owner = owner

    @property
    def node(self) -> str:
        return self._own.node

    async def put(self, response: StoredResponse, events: bytes | None = None) -> None:
        await self._own.put(response, events)

    async def get(self, identity: str) -> StoredResponse | None:
        peer = self._peer(identity)
        if peer is None:
            return await self._own.get(identity)
        found = await ask(self._swarm, peer, "response", identity)
        return None if found is None else _response(found)

    async def chain(self, identity: str) -> Sequence[StoredResponse]:
        found: list[StoredResponse] = []
        wanted: str | None = identity
        for _ in range(MAX_NODES):
            if wanted is None:
                break
            peer = self._peer(wanted)
            if peer is None:
                part = list(await self._own.chain(wanted))
            else:
                part = [_response(each) for each in await ask(self._swarm, peer, "chain", wanted) or ()]
            if not part:
                break
            found = [*part, *found]
            wanted = part[0].previous_id
        return found

    async def events(self, identity: str) -> bytes | None:
        return await self._own.events(identity)

    async def delete(self, identity: str) -> bool:
        return await self._own.delete(identity)

    # -- for peers --

    async def tell_response(self, identity: str) -> dict[str, Any] | None:
        """The answer to "response": one of this node's own."""
        found = await self._own.get(identity)
        return None if found is None else _plain(found)

    async def tell_chain(self, identity: str) -> list[dict[str, Any]]:
        """The answer to "chain": this node's own part of the conversation that ends there."""
        return [_plain(each) for each in await self._own.chain(identity)]

    def _peer(self, identity: str) -> PeerId | None:
        read = ResponseId.read(identity)
        return None if read is None or read.node == self._own.node else self._owner(read.node)


def _plain(response: StoredResponse) -> dict[str, Any]:
    return {
        "id": response.id,
        "previous_id": response.previous_id,
        "status": response.status,
        "input": response.input.decode(),
        "resource": response.resource.decode(),
    }


def _response(plain: dict[str, Any]) -> StoredResponse:
    return StoredResponse(
        id=str(plain["id"]),
        previous_id=plain["previous_id"],
        status=str(plain["status"]),
        input=plain["input"].encode(),
        resource=plain["resource"].encode(),
    )
