"""The beat streams of one node: reads each to its end, writes what `mesh/gossip.py` has to say, when it has."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from mesh import heartbeat
from mesh.errors import PeerGone, PeerMisbehaved
from mesh.framed import Framed
from mesh.gossip import Gossip
from mesh.heartbeat import Link
from mesh.membership import Effect
from mesh.timing import Timing
from mesh.transport import PeerId, Stream

_LINKS_PER_PEER = 4

_log = logging.getLogger("mesh.beats")


class Wire:
    """The network's side of a link."""

    def __init__(self, link: Link, stream: Stream) -> None:
        self.link = link
        self.stream = stream
        self.scope = trio.CancelScope()
        self.met = trio.Event()
        """The link is confirmed, or has ended before it was."""
        self.said_bye = trio.Event()
        """Or has ended."""
        self.writing_since: float | None = None


class Beats:
    """All of them. Writing needs a task only while there is something to write."""

    def __init__(self, gossip: Gossip, timing: Timing, execute: Callable[[list[Effect]], None]) -> None:
        """`execute` carries out the effects of what was heard."""
        self._gossip = gossip
        self._timing = timing
        self._execute = execute
        self._wires: dict[Link, Wire] = {}
        self._nursery: trio.Nursery | None = None

    def start(self, nursery: trio.Nursery) -> None:
        """Writers run in this nursery from now on."""
        self._nursery = nursery

    def stop(self) -> None:
        """End all of them, those that run in others' tasks too."""
        self._nursery = None
        for wire in self._wires.values():
            wire.scope.cancel()

    def wire(self, stream: Stream, rtt_s: float) -> Wire:
        """A new beat stream, to be served with `serve`."""
        link = Link(stream.peer, heartbeat.Pulse(rtt_s), since=trio.current_time())
        wire = self._wires[link] = Wire(link, stream)
        return wire

    async def serve(self, wire: Wire, *, dialler: bool) -> None:
        """Until it ends, breaks or is cancelled. Does not raise.

        The dialler speaks first: with the listener's record it knows that it is a live member there, too.
        """
        link, framed = wire.link, Framed(wire.stream, heartbeat.decoder())
        ours = True  # this node itself is ending: nobody is to be missed
        try:
            with wire.scope:
                if dialler:
                    self._stir(wire)
                while (message := await framed.receive()) is not None:
                    now = trio.current_time()
                    self._execute(self._gossip.heard(link, message, now))
                    if link.confirmed and not wire.met.is_set():
                        wire.met.set()
                        for old in self._gossip.links.get(link.peer, [])[:-_LINKS_PER_PEER]:
                            self._wires[old].scope.cancel()
                    if self._gossip.current(link.peer) is link and self._gossip.waiting(link, now):
                        self._stir(wire)
            ours = False
        except PeerMisbehaved as error:
            _log.warning("dropped the beats of %s: %s", link.peer, error)
            ours = False
        except PeerGone:
            ours = False
        finally:
            del self._wires[link]
            wire.met.set()
            wire.said_bye.set()
            effects = self._gossip.closed(link, trio.current_time())
            if not ours:
                self._execute(effects)
            with trio.CancelScope(shield=True):
                await (wire.stream.aclose() if self._gossip.leaving else wire.stream.reset())

    def stir(self) -> None:
        """Write what is due, on all links."""
        now = trio.current_time()
        for links in self._gossip.links.values():
            if self._gossip.waiting(links[-1], now):
                self._stir(self._wires[links[-1]])

    def check(self, now: float, late_s: float) -> None:
        """End the streams of peers that do not read (for as long as they might be silent: it comes to the same), and
        those that are too many: after both have dialled, the side with the lower id closes what it does not write to.
        """
        patience_s = self._timing.dead_beats * self._gossip.pace_s()
        for wire in self._wires.values():
            if wire.writing_since is not None:
                wire.writing_since += late_s  # while our own loop stood still, nobody could have read
                if now >= wire.writing_since + patience_s:
                    wire.scope.cancel()
        for peer, links in self._gossip.links.items():
            if len(links) > 1 and self._gossip.record.peer < peer and now >= links[-1].since + 2 * self._timing.beat_s:
                for link in links[:-1]:
                    self._wires[link].scope.cancel()

    def cancel(self, peer: PeerId) -> None:
        """End all beat streams with one peer."""
        for wire in self._wires.values():
            if wire.link.peer == peer:
                wire.scope.cancel()

    async def say_bye(self) -> None:
        """To all; nothing else is said afterwards."""
        self._gossip.leaving = True
        wires = [self._wires[links[-1]] for links in self._gossip.links.values()]
        self.stir()
        for wire in wires:
            await wire.said_bye.wait()

    def _stir(self, wire: Wire) -> None:
        if wire.writing_since is None and self._nursery is not None:
            wire.writing_since = trio.current_time()
            self._nursery.start_soon(self._write, wire)

    async def _write(self, wire: Wire) -> None:
        try:
            while data := self._gossip.outgoing(wire.link, trio.current_time()):
                wire.writing_since = trio.current_time()
                await wire.stream.send(data)
            if self._gossip.leaving and not wire.said_bye.is_set():
                await wire.stream.close_write()
                wire.said_bye.set()
        except PeerGone:
            wire.scope.cancel()
        finally:
            wire.writing_since = None
