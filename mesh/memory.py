"""A network in one process, for tests and simulations: latency, closed windows, lost connections, silence, partitions.

    network = Network(latency_s=0.002)
    a, b = network.join("A"), network.join("B")         # transports, as mesh/transport.py has them
    nursery.start_soon(network.run)
    await nursery.start(a.run)
    await nursery.start(b.run)
    network.partition({"A"}, {"B"})                     # nothing arrives, nobody is told
    network.heal()                                      # what was under way arrives now

It keeps to trio's clock, so under a MockClock simulated minutes take no time. It behaves as TCP does: what is sent into
silence is not lost but late, a window of unread bytes closes, and whoever crashed answers with a reset as long as its
machine is there. Streams arrive whole and in order, or break.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import trio

from mesh.errors import NotAMember, PeerGone, PeerMisbehaved
from mesh.memory_streams import Connection, MemoryStream
from mesh.transport import Address, Handler, PeerId, Stream

_log = logging.getLogger("mesh.memory")

_Arrival: TypeAlias = tuple[Callable[..., None], tuple[Any, ...]]


class Network:
    """All links between all transports that joined."""

    def __init__(self, *, latency_s: float = 0.001, window_bytes: int = 256 << 10) -> None:
        """`latency_s` is one way, unless `set_latency` says otherwise; `window_bytes` may be unread per stream."""
        self.window_bytes = window_bytes
        self.dials: Counter[Address] = Counter()
        """Attempts, by address."""
        self._latency_s = latency_s
        self._latencies: dict[frozenset[PeerId], float] = {}
        self._listening: dict[Address, MemoryTransport] = {}
        self._transports: dict[PeerId, MemoryTransport] = {}
        self._groups: dict[PeerId, int] = {}
        self._silent: set[PeerId] = set()
        self._held: dict[tuple[PeerId, PeerId], list[_Arrival]] = {}
        self._last: dict[tuple[PeerId, PeerId], float] = {}  # arrival, where latencies were changed
        self._heap: list[tuple[float, int, PeerId, PeerId, _Arrival]] = []
        self._order = itertools.count()
        self._hosts = itertools.count(1)
        self._kick = trio.Event()
        self._next = math.inf

    def join(
        self, peer: PeerId, *, addresses: tuple[Address, ...] | None = None, network_key: str = ""
    ) -> MemoryTransport:
        """A transport for `peer`; one that it had before is gone from the network. Without addresses it gets one."""
        if peer in self._transports:
            self.crash(peer)
        if addresses is None:
            host = next(self._hosts)
            addresses = (f"/ip4/10.{host >> 16}.{host >> 8 & 255}.{host & 255}/tcp/4001",)
        transport = MemoryTransport(self, peer, addresses, network_key)
        self._transports[peer] = transport
        self._listening |= dict.fromkeys(addresses, transport)
        return transport

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver, until cancelled."""
        task_status.started()
        while True:
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                _, _, source, target, arrival = heapq.heappop(self._heap)
                if arrival[0] != self._flush and self._holds(source, target):
                    self._held.setdefault((source, target), []).append(arrival)
                else:
                    arrival[0](*arrival[1])
            self._next = self._heap[0][0] if self._heap else math.inf
            self._kick = trio.Event()
            with trio.move_on_at(self._next):
                await self._kick.wait()

    @property
    def pending(self) -> int:
        """Messages under way, held up ones too."""
        return len(self._heap) + sum(map(len, self._held.values()))

    # -- weather --

    def set_latency(self, one: PeerId, other: PeerId, latency_s: float) -> None:
        """Of one link, one way, for what is sent from now on."""
        self._latencies[frozenset((one, other))] = latency_s

    def latency_s(self, one: PeerId, other: PeerId) -> float:
        """Of one link, one way."""
        return self._latencies.get(frozenset((one, other)), self._latency_s) if self._latencies else self._latency_s

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Silence between the groups; who is in none of them forms one more with the others like it."""
        self._groups = {peer: number for number, group in enumerate(groups, 1) for peer in group}
        self._release()

    def silence(self, peer: PeerId) -> None:
        """Pull its cable."""
        self._silent.add(peer)

    def heal(self) -> None:
        """All cables in, no partition."""
        self._groups.clear()
        self._silent.clear()
        self._release()

    def silent(self, one: PeerId, other: PeerId) -> bool:
        """Whether nothing arrives between the two."""
        return (
            one in self._silent or other in self._silent or self._groups.get(one, 0) != self._groups.get(other, 0)
        ) and one != other

    def cut(self, one: PeerId, other: PeerId) -> None:
        """Break all connections between the two; new ones can be made."""
        for connection in list(self._transports[one].connections.get(other, ())):
            connection.lost(self._transports[one])
            connection.lost(self._transports[other])

    def crash(self, peer: PeerId) -> None:
        """Its process is gone, its machine is not: its connections are reset, and dials refused. Join again after."""
        transport = self._transports.pop(peer)
        transport.down = True
        for address in transport.addresses():
            self._listening.pop(address, None)
        for connection in [connection for all_ in transport.connections.values() for connection in all_]:
            connection.close(transport)

    # -- for the transports --

    def listener(self, address: Address) -> MemoryTransport | None:
        """Who listens there."""
        return self._listening.get(address)

    def transmit(self, source: PeerId, target: PeerId, action: Callable[..., None], *args: Any) -> None:
        """Call `action` at the target's side, one latency from now, in order; later, if there is silence."""
        when = trio.current_time() + self.latency_s(source, target)
        if self._latencies:  # a link that becomes faster does not let the later overtake the earlier
            when = self._last[source, target] = max(when, self._last.get((source, target), 0.0))
        self._schedule(when, source, target, (action, args))

    def _holds(self, source: PeerId, target: PeerId) -> bool:
        return self.silent(source, target) or (bool(self._held) and (source, target) in self._held)

    def _schedule(self, when: float, source: PeerId, target: PeerId, arrival: _Arrival) -> None:
        heapq.heappush(self._heap, (when, next(self._order), source, target, arrival))
        if when < self._next:
            self._next = when
            self._kick.set()

    def _release(self) -> None:
        """What was held arrives one latency from now; until then, what comes later queues behind it."""
        for source, target in self._held:
            when = trio.current_time() + self.latency_s(source, target)
            self._schedule(when, source, target, (self._flush, (source, target)))

    def _flush(self, source: PeerId, target: PeerId) -> None:
        if not self.silent(source, target):
            for action, args in self._held.pop((source, target), ()):
                action(*args)


class MemoryTransport:
    """One node's end: a `mesh.transport.Transport`, with counters."""

    def __init__(self, network: Network, peer: PeerId, addresses: tuple[Address, ...], network_key: str) -> None:
        self.network = network
        self.network_key = network_key
        self.connections: dict[PeerId, list[Connection]] = {}
        self.handlers: dict[str, Handler] = {}
        self.down = False
        self.sent_bytes = 0
        self.received_bytes = 0
        self.sends = 0
        self._peer = peer
        self._addresses = addresses
        self._watchers: list[tuple[Callable[[PeerId], None], Callable[[PeerId], None]]] = []
        self._gate: Callable[[PeerId], bool] = lambda _: True
        self._nursery: trio.Nursery | None = None

    @property
    def peer(self) -> PeerId:
        """This node's own id."""
        return self._peer

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve inbound streams, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def addresses(self) -> tuple[Address, ...]:
        """Where this node listens."""
        return self._addresses

    def handle(self, protocol: str, handler: Handler) -> None:
        """Serve `protocol`."""
        self.handlers[protocol] = handler

    def watch(self, *, connected: Callable[[PeerId], None], disconnected: Callable[[PeerId], None]) -> None:
        """Be told of first and last connections."""
        self._watchers.append((connected, disconnected))

    def admit(self, gate: Callable[[PeerId], bool]) -> None:
        """Ask `gate` before a connection is used."""
        self._gate = gate

    async def dial(self, addresses: tuple[Address, ...], expect: PeerId | None, *, timeout_s: float) -> PeerId:
        """Connect. See the port; a dial into silence is not answered before its time is over."""
        if expect is not None and self.connections.get(expect):
            await trio.lowlevel.checkpoint()
            return expect
        with trio.move_on_after(timeout_s):
            silent = False
            for address in addresses:
                self.network.dials[address] += 1
                other = self.network.listener(address)
                if other is None or self.down:
                    await trio.sleep(2 * self.network.latency_s(self.peer, ""))
                elif self.network.silent(self.peer, other.peer):
                    silent = True
                else:
                    await trio.sleep(2 * self.network.latency_s(self.peer, other.peer))
                    if self.network.silent(self.peer, other.peer):
                        silent = True
                    elif not other.down and not self.down:
                        return self._connect(other, expect)
            if not silent:
                raise PeerGone("Nobody listens there.")
            await trio.sleep_forever()
        raise PeerGone(f"Nobody answered in {timeout_s:g} s.")

    async def open(self, peer: PeerId, protocol: str) -> Stream:
        """A new stream."""
        connections = self.connections.get(peer)
        if not connections or self.down:
            await trio.lowlevel.checkpoint()
            raise PeerGone(f"Not connected to {peer}.")
        return await connections[-1].open(self, protocol)

    async def disconnect(self, peer: PeerId) -> None:
        """Drop all connections to a peer."""
        for connection in list(self.connections.get(peer, ())):
            connection.close(self)
        await trio.lowlevel.checkpoint()

    def connected(self) -> frozenset[PeerId]:
        """All peers with a connection."""
        return frozenset(self.connections)

    def serve(self, stream: MemoryStream, protocol: str) -> bool:
        """Start the handler for a stream that the other side opened; False if there is none."""
        handler = self.handlers.get(protocol)
        if handler is None or self._nursery is None:
            return False
        self._nursery.start_soon(self._serve, handler, stream)
        return True

    def gained(self, connection: Connection) -> None:
        """A connection is there."""
        peer = connection.other(self).peer
        self.connections.setdefault(peer, []).append(connection)
        if len(self.connections[peer]) == 1:
            for connected, _ in self._watchers:
                connected(peer)

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        peer = connection.other(self).peer
        connections = self.connections.get(peer, [])
        if connection in connections:
            connections.remove(connection)
            if not connections:
                del self.connections[peer]
                for _, disconnected in self._watchers:
                    disconnected(peer)

    def _connect(self, other: MemoryTransport, expect: PeerId | None) -> PeerId:
        if other is self:
            return self.peer
        if expect not in (None, other.peer):
            raise PeerMisbehaved(f"Another peer than {expect} answered.")
        if self.network_key != other.network_key:
            raise NotAMember("The far side refuses this swarm's network key.")
        if not self._gate(other.peer) or not other._gate(self.peer):
            raise PeerGone("The far side closed the connection.")
        if other.peer not in self.connections:
            connection = Connection(self.network, self, other)
            other.gained(connection)
            self.gained(connection)
        return other.peer

    async def _serve(self, handler: Handler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
        except Exception:  # noqa: BLE001 (as the port says: the host lives on)
            _log.exception("a handler failed")
            await stream.reset()
        except BaseException:
            stream.break_off()
            raise
        else:
            await stream.aclose()
