"""`mesh.transport.Transport` on libp2p's protocols: the table of connections, and how they come and go.

Two nodes that dial each other at once get two connections. Both work; then both sides prefer the same one (a direct one
to a relayed one, then the one dialled by the lower id, then the newer), make sure that it is alive, and open no more
streams on the other, which is closed when its streams have ended.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from mesh.errors import PeerError, PeerGone, PeerMisbehaved
from mesh.libp2p.addresses import dialable, parse
from mesh.libp2p.dialling import Dialler
from mesh.libp2p.link import Link
from mesh.libp2p.pending import Pending
from mesh.libp2p.stream import LinkStream
from mesh.transport import Address, Handler, PeerId, Stream, Transport

if TYPE_CHECKING:
    from mesh.libp2p.relay import Relay
    from mesh.libp2p.secure import Secured, Security

log = logging.getLogger(__name__)

OPEN_S = 5.0
"""How long a peer may take to accept or refuse a stream."""
NEGOTIATE_S = 10.0
"""How long a peer may take to say which protocol a stream of its is for."""
ALIVE_S = 2.0
"""How long a connection has to show that it lives, before another is given up for it."""
RETIRE_S = 5.0
"""How long a connection that is no longer preferred stays without streams, before it is closed."""
TICK_S = 1.0
MAX_LINKS = 512
MAX_LINKS_PER_PEER = 4
ADDRESSES_S = 5.0
"""How long the list of this machine's addresses is taken as current."""


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


class Libp2pTransport(Transport):
    """One node's end of the network. `run` it once; all else but `handle`, `watch` and `admit` works while it runs."""

    def __init__(
        self, identity: Key, network_key: str, listen: tuple[Address, ...], options: Options = Options()
    ) -> None:
        """`network_key`: 64 hex characters, the same for the whole swarm. `listen`: `/ip4/0.0.0.0/tcp/4001`, …"""
        self._identity, self._network_key = identity, network_key
        self._listen = tuple(parse(address) for address in listen)
        self._options = options
        self._bound: list[tuple[str, int]] = []
        self._known: tuple[float, tuple[Address, ...]] = (0.0, ())
        self._links: dict[PeerId, list[Link]] = {}
        self._handlers: dict[str, Handler] = {}
        self._connected: Callable[[PeerId], None] = _ignore
        self._disconnected: Callable[[PeerId], None] = _ignore
        self._gate: Callable[[PeerId], bool] = _anyone
        self.carries: Callable[[PeerId], bool] = _anyone
        self._pending = Pending()
        self._traffic: dict[PeerId, tuple[int, int]] = {}
        self._nursery: trio.Nursery | None = None
        self._security: Security
        self._relay: Relay
        self._dialler: Dialler

    # The port

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until cancelled. Started once all addresses are bound; raises OSError when one is taken."""
        # Importing py-libp2p takes 1.4 s: not in the event loop, and not before a mesh is wanted.
        secure = await trio.to_thread.run_sync(importlib.import_module, "mesh.libp2p.secure")
        relay = await trio.to_thread.run_sync(importlib.import_module, "mesh.libp2p.relay")
        self._security = secure.Security(self._identity.private_bytes, self._network_key)
        self._relay = relay.Relay(self, serves=self._options.relay)
        self._dialler = Dialler(self._security, self._relay.connect)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for endpoint in self._listen:
                    listeners = await trio.open_tcp_listeners(endpoint.port, host=endpoint.host)
                    self._bound += [listener.socket.getsockname()[:2] for listener in listeners]
                    nursery.start_soon(trio.serve_listeners, self._accept, listeners)
                nursery.start_soon(self._tick)
                task_status.started()
        finally:
            self._nursery = None
            self._bound.clear()

    @property
    def peer(self) -> PeerId:
        """This node's own id."""
        return self._identity.peer

    def addresses(self) -> tuple[Address, ...]:
        """Addresses that others may dial: those of the LAN when it listens on all, and those at its relays."""
        known_at, known = self._known
        if self._bound and (not known or trio.current_time() > known_at + ADDRESSES_S):
            known = tuple(dict.fromkeys(a for host, port in self._bound for a in dialable(host, port)))
            self._known = trio.current_time(), known
        return known + self._relay.addresses() if self._bound else ()

    def handle(self, protocol: str, handler: Handler) -> None:
        """Serve `protocol`; a second handler replaces the first."""
        self._handlers[protocol] = handler

    def watch(self, *, connected: Callable[[PeerId], None], disconnected: Callable[[PeerId], None]) -> None:
        """Be told of a peer's first connection and of the loss of its last."""
        self._connected, self._disconnected = connected, disconnected

    def admit(self, gate: Callable[[PeerId], bool]) -> None:
        """Ask `gate` before a connection with a peer is used."""
        self._gate = gate

    async def dial(self, addresses: tuple[Address, ...], expect: PeerId | None, *, timeout_s: float) -> PeerId:
        """Connect to whoever answers at one of `addresses`, and return its id. A connected peer is not dialled again,
        unless it is connected through a relay and may be reached without."""
        link = self._best(expect) if expect is not None else None
        if link is not None and not link.relayed:
            await trio.lowlevel.checkpoint()
            return link.peer
        direct_only = link is not None
        link = await self._dialler.dial(addresses, expect, timeout_s=timeout_s, direct_only=direct_only)
        if not self._gate(link.peer):
            self._spawn(link, keep=False)
            raise PeerGone(f"This node does not let {link.peer} in.")
        self._spawn(link, keep=True)
        return link.peer

    async def open(self, peer: PeerId, protocol: str) -> Stream:
        """A new stream to a connected peer."""
        link = self._best(peer)
        if link is None:
            await trio.lowlevel.checkpoint()
            raise PeerGone(f"{peer} is not connected.")
        stream = link.open()
        accepted = None
        try:
            with trio.move_on_after(OPEN_S):
                accepted = await stream.propose(protocol)
        except PeerMisbehaved as error:
            raise PeerGone(f"{peer} does not negotiate as it should.") from error
        finally:
            if not accepted:
                stream.drop()
        if accepted:
            return stream
        raise PeerGone(f"{peer} did not answer in time." if accepted is None else f"{peer} does not serve {protocol}.")

    async def disconnect(self, peer: PeerId) -> None:
        """Drop all connections to a peer, and wait until they are dropped: at most about a second."""
        links = list(self._links.get(peer, ()))
        for link in links:
            link.close()
        for link in links:
            await link.lost.wait()
        await trio.lowlevel.checkpoint()

    def connected(self) -> frozenset[PeerId]:
        """All peers with a connection."""
        return frozenset(self._links)

    # Beyond the port

    def relayed(self, peer: PeerId) -> bool:
        """Whether the peer is reached through a relay only."""
        links = self._links.get(peer, ())
        return bool(links) and all(link.relayed for link in links)

    def links_of(self, peer: PeerId) -> tuple[Link, ...]:
        """Its connections, oldest first, each with its address; for tests and `mesh doctor`."""
        return tuple(self._links.get(peer, ()))

    def traffic(self, peer: PeerId) -> tuple[int, int]:
        """Payload bytes sent to and received from a peer since it was first met."""
        sent, received = self._traffic.get(peer, (0, 0))
        for link in self._links.get(peer, ()):
            sent, received = sent + link.sent_bytes, received + link.received_bytes
        return sent, received

    async def reserve(self, relay: PeerId) -> None:
        """Ask a connected peer that relays to carry connections to this node; `addresses` then tells of it. It is
        renewed, and asked for again at every reconnection. Raises PeerGone when the peer does not relay."""
        await self._relay.reserve(relay)

    def carry(self, allowed: Callable[[PeerId], bool]) -> None:
        """As a relay, carry only peers that `allowed` accepts (members); without it all that hold the network key."""
        self.carries = allowed

    def background(self, run: Callable[[PeerId], Awaitable[None]], peer: PeerId) -> None:
        """For the relay: a task that lives as long as this transport at most."""
        if self._nursery is not None:
            self._nursery.start_soon(run, peer)

    # Connections

    async def _accept(self, stream: trio.SocketStream) -> None:
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:
            await trio.aclose_forcefully(stream)
            return
        await self.accept_over(stream, host, f"{host}:{port}", relayed=False)

    async def accept_over(self, stream: trio.abc.Stream, host: str, address: str, *, relayed: bool) -> None:
        """Take in one inbound connection, and drive it until it ends. Returns then; never raises."""
        secured: Secured | None = None
        try:
            with self._pending.handshake(host):
                secured = await self._security.accept(stream, lambda peer: peer != self.peer and self._gate(peer))
        except PeerError as error:
            log.debug("refused %s: %s", address, error)
        finally:
            if secured is None:
                await trio.aclose_forcefully(stream)
        if secured is not None and sum(map(len, self._links.values())) < MAX_LINKS:
            link = Link(secured, dialled=False, relayed=relayed, address=address)
            self._register(link)
            await self._drive(link)

    def _spawn(self, link: Link, *, keep: bool) -> None:
        if self._nursery is None:
            raise PeerGone("The network of this node does not run.")
        if keep:
            self._register(link)
        else:
            link.close()
        self._nursery.start_soon(self._drive, link)

    def _register(self, link: Link) -> None:
        links = self._links.setdefault(link.peer, [])
        links.append(link)
        if len(links) > MAX_LINKS_PER_PEER:
            links[0].close()
        if len(links) == 1:
            self._connected(link.peer)
            self._relay.connected(link.peer)
        elif self._nursery is not None:
            self._nursery.start_soon(self._settle, link.peer)

    async def _drive(self, link: Link) -> None:
        await link.run(self._opened, lambda: self._remove(link))

    def _remove(self, link: Link) -> None:
        links = self._links.get(link.peer, [])
        if link not in links:
            return
        links.remove(link)
        sent, received = self._traffic.get(link.peer, (0, 0))
        self._traffic[link.peer] = sent + link.sent_bytes, received + link.received_bytes
        if not links:
            del self._links[link.peer]
            self._relay.disconnected(link.peer)
            self._disconnected(link.peer)
        elif all(other.retired for other in links):
            links[-1].retired = False

    def _best(self, peer: PeerId) -> Link | None:
        """The newest connection that is not retired: while two are being settled, both work."""
        links = [link for link in self._links.get(peer, ()) if not (link.retired or link.closing)]
        direct = [link for link in links if not link.relayed]
        return (direct or links)[-1] if links else None

    async def _settle(self, peer: PeerId) -> None:
        """Of several connections with a peer keep one, the same one as the peer does, if it is alive."""
        links = [link for link in self._links.get(peer, ()) if not (link.retired or link.closing)]
        if len(links) < 2:
            return
        by_lower = self.peer < peer
        winner = max(links, key=lambda link: (not link.relayed, link.dialled == by_lower, links.index(link)))
        if await winner.alive(ALIVE_S):
            for link in links:
                link.retired = link is not winner
        else:
            winner.close()

    async def _tick(self) -> None:
        last = trio.current_time()
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            late = now > last + 3 * TICK_S
            last = now
            for links in list(self._links.values()):
                for link in list(links):
                    if late:
                        link.excuse(now)
                    link.tick(now)
                    if link.retired and not link.streams and now > link.idle_since + RETIRE_S:
                        link.close()
            self._relay.tick(now)

    # Streams

    def _opened(self, stream: LinkStream) -> None:
        if self._nursery is None:
            stream.drop()
        else:
            self._nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: LinkStream) -> None:
        """One inbound stream. Nothing that a handler raises leaves this task (facts, trap 2)."""
        done = False
        try:
            with trio.move_on_after(NEGOTIATE_S) as scope:
                protocol = await stream.answer(self._handlers.__contains__)
            if not scope.cancelled_caught:
                await self._handlers[protocol](stream)
                done = True
        except PeerError as error:
            log.debug("a stream of %s ended: %s", stream.peer, error)
        except Exception:
            log.exception("a handler failed on a stream of %s", stream.peer)
        finally:
            if not done:
                stream.drop()
        if done:
            await stream.aclose()


def _ignore(_: PeerId) -> None:
    pass


def _anyone(_: PeerId) -> bool:
    return True
