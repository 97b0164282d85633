"""Connections and streams of the simulated network in `mesh/memory.py`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from mesh.errors import PeerGone
from mesh.transport import PeerId

if TYPE_CHECKING:
    from mesh.memory import MemoryTransport, Network

_READ_BYTES = 64 << 10


class Connection:
    """Between two transports. Each side knows of its end on its own."""

    def __init__(self, network: Network, one: MemoryTransport, two: MemoryTransport) -> None:
        self.network = network
        self._sides = (one, two)
        self._streams: dict[MemoryTransport, set[MemoryStream]] = {one: set(), two: set()}

    def other(self, side: MemoryTransport) -> MemoryTransport:
        return self._sides[self._sides[0] is side]

    def transmit(self, side: MemoryTransport, action: Callable[..., None], *args: Any) -> None:
        """From one side to the other."""
        self.network.transmit(side.peer, self.other(side).peer, action, *args)

    async def open(self, side: MemoryTransport, protocol: str) -> MemoryStream:
        other = self.other(side)
        near, far = MemoryStream(self, side), MemoryStream(self, other)
        near.far, far.far = far, near
        self._streams[side].add(near)
        self.transmit(side, self._opened, far, protocol)
        try:
            await near.answered.wait()
        except trio.Cancelled:
            near.break_off()
            raise
        if near.broken:
            raise PeerGone(f"{other.peer} is gone, or does not serve {protocol}.")
        return near

    def _opened(self, far: MemoryStream, protocol: str) -> None:
        assert far.far is not None
        side = far.side
        if self not in side.connections.get(far.peer, ()) or not side.serve(far, protocol):
            self.transmit(side, far.far.broke)
            return
        self._streams[side].add(far)
        self.transmit(side, far.far.answered.set)

    def close(self, side: MemoryTransport) -> None:
        """One side drops it; the other learns of it, unless there is silence."""
        self.lost(side)
        other = self.other(side)
        self.transmit(side, self.lost, other)

    def lost(self, side: MemoryTransport) -> None:
        """One side learns that it is gone."""
        for stream in list(self._streams[side]):
            stream.broke()
        side.lost(self)

    def streams(self, side: MemoryTransport) -> frozenset[MemoryStream]:
        """Those that one side still holds."""
        return frozenset(self._streams[side])

    def forget(self, stream: MemoryStream) -> None:
        self._streams[stream.side].discard(stream)


class MemoryStream:
    """One side of a stream."""

    def __init__(self, connection: Connection, side: MemoryTransport) -> None:
        self.side = side
        self.far: MemoryStream | None = None
        self.answered = trio.Event()
        self.broken = False
        self._connection = connection
        self._peer = connection.other(side).peer
        self._unread: deque[bytes] = deque()
        self._sent_all = False
        self._received_all = False
        self._outstanding_bytes = 0  # sent and not read
        self._news = trio.Event()  # for the reader
        self._room = trio.Event()  # for the writer

    @property
    def peer(self) -> PeerId:
        return self._peer

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while True:
            self._check()
            if self._sent_all:
                raise PeerGone("This side of the stream is closed.")
            room = self._connection.network.window_bytes - self._outstanding_bytes
            if view and room > 0:
                piece, view = bytes(view[:room]), view[room:]
                self._outstanding_bytes += len(piece)
                self.side.sent_bytes += len(piece)
                self.side.sends += 1
                assert self.far is not None
                self._connection.transmit(self.side, self.far._arrived, piece)
            if not view:
                return
            self._room = trio.Event()
            await self._room.wait()

    async def receive(self) -> bytes:
        while not self._unread:
            if self._received_all and not self.broken:
                await trio.lowlevel.checkpoint()
                return b""
            self._check()
            self._news = trio.Event()
            await self._news.wait()
        await trio.lowlevel.checkpoint()
        pieces, size = [], 0
        while self._unread and size < _READ_BYTES:
            pieces.append(self._unread.popleft())
            size += len(pieces[-1])
        assert self.far is not None
        self.far._read(size)
        return b"".join(pieces)

    async def close_write(self) -> None:
        await trio.lowlevel.checkpoint()
        self._finish()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self._finish()
        self._received_all = True
        self._unread.clear()
        self._done()
        self._news.set()

    async def reset(self) -> None:
        self.break_off()
        await trio.lowlevel.checkpoint()

    def break_off(self) -> None:
        """`reset`, from where nothing can be awaited."""
        if not self.broken and not (self._sent_all and self._received_all):
            assert self.far is not None
            self._connection.transmit(self.side, self.far.broke)
        self.broke()

    def broke(self) -> None:
        """Learn of a reset or a lost connection."""
        self.broken = True
        self._unread.clear()
        self._connection.forget(self)
        for event in (self.answered, self._news, self._room):
            event.set()

    def _finish(self) -> None:
        if not self._sent_all and not self.broken:
            self._sent_all = True
            assert self.far is not None
            self._connection.transmit(self.side, self.far._ended)
            self._done()

    def _arrived(self, data: bytes) -> None:
        if self.broken or self._received_all:
            if not self.broken:  # nobody will read it: the sender learns by a reset, as TCP would tell it
                assert self.far is not None
                self._connection.transmit(self.side, self.far.broke)
            return
        self.side.received_bytes += len(data)
        self._unread.append(data)
        self._news.set()

    def _ended(self) -> None:
        self._received_all = True
        self._done()
        self._news.set()

    def _read(self, size: int) -> None:
        self._outstanding_bytes -= size
        self._room.set()

    def _done(self) -> None:
        if self._sent_all and self._received_all:
            self._connection.forget(self)

    def _check(self) -> None:
        if self.broken:
            raise PeerGone(f"The stream with {self._peer} broke.")
