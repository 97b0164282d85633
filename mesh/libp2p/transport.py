"""`mesh.transport.Transport` on libp2p's protocols: how connections and streams come about."""

from __future__ import annotations

import errno
import importlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import trio

from mesh.errors import NotAMember, PeerError, PeerGone, PeerMisbehaved
from mesh.libp2p.addresses import dialable, parse
from mesh.libp2p.dialling import Dialler
from mesh.libp2p.link import Link
from mesh.libp2p.pending import Pending
from mesh.libp2p.stream import LinkStream
from mesh.libp2p.table import Table
from mesh.transport import Address, Handler, PeerId, Stream, Transport

if TYPE_CHECKING:
    from mesh.libp2p.dht import Dht
    from mesh.libp2p.relay import Relay
    from mesh.libp2p.secure import Secured, Security

log = logging.getLogger(__name__)

OPEN_S = 5.0
"""How long a peer may take to accept or refuse a stream."""
NEGOTIATE_S = 10.0
"""How long a peer may take to say which protocol a stream of its is for."""
TICK_S = 1.0
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
    any_port: bool = False
    """Listen on any free port where the one that was named is taken."""
    dht: str = ""
    """The swarm's namespace, under which a kad-dht is kept; empty: none. For swarms of hundreds."""


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
        self._table = Table(identity.peer)
        self._handlers: dict[str, Handler] = {}
        self._gate: Callable[[PeerId], bool] = _anyone
        self.trusts: Callable[[PeerId], bool] = _anyone
        self._pending = Pending()
        self._connections: trio.Nursery | None = None
        self._nursery: trio.Nursery | None = None
        self._security: Security
        self._relay: Relay
        self._dht: Dht | None = None
        self._dialler: Dialler

    # The port

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until cancelled. Started once all addresses are bound; raises OSError when one is taken."""
        # Importing py-libp2p takes 1.4 s: not in the event loop, and not before a mesh is wanted.
        secure = await trio.to_thread.run_sync(importlib.import_module, "mesh.libp2p.secure")
        relay = await trio.to_thread.run_sync(importlib.import_module, "mesh.libp2p.relay")
        self._security = secure.Security(self._identity.private_bytes, self._network_key)
        self._relay = relay.Relay(self, serves=self._options.relay)
        self._table.connected.append(self._relay.connected)
        self._table.disconnected.append(self._relay.disconnected)
        self._dialler = Dialler(self._security, self._relay.connect)
        async with trio.open_nursery() as connections:  # they outlive what is served over them: it may have last words
            try:
                async with trio.open_nursery() as nursery:
                    self._connections, self._nursery = connections, nursery
                    for endpoint in self._listen:
                        listeners = await self._bind(endpoint.host, endpoint.port)
                        self._bound += [listener.socket.getsockname()[:2] for listener in listeners]
                        connections.start_soon(
                            partial(trio.serve_listeners, handler_nursery=connections), self._accept, listeners
                        )
                    nursery.start_soon(self._tick)
                    if self._options.dht:
                        dht = await trio.to_thread.run_sync(importlib.import_module, "mesh.libp2p.dht")
                        self._dht = dht.Dht(self, self._identity.private_bytes, self._options.dht)
                        nursery.start_soon(self._dht.run)
                    task_status.started()
            finally:
                self._connections = self._nursery = self._dht = None
                self._bound.clear()
                connections.cancel_scope.cancel()
                self._table.close()

    async def _bind(self, host: str, port: int) -> list[trio.SocketListener]:
        try:
            return await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not self._options.any_port:
                raise
            return await trio.open_tcp_listeners(0, host=host)

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
        self._table.connected.append(connected)
        self._table.disconnected.append(disconnected)

    def admit(self, gate: Callable[[PeerId], bool]) -> None:
        """Ask `gate` before a connection with a peer is used."""
        self._gate = gate

    async def dial(self, addresses: tuple[Address, ...], expect: PeerId | None, *, timeout_s: float) -> PeerId:
        """Connect to whoever answers at one of `addresses`, and return its id. A connected peer is not dialled again,
        unless it is connected through a relay and may be reached without."""
        link = self._table.best(expect) if expect is not None else None
        if link is not None and not link.relayed:
            await trio.lowlevel.checkpoint()
            return link.peer
        direct_only = link is not None
        link = await self._dialler.dial(addresses, expect, timeout_s=timeout_s, direct_only=direct_only)
        if not self._gate(link.peer):
            self._spawn(link, keep=False)
            raise NotAMember(f"This node does not let {link.peer} in.")
        self._spawn(link, keep=True)
        return link.peer

    async def open(self, peer: PeerId, protocol: str) -> Stream:
        """A new stream to a connected peer."""
        link = self._table.best(peer)
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
        links = self._table.of(peer)
        for link in links:
            link.close()
        for link in links:
            await link.lost.wait()
        await trio.lowlevel.checkpoint()

    def connected(self) -> frozenset[PeerId]:
        """All peers with a connection."""
        return self._table.peers()

    # Beyond the port

    def relayed(self, peer: PeerId) -> bool:
        """Whether the peer is reached through a relay only."""
        links = self._table.of(peer)
        return bool(links) and all(link.relayed for link in links)

    def links_of(self, peer: PeerId) -> tuple[Link, ...]:
        """Its connections, oldest first, each with its address; for tests and `mesh doctor`."""
        return self._table.of(peer)

    def traffic(self, peer: PeerId) -> tuple[int, int]:
        """Payload bytes sent to and received from a peer since it was first met."""
        return self._table.traffic(peer)

    async def reserve(self, relay: PeerId) -> None:
        """Ask a connected peer that relays to carry connections to this node; `addresses` then tells of it. It is
        renewed, and asked for again at every reconnection. Raises PeerGone when the peer does not relay."""
        await self._relay.reserve(relay)

    def trust(self, allowed: Callable[[PeerId], bool]) -> None:
        """Relay for, and serve the DHT to, those only that `allowed` accepts; without it all with the network key."""
        self.trusts = allowed

    @property
    def dht(self) -> Dht | None:
        """The swarm's DHT, where the options ask for it, while this transport runs."""
        return self._dht

    def background(self, run: Callable[[PeerId], Awaitable[None]], peer: PeerId) -> None:
        """For the relay and the table: a task that lives as long as this transport at most."""
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
        if secured is not None and self._connections is not None and not self._table.full:
            link = Link(secured, dialled=False, relayed=relayed, address=address)
            self._register(link)
            await self._drive(link)

    def _spawn(self, link: Link, *, keep: bool) -> None:
        if self._connections is None:
            raise PeerGone("The network of this node does not run.")
        if keep:
            self._register(link)
        else:
            link.close()
        self._connections.start_soon(self._drive, link)

    def _register(self, link: Link) -> None:
        if self._table.add(link):
            self.background(self._table.settle, link.peer)

    async def _drive(self, link: Link) -> None:
        await link.run(self._opened, lambda: self._table.remove(link))

    async def _tick(self) -> None:
        last = trio.current_time()
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            late = now > last + 3 * TICK_S
            last = now
            self._table.tick(now, late=late)
            self._relay.tick(now)

    # Streams

    def _opened(self, stream: LinkStream) -> None:
        try:
            if self._nursery is not None:
                self._nursery.start_soon(self._serve, stream)
                return
        except RuntimeError:  # what was served has just ended, while connections live on for their last words
            pass
        stream.drop()

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
            if not done and not stream.left:  # what a handler has ended in peace stays so when this node ends
                stream.drop()
        if done:
            await stream.aclose()


def _anyone(_: PeerId) -> bool:
    return True
