"""One stream of a connection: the port's Stream, its negotiation, and a stream that carries another connection."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

import trio

from mesh.errors import PeerGone, PeerMisbehaved
from mesh.libp2p.negotiation import MULTISTREAM, PREAMBLE, REFUSED, line, read_line
from mesh.libp2p.yamux import Event, Flow
from mesh.transport import PeerId, Stream

if TYPE_CHECKING:
    from mesh.libp2p.link import Link

HIGH_WATER_BYTES = 256 * 1024
"""Senders wait while more than this is queued for one connection."""
MAX_PROPOSALS = 8


class LinkStream(Stream):
    """One stream of a link: the port's Stream."""

    def __init__(self, link: Link, flow: Flow) -> None:
        self._link, self._flow, self._mux = link, flow, link.mux
        self._readable: trio.Event | None = None
        self._writable: trio.Event | None = None
        self._lost = False
        self.left_at = inf

    @property
    def peer(self) -> PeerId:
        """The other side."""
        return self._link.peer

    @property
    def left(self) -> bool:
        """Whether it has been closed here."""
        return self.left_at < inf

    async def send(self, data: bytes) -> None:
        """Send all of it; returns when it is queued."""
        view, link, flow = memoryview(data), self._link, self._flow
        await trio.lowlevel.checkpoint()
        while view:
            if self._lost or flow.reset:
                raise self._gone()
            if flow.finished:
                raise PeerGone("This side has ended its half of the stream.")
            if flow.window <= 0:
                self._writable = trio.Event()
                await self._writable.wait()
            elif self._mux.out_bytes > HIGH_WATER_BYTES:
                await link.room()
            else:
                count = self._mux.send(flow, view)
                link.sent_bytes += count
                view = view[count:]
                link.send_soon()

    async def receive(self) -> bytes:
        """What has come; b"" at the end."""
        flow = self._flow
        await trio.lowlevel.checkpoint()
        while not flow.buffer:
            if flow.reset or (self._lost and not flow.ended):
                raise self._gone()
            if flow.ended:
                return b""
            await self._wait_readable()
        self._link.received_bytes += len(flow.buffer)
        data = self._mux.take(flow)
        if self._mux.out:
            self._link.send_soon()
        return data

    async def close_write(self) -> None:
        """Send no more."""
        await trio.lowlevel.checkpoint()
        if not self._lost:
            self._mux.finish(self._flow)
            self._settle()

    async def aclose(self) -> None:
        """Done with it. The other side's end is waited for in the background, for a while."""
        if not self._lost:
            self._mux.leave(self._flow)
            self.left_at = trio.current_time()
            self._settle()
        self._notify()

    async def reset(self) -> None:
        """Drop it."""
        self.drop()

    # Negotiation, for transport.py

    async def propose(self, protocol: str) -> bool:
        """Ask for `protocol`; False when the peer does not serve it."""
        await self.send(PREAMBLE + line(protocol))
        if await self._line() != MULTISTREAM:
            raise PeerMisbehaved("The peer does not speak multistream-select.")
        return await self._line() == protocol

    async def answer(self, serves: Callable[[str], bool]) -> str:
        """Wait for a proposal that `serves` accepts, and accept it. Raises PeerGone or PeerMisbehaved."""
        if await self._line() != MULTISTREAM:
            raise PeerMisbehaved("The peer does not speak multistream-select.")
        reply = PREAMBLE
        if read_line(self._flow.buffer) is None:
            # One that proposes nothing before it has seen our first line, as py-libp2p does.
            await self.send(reply)
            reply = b""
        for _ in range(MAX_PROPOSALS):
            proposed = await self._line()
            if serves(proposed):
                await self.send(reply + line(proposed))
                return proposed
            await self.send(reply + line(REFUSED))
            reply = b""
        raise PeerMisbehaved("The peer proposes protocols without end.")

    async def read_exactly(self, count: int) -> bytes:
        """So many bytes, leaving what follows to `receive`. Raises PeerGone at an end before."""
        while len(self._flow.buffer) < count:
            await self._more()
        data = bytes(self._flow.buffer[:count])
        self._mux.skip(self._flow, count)
        return data

    async def _line(self) -> str:
        while (found := read_line(self._flow.buffer)) is None:
            await self._more()
        text, count = found
        self._mux.skip(self._flow, count)
        return text

    async def _more(self) -> None:
        if self._lost or self._flow.reset or self._flow.ended:
            raise self._gone()
        await self._wait_readable()

    async def _wait_readable(self) -> None:
        self._readable = trio.Event()
        await self._readable.wait()

    # For Link

    def event(self, event: Event) -> None:
        """The peer did something."""
        if event is Event.WRITABLE:
            if self._writable is not None:
                self._writable.set()
        else:
            self._settle()
            self._notify()

    def drop(self) -> None:
        """Reset it, at once."""
        if not self._lost:
            self._mux.reset(self._flow)
            self._settle()
        self._notify()

    def broken(self) -> None:
        """The connection is lost. What has arrived may still be read."""
        self._lost = True
        self._notify()

    def _settle(self) -> None:
        """After a change of state: let the link forget it when the muxer has, and send what there is."""
        if self._flow.id not in self._mux.flows:
            self._link.forget(self._flow)
        if self._mux.out:
            self._link.send_soon()

    def _notify(self) -> None:
        if self._readable is not None:
            self._readable.set()
        if self._writable is not None:
            self._writable.set()

    def _gone(self) -> PeerGone:
        if self._lost:
            return PeerGone(f"The connection with {self.peer} is lost.")
        return PeerGone(
            f"{self.peer} reset the stream." if self._flow.reset else f"{self.peer} ended the stream early."
        )


class Pipe(trio.abc.Stream):
    """A stream as the bare connection beneath another one: what a relayed connection runs on."""

    def __init__(self, stream: LinkStream) -> None:
        self.stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """All of it."""
        await self.stream.send(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """Not asked by anyone here."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What there is; b"" at the end."""
        return await self.stream.receive()

    async def aclose(self) -> None:
        """Drop the stream: a connection has no half-closed state worth keeping."""
        await self.stream.aclose()
        await trio.lowlevel.checkpoint()
