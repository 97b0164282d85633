"""The side that has targets: exposes them by name, lends each to one caller at a time, and carries what comes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from mesh.transport import PeerId, Stream
from mesh.tunnel.direct import Carrier, Way
from mesh.tunnel.pump import Meter, Traffic, pump, unless
from mesh.tunnel.wire import Verdict, Wish, choices, hear, listen, refuse, say, wishes

MAX_TUNNELS = 16
"""Under one lease at a time."""
CHOICE_S = 8.0
"""In which an invited caller has to say whether it comes."""

Connect = Callable[[], Awaitable[trio.SocketStream]]
"""Connects to a target on this machine. Raises OSError when it is not there."""


@dataclass(slots=True)
class _Target:
    connect: Connect
    holder: PeerId = ""
    lease: str = ""
    over: trio.Event = field(default_factory=trio.Event)  # of the lease
    tunnels: int = 0
    meter: Meter = field(default_factory=Meter)


class Tunnels:
    """What this node exposes, and to whom it is lent."""

    def __init__(self, *, named: Callable[[PeerId], str] = str, carrier: Carrier | None = None) -> None:
        """`named` shows a peer to people. Without a carrier all bytes go over mesh streams."""
        self._targets: dict[str, _Target] = {}
        self._named = named
        self._carrier = carrier
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
        return self._targets[name].meter.traffic if name in self._targets else Traffic()

    async def handle(self, stream: Stream) -> None:
        """Serve one stream of `PROTOCOL`. Raises PeerError."""
        wish, rest = await hear(stream, wishes)
        target = self._targets.get(wish.target)
        if target is None:
            await refuse(stream, f"It exposes no target {wish.target}; it has: {', '.join(self._targets) or 'none'}.")
        elif wish.hold:
            await self._lend(stream, target, wish)
        elif (target.holder, target.lease) != (stream.peer, wish.lease):
            await refuse(stream, f"Its target {wish.target} is not leased under that name.")
        elif target.tunnels >= MAX_TUNNELS:
            await refuse(stream, f"There are {MAX_TUNNELS} tunnels to its target {wish.target} already.")
        else:
            target.tunnels += 1
            try:
                await self._serve(stream, target, wish, rest)
            finally:
                target.tunnels -= 1

    async def _lend(self, stream: Stream, target: _Target, wish: Wish) -> None:
        if target.holder:
            await refuse(stream, f"Its target {wish.target} is leased to {self._named(target.holder)}.")
            return
        over = trio.Event()
        target.holder, target.lease, target.over = stream.peer, wish.lease, over
        self._tell()
        try:
            await say(stream, Verdict())
            await unless(over, lambda: listen(stream))
        finally:
            over.set()
            target.holder = target.lease = ""
            self._tell()
            await stream.reset()

    async def _serve(self, stream: Stream, target: _Target, wish: Wish, rest: bytes) -> None:
        try:
            near = await target.connect()
        except OSError as error:
            await refuse(stream, f"Its target does not answer: {error.strerror or error}.")
            return
        over = target.over
        async with near:
            way = await self._invite(wish)
            if way is None:
                await say(stream, Verdict())
            elif self._carrier is not None:
                try:
                    await say(stream, Verdict(direct=way.invitation))
                    choice, rest = await hear(stream, choices, rest, timeout_s=CHOICE_S)
                except BaseException:
                    self._carrier.drop(way)
                    raise
                if choice.direct:
                    await stream.aclose()
                    await unless(over, lambda: self._carried(way, near, target.meter))
                    return
                self._carrier.drop(way)
            if not await unless(over, lambda: pump(near, stream, rest, target.meter)):
                await stream.reset()

    async def _carried(self, way: Way, near: trio.SocketStream, meter: Meter) -> None:
        assert self._carrier is not None
        await self._carrier.carry(way, near, meter)

    async def _invite(self, wish: Wish) -> Way | None:
        if self._carrier is None or not wish.certificate:
            return None
        return await self._carrier.invite(wish.certificate)

    def _tell(self) -> None:
        for tell in self.on_change:
            tell()
