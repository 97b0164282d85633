"""Who is there: alive, suspect, dead, left. Sans-IO: events are method calls with the local monotonic time, each
returns the effects for `mesh/swarm.py` to carry out, and `tick` is called when `next_tick` says so.

Three rules explain the rest:

- Only our own contact with a peer makes it ALIVE. What others say of it (its record) is a reason to dial it, no more.
  So a ghost, an old record of a dead peer that goes round, costs some dials and is forgotten.
- Nobody's clock counts but ours, and ours only while we ran: silence during which our own loop stood still is not held
  against a peer, once per silence.
- A peer that was there is dialled again: at once when its connection breaks, every second for a minute after its death,
  then with pauses that double. A healed link is therefore noticed soon after a short cut, and cheaply after a long one.

The transitions are the table in `mesh/peerstates.py`.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from mesh.peerstates import CONTACT, TABLE, Changed, Dial, Drop, Effect, Event, Forget, State
from mesh.records import PeerRecord, newer
from mesh.timing import Timing
from mesh.transport import PeerId

__all__ = ["Changed", "Dial", "Drop", "Effect", "Forget", "Membership", "State"]


@dataclass(slots=True)
class _Peer:
    peer: PeerId
    since: float  # in this state
    state: State = State.UNKNOWN
    record: PeerRecord | None = None
    remembered: bool = False  # known from an earlier run
    heard: float = 0.0
    pace_s: float = 0.0  # that it promised
    lost_at: float | None = None
    excused: bool = False  # our own stall has been allowed for in this silence
    dialling: bool = False
    dialled_at: float = -math.inf
    next_dial: float = math.inf
    pause_s: float = 0.0
    due: float = math.inf  # earliest entry in the heap


class Membership:
    """The state machine of all peers but this node."""

    def __init__(self, own: PeerId, timing: Timing, *, limit: int = 1024, rng: random.Random | None = None) -> None:
        self._own = own
        self._timing = timing
        self._limit = limit
        self._rng = rng or random.Random()  # noqa: S311 (spreads dials, guards nothing)
        self._peers: dict[PeerId, _Peer] = {}
        self._banned: set[PeerId] = set()
        self._ghosts: OrderedDict[PeerId, tuple[PeerRecord, float]] = OrderedDict()  # forgotten -> until
        self._heap: list[tuple[float, PeerId]] = []
        self._recent: tuple[float, int] = (-math.inf, 0)  # when counted, recently dead peers
        self.contacts: set[PeerId] = set()
        """Peers with links: ALIVE or SUSPECT. To read only."""

    def state(self, peer: PeerId) -> State:
        """Of any peer."""
        entry = self._peers.get(peer)
        return entry.state if entry is not None else State.BANNED if peer in self._banned else State.UNKNOWN

    def record(self, peer: PeerId) -> PeerRecord | None:
        """The newest known record of a peer."""
        entry = self._peers.get(peer)
        return entry.record if entry is not None else None

    def expected(self) -> Iterator[PeerId]:
        """Peers of which we need not be told: in contact, or not yet given up on the way there."""
        for p in self._peers.values():
            if p.state in CONTACT or (p.state is State.KNOWN and not p.pause_s):
                yield p.peer

    def lasting(self) -> Iterator[PeerId]:
        """Peers to remember over a restart: all that were met, in this run or an earlier one."""
        met = (State.ALIVE, State.SUSPECT, State.DEAD, State.LEFT)
        return (p.peer for p in self._peers.values() if p.state in met or p.remembered)

    # -- events --

    def on_record(self, record: PeerRecord, now: float, *, remembered: bool = False) -> list[Effect]:
        """Somebody, perhaps the peer itself, told of a peer. An older record than the known one says nothing new."""
        peer = record.peer
        if peer == self._own or peer in self._banned or self._is_ghost(record, now):
            return []
        effects: list[Effect] = []
        entry = self._peers.get(peer)
        if entry is None:
            if not self._make_room(effects):
                return effects
            entry = self._peers[peer] = _Peer(peer, now, record=record, remembered=remembered)
            effects += self._move(entry, Event.RECORD, now)
            self._dial_at(entry, now + (0.0 if self._own < peer else self._timing.patience_s))
            return effects + self._act(entry, now)
        restarted = entry.record is None or record.incarnation > entry.record.incarnation
        changed = newer(record, entry.record)
        if changed:
            entry.record = record
        if restarted:
            effects += self._move(entry, Event.RESTARTED, now)
        if restarted and entry.state in (State.DEAD, State.KNOWN, State.INCOMPATIBLE):
            entry.since, entry.pause_s = now, 0.0
            self._dial_at(entry, now)
        elif entry.state is State.DEAD or (changed and entry.state is State.KNOWN):
            # Peers tell only of whom they are in contact with: it can be reached by somebody, so perhaps by us.
            self._dial_at(entry, min(entry.next_dial, max(now, entry.dialled_at + self._timing.redial_s)))
        return effects + self._act(entry, now)

    def on_admitted(self, peer: PeerId, now: float) -> list[Effect]:
        """The challenge is passed on both sides: this is our own contact."""
        if peer == self._own or peer in self._banned:
            return [Drop(peer)]
        effects: list[Effect] = []
        entry = self._entry(peer, now, effects)
        if entry is None:
            return [Drop(peer)]
        self._ghosts.pop(peer, None)
        entry.heard, entry.pace_s, entry.excused, entry.lost_at = now, self._timing.beat_s, False, None
        entry.dialling, entry.next_dial, entry.pause_s = False, math.inf, 0.0
        effects += self._move(entry, Event.ADMITTED, now)
        self._schedule(entry)
        return effects

    def on_beat(self, peer: PeerId, now: float, pace_s: float | None = None) -> list[Effect]:
        """Something came from the peer over a link; a beat says how soon the next one comes."""
        entry = self._peers.get(peer)
        if entry is None or entry.state not in CONTACT:
            return []
        # The heap is not touched: the entry in it comes due too early, and is put back then.
        entry.heard, entry.excused = now, False
        if pace_s is not None:
            entry.pace_s = min(max(pace_s, self._timing.beat_s / 4), self._timing.max_pace_s)
        if entry.state is State.SUSPECT and entry.lost_at is None:
            effects = self._move(entry, Event.HEARD, now)
            self._schedule(entry)
            return effects
        return []

    def on_lost(self, peer: PeerId, now: float) -> list[Effect]:
        """Its last link broke. Suspect at once; dialled at once."""
        entry = self._peers.get(peer)
        if entry is None or entry.state not in CONTACT or entry.lost_at is not None:
            return []
        entry.lost_at = now
        effects = self._move(entry, Event.LOST, now)
        self._dial_at(entry, now)
        return effects + self._act(entry, now)

    def on_unreachable(self, peer: PeerId, now: float) -> list[Effect]:
        """A dial failed."""
        entry = self._peers.get(peer)
        if entry is None:
            return []
        entry.dialling = False
        if entry.state is State.SUSPECT:
            return self._die(entry, Event.UNREACHABLE, now) if entry.lost_at is not None else []
        if entry.state is not State.ALIVE:
            self._dial_at(entry, self._next_dial(entry, now))
        return []

    def on_left(self, peer: PeerId, now: float) -> list[Effect]:
        """It said good-bye: not a failure, and no reason to dial."""
        entry = self._peers.get(peer)
        if entry is None:
            return []
        entry.next_dial, entry.lost_at = math.inf, None
        effects = self._move(entry, Event.BYE, now)
        self._schedule(entry)
        return effects

    def on_mismatch(self, peer: PeerId, now: float) -> list[Effect]:
        """A member, by the challenge, of another protocol version."""
        effects: list[Effect] = []
        entry = None if peer == self._own or peer in self._banned else self._entry(peer, now, effects)
        if entry is None:
            return effects
        entry.dialling = False
        effects += self._move(entry, Event.MISMATCH, now)
        self._dial_at(entry, now + self._timing.redial_max_s)
        return effects

    def on_banned(self, peer: PeerId, now: float) -> list[Effect]:
        """Refuse it from now on, known or not."""
        if peer in self._banned or peer == self._own:
            return []
        self._banned.add(peer)
        entry = self._peers.get(peer) or _Peer(peer, now)
        effects: list[Effect] = [*self._move(entry, Event.BANNED, now), Drop(peer)]
        self._peers.pop(peer, None)
        return effects

    def on_pardoned(self, peer: PeerId, now: float) -> list[Effect]:
        """Treat it like any stranger again."""
        if peer not in self._banned:
            return []
        self._banned.discard(peer)
        return [Changed(peer, State.BANNED, State.UNKNOWN)]

    def tick(self, now: float, *, late_s: float = 0.0) -> list[Effect]:
        """Do what is due. `late_s`: how much later than meant this call comes, because our own loop stood still."""
        if late_s > self._timing.stall_s:
            self._excuse(late_s)
        effects: list[Effect] = []
        while self._heap and self._heap[0][0] <= now:
            due, peer = heapq.heappop(self._heap)
            entry = self._peers.get(peer)
            if entry is not None and entry.due == due:
                entry.due = math.inf
                effects += self._act(entry, now)
        return effects

    def next_tick(self) -> float:
        """When `tick` may have something to do; infinite if never."""
        return self._heap[0][0] if self._heap else math.inf

    # -- rules --

    def _act(self, entry: _Peer, now: float) -> list[Effect]:
        """What is due for one peer, and its next appointment."""
        effects: list[Effect] = []
        if not entry.dialling and entry.next_dial <= now and entry.state is not State.ALIVE:
            entry.next_dial = math.inf
            if entry.record is not None and entry.record.addresses:
                entry.dialling, entry.dialled_at = True, now
                effects.append(Dial(entry.peer, entry.record.addresses))
        if now >= self._deadline(entry):
            if entry.state is State.ALIVE:
                effects += self._move(entry, Event.SILENT, now)
            elif entry.state is State.SUSPECT:
                return effects + self._die(entry, Event.EXPIRED, now)
            else:
                return effects + self._forget(entry, now)
        self._schedule(entry)
        return effects

    def _deadline(self, entry: _Peer) -> float:
        """When time alone moves the peer on."""
        timing = self._timing
        if entry.state is State.ALIVE:
            return entry.heard + timing.suspect_beats * entry.pace_s
        if entry.state is State.SUSPECT:
            silent = entry.heard + timing.dead_beats * entry.pace_s
            return silent if entry.lost_at is None else min(silent, entry.lost_at + timing.lost_s)
        ghost = entry.state is State.KNOWN and not entry.remembered
        return entry.since + (timing.ghost_s if ghost else timing.forget_s)

    def _schedule(self, entry: _Peer) -> None:
        dial = math.inf if entry.dialling or entry.state is State.ALIVE else entry.next_dial
        due = min(dial, self._deadline(entry))
        if due < entry.due:
            entry.due = due
            heapq.heappush(self._heap, (due, entry.peer))

    def _dial_at(self, entry: _Peer, when: float) -> None:
        entry.next_dial = when
        self._schedule(entry)

    def _next_dial(self, entry: _Peer, now: float) -> float:
        timing = self._timing
        recent = entry.state is State.DEAD and now < entry.since + timing.recent_s
        if recent:
            pause = max(timing.redial_s, self._recently_dead(now) / timing.dials_per_s)
        else:
            pause = min(timing.redial_max_s, max(2 * entry.pause_s, timing.redial_s))
        entry.pause_s = pause
        # Earlier, never later, at random: peers that died together are not dialled together for ever.
        return max(now, entry.dialled_at + pause * self._rng.uniform(0.8, 1.0))

    def _recently_dead(self, now: float) -> int:
        counted_at, count = self._recent
        if now > counted_at + self._timing.redial_s / 2:
            after = now - self._timing.recent_s
            count = sum(p.state is State.DEAD and p.since > after for p in self._peers.values())
            self._recent = (now, count)
        return count

    def _die(self, entry: _Peer, event: Event, now: float) -> list[Effect]:
        entry.lost_at = None
        effects: list[Effect] = [*self._move(entry, event, now), Drop(entry.peer)]
        if not entry.dialling:
            # After silence, dial at once; after a failed redial, in a while.
            self._dial_at(entry, self._next_dial(entry, now))
        self._schedule(entry)
        return effects

    def _excuse(self, late_s: float) -> None:
        """Shift all silences by the time we were not there to listen, and leave a moment to read what has come."""
        for entry in self._peers.values():
            if entry.state in CONTACT and not entry.excused:
                entry.excused = True
                entry.heard += late_s + self._timing.stall_s
                if entry.lost_at is not None:
                    entry.lost_at += late_s + self._timing.stall_s

    def _move(self, entry: _Peer, event: Event, now: float) -> list[Effect]:
        old, new = entry.state, TABLE[entry.state].get(event, entry.state)
        if new is old:
            return []
        entry.state, entry.since = new, now
        if new in CONTACT:
            self.contacts.add(entry.peer)
        else:
            self.contacts.discard(entry.peer)
        return [Changed(entry.peer, old, new)]

    def _entry(self, peer: PeerId, now: float, effects: list[Effect]) -> _Peer | None:
        entry = self._peers.get(peer)
        if entry is None and self._make_room(effects):
            entry = self._peers[peer] = _Peer(peer, now)
        return entry

    def _make_room(self, effects: list[Effect]) -> bool:
        """Whether one more peer may be known: the one that we have been without for longest goes for it."""
        if len(self._peers) < self._limit:
            return True
        idle = [p for p in self._peers.values() if p.state not in CONTACT]
        if not idle:
            return False
        effects += self._forget(min(idle, key=lambda p: (p.state is not State.KNOWN, p.since)), now=None)
        return True

    def _forget(self, entry: _Peer, now: float | None) -> list[Effect]:
        old = entry.state
        del self._peers[entry.peer]
        if now is not None and entry.record is not None:
            # What made it known may still go round. Not for ever: it may have been out of reach, and not a ghost.
            self._ghosts[entry.peer] = (entry.record, now + 10 * self._timing.ghost_s)
            while len(self._ghosts) > self._limit:
                self._ghosts.popitem(last=False)
        return [Changed(entry.peer, old, State.UNKNOWN), Forget(entry.peer)]

    def _is_ghost(self, record: PeerRecord, now: float) -> bool:
        forgotten, until = self._ghosts.get(record.peer, (None, math.inf))
        if forgotten is None:
            return False
        if now < until and not newer(record, forgotten):
            return True
        del self._ghosts[record.peer]
        return False
