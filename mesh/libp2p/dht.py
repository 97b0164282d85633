"""kad-dht, for swarms that are too large for everybody to know everybody: members announce themselves under a key that
only members can derive, and find each other by it.

This is py-libp2p's KadDHT; it is given just enough of a libp2p host, over our transport. Its messages travel under the
swarm's own protocol name, so that no other DHT can be mixed up with it, and are taken from trusted peers only.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import trio
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from mesh.errors import PeerGone
from mesh.libp2p.addresses import parse
from mesh.transport import Address, PeerId, Stream

if TYPE_CHECKING:
    from mesh.libp2p.transport import Libp2pTransport

log = logging.getLogger(__name__)

DIAL_S = 5.0
FIND_S = 20.0
MAX_FOUND = 64
PROVIDE_S = 600.0
"""How often the announcement is repeated: those that keep it come and go."""
RETRY_S = 5.0
"""How soon it is repeated while nobody has taken it."""


class Dht:
    """This node's part of the swarm's DHT. `run` it while it shall serve."""

    def __init__(self, transport: Libp2pTransport, private_key: bytes, namespace: str) -> None:
        self._host = _Host(transport, private_key, f"/mesh/{namespace}/kad/1.0.0")
        self._key = hashlib.sha256(f"mesh members {namespace}".encode()).digest()
        self._transport = transport
        # Members on one LAN share a subnet: its limit on such would leave most of them out.
        self._dht = KadDHT(cast(IHost, self._host), DHTMode.SERVER, max_peers_per_subnet=0)

    async def run(self) -> None:
        """Serve, until cancelled. An error in it ends the DHT, and not the node."""
        try:
            async with background_trio_service(self._dht):
                await trio.sleep_forever()
        except Exception:
            log.exception("the DHT has failed; it stays off until the next start")

    async def meet(self, peer: PeerId, addresses: tuple[Address, ...]) -> None:
        """Take a trusted peer into the routing table."""
        self._host.learn(peer, addresses)
        await self._dht.routing_table.add_peer(ID.from_base58(peer))

    async def provide(self) -> None:
        """Announce this node until cancelled."""
        while True:
            with trio.move_on_after(FIND_S):
                taken = await self._dht.provider_store.provide(self._key)
            await trio.sleep(PROVIDE_S if taken else RETRY_S)

    async def find(self) -> dict[PeerId, tuple[Address, ...]]:
        """Who has announced itself, as far as the closest to the key know."""
        found: dict[PeerId, tuple[Address, ...]] = {}
        store = self._dht.provider_store
        self._add(found, store.get_providers(self._key))
        with trio.move_on_after(FIND_S):
            # Not its find_providers: that stops at what this node itself knows, which is at least itself.
            closest = await self._dht.peer_routing.find_closest_peers_network(self._key)
            for peer in closest:
                if peer != self._host.get_id() and len(found) < MAX_FOUND:
                    providers, _ = await store._get_providers_from_peer_with_closers(peer, self._key)
                    self._add(found, providers)
        return found

    def _add(self, found: dict[PeerId, tuple[Address, ...]], providers: Sequence[Any]) -> None:
        for info in providers:
            peer = info.peer_id.to_base58()
            if peer != self._transport.peer:
                usable = [plain for each in info.addrs if (plain := _plain(each)) is not None]
                found[peer] = tuple(dict.fromkeys((*found.get(peer, ()), *usable)))


class _Host:
    """What KadDHT asks of a libp2p host."""

    def __init__(self, transport: Libp2pTransport, private_key: bytes, protocol: str) -> None:
        key = Ed25519PrivateKey.from_bytes(private_key)
        self._transport, self._protocol, self._key = transport, protocol, key
        self._id = ID.from_base58(transport.peer)
        self._store = PeerStore()
        self._store.add_key_pair(self._id, KeyPair(key, key.get_public_key()))

    def learn(self, peer: PeerId, addresses: tuple[Address, ...]) -> None:
        self._store.add_addrs(ID.from_base58(peer), [Multiaddr(address) for address in addresses], 7200)

    def get_id(self) -> ID:
        return self._id

    def get_private_key(self) -> Ed25519PrivateKey:
        return self._key

    def get_peerstore(self) -> PeerStore:
        return self._store

    def get_connected_peers(self) -> list[ID]:
        return [ID.from_base58(peer) for peer in self._transport.connected()]

    def get_addrs(self) -> list[Multiaddr]:
        return [Multiaddr(f"{a}/p2p/{self._transport.peer}") for a in self._transport.addresses() if "p2p" not in a]

    def set_stream_handler(self, _: str, handler: Callable[[Any], Awaitable[None]]) -> None:
        async def serve(stream: Stream) -> None:
            if not self._transport.trusts(stream.peer):
                raise PeerGone(f"{stream.peer} is not trusted with the DHT.")
            await handler(_NetStream(stream))

        self._transport.handle(self._protocol, serve)

    def remove_stream_handler(self, _: str) -> None:
        """It serves as long as the transport."""

    async def new_stream(self, peer_id: ID, _: Sequence[str]) -> _NetStream:
        peer = peer_id.to_base58()
        if peer not in self._transport.connected():
            known = [plain for each in self._store.addrs(peer_id) if (plain := _plain(each)) is not None]
            await self._transport.dial(tuple(known), peer, timeout_s=DIAL_S)
        return _NetStream(await self._transport.open(peer, self._protocol))


class _NetStream:
    """A stream of ours as one of py-libp2p's."""

    metric_send_channel = None

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._rest = b""
        self.muxed_conn = SimpleNamespace(peer_id=ID.from_base58(stream.peer))

    async def read(self, count: int | None = None) -> bytes:
        """Up to `count` bytes; b"" at the end."""
        data = self._rest or await self._stream.receive()
        size = len(data) if count is None or count < 0 else count
        self._rest = data[size:]
        return data[:size]

    async def write(self, data: bytes) -> None:
        await self._stream.send(data)

    async def close(self) -> None:
        await self._stream.aclose()

    async def reset(self) -> None:
        await self._stream.reset()


def _plain(address: Multiaddr) -> Address | None:
    """Without the peer's id; None for what our transport cannot dial."""
    text = str(address)
    text = text if text.endswith("/p2p-circuit") else text.partition("/p2p/")[0]
    try:
        parse(text)
    except ValueError:
        return None
    return text
