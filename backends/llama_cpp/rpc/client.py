"""The first words of llama.cpp's RPC protocol, spoken before a model is loaded: an engine that meets a server which is
not there, or of another version, does not fail: it aborts.

Format (ggml-rpc.cpp): a request is a command byte, the length of its body (8 bytes) and the body; an answer is the
length (8 bytes) and the body. Little-endian.
"""

from __future__ import annotations

import struct

import trio

from backends.sharding import Device, ServerFacts
from backends.types import LoadFailed

MAJOR, MINOR = 7, 0
"""Of the protocol that the pinned llama.cpp speaks. A server's minor version may not be higher."""

_HELLO, _DEVICE_COUNT, _DEVICE_MEMORY = 14, 15, 11
_CAPS_BYTES = 24
_HELLO_ANSWER = struct.Struct(f"<BBBx{_CAPS_BYTES}x")
_COUNT = struct.Struct("<I")
_MEMORY = struct.Struct("<QQ")
_MAX_DEVICES = 64


def refuses(version: str) -> str:
    """Why a server of that version (MAJOR.MINOR.PATCH) cannot be used; empty: it can."""
    major, minor, *_ = (*version.split("."), "", "")
    if major == str(MAJOR) and minor.isdecimal() and int(minor) <= MINOR:
        return ""
    return f"its RPC server speaks version {version[:20]}; this node's llama.cpp speaks {MAJOR}.{MINOR}."


async def probe(port: int, *, timeout_s: float) -> ServerFacts:
    """What the server at 127.0.0.1:`port` says of itself. Raises LoadFailed."""
    try:
        with trio.fail_after(timeout_s):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                return await _ask(stream)
    except trio.TooSlowError:
        raise LoadFailed(f"The RPC server does not answer within {timeout_s:g} s: it may be serving another.") from None
    except (OSError, trio.BrokenResourceError) as error:
        raise LoadFailed(f"The RPC server cannot be reached: {error}.") from error


async def _ask(stream: trio.abc.Stream) -> ServerFacts:
    major, minor, patch = _HELLO_ANSWER.unpack(
        await _call(stream, _HELLO, bytes(_CAPS_BYTES), _HELLO_ANSWER.size, "is no RPC server of llama.cpp's")
    )
    version = f"{major}.{minor}.{patch}"
    if why := refuses(version):
        raise LoadFailed(why)
    [count] = _COUNT.unpack(await _call(stream, _DEVICE_COUNT, b"", _COUNT.size))
    if not 1 <= count <= _MAX_DEVICES:
        raise LoadFailed(f"The RPC server claims {count} devices.")
    devices = []
    for number in range(count):
        free, total = _MEMORY.unpack(await _call(stream, _DEVICE_MEMORY, _COUNT.pack(number), _MEMORY.size))
        devices.append(Device(free_bytes=free, total_bytes=total))
    return ServerFacts(version=version, devices=tuple(devices))


async def _call(
    stream: trio.abc.Stream, command: int, body: bytes, size: int, wrong: str = "says what it should not"
) -> bytes:
    await stream.send_all(bytes([command]) + len(body).to_bytes(8, "little") + body)
    told = int.from_bytes(await _exactly(stream, 8), "little")
    if told != size:
        raise LoadFailed(f"What answers {wrong}.")
    return await _exactly(stream, size)


async def _exactly(stream: trio.abc.Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        if not piece:
            raise LoadFailed("The RPC server hung up: it may be of another version.")
        data += piece
    return data
