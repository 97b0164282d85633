"""The current view of the swarm, as this node sees it: who is there, what they offer, how busy they are. Watchable.

Written by `mesh/swarm.py` alone; read by everybody. Readers get frozen values: a `Member` does not change under their
hands. This node itself is not among its members.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import trio

from mesh.membership import State
from mesh.records import Hardware, Load, PeerRecord
from mesh.transport import PeerId

WATCH_LIMIT = 1000
"""Events that a slow watcher may be behind before it loses the oldest."""

_SUFFIX_CHARS = 4

EventKind: TypeAlias = Literal[
    "joined",  # a new member, or one that was dead or had left is back
    "left",  # it said good-bye
    "suspect",  # not heard of for a while, or its connection broke: not routed to
    "alive",  # suspect no more
    "dead",
    "forgotten",  # dead or gone for so long that it is no member any more
    "load",  # its loads changed
    "record",  # its record changed: offers, addresses, name
    "incompatible",  # it speaks another version of the mesh's protocols
    "banned",  # it, or this node itself, was banned
    "missed",  # this watcher was too slow: `count` events are lost, read the roster afresh
]


@dataclass(frozen=True, slots=True)
class PeerEvent:
    """Something changed in the roster."""

    kind: EventKind
    peer: PeerId = ""
    name: str = ""
    detail: str = ""
    """A sentence for people, where there is something to say."""
    count: int = 1


_NO_LOADS: Mapping[str, Load] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Member:
    """One peer, as last known."""

    record: PeerRecord
    name: str
    """The record's name, with a suffix of the id if another member (or this node) has the same."""
    state: State
    protocol_ok: bool = True
    """False for a peer of another protocol version: it is named, and nothing is asked of it."""
    rtt_s: float = 0.0
    """Round trip, smoothed, from beats; from the challenge before the first. Includes both sides' event loops."""
    loads: Mapping[str, Load] = field(default_factory=lambda: _NO_LOADS)
    """By model, as the peer last said."""
    loads_at: float = 0.0
    """When that arrived; local monotonic seconds."""
    last_heard: float = 0.0
    """Any sign of life; local monotonic seconds."""
    relayed: bool = False
    """Reached through a third peer."""

    @property
    def peer(self) -> PeerId:
        """Its id."""
        return self.record.peer

    @property
    def usable(self) -> bool:
        """Whether it may be asked for something now."""
        return self.state is State.ALIVE and self.protocol_ok


class Watch:
    """Events of the roster since the watch began, oldest first: `async for event in watch`."""

    def __init__(self, limit: int) -> None:
        self._events: deque[PeerEvent] = deque()
        self._limit = limit
        self._missed = 0
        self._news = trio.Event()

    def put(self, event: PeerEvent) -> None:
        """Append; at the limit the oldest is lost and counted."""
        if len(self._events) >= self._limit:
            self._events.popleft()
            self._missed += 1
        self._events.append(event)
        self._news.set()

    async def receive(self) -> PeerEvent:
        """The next event, waiting for it. One of kind "missed" comes first if some were lost."""
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._missed:
                missed, self._missed = self._missed, 0
                return PeerEvent("missed", count=missed)
            if self._events:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return self._events.popleft()
            self._news = trio.Event()
            await self._news.wait()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> PeerEvent:
        return await self.receive()


class Roster:
    """All members but this node."""

    def __init__(self, own: Callable[[], PeerRecord]) -> None:
        """`own` is asked for this node's record: its name takes part in telling names apart."""
        self._own = own
        self._members: dict[PeerId, Member] = {}
        self._bearers: Counter[str] = Counter()  # of a name, among the members
        self._watches: set[Watch] = set()

    # -- reading --

    @property
    def members(self) -> tuple[Member, ...]:
        """All of them, in no order that means anything."""
        return tuple(self._members.values())

    @property
    def own_name(self) -> str:
        """This node's name, as the others should see it too: with a suffix if a member has the same."""
        own = self._own()
        return _titled(own) if self._bearers[own.name] else own.name

    def get(self, peer: PeerId) -> Member | None:
        """The member with that id."""
        return self._members.get(peer)

    def by_name(self, name: str) -> Member | None:
        """The member of that name as shown, or of that id; or the only one whose record bears that name."""
        if name in self._members:
            return self._members[name]
        shown = [member for member in self._members.values() if member.name == name]
        bearing = [member for member in self._members.values() if member.record.name == name]
        for found in (shown, bearing):
            if len(found) == 1:
                return found[0]
        return None

    @asynccontextmanager
    async def watch(self, limit: int = WATCH_LIMIT) -> AsyncIterator[Watch]:
        """Be told of changes from now on. A watcher that falls behind by `limit` events loses the oldest."""
        watch = Watch(limit)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    # -- writing --

    def put(self, record: PeerRecord, **changes: Any) -> Member:
        """Add or change a member; `changes` are fields of Member."""
        old = self._members.get(record.peer)
        if old is None:
            self._members[record.peer] = Member(record, record.name, **changes)
        else:
            self._members[record.peer] = replace(old, record=record, **changes)
        if old is None or old.record.name != record.name:
            self._bear(record.name, +1)
            if old is not None:
                self._bear(old.record.name, -1)
        return self._members[record.peer]

    def update(self, peer: PeerId, **changes: Any) -> Member | None:
        """Change fields of a member; None if there is no such member."""
        member = self._members.get(peer)
        if member is None:
            return None
        self._members[peer] = replace(member, **changes)
        return self._members[peer]

    def remove(self, peer: PeerId) -> None:
        """Forget a member."""
        member = self._members.pop(peer, None)
        if member is not None:
            self._bear(member.record.name, -1)

    def tell(self, kind: EventKind, peer: PeerId, detail: str = "") -> None:
        """Tell the watchers."""
        member = self._members.get(peer)
        own = self._own()
        name = member.name if member is not None else own.name if peer == own.peer else ""
        event = PeerEvent(kind, peer, name, detail)
        for watch in self._watches:
            watch.put(event)

    def _bear(self, name: str, change: int) -> None:
        """One member more or less bears `name`: show all of them with a suffix, or the last one without."""
        self._bearers[name] += change
        bearers = self._bearers[name] + (self._own().name == name)
        if not self._bearers[name]:
            del self._bearers[name]
        for peer, member in self._members.items():
            if member.record.name == name:
                shown = _titled(member.record) if bearers > 1 else name
                if shown != member.name:
                    self._members[peer] = replace(member, name=shown)


def _titled(record: PeerRecord) -> str:
    return f"{record.name}-{record.peer[-_SUFFIX_CHARS:]}"


def unread_record(peer: PeerId) -> PeerRecord:
    """Stands for the record of a peer whose own we cannot read."""
    return PeerRecord(
        peer=peer,
        name=f"peer-{peer[-6:]}",
        version="",
        protocol=0,
        incarnation=0,
        sequence=0,
        addresses=(),
        roles=(),
        hardware=Hardware(system="", processor="", cores=0, memory_bytes=0),
        offers=(),
    )
