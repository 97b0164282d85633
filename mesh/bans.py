"""Who is refused: signed statements that spread among the members and outlive restarts. Sans-IO.

A ban names a peer; the highest numbered statement on a peer holds, and a later one may lift it. It is signed by the
member that made it, so that it can be passed on and one knows whom to ask. The members trust each other: each may ban
any other. The banned peer itself cannot lift its ban.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from mesh.errors import PeerMisbehaved
from mesh.identity import PEER_ID_CHARS, SIGNATURE_BYTES, Identity, verify
from mesh.records import decode
from mesh.transport import PeerId

LIMIT = 1024
"""Statements kept; beyond that, lifted ones go first, and then no new ones are taken."""

_SIGNED_FOR = b"mesh-ban-1:"
_Peer = Annotated[PeerId, Meta(min_length=PEER_ID_CHARS, max_length=PEER_ID_CHARS)]


class Ban(msgspec.Struct, frozen=True, array_like=True):
    """One statement on one peer."""

    peer: _Peer
    by: _Peer
    number: Annotated[int, Meta(ge=1, le=1 << 31)]
    """Rises with every statement on that peer."""
    lifted: bool = False


class SignedBan(msgspec.Struct, frozen=True, array_like=True):
    """A statement as it travels."""

    body: Annotated[bytes, Meta(max_length=256)]
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


_encoder = msgspec.msgpack.Encoder()
_ban = msgspec.msgpack.Decoder(Ban)


class BanBook:
    """All statements that hold."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._held: dict[PeerId, tuple[Ban, SignedBan]] = {}
        self._limit = limit
        self.version = 0
        """Rises with every change."""

    @property
    def banned(self) -> frozenset[PeerId]:
        """The peers to refuse."""
        return frozenset(peer for peer, (ban, _) in self._held.items() if not ban.lifted)

    def __contains__(self, peer: PeerId) -> bool:
        held = self._held.get(peer)
        return held is not None and not held[0].lifted

    def state(self, identity: Identity, peer: PeerId, *, lifted: bool) -> SignedBan | None:
        """Make a statement of our own; None if that is how things are already."""
        held = self._held.get(peer)
        if (held is None or held[0].lifted) == lifted:
            return None
        number = min(1 << 31, held[0].number + 1 if held is not None else 1)
        body = _encoder.encode(Ban(peer, identity.peer, number, lifted))
        return SignedBan(body, identity.sign(_SIGNED_FOR + body))

    def learn(self, signed: SignedBan) -> Ban | None:
        """Take a statement in; returned if it is news. Raises PeerMisbehaved when it is forged."""
        ban = decode(_ban, signed.body)
        held = self._held.get(ban.peer)
        if (ban.lifted and ban.by == ban.peer) or (held is not None and _rank(ban) <= _rank(held[0])):
            return None
        if not verify(ban.by, _SIGNED_FOR + signed.body, signed.signature):
            raise PeerMisbehaved("A ban does not bear the signature of the member that it names.")
        if held is None and not self._make_room():
            return None
        self._held[ban.peer] = (ban, signed)
        self.version += 1
        return ban

    def all(self) -> tuple[SignedBan, ...]:
        """All that hold, to pass on or to save."""
        return tuple(signed for _, signed in self._held.values())

    def _make_room(self) -> bool:
        if len(self._held) < self._limit:
            return True
        lifted = next((peer for peer, (ban, _) in self._held.items() if ban.lifted), None)
        if lifted is not None:
            del self._held[lifted]
        return lifted is not None


def _rank(ban: Ban) -> tuple[int, bool, PeerId]:
    """Everybody must come to the same verdict on two statements, in whatever order they arrive."""
    return (ban.number, not ban.lifted, ban.by)
