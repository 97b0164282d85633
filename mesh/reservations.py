"""What this node has sent to each replica since the replica last reported its load. Sans-IO.

A load report is up to a second old. A burst that fell between two reports would land on one node, if each of its
requests saw the same report. So the entry node keeps a book: every call is entered before it is sent and struck out
on every exit path. At a report, each call in the book either was at the peer already when the report was written (then
the report counts it) or was still on its way (then it does not):

    the report was written at   received - rtt / 2
    a call got there at         reserved + rtt / 2

so a call is counted if it was reserved at least one round trip before the report came in. A call that the report
counts and that has ended since is a slot that the report calls busy and this node knows to be free: `ended`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.transport import PeerId

MARGIN_S = 0.02
"""Added to the round trip: a call takes this long between its reservation and the peer's own count. Too small, and a
call counts for nothing for one report; too large, and it counts twice."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """This node's calls on one replica, as far as they correct the replica's last report."""

    calls: int = 0
    """Sent, and not in the report yet: in slots (a call of weight 4 is 4)."""
    prompt_tokens: int = 0
    """Of those: prompt tokens that the replica has to prefill."""
    output_tokens: int = 0
    ended: int = 0
    """In the report, but over since: in slots."""
    running: int = 0
    """All of this node's slots there, in the report or not. Each will be heard of the moment it ends."""


NOTHING = Reservation()


@dataclass(frozen=True, slots=True)
class Handle:
    """One call in the book."""

    number: int
    peer: PeerId
    model: str


class Reservations:
    """The book. As many entries as this node has calls in flight; what has ended stays until the next report."""

    def reserve(
        self,
        peer: PeerId,
        model: str,
        now: float,
        *,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
        weight: int = 1,
    ) -> Handle:
        """Enter a call that is about to be sent; `prompt_tokens` without those that the peer has cached."""
        raise NotImplementedError

    def release(self, handle: Handle, now: float) -> None:
        """The call is over, however it ended. A second release is ignored."""
        raise NotImplementedError

    def seen(self, peer: PeerId, now: float, *, rtt_s: float = 0.0) -> None:
        """A load report of this peer has come in (a heartbeat without changes may be left out)."""
        raise NotImplementedError

    def forget(self, peer: PeerId) -> None:
        """The peer is gone; its calls will be released one by one, to no effect."""
        raise NotImplementedError

    def on(self, peer: PeerId, model: str) -> Reservation:
        """What to correct this replica's last report by."""
        raise NotImplementedError
