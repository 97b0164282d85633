"""How the ranks of one model find each other, when each may only dial its own machine.

MLX's ring has a listening socket on every rank, and every rank dials the next one. Here the head dials all the others
(a port of its own machine each, where a tunnel begins), as often as there are links, and says first what a connection
is:

    control   the rank's own: orders there, `Word`s back. It is the life of the rank: both end together
    in        leads to the rank's listening socket
    out       the rank's dialling of the next one arrives here
    probe     for `Facts`

So the head joins each rank's `out` to the next one's `in`, and neither MLX nor a rank knows of any of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import tempfile
from pathlib import Path
from typing import Literal

import msgspec

VERSION = "1"
MEETING_S = 60.0
"""In which all ranks have to be there."""
MAX_FRAME_BYTES = 64 << 20

_LENGTH = struct.Struct("!I")
_AGAIN_S = 0.05
_PIECE_BYTES = 256 << 10


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a rank is to be of a model, told over `control`."""

    identity: str  # backends/mlx/folder.py
    rank: int
    size: int
    way: Literal["tensor", "pipeline"]
    slots: int
    prompt_tokens: int
    dtype: Literal["float32", "float16", "bfloat16"] | None = None


class Hello(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The first line of a connection."""

    role: Literal["control", "in", "out", "probe"]
    version: str = VERSION
    part: Part | None = None


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a rank says: that it is there, that its weights are, or why not."""

    kind: Literal["here", "ready", "failed"]
    message: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a probe."""

    version: str
    free_bytes: int
    total_bytes: int
    identities: tuple[str, ...]
    busy: bool


def line(value: msgspec.Struct) -> bytes:
    """A message as a line."""
    return msgspec.json.encode(value) + b"\n"


def send_frame(to: socket.socket, data: bytes) -> None:
    """Send `data` with its length. Raises OSError."""
    to.sendall(_LENGTH.pack(len(data)) + data)


def receive_frame(source: socket.socket) -> bytes:
    """The next frame. Raises OSError when the other side is gone, or says what is no frame."""
    [size] = _LENGTH.unpack(_exactly(source, _LENGTH.size))
    if size > MAX_FRAME_BYTES:
        raise OSError(f"A frame of {size} bytes.")
    return _exactly(source, size)


def _exactly(source: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = source.recv(size - len(data))
        if not piece:
            raise ConnectionResetError("The other side is gone.")
        data += piece
    return bytes(data)


def free_port() -> int:
    """MLX takes a port, not a socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def enter_ring(rank: int, size: int, *, own_port: int, next_port: int) -> Path:
    """Tell MLX, by this process's environment, where it is in the ring. All addresses are this machine's. The file that
    is returned may be deleted when all have met."""
    hosts = [["127.0.0.1:1"] for _ in range(size)]  # of the others nobody here dials or listens to any
    hosts[rank] = [f"127.0.0.1:{own_port}"]
    hosts[(rank + 1) % size] = [f"127.0.0.1:{next_port}"]
    with tempfile.NamedTemporaryFile("w", prefix="mesh-ring-", suffix=".json", delete=False) as file:
        json.dump(hosts, file)
    os.environ["MLX_RANK"] = str(rank)
    os.environ["MLX_HOSTFILE"] = file.name
    return Path(file.name)


# -- joining connections --

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def dial(port: int, hello: Hello | None = None, *, patience_s: float = 0.0) -> Ends:
    """A connection to a port of this machine, tried again for a while. Raises OSError."""
    clock = asyncio.get_running_loop()
    until = clock.time() + patience_s
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_PIECE_BYTES)
            break
        except OSError:
            if clock.time() >= until:
                raise
            await asyncio.sleep(_AGAIN_S)
    _hurry(writer)
    if hello is not None:
        writer.write(line(hello))
        await writer.drain()
    return reader, writer


async def join(one: Ends, other: Ends) -> None:
    """Carry bytes both ways until either side ends; then both have."""
    ways = [asyncio.create_task(_carry(one[0], other[1])), asyncio.create_task(_carry(other[0], one[1]))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        for _, writer in (one, other):
            writer.close()


async def _carry(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_PIECE_BYTES):
            to.write(data)
            await to.drain()


def _hurry(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
