"""The side that uses a target of a peer: holds the lease, and gives the target a port on this machine."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from mesh.errors import PeerError, PeerGone
from mesh.transport import PeerId, Stream
from mesh.tunnel.direct import Carrier, Way
from mesh.tunnel.lending import MAX_TUNNELS
from mesh.tunnel.pump import Meter, Traffic, break_off, pump, unless
from mesh.tunnel.wire import PROTOCOL, Choice, TunnelRefused, Verdict, Wish, hear, listen, say, verdicts

ASK_S = 8.0
"""In which the other side has to answer."""

_log = logging.getLogger("mesh.tunnel")

Open = Callable[[PeerId, str], Awaitable[Stream]]
"""`Swarm.open`, or a double of it."""


@dataclass(slots=True)
class LocalEnd:
    """A leased target of a peer, as a port of this machine."""

    peer: PeerId
    port: int
    lost: trio.Event
    """Set when the peer has ended the lease, or is gone."""
    meter: Meter = field(default_factory=Meter)

    @property
    def traffic(self) -> Traffic:
        """What has gone through so far."""
        return self.meter.traffic


@asynccontextmanager
async def lease(
    open_stream: Open, peer: PeerId, target: str, carrier: Carrier | None = None
) -> AsyncIterator[LocalEnd]:
    """Have `target` of `peer` to oneself, as a port on 127.0.0.1. Raises TunnelRefused or another PeerError.

    Whatever a tunnel cannot be opened for, its local connection is reset. With a carrier tunnels go straight to the
    peer's machine where that can be reached.
    """
    name = secrets.token_hex(8)
    holding, _, _ = await ask(open_stream, peer, Wish(target, name, hold=True))
    try:
        listener = socket.create_server(("127.0.0.1", 0), backlog=MAX_TUNNELS)
        listener.setblocking(False)
        end = LocalEnd(peer, listener.getsockname()[1], trio.Event())
        accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        failure: Exception | None = None
        async with accepting, trio.open_nursery() as nursery:

            async def watch() -> None:
                await listen(holding)
                end.lost.set()

            async def serve(near: trio.SocketStream) -> None:
                async with near:
                    try:
                        whole = await unless(end.lost, lambda: _carry(open_stream, end, near, name, target, carrier))
                    except PeerError as error:
                        _log.info("no tunnel to %s of %s: %s", target, peer, error)
                        whole = False
                    if not whole:
                        break_off(near)

            async def accept() -> None:
                while True:
                    nursery.start_soon(serve, await accepting.accept())

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


async def _carry(
    open_stream: Open, end: LocalEnd, near: trio.SocketStream, name: str, target: str, carrier: Carrier | None
) -> None:
    certificate = await carrier.certificate_for(end.peer) if carrier is not None else b""
    far, verdict, rest = await ask(open_stream, end.peer, Wish(target, name, certificate=certificate))
    way: Way | None = None
    try:
        if verdict.direct is not None and carrier is not None:
            way = await carrier.dial(end.peer, verdict.direct)
            await say(far, Choice(direct=way is not None))
        if way is not None and carrier is not None:
            await far.aclose()
            await carrier.carry(way, near, end.meter)
            return
        await pump(near, far, rest, end.meter)
    except BaseException:
        if way is not None and carrier is not None:
            carrier.drop(way)
        with trio.CancelScope(shield=True):
            await far.reset()
        raise


async def ask(open_stream: Open, peer: PeerId, wish: Wish) -> tuple[Stream, Verdict, bytes]:
    """A stream on which `wish` was granted, the verdict, and the first bytes that came after it. Raises PeerError."""
    with trio.move_on_after(ASK_S):
        return await _ask_patiently(open_stream, peer, wish)
    raise PeerGone(f"The peer did not answer within {ASK_S:g} s.")


async def _ask_patiently(open_stream: Open, peer: PeerId, wish: Wish) -> tuple[Stream, Verdict, bytes]:
    stream = await open_stream(peer, PROTOCOL)
    try:
        await say(stream, wish)
        verdict, rest = await hear(stream, verdicts)
    except BaseException:
        with trio.CancelScope(shield=True):
            await stream.reset()
        raise
    if verdict.refused:
        await stream.aclose()
        raise TunnelRefused(verdict.refused)
    return stream, verdict, rest
