"""Real libp2p nodes on loopback, and a cable between them that can be cut."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import trio
import trio.testing

from mesh.errors import PeerGone
from mesh.identity import Identity
from mesh.libp2p import Libp2pTransport, Options
from mesh.transport import Address, Stream

NETWORK_KEY = "5a" * 32
LOOPBACK: tuple[Address, ...] = ("/ip4/127.0.0.1/tcp/0",)
ECHO = "/test/echo/1"


async def echo(stream: Stream) -> None:
    """Send back whatever comes."""
    while data := await stream.receive():
        await stream.send(data)


class Watched:
    """A transport's connections, as its callbacks tell of them."""

    def __init__(self, transport: Libp2pTransport) -> None:
        self.events: list[tuple[str, str]] = []
        self._changed = trio.Event()
        transport.watch(
            connected=lambda peer: self._note("connected", peer),
            disconnected=lambda peer: self._note("disconnected", peer),
        )

    def _note(self, event: str, peer: str) -> None:
        self.events.append((event, peer))
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, event: str, count: int = 1) -> None:
        """Wait for the `count`-th event of that kind."""
        while sum(kind == event for kind, _ in self.events) < count:
            await self._changed.wait()


@asynccontextmanager
async def running(
    *transports: Libp2pTransport,
) -> AsyncIterator[None]:
    """Run transports that were made beforehand."""
    async with trio.open_nursery() as nursery:
        for transport in transports:
            await nursery.start(transport.run)
        yield
        nursery.cancel_scope.cancel()


def node(
    identity: Identity | None = None,
    *,
    listen: tuple[Address, ...] = LOOPBACK,
    network_key: str = NETWORK_KEY,
    relay: bool = False,
) -> Libp2pTransport:
    """A transport that echoes."""
    transport = Libp2pTransport(identity or Identity.generate(), network_key, listen, Options(relay=relay))
    transport.handle(ECHO, echo)
    return transport


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Libp2pTransport, Libp2pTransport]]:
    """Two nodes, the first of which has dialled the second."""
    left, right = node(), node()
    async with running(left, right):
        assert await left.dial(right.addresses(), right.peer, timeout_s=5) == right.peer
        yield left, right


async def echoes(transport: Libp2pTransport, peer: str, data: bytes = b"hello") -> bool:
    """Whether a new stream to `peer` carries data both ways."""
    try:
        stream = await transport.open(peer, ECHO)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send(data)
                await stream.close_write()

            nursery.start_soon(send)
            return await read_all(stream) == data
    except* PeerGone:
        pass
    return False


async def read_all(stream: Stream) -> bytes:
    """All there is."""
    parts = []
    while data := await stream.receive():
        parts.append(data)
    await stream.aclose()
    return b"".join(parts)


async def reconnect(times: int) -> tuple[int, int, int]:
    """Connect, use and drop a connection so many times; the growth of tasks, descriptors and connection slots.

    tests/bench calls it with 500.
    """
    left, right = node(), node()
    watched = Watched(right)
    process = psutil.Process()
    async with running(left, right):
        before = (0, 0)
        for count in range(1, times + 2):
            await left.dial(right.addresses(), right.peer, timeout_s=5)
            assert await echoes(left, right.peer)
            await left.disconnect(right.peer)
            await watched.until("disconnected", count)
            await trio.testing.wait_all_tasks_blocked(0.005)
            now = trio.lowlevel.current_statistics().tasks_living, process.num_fds()
            if count == 1:
                before = now
        return now[0] - before[0], now[1] - before[1], len(right._pending) + len(right.connected())


class Cable:
    """Forwards TCP connections to a node, until it is cut: then bytes vanish and nobody is told."""

    def __init__(self, target: Address) -> None:
        self._port = int(target.rsplit("/", 1)[1])
        self._whole = trio.Event()
        self._whole.set()
        self.address: Address = ""

    def cut(self) -> None:
        """As pulling it out."""
        self._whole = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._carry, listeners)

    async def _carry(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", self._port)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, near, far)
            await self._copy(far, near)
            nursery.cancel_scope.cancel()

    async def _copy(self, source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some():
                await self._whole.wait()
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
