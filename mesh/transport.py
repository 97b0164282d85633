"""The port to the network: open a stream to a peer under a protocol's name, serve such streams, dial addresses.

`mesh/libp2p.py` implements it on py-libp2p and `mesh/memory.py` in one process, with latency, loss and partitions, for
tests and simulations. Both pass tests/conformance/test_transports.py.

A transport authenticates the peer's identity (nobody can claim another's id) and nothing else: whether a peer is a
member is for `mesh/swarm.py` to find out, before it serves any protocol but the challenge.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

PeerId: TypeAlias = str
"""A peer's stable identity: the base58 form of libp2p's peer id, made from its ed25519 key."""

Address: TypeAlias = str
"""Where a peer may be reached, as a multiaddr without the peer's id: `/ip4/192.168.1.5/tcp/4001`."""


class Stream(Protocol):
    """An ordered, reliable stream of bytes with one peer. At most one task reads and one writes at a time."""

    @property
    def peer(self) -> PeerId:
        """The other side, authenticated."""

    async def send(self, data: bytes) -> None:
        """Send all of `data`, waiting while the other side's window is closed.

        May be cancelled at any time without harm to other streams; this one is then only good for `reset`. Raises
        PeerGone.
        """

    async def receive(self) -> bytes:
        """Some bytes, at least one; b"" when the other side has sent its last.

        An end is not proof of completeness (facts, trap 7): protocols carry end frames of their own. Raises PeerGone
        after a reset or a lost connection. May be cancelled without loss of bytes.
        """

    async def close_write(self) -> None:
        """Send no more; the other side reads to the end and may still answer."""

    async def aclose(self) -> None:
        """Done with it, both ways. Never raises, never waits for long."""

    async def reset(self) -> None:
        """Drop it at once; the other side gets PeerGone. Never raises, never waits for long."""


Handler: TypeAlias = Callable[[Stream], Awaitable[None]]
"""Serves one inbound stream. The stream is closed when it returns and reset when it raises; the host lives on."""


class Transport(Protocol):
    """One node's end of the network."""

    @property
    def peer(self) -> PeerId:
        """This node's own id."""

    def addresses(self) -> tuple[Address, ...]:
        """Where this node listens: addresses that others may dial."""

    def handle(self, protocol: str, handler: Handler) -> None:
        """Serve `protocol` (`/mesh/infer/1`). Before `run`, or later; a second handler replaces the first."""

    def watch(self, *, connected: Callable[[PeerId], None], disconnected: Callable[[PeerId], None]) -> None:
        """Be told, from the trio thread, when the first connection to a peer is there and when the last is gone."""

    def admit(self, gate: Callable[[PeerId], bool]) -> None:
        """Ask `gate` before a connection with a peer is used at all: a banned peer is refused here."""

    async def dial(self, addresses: tuple[Address, ...], expect: PeerId | None, *, timeout_s: float) -> PeerId:
        """Connect to whoever answers at one of `addresses`, and return its id.

        Raises PeerGone when nobody answers in time, NotAMember when the far side refuses this swarm's network key, and
        PeerMisbehaved when the peer is another than `expect`.
        """

    async def open(self, peer: PeerId, protocol: str) -> Stream:
        """A new stream to a connected peer. Raises PeerGone when it is not connected, or refuses `protocol`."""

    async def disconnect(self, peer: PeerId) -> None:
        """Drop all connections to a peer; its streams raise PeerGone. Never raises."""

    def connected(self) -> frozenset[PeerId]:
        """All peers with a connection."""
