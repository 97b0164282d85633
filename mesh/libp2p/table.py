"""The table of connections: which there are with a peer, which of them to use, and which to give up.

Two nodes that dial each other at once get two connections. Both work; then both sides prefer the same one (a direct one
to a relayed one, then the one dialled by the lower id, then the newer), make sure that it is alive, and open no more
streams on the other, which is closed when its streams have ended.
"""

from __future__ import annotations

from collections.abc import Callable

from mesh.libp2p.link import Link
from mesh.transport import PeerId

ALIVE_S = 2.0
"""How long a connection has to show that it lives, before another is given up for it."""
RETIRE_S = 5.0
"""How long a connection that is no longer preferred stays without streams, before it is closed."""
MAX_LINKS = 512
MAX_LINKS_PER_PEER = 4


class Table:
    """All connections of a node."""

    def __init__(self, own: PeerId) -> None:
        self._own = own
        self._links: dict[PeerId, list[Link]] = {}
        self._traffic: dict[PeerId, tuple[int, int]] = {}  # of connections that have ended
        self.connected: list[Callable[[PeerId], None]] = []
        """Told of a peer's first connection."""
        self.disconnected: list[Callable[[PeerId], None]] = []
        """Told of the loss of a peer's last."""

    @property
    def full(self) -> bool:
        """Whether no more should be taken in."""
        return sum(map(len, self._links.values())) >= MAX_LINKS

    def peers(self) -> frozenset[PeerId]:
        """Those with a connection."""
        return frozenset(self._links)

    def of(self, peer: PeerId) -> tuple[Link, ...]:
        """A peer's connections, oldest first."""
        return tuple(self._links.get(peer, ()))

    def best(self, peer: PeerId) -> Link | None:
        """The one to use: the newest that is not given up. While two are being settled, both work."""
        links = self._usable(peer)
        direct = [link for link in links if not link.relayed]
        return (direct or links)[-1] if links else None

    def traffic(self, peer: PeerId) -> tuple[int, int]:
        """Payload bytes sent to and received from a peer since it was first met."""
        sent, received = self._traffic.get(peer, (0, 0))
        for link in self._links.get(peer, ()):
            sent, received = sent + link.sent_bytes, received + link.received_bytes
        return sent, received

    def add(self, link: Link) -> bool:
        """Take one in; whether `settle` has to follow."""
        links = self._links.setdefault(link.peer, [])
        links.append(link)
        if len(links) > MAX_LINKS_PER_PEER:
            links[0].close()
        if len(links) == 1:
            for tell in self.connected:
                tell(link.peer)
        return len(links) > 1

    def remove(self, link: Link) -> None:
        """One has ended."""
        links = self._links.get(link.peer, [])
        if link not in links:
            return
        links.remove(link)
        sent, received = self._traffic.get(link.peer, (0, 0))
        self._traffic[link.peer] = sent + link.sent_bytes, received + link.received_bytes
        if not links:
            del self._links[link.peer]
            for tell in self.disconnected:
                tell(link.peer)
        elif all(other.retired for other in links):
            links[-1].retired = False

    def close(self) -> None:
        """End all of them, soon."""
        for links in self._links.values():
            for link in links:
                link.close()

    async def settle(self, peer: PeerId) -> None:
        """Of several connections with a peer keep one, the same one as the peer does, if it is alive."""
        links = self._usable(peer)
        if len(links) < 2:
            return
        by_lower = self._own < peer
        winner = max(links, key=lambda link: (not link.relayed, link.dialled == by_lower, links.index(link)))
        if await winner.alive(ALIVE_S):
            for link in links:
                link.retired = link is not winner
        else:
            winner.close()

    def tick(self, now: float, *, late: bool) -> None:
        """Once a second. `late`: this process was stopped for a while, and the peers' silence proves nothing."""
        for links in list(self._links.values()):
            for link in list(links):
                if late:
                    link.excuse(now)
                link.tick(now)
                if link.retired and not link.streams and now > link.idle_since + RETIRE_S:
                    link.close()

    def _usable(self, peer: PeerId) -> list[Link]:
        return [link for link in self._links.get(peer, ()) if not (link.retired or link.closing)]
