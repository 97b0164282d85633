"""Raw bytes over a mesh stream, to a target that the other side exposes by name, and to nothing else.

    tunnels = Tunnels(); tunnels.expose("rpc", connect)      # the side that has the target
    swarm.handle(PROTOCOL, tunnels.handle)

    async with lease(swarm.open, peer, "rpc") as end:         # the side that uses it
        ... a program connects to 127.0.0.1:{end.port}, and finds itself at the target ...

A caller names a target, never an address: what a name leads to is the other side's alone to know. A target is lent to
one caller at a time. The lease is a stream of its own, on which nothing is said: it ends when either side ends it, and
takes all tunnels that were opened under it along. So a caller may connect as often as it likes in between, and one that
is killed gives back what it had as soon as its connection is noticed to be gone.

The first message each way is two bytes of length and a msgpack map; after that nothing is framed. Each direction ends
on its own (half-close), neither side reads faster than the other takes it, and a break on one side is a break, never a
clean end, on the other.
"""

from __future__ import annotations

import logging
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import msgspec
import trio
from msgspec import Meta

from mesh.errors import PeerError, PeerGone, PeerMisbehaved
from mesh.records import decode
from mesh.transport import PeerId, Stream

PROTOCOL = "/mesh/tunnel/1"
PIECE_BYTES = 64 << 10
"""Of one write; see mesh/libp2p."""
MAX_HEAD_BYTES = 1024
HEAD_S = 5.0
"""In which each side has to say its first word."""
ASK_S = 8.0
"""In which a tunnel has to be open."""
MAX_TUNNELS = 16
"""Under one lease at a time."""

_LENGTH = struct.Struct("!H")
_BREAK = struct.pack("ii", 1, 0)  # SO_LINGER: close is a reset

_log = logging.getLogger("mesh.tunnel")

Open = Callable[[PeerId, str], Awaitable[Stream]]
"""`Swarm.open`, or a double of it."""

Connect = Callable[[], Awaitable[trio.SocketStream]]
"""Connects to a target on this machine. Raises OSError when it is not there."""

M = TypeVar("M")


class TunnelRefused(PeerError):
    """The peer does not open this tunnel: it exposes no such target, cannot reach it, or has lent it to another."""


class _Wish(msgspec.Struct, frozen=True, omit_defaults=True):
    target: Annotated[str, Meta(min_length=1, max_length=64)]
    lease: Annotated[str, Meta(min_length=1, max_length=64)]
    hold: bool = False  # this stream is the lease


class _Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    refused: Annotated[str, Meta(max_length=300)] = ""


_wishes = msgspec.msgpack.Decoder(_Wish)
_verdicts = msgspec.msgpack.Decoder(_Verdict)


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


# -- the side that has targets --


@dataclass(slots=True)
class _Target:
    connect: Connect
    holder: PeerId = ""
    lease: str = ""
    over: trio.Event = field(default_factory=trio.Event)  # of the lease
    tunnels: int = 0
    traffic: Traffic = field(default_factory=Traffic)


class Tunnels:
    """What this node exposes, and to whom it is lent."""

    def __init__(self, *, named: Callable[[PeerId], str] = str) -> None:
        """`named` shows a peer to people."""
        self._targets: dict[str, _Target] = {}
        self._named = named
        self.on_change: list[Callable[[], None]] = []
        """Called when a target comes or goes, and when a lease begins or ends."""

    def expose(self, name: str, connect: Connect) -> None:
        """Let members reach a target of this machine under `name`, one at a time."""
        self.withdraw(name)
        self._targets[name] = _Target(connect)
        self._tell()

    def withdraw(self, name: str) -> None:
        """Take it back; a lease on it, and all tunnels under it, break."""
        target = self._targets.pop(name, None)
        if target is not None:
            target.over.set()
            self._tell()

    @property
    def exposed(self) -> tuple[str, ...]:
        """The names."""
        return tuple(self._targets)

    def holder(self, name: str) -> PeerId:
        """Who has leased a target; empty: nobody."""
        return self._targets[name].holder if name in self._targets else ""

    def traffic(self, name: str) -> Traffic:
        """What has gone through a target since it was exposed."""
        return self._targets[name].traffic if name in self._targets else Traffic()

    async def handle(self, stream: Stream) -> None:
        """Serve one stream of `PROTOCOL`. Raises PeerError."""
        wish, rest = await _hear(stream, _wishes)
        target = self._targets.get(wish.target)
        if target is None:
            await _refuse(stream, f"It exposes no target {wish.target}; it has: {', '.join(self._targets) or 'none'}.")
        elif wish.hold:
            await self._lend(stream, target, wish)
        elif (target.holder, target.lease) != (stream.peer, wish.lease):
            await _refuse(stream, f"Its target {wish.target} is not leased under that name.")
        elif target.tunnels >= MAX_TUNNELS:
            await _refuse(stream, f"There are {MAX_TUNNELS} tunnels to its target {wish.target} already.")
        else:
            target.tunnels += 1
            try:
                await self._carry(stream, target, rest)
            finally:
                target.tunnels -= 1

    async def _lend(self, stream: Stream, target: _Target, wish: _Wish) -> None:
        if target.holder:
            await _refuse(stream, f"Its target {wish.target} is leased to {self._named(target.holder)}.")
            return
        over = trio.Event()
        target.holder, target.lease, target.over = stream.peer, wish.lease, over
        self._tell()
        try:
            await _say(stream, _Verdict())
            await _unless(over, _listen, stream)
        finally:
            over.set()
            target.holder = target.lease = ""
            self._tell()
            await stream.reset()

    async def _carry(self, stream: Stream, target: _Target, rest: bytes) -> None:
        try:
            near = await target.connect()
        except OSError as error:
            await _refuse(stream, f"Its target does not answer: {error.strerror or error}.")
            return
        async with near:
            await _say(stream, _Verdict())
            if not await _unless(target.over, pump, near, stream, rest, target.traffic):
                await stream.reset()

    def _tell(self) -> None:
        for tell in self.on_change:
            tell()


# -- the side that uses one --


@dataclass(slots=True)
class LocalEnd:
    """A leased target of a peer, as a port of this machine."""

    peer: PeerId
    port: int
    lost: trio.Event
    """Set when the peer has ended the lease, or is gone."""
    traffic: Traffic = field(default_factory=Traffic)


@asynccontextmanager
async def lease(open_stream: Open, peer: PeerId, target: str) -> AsyncIterator[LocalEnd]:
    """Have `target` of `peer` to oneself, as a port on 127.0.0.1. Raises TunnelRefused or another PeerError.

    Whatever a tunnel cannot be opened for, its local connection is reset.
    """
    name = secrets.token_hex(8)
    holding = await _ask(open_stream, peer, _Wish(target, name, hold=True))
    try:
        listener = socket.create_server(("127.0.0.1", 0), backlog=MAX_TUNNELS)
        listener.setblocking(False)
        end = LocalEnd(peer, listener.getsockname()[1], trio.Event())
        accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        failure: Exception | None = None
        async with accepting, trio.open_nursery() as nursery:

            async def watch() -> None:
                await _listen(holding)
                end.lost.set()

            async def carry(near: trio.SocketStream) -> None:
                async with near:
                    try:
                        far = await _ask(open_stream, peer, _Wish(target, name))
                    except PeerError as error:
                        _log.info("no tunnel to %s of %s: %s", target, peer, error)
                        break_off(near)
                        return
                    if not await _unless(end.lost, pump, near, far, b"", end.traffic):
                        break_off(near)
                        await far.reset()

            async def accept() -> None:
                while True:
                    nursery.start_soon(carry, await accepting.accept())

            nursery.start_soon(watch)
            nursery.start_soon(accept)
            try:
                yield end
            except Exception as error:  # noqa: BLE001 (raised below, so that no ExceptionGroup wraps it)
                failure = error
            finally:
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
    finally:
        with trio.CancelScope(shield=True):
            await holding.reset()


async def _ask(open_stream: Open, peer: PeerId, wish: _Wish) -> Stream:
    with trio.move_on_after(ASK_S):
        return await _ask_patiently(open_stream, peer, wish)
    raise PeerGone(f"The peer did not answer within {ASK_S:g} s.")


async def _ask_patiently(open_stream: Open, peer: PeerId, wish: _Wish) -> Stream:
    stream = await open_stream(peer, PROTOCOL)
    try:
        await _say(stream, wish)
        verdict, rest = await _hear(stream, _verdicts)
    except BaseException:
        with trio.CancelScope(shield=True):
            await stream.reset()
        raise
    if verdict.refused:
        await stream.aclose()
        raise TunnelRefused(verdict.refused)
    return _Rest(stream, rest) if rest else stream


# -- both --


async def pump(near: trio.SocketStream, far: Stream, rest: bytes = b"", traffic: Traffic | None = None) -> None:
    """Carry bytes both ways until both have ended, or one breaks: then both do. `rest` has come from `far` already.

    `traffic` is counted as `near`'s side sees it.
    """
    traffic = traffic if traffic is not None else Traffic()
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


class _Rest:
    """A stream whose first bytes came along with the verdict."""

    def __init__(self, stream: Stream, rest: bytes) -> None:
        self._stream = stream
        self._rest = rest

    @property
    def peer(self) -> PeerId:
        return self._stream.peer

    async def send(self, data: bytes) -> None:
        await self._stream.send(data)

    async def receive(self) -> bytes:
        if rest := self._rest:
            self._rest = b""
            await trio.lowlevel.checkpoint()
            return rest
        return await self._stream.receive()

    async def close_write(self) -> None:
        await self._stream.close_write()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def reset(self) -> None:
        await self._stream.reset()


async def _unless(event: trio.Event, action: Callable[..., Awaitable[None]], *args: object) -> bool:
    """Run `action`, but no longer than until `event`. Whether it came to its end."""
    done = False
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(stop)
        await action(*args)
        done = True
        nursery.cancel_scope.cancel()
    return done


async def _listen(stream: Stream) -> None:
    """Until the other side ends it. Nothing is to be said here; what is said all the same is dropped."""
    with suppress(PeerGone):
        while await stream.receive():
            pass


async def _say(stream: Stream, message: _Wish | _Verdict) -> None:
    body = msgspec.msgpack.encode(message)
    await stream.send(_LENGTH.pack(len(body)) + body)


async def _refuse(stream: Stream, why: str) -> None:
    await _say(stream, _Verdict(why[:300]))
    await stream.aclose()


async def _hear(stream: Stream, decoder: msgspec.msgpack.Decoder[M]) -> tuple[M, bytes]:
    """The other side's first message, and what came after it. Raises PeerGone or PeerMisbehaved."""
    data = b""
    with trio.move_on_after(HEAD_S):
        while len(data) < _LENGTH.size or len(data) < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
            if len(data) >= _LENGTH.size and _LENGTH.unpack_from(data)[0] > MAX_HEAD_BYTES:
                raise PeerMisbehaved(f"The first message of a tunnel is over {MAX_HEAD_BYTES} bytes.")
            piece = await stream.receive()
            if not piece:
                raise PeerGone("The tunnel ended before it began.")
            data += piece
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        return decode(decoder, data[_LENGTH.size : end]), data[end:]
    raise PeerMisbehaved(f"The first message of a tunnel did not come in {HEAD_S:g} s.")
