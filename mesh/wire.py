"""Messages on a mesh stream: a fixed header and a body, sans-IO.

    4 bytes  length of the frame's body, big-endian, at most 1 MiB
    1 byte   kind of the message; the high bit says MORE: the next frame continues this message

A body over 1 MiB (images, audio) travels in pieces, so that nobody has to hold room for more than one frame before it
arrived. A message is cut in one way only: each piece but the last is full, the last is not empty, and nothing comes
between them. What the kinds mean, and what the bodies hold, is each protocol's own.

All limits are checked on the header: nothing of an oversized frame is ever kept. A stream that ends elsewhere than at
a boundary was cut; one that ends at a boundary may have been cut too (facts, trap 7), so protocols have an end message.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import NamedTuple

from mesh.errors import PeerMisbehaved

HEADER = struct.Struct("!IB")
MAX_FRAME_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 64 << 20
MAX_KIND = 0x7F
MORE = 0x80


class Message(NamedTuple):
    """One message, put together; its body is still encoded."""

    kind: int
    body: bytes


def encode(kind: int, body: bytes = b"") -> bytes:
    """One message as bytes to send. Raises ValueError on an impossible kind or a body over 64 MiB: our own fault."""
    if not 0 <= kind <= MAX_KIND:
        raise ValueError(f"a kind is 0 to {MAX_KIND}, not {kind}")
    if len(body) <= MAX_FRAME_BYTES:
        return HEADER.pack(len(body), kind) + body
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    pieces: list[bytes | memoryview] = []
    view = memoryview(body)
    for start in range(0, len(body), MAX_FRAME_BYTES):
        piece = view[start : start + MAX_FRAME_BYTES]
        more = MORE if start + MAX_FRAME_BYTES < len(body) else 0
        pieces += (HEADER.pack(len(piece), kind | more), piece)
    return b"".join(pieces)


class Decoder:
    """Bytes in any pieces to messages. Holds at most one incomplete message.

    A stream's protocol gives the `kinds` that it has and the size that its messages may reach; without `kinds`, any
    will do. After it raised once it raises for ever: there is no way back into a stream that lost its frames.
    """

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES, *, kinds: Collection[int] | None = None) -> None:
        self._max_message_bytes = max_message_bytes
        self._kinds = None if kinds is None else frozenset(kinds)
        self._buffer = bytearray()
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._kind = 0  # of the message that `_pieces` begin
        self._broken: str | None = None

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes. Raises PeerMisbehaved on bytes no peer of ours would send."""
        if self._broken is not None:
            raise PeerMisbehaved(self._broken)
        self._buffer += data
        messages: list[Message] = []
        at = 0
        while len(self._buffer) - at >= HEADER.size:
            length, kind = HEADER.unpack_from(self._buffer, at)
            self._check(length, kind)
            end = at + HEADER.size + length
            if len(self._buffer) < end:
                break
            with memoryview(self._buffer) as view:  # a slice of the bytearray would be one copy more
                body = bytes(view[at + HEADER.size : end])
            at = end
            if kind & MORE:
                self._kind = kind & MAX_KIND
                self._pieces.append(body)
                self._pieces_bytes += length
            elif self._pieces:
                self._pieces.append(body)
                messages.append(Message(kind, b"".join(self._pieces)))
                self._pieces.clear()
                self._pieces_bytes = 0
            else:
                messages.append(Message(kind, body))
        del self._buffer[:at]
        return messages

    @property
    def pending_bytes(self) -> int:
        """Bytes held of a message that is not complete yet."""
        return self._pieces_bytes + len(self._buffer)

    @property
    def at_boundary(self) -> bool:
        """Whether the stream may end here: nothing incomplete is held."""
        return not self._pieces and not self._buffer

    def _check(self, length: int, kind: int) -> None:
        """The rules of the module's docstring, on a header alone."""
        if length > MAX_FRAME_BYTES:
            self._refuse(f"A frame announces {length} bytes; the limit is {MAX_FRAME_BYTES}.")
        if self._kinds is not None and kind & MAX_KIND not in self._kinds:
            self._refuse(f"A message of the unknown kind {kind & MAX_KIND}.")
        if self._pieces and kind & MAX_KIND != self._kind:
            self._refuse(f"A message of kind {kind & MAX_KIND} in the middle of one of kind {self._kind}.")
        if self._pieces_bytes + length > self._max_message_bytes:
            self._refuse(f"A message of more than {self._max_message_bytes} bytes.")
        if (kind & MORE and length != MAX_FRAME_BYTES) or (self._pieces and not length):
            self._refuse(f"A message in pieces, one of them of {length} bytes.")

    def _refuse(self, why: str) -> None:
        self._broken = why
        self._buffer.clear()
        self._pieces.clear()
        self._pieces_bytes = 0
        raise PeerMisbehaved(why)
