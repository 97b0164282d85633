"""What this node tells its peers and makes of what they tell: own record and loads out, theirs into the roster.

Sans-IO. It joins the books (membership, roster, bans, loads) to the messages of `mesh/heartbeat.py`. A `Link` is one
beat stream with one peer; there may be several with a peer for a moment, after both dialled: each is complete in
itself, the newest is written to and all are listened to. Effects that concern the network (Dial, Drop) are returned;
the others are carried out here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from mesh import heartbeat
from mesh.bans import BanBook, SignedBan
from mesh.errors import PeerMisbehaved
from mesh.heartbeat import Kind, Link, LoadBook
from mesh.identity import Identity
from mesh.membership import Changed, Dial, Drop, Effect, Forget, Membership, State
from mesh.peerstates import CONTACT
from mesh.records import Load, Offer, PeerRecord, SignedRecord, newer, sign_record
from mesh.roster import EventKind, Roster, unread_record
from mesh.timing import Timing
from mesh.transport import PeerId
from mesh.wire import Message

_SOON_S = 0.01  # beats that are due within this go out together
_ASK_AGAIN_S = 30.0

_NEWS: dict[tuple[State, State], EventKind] = {(State.SUSPECT, State.ALIVE): "alive"}
_NEWS_OF: dict[State, EventKind] = {
    State.ALIVE: "joined",
    State.SUSPECT: "suspect",
    State.DEAD: "dead",
    State.LEFT: "left",
    State.BANNED: "banned",
    State.UNKNOWN: "forgotten",
}


class Gossip:
    """All books of one node."""

    def __init__(
        self,
        identity: Identity,
        record: PeerRecord,
        timing: Timing,
        *,
        limit: int,
        relayed: Callable[[PeerId], bool],
        rng: random.Random,
    ) -> None:
        self._identity = identity
        self._timing = timing
        self._relayed = relayed
        self._rng = rng
        self._signed: dict[PeerId, SignedRecord] = {}
        self._loads = LoadBook()
        self._asked_at = -1e9
        self._view = heartbeat.view([identity.peer])
        self._set_record(record)
        self.bans = BanBook()
        self.links: dict[PeerId, list[Link]] = {}
        """Confirmed ones, by peer, the newest last."""
        self.membership = Membership(identity.peer, timing, limit=limit, rng=rng)
        self.roster = Roster(lambda: self.record)
        self.dirty = False
        """Something worth saving has changed."""
        self.leaving = False
        """From now on only good-bye is said."""

    # -- this node --

    def publish(self, offers: tuple[Offer, ...] | None, loads: Iterable[Load] | None, fields: dict[str, Any]) -> bool:
        """See `Swarm.publish`. Whether something should go out before the next beat."""
        urgent = self._loads.urgent
        if loads is not None:
            self._loads.publish(loads)
        if offers is not None:
            fields = {"offers": offers, **fields}
        record = msgspec.structs.replace(self.record, **fields)
        if record == self.record:
            return self._loads.urgent != urgent
        self._set_record(msgspec.structs.replace(record, sequence=self.record.sequence + 1))
        return True

    def ban(self, peer: PeerId, now: float, *, lifted: bool) -> list[Effect]:
        """Ban or pardon a peer, and tell everybody."""
        signed = self.bans.state(self._identity, peer, lifted=lifted)
        return self._learn_ban(signed, now) if signed is not None else []

    def recall(self, saved: SignedRecord | bytes, now: float) -> list[Effect]:
        """A record or a ban that an earlier run saved. Raises PeerMisbehaved on what it cannot have saved."""
        if isinstance(saved, bytes):
            return self._learn_ban(heartbeat.read_ban(saved), now)
        return self._learn(saved, now, remembered=True)

    def lasting(self) -> tuple[tuple[SignedRecord, ...], tuple[bytes, ...]]:
        """What is worth saving: records and bans."""
        records = (self._signed.get(peer) for peer in self.membership.lasting())
        return tuple(filter(None, records)), tuple(msgspec.msgpack.encode(ban) for ban in self.bans.all())

    # -- links --

    def current(self, peer: PeerId) -> Link | None:
        """The link to write to."""
        links = self.links.get(peer)
        return links[-1] if links else None

    def pace_s(self) -> float:
        """Between two beats to one peer."""
        timing = self._timing
        return min(timing.max_pace_s, max(timing.beat_s, len(self.links) / timing.beats_per_s))

    def closed(self, link: Link, now: float) -> list[Effect]:
        """A link has ended, in whatever way."""
        links = self.links.get(link.peer, [])
        if link not in links:
            return []
        links.remove(link)
        if links:
            return []
        del self.links[link.peer]
        return self._carry_out(self.membership.on_lost(link.peer, now))

    def mismatch(self, peer: PeerId, why: str, now: float) -> list[Effect]:
        """The challenge has shown a member of another version."""
        effects = self.membership.on_mismatch(peer, now)
        if self.membership.state(peer) is State.INCOMPATIBLE:
            first = (member := self.roster.get(peer)) is None or member.protocol_ok
            record = self.membership.record(peer) or (member.record if member is not None else unread_record(peer))
            self.roster.put(record, state=State.INCOMPATIBLE, protocol_ok=False, last_heard=now)
            if first:
                self.roster.tell("incompatible", peer, why)
        return self._carry_out(effects)

    def unreachable(self, peer: PeerId, now: float) -> list[Effect]:
        """A dial has failed."""
        return self._carry_out(self.membership.on_unreachable(peer, now))

    def tick(self, now: float, late_s: float) -> list[Effect]:
        """See `Membership.tick`."""
        return self._carry_out(self.membership.tick(now, late_s=late_s))

    # -- out --

    def outgoing(self, link: Link, now: float) -> bytes:
        """All that is to be said on a link now, as one write; empty if nothing is."""
        if self.leaving:
            said, link.said_bye = link.said_bye, True
            return b"" if said else heartbeat.bye_frame()
        parts: list[bytes] = []
        if link.sent_sequence != self.record.sequence:
            link.sent_sequence = self.record.sequence
            parts.append(self._record_frame)
        if not link.confirmed:
            return b"".join(parts)
        beat = now >= link.beat_due - _SOON_S
        if link.sent_bans != self.bans.version:
            link.sent_bans = self.bans.version
            parts.append(heartbeat.bans_frame(self.bans.all()))
        if link.sent_loads < (self._loads.version if beat else self._loads.urgent):
            parts.append(self._loads.since(link.sent_loads))
            link.sent_loads = self._loads.version
        if link.ask:
            link.ask = False
            parts.append(heartbeat.ask_frame((self._identity.peer, *self.membership.expected())))
        if link.answer:
            parts.append(heartbeat.records_frame(link.answer))
        if beat:
            pace_s = self.pace_s()
            # Once, the second beat comes early: many who met at one time do not beat at one time for ever.
            link.beat_due = now + pace_s * (1.0 if link.spread else self._rng.uniform(0.3, 1.0))
            link.spread = True
            parts.append(link.pulse.beat(now, pace_s=pace_s, view=self._view))
        return b"".join(parts)

    # -- in --

    def heard(self, link: Link, message: Message, now: float) -> list[Effect]:
        """One message. Raises PeerMisbehaved."""
        kind, body = message
        if link.peer in self.bans:  # it may stay until it has read that
            return []
        if kind == Kind.RECORD:
            return self._on_record(link, heartbeat.read_record(body), now)
        if not link.confirmed:
            raise PeerMisbehaved(f"Peer {link.peer} did not begin with its record.")
        effects: list[Effect] = []
        if kind == Kind.BEAT:
            beat = heartbeat.read_beat(body)
            link.view = beat.view
            link.pulse.on_beat(beat, now)
            self.roster.update(link.peer, last_heard=now, rtt_s=link.pulse.rtt_s)
            effects = self.membership.on_beat(link.peer, now, beat.pace_ms / 1000)
            if now >= self._asked_at + self._timing.beat_s and self._differs(link, now):
                self._ask(link, now)
        elif kind == Kind.LOADS:
            self._on_loads(link.peer, heartbeat.read_loads(body), now)
        elif kind == Kind.ASK:
            known = heartbeat.read_ask(body)
            if not link.answer and now >= link.answered_at + self._timing.beat_s / 2:
                link.answered_at = now
                link.answer = [
                    self._signed[peer]
                    for peer in self.membership.contacts
                    if peer != link.peer and peer in self._signed and heartbeat.tag(peer) not in known
                ]
        elif kind == Kind.RECORDS:
            for signed in heartbeat.read_records(body):
                effects += self._learn(signed, now)
            return effects
        elif kind == Kind.BANS:
            for ban in heartbeat.read_bans(body):
                effects += self._learn_ban(ban, now)
            return effects
        elif kind == Kind.BYE:
            effects = self.membership.on_left(link.peer, now)
        return self._carry_out(effects)

    def _on_record(self, link: Link, signed: SignedRecord, now: float) -> list[Effect]:
        record = heartbeat.opened(signed)
        if record.peer != link.peer:
            raise PeerMisbehaved(f"Peer {link.peer} sent the record of {record.peer} as its own.")
        effects: list[Effect] = []
        if not link.confirmed:
            effects += self.membership.on_admitted(link.peer, now)
            if self.membership.state(link.peer) is not State.ALIVE:
                return self._carry_out(effects)
            link.confirmed, link.beat_due = True, now
            self.links.setdefault(link.peer, []).append(link)
        if newer(record, self.membership.record(link.peer)):
            self._signed[link.peer] = signed
            self.dirty = True
            effects += self.membership.on_record(record, now)
        member = self.roster.get(link.peer)
        current = self.membership.record(link.peer) or record
        relayed = self._relayed(link.peer)
        if member is None:
            rtt_s = link.pulse.rtt_s
            self.roster.put(current, state=State.UNKNOWN, rtt_s=rtt_s, last_heard=now, relayed=relayed)
        else:
            stale: dict[str, Any] = {"loads": {}} if current.incarnation != member.record.incarnation else {}
            self.roster.put(current, last_heard=now, protocol_ok=True, relayed=relayed, **stale)
            if member.record != current and member.state is State.ALIVE:
                self.roster.tell("record", link.peer)
        return self._carry_out(effects)

    def _on_loads(self, peer: PeerId, loads: heartbeat.Loads, now: float) -> None:
        member = self.roster.get(peer)
        if member is None:
            return
        held = {} if loads.full else dict(member.loads)
        held |= {load.model: load for load in loads.changed}
        for model in loads.gone:
            held.pop(model, None)
        if len(held) > heartbeat.MAX_LOADS:
            raise PeerMisbehaved(f"Peer {peer} tells of the loads of {len(held)} models.")
        self.roster.update(peer, loads=held, loads_at=now, last_heard=now)
        self.roster.tell("load", peer)

    def _learn(self, signed: SignedRecord, now: float, *, remembered: bool = False) -> list[Effect]:
        record = heartbeat.opened(signed)
        effects = self.membership.on_record(record, now, remembered=remembered)
        if self.membership.record(record.peer) == record:
            self._signed[record.peer] = signed
            self.dirty = True
        return self._carry_out(effects)

    def _learn_ban(self, signed: SignedBan, now: float) -> list[Effect]:
        ban = self.bans.learn(signed)
        if ban is None:
            return []
        self.dirty = True
        if ban.lifted:
            return self._carry_out(self.membership.on_pardoned(ban.peer, now))
        if ban.peer == self._identity.peer:
            self.roster.tell("banned", ban.peer, f"Banned from the swarm by {ban.by}.")
        return self._carry_out(self.membership.on_banned(ban.peer, now))

    # -- rules --

    def _set_record(self, record: PeerRecord) -> None:
        self._record_frame = heartbeat.record_frame(sign_record(self._identity, record))
        self.record = record

    def _differs(self, link: Link, now: float) -> bool:
        """Whether to ask: its contacts are others than ours, and we have not asked about just that a moment ago."""
        if not link.view or link.view == self._view:
            return False
        return link.asked[:2] != (link.view, self._view) or now >= link.asked[2] + _ASK_AGAIN_S

    def _ask(self, link: Link, now: float) -> None:
        self._asked_at = now
        link.asked = (link.view, self._view, now)
        link.ask = True

    def waiting(self, link: Link, now: float) -> bool:
        """Whether `outgoing` would say something."""
        return (
            self.leaving
            or now >= link.beat_due - _SOON_S
            or link.ask
            or bool(link.answer)
            or link.sent_sequence != self.record.sequence
            or link.sent_bans != self.bans.version
            or link.sent_loads < self._loads.urgent
        )

    def _carry_out(self, effects: list[Effect]) -> list[Effect]:
        rest: list[Effect] = []
        for effect in effects:
            match effect:
                case Changed():
                    self._on_changed(effect)
                case Forget(peer):
                    self._signed.pop(peer, None)
                    self.dirty = True
                case Dial() | Drop():
                    rest.append(effect)
        return rest

    def _on_changed(self, change: Changed) -> None:
        peer, old, new = change.peer, change.old, change.new
        if (old in CONTACT) != (new in CONTACT):
            self._view = heartbeat.view([peer], self._view)
        if new is State.BANNED:
            self._signed.pop(peer, None)
        member = self.roster.get(peer)
        if member is None:
            return
        if new in (State.DEAD, State.LEFT):
            self.roster.update(peer, state=new, loads={})
        else:
            self.roster.update(peer, state=new)
        kind = _NEWS.get((old, new)) or _NEWS_OF.get(new)
        if kind is not None:
            self.roster.tell(kind, peer)
        if new in (State.BANNED, State.UNKNOWN):
            self.roster.remove(peer)
