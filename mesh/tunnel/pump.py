"""The bytes of one tunnel over its mesh stream, and the count of what goes through tunnels."""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import trio

from mesh.errors import PeerError, PeerGone
from mesh.transport import Stream

PIECE_BYTES = 64 << 10
"""Of one write; see mesh/libp2p."""

_BREAK = struct.pack("ii", 1, 0)  # SO_LINGER: close is a reset


@dataclass(slots=True)
class Traffic:
    """What has gone through, as this side sees it."""

    sent_bytes: int = 0
    received_bytes: int = 0
    round_trips: int = 0
    """How often this side began to receive after it had sent."""
    _asked: bool = False

    def sent(self, count: int) -> None:
        """So much has left."""
        self.sent_bytes += count
        self._asked = True

    def received(self, count: int) -> None:
        """So much has come."""
        self.received_bytes += count
        self.round_trips += self._asked
        self._asked = False

    def add(self, other: Traffic) -> None:
        """Count another's, too."""
        self.sent_bytes += other.sent_bytes
        self.received_bytes += other.received_bytes
        self.round_trips += other.round_trips


class Meter:
    """The traffic of several tunnels together, those that have ended and those that run."""

    def __init__(self) -> None:
        self._ended = Traffic()
        self._running: list[Callable[[], Traffic]] = []

    @property
    def traffic(self) -> Traffic:
        """So far."""
        total = Traffic()
        for part in (self._ended, *(read() for read in self._running)):
            total.add(part)
        return total

    @contextmanager
    def counting(self, read: Callable[[], Traffic]) -> Iterator[None]:
        """A tunnel runs, whose traffic so far `read` tells."""
        self._running.append(read)
        try:
            yield
        finally:
            self._running.remove(read)
            self._ended.add(read())


async def pump(near: trio.SocketStream, far: Stream, rest: bytes, meter: Meter) -> None:
    """Carry bytes both ways until both have ended, or one breaks: then both do. `rest` has come from `far` already.

    `meter` counts as `near`'s side sees it.
    """
    traffic = Traffic()
    broken = False

    async def outward() -> None:
        while True:
            # What is ready goes out together: a message written in three pieces costs one send, not three.
            await trio.lowlevel.wait_readable(near.socket)
            await trio.lowlevel.checkpoint()
            data = await near.receive_some(PIECE_BYTES)
            if not data:
                await far.close_write()
                return
            traffic.sent(len(data))
            await far.send(data)

    async def inward() -> None:
        data = rest
        while True:
            if data:
                traffic.received(len(data))
                await near.send_all(data)
            data = await far.receive()
            if not data:
                await near.send_eof()
                return

    with meter.counting(lambda: traffic):
        async with trio.open_nursery() as nursery:

            async def guarded(direction: Callable[[], Awaitable[None]]) -> None:
                nonlocal broken
                try:
                    await direction()
                except (PeerGone, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                    broken = True
                    nursery.cancel_scope.cancel()

            nursery.start_soon(guarded, outward)
            nursery.start_soon(guarded, inward)
    if broken:
        break_off(near)
        await far.reset()
    else:
        await far.aclose()


def break_off(near: trio.SocketStream) -> None:
    """Make of the close that follows a reset: what came through was not all."""
    with suppress(OSError):
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _BREAK)


async def unless(event: trio.Event, action: Callable[[], Awaitable[None]]) -> bool:
    """Run `action`, but no longer than until `event`. Whether it came to its end. Raises what `action` raises."""
    done = False
    failure: PeerError | None = None
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(stop)
        try:
            await action()
            done = True
        except PeerError as error:  # raised below, so that no ExceptionGroup wraps it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return done
