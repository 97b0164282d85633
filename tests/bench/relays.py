"""A plain TCP relay on loopback that counts: what a program says to a server that no tunnel leads to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import trio

from mesh.tunnel import Traffic


@dataclass
class Relay:
    """A port that leads to another."""

    port: int
    counter: Traffic = field(default_factory=Traffic)

    @property
    def traffic(self) -> Traffic:
        """What has gone through so far."""
        return replace(self.counter)


@asynccontextmanager
async def counted(ports: Sequence[int]) -> AsyncIterator[list[Relay]]:
    """A relay to each of these ports."""
    async with trio.open_nursery() as nursery:
        relays = []
        for port in ports:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            relay = Relay(listener.socket.getsockname()[1])
            relays.append(relay)
            nursery.start_soon(_serve, listener, port, relay.counter)
        yield relays
        nursery.cancel_scope.cancel()


async def _serve(listener: trio.SocketListener, port: int, traffic: Traffic) -> None:
    async def one(near: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as far, trio.open_nursery() as nursery:
            nursery.start_soon(_copy, near, far, traffic.sent)
            nursery.start_soon(_copy, far, near, traffic.received)

    await trio.serve_listeners(one, [listener])


async def _copy(source: trio.SocketStream, target: trio.SocketStream, count: Callable[[int], None]) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            count(len(data))
            await target.send_all(data)
        await target.send_eof()
