"""A node's inside: a folder of models, a scripted pool, the other nodes of its swarm as scripts; no network."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import trio

from backends.engine import Backend
from backends.types import (
    Chunk,
    LoadFailed,
    LoadSpec,
    ModelNeeds,
    NodeGone,
    Request,
    Usage,
    decode_request,
    encode_chunk,
)
from mesh.membership import State
from mesh.records import Hardware, Load, Offer, PeerRecord
from mesh.roster import Roster
from mesh.transport import PeerId
from node.dispatch import NodeDispatcher
from node.hold import WaitingRoom
from node.infer import CallHead
from node.inventory import Inventory
from node.metrics import Metrics
from node.offers import Offers
from node.remote import Remote
from node.routed import Machinery
from node.router import Router
from node.service import NodeService
from node.trace import Traces
from node.view import View
from tests.node.doubles import NEEDS, Script, cost, make_pool, spoken

OWN = "OWN"
HARDWARE = Hardware(system="", processor="", cores=1, memory_bytes=1)

Step = Chunk | Exception | trio.Event
"""What an attempt elsewhere does next: a chunk, an end of any kind, something to wait for."""


class HeaderReader:
    """A backend of which the node asks nothing but what a model needs."""

    name = "fake"
    aliases: tuple[str, ...] = ()
    licence = "MIT"
    suffixes: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.error: LoadFailed | None = None
        self.needs_of = NEEDS

    def needs(self, load: LoadSpec) -> ModelNeeds:
        if self.error is not None:
            raise self.error
        return self.needs_of

    def unavailable(self) -> str | None:
        return None


class ElsewhereAttempt:
    """Implements node.attempt.Attempt."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self._steps = list(steps)
        self.usage = Usage()

    async def batches(self) -> AsyncIterator[list[bytes]]:
        for step in self._steps:
            await trio.lowlevel.checkpoint()
            if isinstance(step, trio.Event):
                await step.wait()
            elif isinstance(step, Exception):
                raise step
            else:
                yield [encode_chunk(step)]
        self.usage = cost(step for step in self._steps if not isinstance(step, (Exception, trio.Event)))


class Elsewhere:
    """Stands for node.remote.Remote: every peer answers as `spoken`, or by its next script."""

    def __init__(self) -> None:
        self.scripts: defaultdict[PeerId, list[Callable[[Request], Iterable[Step]]]] = defaultdict(list)
        self.asked: list[tuple[PeerId, CallHead, Request]] = []
        self.unreachable: set[PeerId] = set()
        self.open_calls = 0

    def then(self, peer: PeerId, *steps: Step) -> None:
        """The peer's next attempt."""
        self.scripts[peer].append(lambda request: steps)

    def after(self, peer: PeerId, chunks: int, *steps: Step) -> None:
        """In its next attempt the peer says so many chunks of a good answer; then these steps."""
        self.scripts[peer].append(lambda request: (*spoken(request)[:chunks], *steps))

    @property
    def peers(self) -> str:
        """Who was asked, in order."""
        return "".join(peer for peer, _, _ in self.asked)

    @asynccontextmanager
    async def open(self, peer: PeerId, name: str, head: CallHead, request: bytes) -> AsyncIterator[ElsewhereAttempt]:
        await trio.lowlevel.checkpoint()
        decoded = decode_request(request)
        self.asked.append((peer, head, decoded))
        if peer in self.unreachable:
            raise NodeGone(f"The node {name} cannot be reached.")
        script = self.scripts[peer].pop(0) if self.scripts[peer] else spoken
        self.open_calls += 1
        try:
            yield ElsewhereAttempt(script(decoded))
        finally:
            self.open_calls -= 1


class House:
    """All of node/ that answers requests. `files` are models by name; peers come with `peer`."""

    def __init__(self, folder: Path, files: Mapping[str, str] | None = None, *, alone: bool = False) -> None:
        for name, text in (files or {}).items():
            (folder / f"{name}.yaml").write_text(f"name: {name}\nbackend: fake\n{text}")
        self.folder = folder
        self.backend = HeaderReader()
        backends = {"fake": cast(Backend, self.backend)}
        self.metrics = Metrics()
        self.inventory = Inventory(folder, backends, 10)
        self.inventory.reload()
        self.script = Script()
        self.pool = make_pool(self.script, self.metrics)
        self.offers = Offers(self.inventory, self.pool)
        self.roster = Roster(lambda: record(OWN, "own"))
        self.view = View(self.inventory, self.offers, OWN, None if alone else self.roster)
        self.room = WaitingRoom(limit=8, patience_s=30)
        self.router = Router(self.view, self.room, rng=random.Random(1))
        self.elsewhere = Elsewhere()
        self.traces = Traces()
        remote = cast(Remote, self.elsewhere)
        self.machinery = Machinery(self.view, self.router, self.pool, self.offers, remote, self.metrics)
        self.dispatcher = NodeDispatcher(self.machinery, self.traces)
        self.service = NodeService(self.inventory, self.pool, self.metrics, backends, self.view)
        self.pool.on_change.append(self.room.poke)

    def peer(self, peer: PeerId, *offers: Offer, state: State = State.ALIVE, **load: Any) -> None:
        """Add a peer, or change it; its models are loaded and idle unless `load` says otherwise."""
        loads = {one.model: Load(one.model, "ready", slots=one.slots) for one in offers}
        loads = {name: msgspec.structs.replace(one, **load) for name, one in loads.items()}
        self.roster.put(
            record(peer, peer.lower(), *offers), state=state, loads=loads, last_heard=trio.current_time(), rtt_s=0.001
        )

    def in_flight(self, peer: PeerId, model: str = "m") -> int:
        """Slots that this node's book holds there."""
        return self.view.book.on(peer, model).running


def offer(model: str = "m", digest: str = "mesh1:d", **fields: Any) -> Offer:
    """Of a peer."""
    given: dict[str, Any] = {"context_tokens": 100, "slots": 2, "capabilities": ("completion", "chat")} | fields
    return Offer(model=model, digest=digest, backend="fake", **given)


def record(peer: PeerId, name: str, *offers: Offer) -> PeerRecord:
    """What a peer says of itself."""
    return PeerRecord(
        peer=peer,
        name=name,
        version="1",
        protocol=1,
        incarnation=1,
        sequence=1,
        addresses=(),
        roles=(),
        hardware=HARDWARE,
        offers=offers,
    )
