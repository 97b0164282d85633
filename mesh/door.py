"""Who may come in: the challenge with every peer that connects, and nothing else for whoever has not passed it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import trio

from mesh import admission
from mesh.admission import Challenger
from mesh.errors import Incompatible, NotAMember, PeerError, PeerGone
from mesh.timing import Timing
from mesh.transport import Handler, PeerId, Stream, Transport

_PARTING_S = 1.0

_log = logging.getLogger("mesh.door")


class Door:
    """Of one node."""

    def __init__(
        self,
        key: bytes,
        transport: Transport,
        timing: Timing,
        *,
        protocols: range,
        strangers: int,
        streams_per_peer: int,
        banned: Callable[[PeerId], bool],
        mismatch: Callable[[PeerId, str], None],
    ) -> None:
        """`strangers` in the challenge at a time; `mismatch` is told of members of another version."""
        self._key = key
        self._transport = transport
        self._timing = timing
        self._protocols = protocols
        self._limit = strangers
        self._streams_per_peer = streams_per_peer
        self._banned = banned
        self._mismatch = mismatch
        self._challenged: set[PeerId] = set()
        self._passing: dict[PeerId, trio.Event] = {}  # set when our challenge with that peer is over
        self._serving: Counter[PeerId] = Counter()
        self._strangers: dict[PeerId, float] = {}  # connected -> a live member by then, or disconnected
        self.admitted: dict[PeerId, float] = {}
        """Who passed the challenge over a connection that is still there, and the round trip that it showed."""
        self.open = False
        """Whether anybody is let in at all."""
        transport.admit(lambda peer: not banned(peer))
        transport.handle(admission.PROTOCOL, self._on_challenge)

    async def challenge(self, peer: PeerId) -> float:
        """Pass it as the dialler. The round trip; raises NotAMember, Incompatible, PeerMisbehaved or PeerGone.

        One at a time with one peer: who dials it at two of its addresses at once passes once, for both.
        """
        while (other := self._passing.get(peer)) is not None:
            await other.wait()
            if peer in self.admitted:
                return self.admitted[peer]
        over = self._passing[peer] = trio.Event()
        try:
            return await self._challenge(await self._transport.open(peer, admission.PROTOCOL), dialler=True)
        except PeerError:
            if peer not in self.admitted:
                await self._transport.disconnect(peer)
            raise
        finally:
            del self._passing[peer]
            over.set()

    def guard(self, handler: Handler) -> Handler:
        """Serves members: a stranger's stream is reset without a byte, and so is a member's beyond the limit."""

        async def guarded(stream: Stream) -> None:
            peer = stream.peer
            if not self.open or peer not in self.admitted or self._serving[peer] >= self._streams_per_peer:
                await stream.reset()
                return
            self._serving[peer] += 1
            try:
                await handler(stream)
            finally:
                self._serving[peer] -= 1
                if not self._serving[peer]:
                    del self._serving[peer]

        return guarded

    def expect(self, peer: PeerId) -> None:
        """It is connected: give it a while to become a live member."""
        self._strangers.setdefault(peer, trio.current_time() + self._timing.admission_s)

    def gone(self, peer: PeerId) -> None:
        """Its last connection is gone: whoever comes under its name starts anew."""
        self._strangers.pop(peer, None)
        self.admitted.pop(peer, None)

    def overdue(self, now: float) -> list[PeerId]:
        """Those whose while is over, members or not."""
        late = [peer for peer, until in self._strangers.items() if now >= until]
        for peer in late:
            del self._strangers[peer]
        return late

    async def _on_challenge(self, stream: Stream) -> None:
        peer = stream.peer
        if not self.open or peer in self._challenged or len(self._challenged) >= self._limit:
            await stream.reset()
            return
        self._challenged.add(peer)
        try:
            with trio.fail_after(self._timing.admission_s):
                await self._challenge(stream, dialler=False)
        except (PeerError, trio.TooSlowError) as error:
            _log.info("turned away %s: %s", peer, error if isinstance(error, PeerError) else "it took too long.")
            if peer not in self.admitted:
                await self._transport.disconnect(peer)
        finally:
            self._challenged.discard(peer)

    async def _challenge(self, stream: Stream, *, dialler: bool) -> float:
        try:
            rtt_s = await self._prove(stream, dialler=dialler)
        except Incompatible as error:
            self._mismatch(stream.peer, str(error))
            raise
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()
        if self._banned(stream.peer):
            raise NotAMember(f"Peer {stream.peer} is banned.")
        self.admitted[stream.peer] = rtt_s
        return rtt_s

    async def _prove(self, stream: Stream, *, dialler: bool) -> float:
        challenger = Challenger(
            self._key, self._transport.peer, stream.peer, dialler=dialler, protocols=self._protocols
        )
        began, rtt_s = trio.current_time(), 0.0
        await stream.send(challenger.start())
        while challenger.result is None:
            data = await stream.receive()
            if not data:
                raise PeerGone(f"Peer {stream.peer} broke off the challenge.")
            if dialler:  # the other side's first bytes answer ours; a listener's are answered by the last
                rtt_s = rtt_s or trio.current_time() - began
            try:
                answer = challenger.receive(data)
            except PeerError:
                await _part(stream, challenger.parting)
                raise
            if answer:
                await stream.send(answer)
        return rtt_s or trio.current_time() - began


async def _part(stream: Stream, last: bytes) -> None:
    """Say why, and let the other side read it: whoever hangs up on it at once takes that away from it again."""
    if not last:
        return
    with trio.move_on_after(_PARTING_S):
        try:
            await stream.send(last)
            await stream.close_write()
            while await stream.receive():
                pass
        except PeerGone:
            pass
