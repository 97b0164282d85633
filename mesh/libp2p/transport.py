"""`mesh.transport.Transport` on py-libp2p."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from mesh.transport import Address, Handler, PeerId, Stream


class Key(Protocol):
    """What this transport needs of `mesh.identity.Identity`."""

    @property
    def peer(self) -> PeerId:
        """The peer id that belongs to the key."""

    @property
    def private_bytes(self) -> bytes:
        """The 32 bytes of the ed25519 private key."""


@dataclass(frozen=True)
class Options:
    """How a node takes part in the network."""

    relay: bool = False
    """Carry peers of this swarm that cannot reach each other (circuit relay v2)."""
    dht: str = ""
    """The swarm's namespace under which a kad-dht is kept for large swarms; empty: none."""


class Libp2pTransport:
    """One node's end of the network. `run` it once; everything else works while it runs."""

    def __init__(
        self, identity: Key, network_key: str, listen: tuple[Address, ...], options: Options = Options()
    ) -> None:
        """`network_key`: 64 hex characters, the same for the whole swarm. `listen`: `/ip4/0.0.0.0/tcp/4001`, …"""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until cancelled. Started once all addresses are bound; raises OSError when one is taken."""
        raise NotImplementedError

    @property
    def peer(self) -> PeerId:
        """This node's own id."""
        raise NotImplementedError

    def addresses(self) -> tuple[Address, ...]:
        """Addresses that others may dial: those of the LAN when it listens on all, and its relayed ones."""
        raise NotImplementedError

    def handle(self, protocol: str, handler: Handler) -> None:
        """Serve `protocol`; a second handler replaces the first."""
        raise NotImplementedError

    def watch(self, *, connected: Callable[[PeerId], None], disconnected: Callable[[PeerId], None]) -> None:
        """Be told of a peer's first connection and of the loss of its last."""
        raise NotImplementedError

    def admit(self, gate: Callable[[PeerId], bool]) -> None:
        """Ask `gate` before a connection with a peer is used."""
        raise NotImplementedError

    async def dial(self, addresses: tuple[Address, ...], expect: PeerId | None, *, timeout_s: float) -> PeerId:
        """Connect to whoever answers at one of `addresses`."""
        raise NotImplementedError

    async def open(self, peer: PeerId, protocol: str) -> Stream:
        """A new stream to a connected peer."""
        raise NotImplementedError

    async def disconnect(self, peer: PeerId) -> None:
        """Drop all connections to a peer."""
        raise NotImplementedError

    def connected(self) -> frozenset[PeerId]:
        """All peers with a connection."""
        raise NotImplementedError

    def relayed(self, peer: PeerId) -> bool:
        """Whether the peer is reached through a relay only."""
        raise NotImplementedError

    def traffic(self, peer: PeerId) -> tuple[int, int]:
        """Payload bytes sent to and received from a peer since it was first met."""
        raise NotImplementedError

    async def provide(self) -> None:
        """Announce this node under the swarm's namespace in the DHT, until cancelled."""
        raise NotImplementedError

    async def find(self) -> dict[PeerId, tuple[Address, ...]]:
        """Peers that announced themselves under the swarm's namespace in the DHT."""
        raise NotImplementedError
