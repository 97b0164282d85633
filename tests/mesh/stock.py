"""py-libp2p as it comes, on the same wire: to show what it does without our workarounds, and that both understand
each other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.network.config import RetryConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from mesh.transport import Address, PeerId
from tests.mesh.nodes import NETWORK_KEY

LISTEN = Multiaddr("/ip4/127.0.0.1/tcp/0")


@asynccontextmanager
async def stock_host(network_key: str = NETWORK_KEY) -> AsyncIterator[Any]:
    """A host with py-libp2p's own defaults."""
    host = new_host(key_pair=create_new_key_pair(), listen_addrs=[LISTEN], psk=network_key)
    swarm_of(host).retry_config = RetryConfig(max_retries=0)
    async with host.run([LISTEN]):
        yield host


def swarm_of(host: Any) -> Swarm:
    """Its insides."""
    return cast(Swarm, host.get_network())


def addresses_of(host: Any) -> tuple[Address, ...]:
    """Where it listens, as we write it."""
    return tuple(str(address) for address in host.get_transport_addrs())


def info(peer: PeerId, addresses: tuple[Address, ...]) -> PeerInfo:
    """What it wants for a dial."""
    return PeerInfo(ID.from_base58(peer), [Multiaddr(address) for address in addresses])
