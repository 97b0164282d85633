"""What the two sides of a tunnel say to each other before its bytes: the messages, and how they are sent and heard."""

from __future__ import annotations

import struct
from typing import Annotated, TypeVar

import msgspec
import trio
from msgspec import Meta

from mesh.errors import PeerError, PeerGone, PeerMisbehaved
from mesh.records import decode
from mesh.transport import Stream

PROTOCOL = "/mesh/tunnel/1"
MAX_HEAD_BYTES = 1024
HEAD_S = 5.0
"""In which each side has to say its first word."""
TICKET_BYTES = 32
MAX_CERTIFICATE_BYTES = 700

_LENGTH = struct.Struct("!H")

M = TypeVar("M")


class TunnelRefused(PeerError):
    """The peer does not open this tunnel: it exposes no such target, cannot reach it, or has lent it to another."""


class Wish(msgspec.Struct, frozen=True, omit_defaults=True):
    """The caller's first word."""

    target: Annotated[str, Meta(min_length=1, max_length=64)]
    lease: Annotated[str, Meta(min_length=1, max_length=64)]
    hold: bool = False  # this stream is the lease
    certificate: Annotated[bytes, Meta(max_length=MAX_CERTIFICATE_BYTES)] = b""  # of the caller, who can do without us


class Invitation(msgspec.Struct, frozen=True):
    """To a direct connection, good once and for seconds."""

    port: Annotated[int, Meta(ge=1, le=65535)]
    certificate: Annotated[bytes, Meta(min_length=1, max_length=MAX_CERTIFICATE_BYTES)]
    ticket: Annotated[bytes, Meta(min_length=TICKET_BYTES, max_length=TICKET_BYTES)]


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to a wish."""

    refused: Annotated[str, Meta(max_length=300)] = ""
    direct: Invitation | None = None


class Choice(msgspec.Struct, frozen=True):
    """The caller's answer to an invitation."""

    direct: bool  # else the bytes follow on this stream


wishes = msgspec.msgpack.Decoder(Wish)
verdicts = msgspec.msgpack.Decoder(Verdict)
choices = msgspec.msgpack.Decoder(Choice)


async def say(stream: Stream, message: Wish | Verdict | Choice) -> None:
    """Send one message."""
    body = msgspec.msgpack.encode(message)
    await stream.send(_LENGTH.pack(len(body)) + body)


async def refuse(stream: Stream, why: str) -> None:
    """Answer that there will be no tunnel."""
    await say(stream, Verdict(why[:300]))
    await stream.aclose()


async def hear(
    stream: Stream, decoder: msgspec.msgpack.Decoder[M], data: bytes = b"", *, timeout_s: float = HEAD_S
) -> tuple[M, bytes]:
    """The other side's next message, which begins with `data`, and what came after it. Raises PeerGone or
    PeerMisbehaved."""
    with trio.move_on_after(timeout_s):
        while len(data) < _LENGTH.size or len(data) < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
            if len(data) >= _LENGTH.size and _LENGTH.unpack_from(data)[0] > MAX_HEAD_BYTES:
                raise PeerMisbehaved(f"The first message of a tunnel is over {MAX_HEAD_BYTES} bytes.")
            piece = await stream.receive()
            if not piece:
                raise PeerGone("The tunnel ended before it began.")
            data += piece
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        return decode(decoder, data[_LENGTH.size : end]), data[end:]
    raise PeerMisbehaved(f"The first message of a tunnel did not come in {timeout_s:g} s.")


async def listen(stream: Stream) -> None:
    """Until the other side ends it. Nothing is to be said here; what is said all the same is dropped."""
    try:
        while await stream.receive():
            pass
    except PeerGone:
        return
