"""The frames between a node and a worker: a fixed header, then a msgpack body.

    4 bytes  length of the body, big-endian
    1 byte   kind
    4 bytes  call id, big-endian; 0 where a frame is about the worker itself

The header alone routes a frame, so that a chunk passes through without being decoded. Sans-IO: bytes in, frames
out.

            node -> worker                      worker -> node
    LOAD    LoadSpec, the first frame           PROGRESS  float, share of the load done
    OPEN    Request                             READY     EngineInfo
    CANCEL  -                                   CHUNK     Chunk
    CREDIT  int, chunks that may follow         DONE      Usage, the end of a call
                                                FAILED    Failure, the end of a call; call 0: of the load
                                                STATS     EngineStats

A call starts with `INITIAL_CREDIT`; an engine pauses a sequence whose call has none left, so that a slow reader
pauses itself alone. The end of the channel is the worker's order to exit.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from backends.types import MeshError

HEADER = struct.Struct("!IBI")
MAX_BODY_BYTES = 64 << 20
INITIAL_CREDIT = 256


class Kind(IntEnum):
    """What a frame is."""

    LOAD = 1
    OPEN = 2
    CANCEL = 3
    CREDIT = 4
    PROGRESS = 16
    READY = 17
    CHUNK = 18
    DONE = 19
    FAILED = 20
    STATS = 21


class Frame(NamedTuple):
    """One frame, its body still encoded."""

    kind: Kind
    call: int
    body: bytes


class FrameError(MeshError):
    """The other side does not speak this protocol: an unknown kind or an oversized body."""

    kind = "frame"


def encode(kind: Kind, call: int, body: bytes = b"") -> bytes:
    """One frame as bytes. Raises FrameError when the body is over `MAX_BODY_BYTES`."""
    if len(body) > MAX_BODY_BYTES:
        raise FrameError(f"A frame of {len(body)} bytes is over the limit of {MAX_BODY_BYTES}.")
    return HEADER.pack(len(body), kind, call) + body


class Decoder:
    """Bytes in any pieces to frames. Holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that `data` completes. Raises FrameError on bytes no peer of ours would send."""
        self._buffer += data
        frames: list[Frame] = []
        at = 0
        while len(self._buffer) - at >= HEADER.size:
            length, kind, call = HEADER.unpack_from(self._buffer, at)
            if length > MAX_BODY_BYTES:
                raise FrameError(f"A frame announces {length} bytes; the limit is {MAX_BODY_BYTES}.")
            end = at + HEADER.size + length
            if len(self._buffer) < end:
                break
            try:
                frames.append(Frame(Kind(kind), call, bytes(self._buffer[at + HEADER.size : end])))
            except ValueError:
                raise FrameError(f"A frame of unknown kind {kind}.") from None
            at = end
        del self._buffer[:at]
        return frames

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)
