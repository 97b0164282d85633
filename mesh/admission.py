"""Proving to each other that both hold the swarm's membership key: a mutual challenge and response, sans-IO.

Runs on a stream of its own, "/mesh/admit/1", right after Noise has shown each side the other's id, and before anything
else is served. Both send HELLO at once; the dialler proves first, so that a stranger who dials gets a nonce and a
refusal and nothing else that depends on the key.

    dialler                                    listener
    HELLO versions, nonce  ----------------->
                           <-----------------  HELLO versions, nonce
    PROOF mac              ----------------->  checks it: a member, or REFUSED
    checks it: a member    <-----------------  PROOF mac

    mac = HMAC-SHA256(membership key, role of the prover, both ids, both HELLO bodies; each with its length)

- Both nonces are in it: a recorded run is of no use in another (replay).
- Both ids are in it, as Noise proved them: a go-between has ids of its own, so what it passes on does not fit.
- The prover's role is in it: what one side sent, sent back to it, does not fit (reflection).
- The versions are in it: nobody on the way talks two sides down to an older one. When no version is common, both prove
  themselves all the same: that a peer is too old is for members to know, and believed only of members.

A frame is one byte of kind and one of length; a HELLO may be longer than we know, and its end counts in the mac too.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import NoReturn

from mesh.errors import Incompatible, NotAMember, PeerMisbehaved
from mesh.transport import PeerId

PROTOCOL = "/mesh/admit/1"
NONCE_BYTES = 32
KEY_BYTES = 32
MAX_STRANGER_BYTES = 1024
"""What is read of a stranger in all, before it is a member."""

_HEADER = struct.Struct("!BB")
_VERSIONS = struct.Struct("!HH")  # lowest and highest, both spoken
_HELLO_BYTES = _VERSIONS.size + NONCE_BYTES
_MAC_BYTES = hashlib.sha256().digest_size
_DIALLER, _LISTENER = b"dialler", b"listener"


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    PROOF = 2
    REFUSED = 3


class State(Enum):
    """What the other side has to send next."""

    HELLO = auto()
    PROOF = auto()
    ADMITTED = auto()
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Admitted:
    """The other side is a member."""

    version: int
    """The highest version of the mesh's protocols that both speak."""


class Challenger:
    """One side of the challenge. Send what `start` and `receive` return, in order; done when `result` is there.

    When `receive` raises, send `parting` before the stream is closed, so that an honest other side learns why.
    """

    def __init__(self, membership: bytes, own: PeerId, other: PeerId, *, dialler: bool, protocols: range) -> None:
        """`own` and `other` are the ids that the transport proved; `protocols` the versions spoken, without gaps."""
        if len(membership) != KEY_BYTES:
            raise ValueError(f"a membership key has {KEY_BYTES} bytes")
        if not protocols or protocols.step != 1 or not 0 <= protocols[0] <= protocols[-1] <= 0xFFFF:
            raise ValueError("versions are a range of numbers from 0 to 65535")
        self._membership = membership
        self._dialler = dialler
        self._other = other
        self._ids = (own, other) if dialler else (other, own)
        self._protocols = protocols
        self._hello = _VERSIONS.pack(protocols[0], protocols[-1]) + secrets.token_bytes(NONCE_BYTES)
        self._other_hello = b""
        self._other_protocols = range(0)
        self._buffer = bytearray()
        self._received_bytes = 0
        self.state = State.HELLO
        self.result: Admitted | None = None
        self.parting = b""

    def start(self) -> bytes:
        """The first bytes to send."""
        return _frame(Kind.HELLO, self._hello)

    def receive(self, data: bytes) -> bytes:
        """Bytes from the other side, cut anyhow, to bytes to send; often none.

        Raises NotAMember, Incompatible (which names both ranges of versions) or PeerMisbehaved. Nothing more is taken
        then.
        """
        self._received_bytes += len(data)
        if self._received_bytes > MAX_STRANGER_BYTES:
            self._misbehaved(f"it sent more than {MAX_STRANGER_BYTES} bytes")
        self._buffer += data
        sent = b""
        while len(self._buffer) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._buffer)
            step = STEPS.get((self.state, kind))
            if step is None:
                self._misbehaved(f"a message of kind {kind} has no place here")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            body = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            sent += step(self, body)
        if self.state in (State.ADMITTED, State.REFUSED) and self._buffer:
            self._misbehaved("bytes follow the last message")
        return sent

    def _on_hello(self, body: bytes) -> bytes:
        if len(body) < _HELLO_BYTES:
            self._misbehaved("its greeting is too short")
        lowest, highest = _VERSIONS.unpack_from(body)
        if lowest > highest:
            self._misbehaved("its versions are upside down")
        self._other_hello = body
        self._other_protocols = range(lowest, highest + 1)
        self.state = State.PROOF
        return self._proof() if self._dialler else b""

    def _on_proof(self, body: bytes) -> bytes:
        if not hmac.compare_digest(body, self._mac(by_dialler=not self._dialler)):
            self._refuse()
        answer = b"" if self._dialler else self._proof()
        own, other = self._protocols, self._other_protocols
        version = min(own[-1], other[-1])
        if version < max(own[0], other[0]):
            self.state = State.REFUSED
            self.parting = answer  # with which the other side finds out the same by itself
            raise Incompatible(
                f"Peer {self._other} speaks {_named(other)} of the mesh's protocols, this node {_named(own)}: "
                f"update the mesh on {'that' if other[-1] < own[-1] else 'this'} machine."
            )
        self.state = State.ADMITTED
        self.result = Admitted(version)
        return answer

    def _on_refused(self, body: bytes) -> NoReturn:
        self.state = State.REFUSED
        raise NotAMember(f"Peer {self._other} does not take this node for a member: their join tokens differ.")

    def _refuse(self) -> NoReturn:
        self.state = State.REFUSED
        self.parting = _frame(Kind.REFUSED, b"")
        raise NotAMember(f"Peer {self._other} does not hold this swarm's join token.")

    def _misbehaved(self, how: str) -> NoReturn:
        self.state = State.REFUSED
        self.result = None
        self._buffer.clear()
        raise PeerMisbehaved(f"Peer {self._other} broke the rules of admission: {how}.")

    def _proof(self) -> bytes:
        return _frame(Kind.PROOF, self._mac(by_dialler=self._dialler))

    def _mac(self, *, by_dialler: bool) -> bytes:
        hellos = (self._hello, self._other_hello) if self._dialler else (self._other_hello, self._hello)
        parts = (
            PROTOCOL.encode(),
            _DIALLER if by_dialler else _LISTENER,
            *(peer.encode() for peer in self._ids),
            *hellos,
        )
        # Lengths before the parts: no two lists of parts give the same bytes.
        data = b"".join(struct.pack("!I", len(part)) + part for part in parts)
        return hmac.digest(self._membership, data, "sha256")

    def __repr__(self) -> str:
        return f"Challenger(other={self._other!r}, dialler={self._dialler}, state={self.state.name})"


# All there is: what is not in the table breaks the rules. A REFUSED may come instead of either message.
STEPS: dict[tuple[State, int], Callable[[Challenger, bytes], bytes]] = {
    (State.HELLO, Kind.HELLO): Challenger._on_hello,
    (State.PROOF, Kind.PROOF): Challenger._on_proof,
    (State.HELLO, Kind.REFUSED): Challenger._on_refused,
    (State.PROOF, Kind.REFUSED): Challenger._on_refused,
}


def _frame(kind: Kind, body: bytes) -> bytes:
    return _HEADER.pack(kind, len(body)) + body


def _named(versions: range) -> str:
    first, last = versions[0], versions[-1]
    return f"version {first}" if first == last else f"versions {first} to {last}"
