"""One node's part in the swarm: dial, admit, beat, notice; open streams to members and serve theirs.

    swarm = Swarm(identity, keys, transport, record, memory=store)
    swarm.handle("/mesh/infer/1", serve)
    await nursery.start(transport.run)
    await nursery.start(swarm.run)
    await swarm.dial(token.addresses)
    stream = await swarm.open(peer, "/mesh/infer/1")

Only the network is touched here: `mesh/gossip.py` decides. Whoever dials opens "/mesh/admit/1"; that passed, each side
serves the other, and the dialler opens "/mesh/beat/1" (by the challenge's order the other side knows it by then). With
its first record on that stream a peer is a live member. A peer that is connected and no member after
`timing.admission_s` is disconnected.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import trio

from mesh import heartbeat
from mesh.beats import Beats, Wire
from mesh.door import Door
from mesh.errors import Incompatible, NotAMember, PeerError, PeerGone, PeerMisbehaved
from mesh.gossip import Gossip
from mesh.identity import Identity
from mesh.membership import Dial, Drop, Effect, State
from mesh.peerstates import CONTACT
from mesh.records import Load, Offer, PeerRecord
from mesh.rejoin import dial_bootstrap, recall, save_changes
from mesh.remembered import Memory, Remembered
from mesh.roster import Roster, Watch
from mesh.timing import LAN, Timing
from mesh.token import SwarmKeys
from mesh.transport import Address, Handler, PeerId, Stream, Transport

__all__ = ["PROTOCOLS", "Limits", "Memory", "Remembered", "Swarm"]

PROTOCOLS = range(1, 2)
"""Versions of the mesh's protocols that this program speaks."""

_BANISH_S = 1.0

_log = logging.getLogger("mesh.swarm")


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
        protocols: range = PROTOCOLS,
        rng: random.Random | None = None,
    ) -> None:
        """`record` is this node's own to begin with: its peer is the identity's, its incarnation higher than in any
        earlier run. Without addresses in it, those of the transport are used.

        `bootstrap` is dialled, with growing pauses, whenever nobody who answers there is a live member.
        """
        self._rng = rng or random.Random()  # noqa: S311 (spreads work, guards nothing)
        self._gossip = Gossip(identity, record, timing, limit=limits.peers, relayed=relayed, rng=self._rng)
        self.roster = self._gossip.roster
        self._transport = transport
        self._timing = timing
        self._bootstrap = bootstrap
        self._memory = memory
        self._nursery: trio.Nursery | None = None
        self._wake = trio.Event()
        self._wake_at = -math.inf
        self._dials = trio.CapacityLimiter(limits.dials)
        self._dropping: dict[PeerId, trio.Event] = {}
        self._beats = Beats(self._gossip, timing, self._execute)
        self._door = Door(
            keys.membership,
            transport,
            timing,
            protocols=protocols,
            strangers=limits.strangers,
            streams_per_peer=limits.streams_per_peer,
            banned=self._gossip.bans.__contains__,
            mismatch=self._on_mismatch,
        )
        transport.handle(heartbeat.PROTOCOL, self._door.guard(self._on_beats))
        transport.watch(connected=self._door.expect, disconnected=self._on_disconnected)

    @property
    def peer(self) -> PeerId:
        """This node's id."""
        return self._gossip.record.peer

    @property
    def record(self) -> PeerRecord:
        """This node's own record as others get it now."""
        return self._gossip.record

    @property
    def banned(self) -> frozenset[PeerId]:
        """All banned peers; holding our own id means that the others refuse us."""
        return self._gossip.bans.banned

    def events(self) -> AbstractAsyncContextManager[Watch]:
        """Watch the roster: `async with swarm.events() as events: async for event in events`."""
        return self.roster.watch()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part, until cancelled or until `leave` is done. The transport must be running. Started when ready to
        be dialled; remembered peers and bootstrap addresses are being dialled by then."""
        if not self.record.addresses:
            self.publish(addresses=self._transport.addresses())
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._beats.start(nursery)
            try:
                if self._memory is not None:
                    self._execute(recall(self._memory, self._gossip))
                    nursery.start_soon(save_changes, self._memory, self._gossip)
                self._door.open = True
                nursery.start_soon(self._heart)
                nursery.start_soon(dial_bootstrap, self.dial, self._missing, self._timing, self._rng)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None
                self._door.open = False
                self._beats.stop()

    async def dial(self, addresses: tuple[Address, ...], *, timeout_s: float = 5.0) -> PeerId:
        """Meet whoever answers at one of `addresses`, and return its id once it is a live member.

        Raises PeerGone when nobody answers in time, NotAMember when the two do not hold the same token or one has
        banned the other, Incompatible when its version differs. Needs `run` to be running.
        """
        return await self._meet(addresses, None, timeout_s)

    async def open(self, peer: PeerId, protocol: str) -> Stream:
        """A stream to a live member. Raises PeerGone (dead, left, unreachable, or refuses `protocol`) or NotAMember."""
        state = self._gossip.membership.state(peer)
        if state in (State.UNKNOWN, State.KNOWN, State.BANNED):
            raise NotAMember(f"{peer} is not a member of this swarm.")
        if state not in CONTACT or self._gossip.current(peer) is None:
            raise PeerGone(f"Peer {self._named(peer)} is not there: {state.name.lower()}.")
        return await self._transport.open(peer, protocol)

    def handle(self, protocol: str, handler: Handler) -> None:
        """Serve `protocol` to members. A stranger's stream is reset without a byte; so is a member's beyond the limit.
        As `Transport.handle` otherwise."""
        self._transport.handle(protocol, self._door.guard(handler))

    def publish(
        self, offers: tuple[Offer, ...] | None = None, loads: Iterable[Load] | None = None, **record: Any
    ) -> None:
        """Tell the others. Cheap enough to be called on every change: what equals the last is not sent.

        `offers` and further fields of PeerRecord (`api_url=`, `exposes=`, `addresses=`) bump the record's sequence,
        are signed, and go out at once. `loads` are all of them (a model not in it is gone); they go out with the next
        beat, or at once where a model's state changed. None leaves things as they are. Raises ValueError on a record
        that breaks the bounds of `mesh/records.py`.
        """
        if self._gossip.publish(offers, loads, record):
            self._beats.stir()

    async def leave(self) -> None:
        """Say good-bye to all, and end `run`. Takes at most a second."""
        with trio.move_on_after(1.0):
            await self._beats.say_bye()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def ban(self, peer: PeerId) -> None:
        """Refuse this peer here and, as the word spreads, at every member. Lasts over restarts.

        It refuses an identity: whoever holds the token can come back with another. To lock out a person, make a new
        swarm with a new token.
        """
        self._execute(self._gossip.ban(peer, trio.current_time(), lifted=False))
        self._beats.stir()

    def pardon(self, peer: PeerId) -> None:
        """Lift a ban, whoever made it; that spreads too."""
        self._execute(self._gossip.ban(peer, trio.current_time(), lifted=True))
        self._beats.stir()

    # -- meeting --

    async def _meet(self, addresses: tuple[Address, ...], expect: PeerId | None, timeout_s: float) -> PeerId:
        """Connect, pass the challenge, open the beats, wait for the first record."""
        if self._nursery is None:
            raise PeerGone("This node is not taking part in the swarm.")
        if expect in self._dropping:
            await self._dropping[expect].wait()
        peer = await self._transport.dial(addresses, expect, timeout_s=timeout_s)
        if peer == self.peer:
            raise PeerMisbehaved("That address is this node's own.")
        if self._gossip.membership.state(peer) is State.ALIVE:
            return peer
        try:
            with trio.fail_after(self._timing.admission_s):
                rtt_s = await self._door.challenge(peer)
                wire = self._beats.wire(await self._transport.open(peer, heartbeat.PROTOCOL), rtt_s)
                if self._nursery is None:
                    raise PeerGone("This node has left the swarm.")
                self._nursery.start_soon(self._serve, wire, True)
                await wire.met.wait()
        except trio.TooSlowError:
            raise PeerGone(f"Peer {peer} did not finish the challenge in {self._timing.admission_s:g} s.") from None
        if not wire.link.confirmed:
            raise PeerGone(f"Peer {peer} went away before it told of itself.")
        return peer

    async def _on_beats(self, stream: Stream) -> None:
        await self._serve(self._beats.wire(stream, self._door.admitted.get(stream.peer, 0.0)), False)

    async def _serve(self, wire: Wire, dialler: bool) -> None:
        peer = wire.link.peer
        await self._beats.serve(wire, dialler=dialler)
        if peer not in self._gossip.links and peer in self._transport.connected():
            self._door.expect(peer)

    def _on_mismatch(self, peer: PeerId, why: str) -> None:
        self._execute(self._gossip.mismatch(peer, why, trio.current_time()))

    def _on_disconnected(self, peer: PeerId) -> None:
        self._door.gone(peer)
        self._beats.cancel(peer)

    # -- time --

    async def _heart(self) -> None:
        """Beats, membership's appointments, strangers who dawdle."""
        gossip, step_s = self._gossip, self._timing.beat_s / 4
        slot = planned = trio.current_time()
        while True:
            now = trio.current_time()
            self._wake = trio.Event()
            late_s = max(0.0, now - planned)
            self._execute(gossip.tick(now, late_s))
            if now >= slot:
                slot = max(slot + step_s, now)
                self._beats.stir()
                self._beats.check(now, late_s)
                for peer in self._door.overdue(now):
                    if peer not in gossip.links:
                        self._drop(peer)
            planned = self._wake_at = min(slot, gossip.membership.next_tick())
            with trio.move_on_at(planned):
                await self._wake.wait()
            self._wake_at = -math.inf  # awake: no need to wake it

    # -- effects --

    def _execute(self, effects: list[Effect]) -> None:
        if self._nursery is None:
            return
        for effect in effects:
            if isinstance(effect, Dial):
                if not self._gossip.leaving:
                    self._nursery.start_soon(self._redial, effect)
            elif isinstance(effect, Drop) and effect.peer in self._gossip.links and effect.peer in self.banned:
                self._door.admitted.pop(effect.peer, None)
                self._nursery.start_soon(self._banish, effect.peer)
            elif isinstance(effect, Drop):
                self._drop(effect.peer)
        if self._gossip.membership.next_tick() < self._wake_at:
            self._wake.set()

    async def _redial(self, dial: Dial) -> None:
        async with self._dials:
            try:
                await self._meet(dial.addresses, dial.peer, self._timing.dial_timeout_s)
            except Incompatible:
                pass  # dealt with where it was found out
            except PeerError as error:
                _log.debug("no way to %s: %s", self._named(dial.peer), error)
                self._execute(self._gossip.unreachable(dial.peer, trio.current_time()))

    def _drop(self, peer: PeerId) -> None:
        self._door.admitted.pop(peer, None)
        self._beats.cancel(peer)
        if self._nursery is not None and peer not in self._dropping:
            self._dropping[peer] = trio.Event()
            self._nursery.start_soon(self._disconnect, peer)

    async def _banish(self, peer: PeerId) -> None:
        """It is served no more from now on; but let it read why before the connection goes."""
        self._beats.stir()
        await trio.sleep(_BANISH_S)
        if peer in self.banned:
            self._drop(peer)

    async def _disconnect(self, peer: PeerId) -> None:
        try:
            await self._transport.disconnect(peer)
        finally:
            self._dropping.pop(peer).set()

    def _missing(self, owners: Mapping[Address, PeerId]) -> list[Address]:
        """Bootstrap addresses where nobody is known to be alive."""
        own, state = self._transport.addresses(), self._gossip.membership.state
        return [a for a in self._bootstrap if a not in own and state(owners.get(a, "")) is not State.ALIVE]

    def _named(self, peer: PeerId) -> str:
        member = self.roster.get(peer)
        return member.name if member is not None else peer
