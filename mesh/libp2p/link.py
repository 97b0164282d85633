"""One connection to a peer, driven by trio: a task that reads, a task that writes, and its streams."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

import trio

from mesh.errors import PeerGone, PeerMisbehaved
from mesh.libp2p.stream import HIGH_WATER_BYTES, LinkStream
from mesh.libp2p.yamux import Event, Flow, Yamux
from mesh.transport import PeerId

if TYPE_CHECKING:
    from mesh.libp2p.secure import Secured  # it imports py-libp2p

READ_BYTES = 128 * 1024
MAX_OWED_BYTES = 4 << 20
"""A peer that makes this side owe it more answers (pings, credit) than this, and reads none, is dropped."""
IDLE_PING_S = 2.0
"""After so much silence of the peer, ask for a sign of life."""
SILENCE_S = 6.0
"""After so much silence it is gone. Only a backstop: the swarm's heartbeat is quicker (facts, trap 8)."""
LEFT_STREAM_S = 10.0
"""How long a stream that nobody reads any more waits for the other side's end before it is reset."""
FLUSH_S = 0.5
"""How long a connection that is closed on purpose may take to send its last."""


class Link:
    """A connection. `run` drives it until it ends; `lost` is set then."""

    def __init__(self, secured: Secured, *, dialled: bool, relayed: bool, address: str) -> None:
        self.peer: PeerId = secured.peer
        self.dialled, self.relayed, self.address = dialled, relayed, address
        self.lost = trio.Event()
        self.retired = False
        """Another connection with the same peer is better: no new streams here."""
        self.idle_since = trio.current_time()
        self.sent_bytes = self.received_bytes = 0
        self._heard = trio.current_time()
        self._pinged = -inf
        self._channel = secured.channel
        self._early = secured.early
        self.mux = Yamux(initiator=dialled)
        self._wake, self._drained = trio.Event(), trio.Event()
        self._sign: trio.Event | None = None  # of life, when somebody waits for one
        self.closing = False
        """It is about to end: no new streams here."""
        self._clean = True  # no message is half sent
        # Whoever takes the transport down lets this end last. One that is carried by another ends with that.
        self._scope = trio.CancelScope(shield=not relayed)
        self._streams: dict[Flow, LinkStream] = {}
        self._opened: Callable[[LinkStream], None] = _nobody

    async def run(self, opened: Callable[[LinkStream], None], lost: Callable[[], None]) -> None:
        """Drive it. `opened` is told of every stream that the peer opens, `lost` of the end, when it is unusable and
        before the last bytes are sent. Never raises."""
        self._opened = opened
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read()
                    self._clean = False  # the other side is gone: there is nobody to say goodbye to
                    nursery.cancel_scope.cancel()
        finally:
            self.closing = True
            self.lost.set()
            lost()
            for stream in list(self._streams.values()):
                stream.broken()
            self._streams.clear()
            self._drained.set()
            if self._sign is not None:
                self._sign.set()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + FLUSH_S):
                if self._clean:
                    await self._goodbye()
                await trio.aclose_forcefully(self._channel.stream)

    def open(self) -> LinkStream:
        """A new stream, before any negotiation."""
        stream = self._adopt(self.mux.open())
        self.send_soon()
        return stream

    def close(self) -> None:
        """Send what is queued, say goodbye, and end. Returns at once; `lost` comes soon."""
        self.closing = True
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + FLUSH_S)
        self._wake.set()

    @property
    def streams(self) -> int:
        """Open streams."""
        return len(self.mux.flows)

    def tick(self, now: float) -> None:
        """Called about once a second: sign of life, and streams that were left."""
        silence = now - self._heard
        if silence > SILENCE_S:
            self._break()
        elif silence > IDLE_PING_S and now - self._pinged > IDLE_PING_S:
            self._pinged = now
            self.ping()
        if self.mux.flows:
            self.idle_since = now
        for stream in [s for s in self._streams.values() if now > s.left_at + LEFT_STREAM_S]:
            stream.drop()

    def ping(self) -> None:
        """Ask for a sign of life."""
        self.mux.ping()
        self.send_soon()

    async def alive(self, timeout_s: float) -> bool:
        """Whether the peer shows a sign of life within the time."""
        asked = trio.current_time()
        self.ping()
        self._sign = trio.Event()
        with trio.move_on_after(timeout_s):
            await self._sign.wait()
        return self._heard >= asked and not self.lost.is_set()

    async def _read(self) -> None:
        try:
            self._receive(self._early)
            for plain in self._channel.messages():
                self._receive(plain)
            while data := await self._channel.stream.receive_some(READ_BYTES):
                self._heard = trio.current_time()
                if self._sign is not None:
                    self._sign.set()
                for plain in self._channel.unseal(data):
                    self._receive(plain)
                if self.mux.out:
                    self.send_soon()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError, PeerGone, PeerMisbehaved, _ClosedByPeer):
            return

    def _receive(self, plain: bytes) -> None:
        for event, flow in self.mux.receive(plain):
            if flow is None:
                raise _ClosedByPeer
            if event is Event.OPENED:
                self._opened(self._adopt(flow))
            elif (stream := self._streams.get(flow)) is not None:
                stream.event(event)

    async def _write(self) -> None:
        mux, stream = self.mux, self._channel.stream
        try:
            while mux.out or not self.closing:
                if not mux.out:
                    self._wake = trio.Event()
                    await self._wake.wait()
                    continue
                await trio.lowlevel.checkpoint_if_cancelled()  # here, while `_goodbye` can still send it
                data = self._channel.seal(b"".join(mux.out))
                mux.out.clear()
                mux.out_bytes = 0
                self._drained.set()
                self._clean = False
                await stream.send_all(data)
                self._clean = True
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError, PeerGone):
            self._clean = False
        self._scope.cancel()

    async def _goodbye(self) -> None:
        """The last bytes of a connection that ends on this side's wish."""
        self.mux.go_away()
        try:
            await self._channel.stream.send_all(self._channel.seal(b"".join(self.mux.out)))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError, PeerGone):
            return

    def send_soon(self) -> None:
        """Have what is in the muxer's `out` sent."""
        if self.mux.out_bytes > MAX_OWED_BYTES:
            self._break()
        self._wake.set()

    def _break(self) -> None:
        """End now, whatever is queued."""
        self._clean = False
        self._scope.cancel()

    def excuse(self, now: float) -> None:
        """This process was stopped for a while: the peer's silence in that time proves nothing."""
        self._heard = now

    def _adopt(self, flow: Flow) -> LinkStream:
        stream = self._streams[flow] = LinkStream(self, flow)
        return stream

    def forget(self, flow: Flow) -> None:
        """A stream has ended both ways."""
        self._streams.pop(flow, None)

    async def room(self) -> None:
        """Wait until less is queued. One event serves all who wait."""
        while self.mux.out_bytes > HIGH_WATER_BYTES and not self.lost.is_set():
            if self._drained.is_set():
                self._drained = trio.Event()
            await self._drained.wait()


class _ClosedByPeer(Exception):
    """The peer said goodbye."""


def _nobody(_: LinkStream) -> None:
    raise AssertionError("the link does not run")
