"""The histories of all nodes, put side by side for a page; also takes this node's own samples."""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from mesh.roster import Member
from mesh.transport import PeerId
from node.ask import ask
from node.dispatch import NodeDispatcher
from node.history import STEP_S, STEPS, Copy, History, Totals
from node.hold import WaitingRoom
from node.peers import Peers
from node.pool import Pool
from node.slots import State
from node.view import View

QUESTION = "history"
PATIENCE_S = 1.5
"""For one peer's answer: a page that waits longer shows the others late, too."""


class Charts:
    """This node's ring, and copies of the peers' rings, which are brought up to date when somebody looks."""

    def __init__(self, pool: Pool, dispatcher: NodeDispatcher, room: WaitingRoom, view: View, peers: Peers) -> None:
        self._pool = pool
        self._dispatcher = dispatcher
        self._room = room
        self._view = view
        self._peers = peers
        self._copies: dict[PeerId, Copy] = {}
        self._asked: dict[PeerId, float] = {}
        self.history = History(trio.current_time())
        dispatcher.on_end.append(lambda trace: self.history.ended(trace.outcome))

    async def run(self) -> None:
        """Take a sample a step, until cancelled."""
        due = trio.current_time()
        while True:
            due = max(due + STEP_S, trio.current_time())
            await trio.sleep_until(due)
            self.take()

    def take(self) -> None:
        """Take a sample of now."""
        models = self._pool.models()
        totals = {
            model.name: Totals(max(0, stats.prompt_tokens - stats.cached_tokens), stats.completion_tokens)
            for model, stats in models
            if stats is not None
        }
        self.history.take(
            trio.current_time(),
            totals,
            slots_used=sum(model.leased for model, _ in models if model.state is State.READY),
            running=self._dispatcher.running,
            queued=len(self._room) + sum(model.queue for model, _ in models),
        )

    def tell(self, seen: str) -> Any:
        """This node's answer to a peer's question."""
        return msgspec.to_builtins(self.history.tell(seen, trio.current_time()))

    async def charts(self, node: str | None) -> dict[str, Any]:
        """All nodes' samples, or those of one node by its name or id."""
        swarm = self._peers.swarm
        members = [member for member in swarm.roster.members if node in (None, member.name, member.peer)]
        async with trio.open_nursery() as nursery:
            for member in members:
                if member.usable and trio.current_time() - self._asked.get(member.peer, -STEP_S) >= STEP_S - 1:
                    self._asked[member.peer] = trio.current_time()
                    nursery.start_soon(self._refresh, member)
        self._forget(swarm.roster.members)
        now = trio.current_time()
        own = self._copies.setdefault(swarm.peer, Copy())
        own.put(self.tell(own.seen), now)
        shown = []
        if node in (None, self._view.own_name, swarm.peer):
            shown.append(self._row(swarm.peer, self._view.own_name, "alive", now, own=True))
        for member in sorted(members, key=lambda member: member.name):
            state = member.state.name.lower() if member.protocol_ok else "incompatible"
            shown.append(self._row(member.peer, member.name, state, now))
        return {"step_s": STEP_S, "span_s": STEP_S * STEPS, "nodes": shown}

    async def _refresh(self, member: Member) -> None:
        copy = self._copies.setdefault(member.peer, Copy())
        seen = copy.seen
        with trio.move_on_after(PATIENCE_S):
            told = await ask(self._peers.swarm, member.peer, QUESTION, seen)
            if seen == copy.seen:  # nobody else has asked meanwhile
                copy.put(told, trio.current_time())

    def _row(self, peer: PeerId, name: str, state: str, now: float, *, own: bool = False) -> dict[str, Any]:
        copy = self._copies.get(peer)
        samples = copy.shown(now) if copy is not None else None
        return {"id": peer, "name": name, "self": own, "state": state, "samples": samples}

    def _forget(self, members: tuple[Member, ...]) -> None:
        known = {member.peer for member in members} | {self._peers.swarm.peer}
        for peer in [peer for peer in self._copies if peer not in known]:
            del self._copies[peer]
            self._asked.pop(peer, None)
