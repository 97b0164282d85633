"""Whole messages over a stream: `mesh/wire.py` joined to a `mesh.transport.Stream`, of any transport."""

from __future__ import annotations

from collections import deque

from mesh.errors import PeerGone
from mesh.transport import Stream
from mesh.wire import Decoder, Message, encode


class Framed:
    """Sends and receives messages. At most one task sends and one receives at a time, as for the stream itself.

    Closing and resetting stay the stream's own; a stream that goes back to a pool keeps its Framed, which may hold
    messages already.
    """

    def __init__(self, stream: Stream, decoder: Decoder) -> None:
        self.stream = stream
        self._decoder = decoder
        self._messages: deque[Message] = deque()

    async def send(self, kind: int, body: bytes = b"") -> None:
        """Send one message. Raises PeerGone."""
        await self.stream.send(encode(kind, body))

    async def send_raw(self, data: bytes) -> None:
        """Send messages that are encoded already, one or several. Raises PeerGone."""
        await self.stream.send(data)

    async def receive(self) -> Message | None:
        """The next message; None when the other side has sent its last, between two messages.

        May be cancelled without loss. Raises PeerGone when the stream ends inside a message, and PeerMisbehaved on
        bytes that are no messages.
        """
        while not self._messages:
            data = await self.stream.receive()
            if not data:
                if self._decoder.at_boundary:
                    return None
                raise PeerGone(f"The stream ended inside a message, {self._decoder.pending_bytes} bytes into it.")
            self._messages.extend(self._decoder.feed(data))
        return self._messages.popleft()

    @property
    def idle(self) -> bool:
        """Whether nothing was received that `receive` has not given out: the stream can go back to a pool."""
        return not self._messages and self._decoder.at_boundary
