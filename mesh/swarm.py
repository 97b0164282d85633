"""One node's part in the swarm: dial, admit, beat, notice; open streams to members and serve theirs.

swarm = Swarm(identity, keys, transport, record, memory=store)
swarm.handle("/mesh/infer/1", serve)
await nursery.start(transport.run)
await nursery.start(swarm.run)
await swarm.dial(token.addresses)
stream = await swarm.open(peer, "/mesh/infer/1")
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from mesh.identity import Identity
from mesh.records import Load, Offer, PeerRecord, SignedRecord
from mesh.roster import Roster, Watch
from mesh.timing import LAN, Timing
from mesh.token import SwarmKeys
from mesh.transport import Address, Handler, PeerId, Stream, Transport


@dataclass(frozen=True, slots=True)
class Remembered:
    """What outlives a run: enough to rejoin without a token as long as one known address lives."""

    records: tuple[SignedRecord, ...] = ()
    bans: tuple[bytes, ...] = ()
    """Opaque: signed bans as they travel."""


class Memory(Protocol):
    """Where the swarm keeps what it knows between runs. Implemented by the node; `save` is called on change, rarely."""

    def load(self) -> Remembered:
        """What was saved last; empty at first, and when it cannot be read (log it)."""

    async def save(self, remembered: Remembered) -> None:
        """Replace what was saved. Must not raise."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what others can make this node hold."""

    strangers: int = 32
    """Peers in the challenge at a time; more are turned away."""
    streams_per_peer: int = 256
    """Inbound streams being served for one member."""
    peers: int = 1024
    """Known peers, alive or not."""
    dials: int = 16
    """At a time."""


class Swarm:
    """All that this node knows of its peers, and the way to them."""

    roster: Roster
    """The members, as this node sees them. Not this node itself."""

    def __init__(
        self,
        identity: Identity,
        keys: SwarmKeys,
        transport: Transport,
        record: PeerRecord,
        *,
        timing: Timing = LAN,
        limits: Limits = Limits(),
        bootstrap: tuple[Address, ...] = (),
        memory: Memory | None = None,
        relayed: Callable[[PeerId], bool] = lambda _: False,
        rng: random.Random | None = None,
    ) -> None:
        """`record` is this node's own to begin with: its peer is the identity's, its incarnation higher than in any
        earlier run. Without addresses in it, those of the transport are used.

        `bootstrap` is dialled, with growing pauses, whenever nobody who answers there is a live member.
        """

    @property
    def peer(self) -> PeerId:
        """This node's id."""
        raise NotImplementedError

    @property
    def record(self) -> PeerRecord:
        """This node's own record as others get it now."""
        raise NotImplementedError

    def events(self) -> AbstractAsyncContextManager[Watch]:
        """Watch the roster: `async with swarm.events() as events: async for event in events`."""
        raise NotImplementedError

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part, until cancelled or until `leave` is done. The transport must be running. Started when ready to
        be dialled; remembered peers and bootstrap addresses are being dialled by then."""

    async def dial(self, addresses: tuple[Address, ...], *, timeout_s: float = 5.0) -> PeerId:
        """Meet whoever answers at one of `addresses`, and return its id once it is a live member.

        Raises PeerGone when nobody answers in time, NotAMember when the two do not hold the same token or one has
        banned the other, Incompatible when its version differs. Needs `run` to be running.
        """
        raise NotImplementedError

    async def open(self, peer: PeerId, protocol: str) -> Stream:
        """A stream to a live member. Raises PeerGone (dead, left, unreachable, or refuses `protocol`) or NotAMember."""
        raise NotImplementedError

    def handle(self, protocol: str, handler: Handler) -> None:
        """Serve `protocol` to members. A stranger's stream is reset without a byte; so is a member's beyond the limit.
        As `Transport.handle` otherwise."""

    def publish(
        self, offers: tuple[Offer, ...] | None = None, loads: Iterable[Load] | None = None, **record: Any
    ) -> None:
        """Tell the others. Cheap enough to be called on every change: what equals the last is not sent.

        `offers` and further fields of PeerRecord (`api_url=`, `exposes=`, `addresses=`) bump the record's sequence,
        are signed, and go out at once. `loads` are all of them (a model not in it is gone); they go out with the next
        beat, or at once where a model's state changed. None leaves things as they are.
        """

    async def leave(self) -> None:
        """Say good-bye to all, and end `run`. Takes at most a second."""

    def ban(self, peer: PeerId) -> None:
        """Refuse this peer here and, as the word spreads, at every member. Lasts over restarts.

        It refuses an identity: whoever holds the token can come back with another. To lock out a person, make a new
        swarm with a new token.
        """

    def pardon(self, peer: PeerId) -> None:
        """Lift a ban, whoever made it; that spreads too."""

    @property
    def banned(self) -> frozenset[PeerId]:
        """All banned peers; holding our own id means that the others refuse us."""
        raise NotImplementedError
