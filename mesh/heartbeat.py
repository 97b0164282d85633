"""What goes over a beat stream, "/mesh/beat/1": messages, the loads as deltas, the round trip. Sans-IO.

The peer that dialled opens the stream after the challenge; both sides then send alike. RECORD comes first, and again
whenever it changed; BEAT once per pace; the rest when there is something to say:

    1 BEAT     number, number of the last beat heard, how long ago that was, time until the next, digest of contacts
    2 RECORD   the sender's own signed record
    3 LOADS    models whose load changed since the last LOADS on this stream (the first one: all)
    4 ASK      tags of the peers that the sender needs not be told of
    5 RECORDS  signed records of contacts of the sender that were not among those
    6 BANS     all bans that the sender knows
    7 BYE      the sender leaves the swarm

**Cost.** With n other members each node holds n streams. It sends on each of them, and hears on each of them:

- idle: one BEAT per pace, 26 bytes with its frame (37 at most). The pace is 1 s up to 50 members and n / 50 s beyond,
  so a node sends min(n, 50) messages and 26 min(n, 50) bytes a second: 52 B/s in a swarm of 3, 754 B/s in one of 30,
  never more than 1.3 kB/s. The price: silence is noticed in 3.5 paces, 3.5 s up to 50 members and 14 s at 200. (A
  connection that breaks is noticed at once in any swarm.)
- busy: and a LOADS of about 50 bytes and 190 per model that changed, in the same write as the BEAT: no more messages.
  With one busy model 225 bytes per member and pace, with eight 1.6 kB: 3.1 kB/s in a swarm of 3, 45 kB/s in one of
  30. A rate that moves by less than 10 % has not changed. A model's state (ready, gone) goes out at once.
- a record that changed: its size (0.4 kB, and 0.15 kB per offer) to each member, once.
- a node that joins: a challenge (4 messages, 144 bytes) and a record each way with each member, and one ASK of 8 bytes
  per known peer and a record per member from whomever it met first: about 0.4 kB per member sent and 0.9 kB received.
  It costs the introducer 0.3 kB per member, the others 0.4 kB in all. So n nodes that start together cost the first one
  n squared records, once.
- views that differ: one ASK of 8 n bytes per beat_s, to whoever's BEAT shows it next, until they agree; the same
  question about the same difference once in 30 s. Equal views, the usual case, show in the 8-byte digest in each BEAT.

tests/sim counts these bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from mesh import wire
from mesh.bans import LIMIT as MAX_BANS
from mesh.bans import SignedBan
from mesh.errors import PeerMisbehaved
from mesh.records import Load, PeerRecord, SignedRecord, decode, open_record
from mesh.transport import PeerId

PROTOCOL = "/mesh/beat/1"
MAX_MESSAGE_BYTES = 512 << 10
BATCH_BYTES = 256 << 10
"""Records in one message, before the last one."""

_TAG_BYTES = 8
MAX_LOADS = 256
_SAME_SHARE = 0.1  # a rate that moves by less has not changed
_SMOOTHING = 0.2  # of the newest round trip

_U32: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
_Models: TypeAlias = Annotated[tuple[Annotated[str, Meta(max_length=200)], ...], Meta(max_length=MAX_LOADS)]


class Kind(IntEnum):
    """What a message is."""

    BEAT = 1
    RECORD = 2
    LOADS = 3
    ASK = 4
    RECORDS = 5
    BANS = 6
    BYE = 7


class Beat(msgspec.Struct, frozen=True, array_like=True):
    """A sign of life."""

    number: _U32
    echo: _U32
    """Number of the last beat heard; 0 before the first."""
    held_us: _U32
    """Microseconds since that one was heard, by the sender's own clock."""
    pace_ms: _U32
    """Until the next one."""
    view: Annotated[bytes, Meta(min_length=_TAG_BYTES, max_length=_TAG_BYTES)]
    """Digest of the sender's contacts and the sender itself: equal views, equal digests."""


class Loads(msgspec.Struct, frozen=True, array_like=True):
    """Changed loads."""

    full: bool
    """All loads, not only changes."""
    changed: Annotated[tuple[Load, ...], Meta(max_length=MAX_LOADS)]
    gone: _Models = ()


_Tags: TypeAlias = Annotated[bytes, Meta(max_length=4096 * _TAG_BYTES)]
_Records: TypeAlias = Annotated[tuple[SignedRecord, ...], Meta(max_length=1024)]
_Bans: TypeAlias = Annotated[tuple[SignedBan, ...], Meta(max_length=MAX_BANS)]

_encoder = msgspec.msgpack.Encoder()
_beat = msgspec.msgpack.Decoder(Beat)
_loads = msgspec.msgpack.Decoder(Loads)
_record = msgspec.msgpack.Decoder(SignedRecord)
_records = msgspec.msgpack.Decoder(_Records)
_tags = msgspec.msgpack.Decoder(_Tags)
_bans = msgspec.msgpack.Decoder(_Bans)
_one_ban = msgspec.msgpack.Decoder(SignedBan)


def decoder() -> wire.Decoder:
    """For the receiving side of a beat stream."""
    return wire.Decoder(MAX_MESSAGE_BYTES, kinds=list(Kind))


# Each raises PeerMisbehaved.


def read_beat(body: bytes) -> Beat:
    """A BEAT."""
    return decode(_beat, body)


def read_loads(body: bytes) -> Loads:
    """A LOADS."""
    return decode(_loads, body)


def read_record(body: bytes) -> SignedRecord:
    """A RECORD, unproven: see `opened`."""
    return decode(_record, body)


def read_records(body: bytes) -> tuple[SignedRecord, ...]:
    """A RECORDS, unproven: see `opened`."""
    return decode(_records, body)


def read_ask(body: bytes) -> frozenset[bytes]:
    """The tags in an ASK."""
    tags = decode(_tags, body)
    if len(tags) % _TAG_BYTES:
        raise PeerMisbehaved("The tags in an ASK are cut.")
    return frozenset(tags[at : at + _TAG_BYTES] for at in range(0, len(tags), _TAG_BYTES))


def read_bans(body: bytes) -> tuple[SignedBan, ...]:
    """A BANS, unproven."""
    return decode(_bans, body)


def read_ban(body: bytes) -> SignedBan:
    """One, as saved. Unproven."""
    return decode(_one_ban, body)


def record_frame(signed: SignedRecord) -> bytes:
    """A RECORD, to send."""
    return wire.encode(Kind.RECORD, _encoder.encode(signed))


def ask_frame(peers: Iterable[PeerId]) -> bytes:
    """An ASK, to send: tell me of your contacts, these excepted."""
    return wire.encode(Kind.ASK, _encoder.encode(b"".join(map(tag, peers))))


def records_frame(records: list[SignedRecord]) -> bytes:
    """A RECORDS, to send: takes from the end of `records` what fits into one."""
    batch, size = [], 0
    while records and size < BATCH_BYTES:
        batch.append(records.pop())
        size += len(batch[-1].body) + 100
    return wire.encode(Kind.RECORDS, _encoder.encode(batch))


def bans_frame(bans: tuple[SignedBan, ...]) -> bytes:
    """A BANS, to send."""
    return wire.encode(Kind.BANS, _encoder.encode(bans))


def bye_frame() -> bytes:
    """A BYE, to send."""
    return wire.encode(Kind.BYE)


@lru_cache(maxsize=4096)
def opened(signed: SignedRecord) -> PeerRecord:
    """`open_record`, but the same bytes are proven once: many peers pass on one record. Raises PeerMisbehaved."""
    return open_record(signed)


@lru_cache(maxsize=8192)
def tag(peer: PeerId) -> bytes:
    """8 bytes that stand for a peer where two that are mixed up cost a dial, no more."""
    return blake2b(peer.encode(), digest_size=_TAG_BYTES).digest()


def view(peers: Iterable[PeerId], but: bytes = bytes(_TAG_BYTES)) -> bytes:
    """Digest of a set of peers, in any order; or of the set with digest `but` with these peers added or taken out."""
    total = int.from_bytes(but, "big")
    for peer in peers:
        total ^= int.from_bytes(tag(peer), "big")
    return total.to_bytes(_TAG_BYTES, "big")


class Pulse:
    """The beats of one stream, both ways, and the round trip that they show."""

    def __init__(self, rtt_s: float) -> None:
        """`rtt_s`: as the challenge showed it."""
        self.rtt_s = rtt_s
        self._measured = False
        self._number = 0
        self._sent_at = 0.0
        self._heard: tuple[int, float] | None = None  # number and time of the last beat

    def beat(self, now: float, *, pace_s: float, view: bytes) -> bytes:
        """The next BEAT, to send now."""
        self._number, self._sent_at = self._number + 1, now
        echo, at = self._heard or (0, now)
        held_us = min(int((now - at) * 1e6), (1 << 32) - 1)
        body = _encoder.encode(Beat(self._number, echo, held_us, int(pace_s * 1000), view))
        return wire.encode(Kind.BEAT, body)

    def on_beat(self, beat: Beat, now: float) -> None:
        """The other side's beat: an echo of our last one shows the round trip, without comparing clocks."""
        self._heard = (beat.number, now)
        if beat.echo and beat.echo == self._number:
            # Never below zero, whatever the other side claims to have held it for.
            sample = max(0.0, now - self._sent_at - beat.held_us / 1e6)
            self.rtt_s += (sample - self.rtt_s) * (_SMOOTHING if self._measured else 1.0)
            self._measured = True


@dataclass(slots=True, eq=False)
class Link:
    """One beat stream, and what has gone over it."""

    peer: PeerId
    pulse: Pulse
    since: float
    confirmed: bool = False  # its record is here: from then on it counts
    beat_due: float = 0.0
    spread: bool = False  # the second beat has its time
    view: bytes = b""  # the other side's, as last told
    asked: tuple[bytes, bytes, float] = (b"", b"", 0.0)  # its view, ours, when
    ask: bool = False  # to be sent
    answer: list[SignedRecord] = field(default_factory=list)  # to be sent
    answered_at: float = -1e9
    sent_sequence: int = -1
    sent_loads: int = 0
    sent_bans: int = 0
    said_bye: bool = False


class LoadBook:
    """This node's loads, and what of them each stream has not been told."""

    def __init__(self) -> None:
        self._loads: dict[str, tuple[int, Load | None]] = {}  # model -> changed in this version; None is gone
        self._frames: dict[int, bytes] = {}  # since a version -> frame, until the next change
        self.version = 0
        self.urgent = 0
        """Version of the last change that is worth a message before the next beat: a model's state."""

    @property
    def loads(self) -> tuple[Load, ...]:
        """As last published."""
        return tuple(load for _, load in self._loads.values() if load is not None)

    def publish(self, loads: Iterable[Load]) -> None:
        """All loads, afresh. As many as a record holds offers."""
        new = {load.model: load for load in islice(loads, MAX_LOADS)}
        changes: dict[str, Load | None] = {}
        for model, load in new.items():
            old = self._loads.get(model, (0, None))[1]
            if old is None or not _same(old, load):
                changes[model] = load
                if old is None or old.state != load.state:
                    self.urgent = self.version + 1
        for model, (_, held) in self._loads.items():
            if model not in new and held is not None:
                changes[model] = None
                self.urgent = self.version + 1
        if not changes:
            return
        self.version += 1
        self._frames.clear()
        self._loads |= {model: (self.version, load) for model, load in changes.items()}
        gone = [model for model, (_, load) in self._loads.items() if load is None]
        for model in gone[:-MAX_LOADS]:  # so many models have come and gone that somebody may keep one for too long
            del self._loads[model]

    def since(self, version: int) -> bytes:
        """A LOADS with what changed after `version`; all of it if that is 0. To send, if anything did."""
        frame = self._frames.get(version)
        if frame is None:
            news = [(model, load) for model, (at, load) in self._loads.items() if at > version]
            changed = tuple(load for _, load in news if load is not None)
            gone = tuple(model for model, load in news if load is None) if version else ()
            frame = wire.encode(Kind.LOADS, _encoder.encode(Loads(version == 0, changed, gone)))
            self._frames[version] = frame
        return frame


def _same(old: Load, new: Load) -> bool:
    return old == new or all(_close(getattr(old, name), getattr(new, name)) for name in Load.__struct_fields__)


def _close(old: object, new: object) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return abs(new - old) <= _SAME_SHARE * max(abs(old), abs(new))
    return old == new
