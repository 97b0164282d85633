"""Yamux (libp2p's stream multiplexer, `/yamux/1.0.0`), sans-IO: many streams in one connection, each with a window.

Why not py-libp2p's own: a cancelled write there desynchronises the connection, a write to a closed window fails after
5 s with an unknown part sent, a reset may be read as a clean end, windows grow to 16 MiB and unread data of dead
streams stays for a minute (facts, traps 3, 4, 7 and 11). The first three come from a muxer that awaits in
the middle of its bookkeeping. Here nothing awaits: `receive` takes what came from the network and says which streams
it concerns; everything to be sent is appended, frame by frame, to `out`. Measured against it in one run, a
round trip costs a third of the CPU time, and a message of a stream a tenth.

Every frame has a header of 12 bytes: version, kind, flags, stream id, and a length, which for DATA counts the bytes
that follow and for WINDOW the credit given. The side that dialled uses odd ids. A stream's life:

    SYN sent or received    open; the other side's ACK is not waited for
    FIN sent                no more from here; the other side may still send       (half-closed)
    FIN received            no more from there, once what is buffered has been taken
    both                    forgotten here
    RST, either way         forgotten at once, and what is buffered is dropped

A stream starts with 256 KiB of credit each way. The receiver gives back what has been taken when half a window has
been, and the first time raises the window to 1 MiB: only streams that carry much, and are read, cost memory.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from mesh.errors import PeerMisbehaved

HEADER = struct.Struct("!BBHII")
FIRST_WINDOW_BYTES = 256 * 1024
WINDOW_BYTES = 1 << 20
MAX_DATA_BYTES = 65_535 - 16 - HEADER.size
"""With its header, a frame of this size fills one Noise message."""
MAX_UNREAD_BYTES = 64 << 20
"""What all streams of one connection may hold unread: a peer within its windows can reach it only on purpose."""
MAX_INBOUND = 256
"""Streams that the other side may have open."""

DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


class Event(IntEnum):
    """What `receive` reports of a stream, or of the connection (stream None)."""

    OPENED = 1
    """The other side opened a stream."""
    READABLE = 2
    """More bytes, an end or a reset."""
    WRITABLE = 3
    """More credit."""
    CLOSED = 4
    """The other side closes the connection."""


class Flow:
    """One stream's bookkeeping. Only `Yamux` changes it."""

    __slots__ = ("buffer", "ended", "finished", "give", "id", "left", "quota", "reset", "room", "window")

    def __init__(self, ident: int) -> None:
        self.id = ident
        self.buffer = bytearray()
        """Received and not yet taken."""
        self.window = FIRST_WINDOW_BYTES
        """Bytes that may be sent now."""
        self.room = FIRST_WINDOW_BYTES
        """Bytes that the other side may send now."""
        self.quota = FIRST_WINDOW_BYTES
        """What `room` is when all has been taken."""
        self.give = 0
        """Taken bytes whose credit has not been given back."""
        self.finished = False
        """FIN sent."""
        self.ended = False
        """FIN received."""
        self.reset = False
        """RST sent or received."""
        self.left = False
        """Nobody reads here any more: what comes is answered with RST."""


class Yamux:
    """One connection's streams."""

    def __init__(self, *, initiator: bool) -> None:
        self._next = 1 if initiator else 2
        self._inbound = 0
        self._pending = bytearray()  # the beginning of a header
        self._body: Flow | None = None  # whose DATA is being received
        self._missing = 0  # bytes of that DATA still to come
        self._flags = 0  # to be applied when it is complete
        self.flows: dict[int, Flow] = {}
        self.unread_bytes = 0
        self.out: list[bytes] = []
        """Frames to be sent, in order. The caller empties it, and sets `out_bytes` to 0."""
        self.out_bytes = 0

    # What this side does

    def open(self) -> Flow:
        """A new stream; the SYN goes out with what is sent next."""
        flow = Flow(self._next)
        self._next += 2
        self.flows[flow.id] = flow
        self._frame(WINDOW, SYN, flow.id, 0)
        return flow

    def send(self, flow: Flow, data: memoryview) -> int:
        """Send the beginning of `data`, as much as the window and one frame allow; the number of bytes sent."""
        count = min(flow.window, MAX_DATA_BYTES, len(data))
        if count > 0:
            flow.window -= count
            self._frame(DATA, 0, flow.id, count, data[:count])
        return count

    def take(self, flow: Flow) -> bytes:
        """All that was received, giving credit back where it is time to."""
        data = bytes(flow.buffer)
        self.skip(flow, len(data))
        return data

    def skip(self, flow: Flow, count: int) -> None:
        """Drop the first `count` received bytes, as taken."""
        del flow.buffer[:count]
        self.unread_bytes -= count
        flow.give += count
        if flow.give * 2 >= flow.quota and not (flow.ended or flow.reset):
            credit = flow.give + WINDOW_BYTES - flow.quota
            flow.give, flow.quota = 0, WINDOW_BYTES
            flow.room += credit
            self._frame(WINDOW, 0, flow.id, credit)

    def finish(self, flow: Flow) -> None:
        """Send no more."""
        if not (flow.finished or flow.reset):
            flow.finished = True
            self._frame(WINDOW, FIN, flow.id, 0)
            if flow.ended:
                self._forget(flow)

    def leave(self, flow: Flow) -> None:
        """Done with it: finish, and read no more. It is forgotten when the other side finishes, too."""
        self.finish(flow)
        flow.left = True
        self._drop(flow)

    def reset(self, flow: Flow) -> None:
        """Drop it at once, and tell the other side."""
        if not (flow.reset or (flow.finished and flow.ended)):
            self._frame(WINDOW, RST, flow.id, 0)
        self._reset(flow)

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._frame(PING, SYN, 0, 0)

    def go_away(self) -> None:
        """Say that the connection is closed on purpose."""
        self._frame(GO_AWAY, 0, 0, 0)

    # What the other side does

    def receive(self, data: bytes) -> list[tuple[Event, Flow | None]]:
        """Take in bytes from the network. Raises PeerMisbehaved; the connection is then to be dropped."""
        events: list[tuple[Event, Flow | None]] = []
        if self._pending:
            data = bytes(self._pending) + data
            self._pending.clear()
        position, end = 0, len(data)
        while True:
            if self._missing:
                count = min(self._missing, end - position)
                if count == 0:
                    return events
                self._missing -= count
                self._store(data[position : position + count], events)
                position += count
                if self._missing:
                    return events
                self._apply(self._body, self._flags, events)
                self._body = None
            if end - position < HEADER.size:
                self._pending += data[position:]
                return events
            version, kind, flags, ident, length = HEADER.unpack_from(data, position)
            position += HEADER.size
            if version != 0 or kind > GO_AWAY:
                raise PeerMisbehaved("The peer sent a frame that is not of Yamux version 0.")
            if kind == PING:
                if flags & SYN:
                    self._frame(PING, ACK, 0, length)
            elif kind == GO_AWAY:
                events.append((Event.CLOSED, None))
            else:
                self._stream_frame(kind, flags, ident, length, events)

    def _stream_frame(
        self, kind: int, flags: int, ident: int, length: int, events: list[tuple[Event, Flow | None]]
    ) -> None:
        flow = self._accept(ident, events) if flags & SYN else self.flows.get(ident)
        if kind == WINDOW:
            if flow is not None and length:
                flow.window += length
                events.append((Event.WRITABLE, flow))
            self._apply(flow, flags, events)
            return
        # Data for a stream that was reset here may be on its way still: it is let pass.
        if flow is not None:
            flow.room -= length
            if flow.room < 0:
                raise PeerMisbehaved("The peer sent more on a stream than its window allows.")
        if length:
            self._body, self._missing, self._flags = flow, length, flags
        else:
            self._apply(flow, flags, events)

    def _accept(self, ident: int, events: list[tuple[Event, Flow | None]]) -> Flow | None:
        if ident == 0 or ident % 2 == self._next % 2 or ident in self.flows:
            raise PeerMisbehaved("The peer opened a stream under an id that is not free for it.")
        if self._inbound >= MAX_INBOUND:
            self._frame(WINDOW, RST, ident, 0)
            return None
        flow = self.flows[ident] = Flow(ident)
        self._inbound += 1
        self._frame(WINDOW, ACK, ident, 0)
        events.append((Event.OPENED, flow))
        return flow

    def _store(self, data: bytes, events: list[tuple[Event, Flow | None]]) -> None:
        flow = self._body
        if flow is None or flow.reset:
            return
        if flow.left:
            self.reset(flow)
            return
        flow.buffer += data
        self.unread_bytes += len(data)
        if self.unread_bytes > MAX_UNREAD_BYTES:
            raise PeerMisbehaved("The peer sent more than this side has read, on too many streams.")
        events.append((Event.READABLE, flow))

    def _apply(self, flow: Flow | None, flags: int, events: list[tuple[Event, Flow | None]]) -> None:
        if flow is None or flow.reset or not flags & (FIN | RST):
            return
        if flags & RST:
            self._reset(flow)
        else:
            flow.ended = True
            if flow.finished:
                self._forget(flow)
        events.append((Event.READABLE, flow))

    def _frame(self, kind: int, flags: int, ident: int, length: int, body: memoryview | bytes = b"") -> None:
        header = HEADER.pack(0, kind, flags, ident, length)
        self.out.append(b"".join((header, body)) if body else header)
        self.out_bytes += HEADER.size + len(body)

    def _reset(self, flow: Flow) -> None:
        flow.reset = True
        self._drop(flow)
        self._forget(flow)

    def _drop(self, flow: Flow) -> None:
        self.unread_bytes -= len(flow.buffer)
        flow.buffer.clear()

    def _forget(self, flow: Flow) -> None:
        if self.flows.pop(flow.id, None) is not None and flow.id % 2 != self._next % 2:
            self._inbound -= 1
