"""The models of all nodes, for api.ports.Mesh: every node is asked for its own (`/mesh/ask/1`, "models")."""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from api.ports import ModelAction
from backends.types import CallerError, NodeGone
from mesh.roster import Member
from mesh.transport import PeerId
from node.ask import ask
from node.localmodels import LocalModels, ModelRow, offered_row, told_rows
from node.peers import Peers
from node.view import View

QUESTION = "models"
PATIENCE_S = 2.0


class SwarmModels:
    """Which node has what."""

    def __init__(self, local: LocalModels, view: View, peers: Peers) -> None:
        self._local = local
        self._view = view
        self._peers = peers

    def tell(self, _: str) -> Any:
        """This node's answer to a peer's question."""
        return msgspec.to_builtins(self._local.rows())

    async def models(self) -> list[dict[str, Any]]:
        """This node first, then the others by name. Of a node that does not answer, what its record says."""
        swarm = self._peers.swarm
        members = sorted(swarm.roster.members, key=lambda member: member.name)
        told: dict[PeerId, list[ModelRow]] = {}

        async def fetch(member: Member) -> None:
            with trio.move_on_after(PATIENCE_S):
                rows = told_rows(await ask(swarm, member.peer, QUESTION, ""))
                if rows is not None:
                    told[member.peer] = rows

        async with trio.open_nursery() as nursery:
            for member in members:
                if member.usable:
                    nursery.start_soon(fetch, member)
        shown = [_node(swarm.peer, self._view.own_name, "alive", self._local.rows(), own=True)]
        for member in members:
            state = member.state.name.lower() if member.protocol_ok else "incompatible"
            rows = told.get(member.peer)
            if rows is None:
                offered = [offered_row(offer) for offer in member.record.offers]
                shown.append(_node(member.peer, member.name, state, offered, answered=False))
            else:
                shown.append(_node(member.peer, member.name, state, rows))
        return shown

    def place_of(self, node: str) -> PeerId | None:
        """The peer that a name or id means; None for this node. Raises CallerError; NodeGone for one that is away."""
        if node in ("", self._view.own_name, self._peers.swarm.peer):
            return None
        member = self._view.member(node)
        if member is None:
            raise CallerError(f"There is no node {node[:100]} in this swarm; `mesh status` names them.", param="node")
        if not member.usable:
            raise NodeGone(f"The node {member.name} cannot be reached now.")
        return member.peer

    async def act(self, model: str, action: ModelAction) -> str:
        """Load, unload, pin or unpin a model of this node; its own name."""
        return await self._local.act(model, action)


def _node(
    peer: PeerId, name: str, state: str, rows: list[ModelRow], *, own: bool = False, answered: bool = True
) -> dict[str, Any]:
    models = msgspec.to_builtins(sorted(rows, key=lambda row: row.name))
    return {"id": peer, "name": name, "self": own, "state": state, "answered": answered, "models": models}
