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

import math
from collections import deque
from dataclasses import dataclass, field

from mesh.transport import PeerId

MARGIN_S = 0.02
"""Added to the round trip: a call takes this long between its reservation and the peer's own count. Too small, and a
call counts for nothing for one report; too large, and it counts twice."""


MAX_ENDED = 4096
"""Ended calls remembered per replica. A report clears them every second; without reports, the peer is dead soon."""


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


@dataclass(frozen=True, slots=True)
class _Call:
    made_at: float
    prompt_tokens: int
    output_tokens: int
    weight: int


@dataclass(slots=True)
class _Book:
    """The calls on one replica. The sums are kept, as every decision reads them."""

    reported_at: float = -math.inf
    lag_s: float = MARGIN_S
    live: dict[int, _Call] = field(default_factory=dict)
    over: deque[tuple[_Call, float]] = field(default_factory=lambda: deque(maxlen=MAX_ENDED))  # call, when it ended
    sums: Reservation = NOTHING

    def counted(self, call: _Call) -> bool:
        """Whether the last report counts this call."""
        return call.made_at + self.lag_s <= self.reported_at

    def add_up(self) -> None:
        fresh = [call for call in self.live.values() if not self.counted(call)]
        self.sums = Reservation(
            calls=sum(call.weight for call in fresh),
            prompt_tokens=sum(call.prompt_tokens for call in fresh),
            output_tokens=sum(call.output_tokens for call in fresh),
            ended=sum(call.weight for call, _ in self.over if self.counted(call)),
            running=sum(call.weight for call in self.live.values()),
        )

    def entered(self, call: _Call) -> None:
        """Add a call to the sums."""
        sums = self.sums
        self.sums = Reservation(
            sums.calls + call.weight,
            sums.prompt_tokens + call.prompt_tokens,
            sums.output_tokens + call.output_tokens,
            sums.ended,
            sums.running + call.weight,
        )

    def struck(self, call: _Call) -> None:
        """Take a call that has ended out of the sums."""
        sums, counted = self.sums, self.counted(call)
        fresh = 0 if counted else 1
        self.sums = Reservation(
            sums.calls - fresh * call.weight,
            sums.prompt_tokens - fresh * call.prompt_tokens,
            sums.output_tokens - fresh * call.output_tokens,
            sums.ended + counted * call.weight,
            sums.running - call.weight,
        )


class Reservations:
    """The book. As many entries as this node has calls in flight; what has ended stays until the next report."""

    def __init__(self) -> None:
        self._books: dict[PeerId, dict[str, _Book]] = {}
        self._last = 0

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
        self._last += 1
        call = _Call(now, prompt_tokens, output_tokens, weight)
        book = self._books.setdefault(peer, {}).setdefault(model, _Book())
        book.live[self._last] = call
        book.entered(call)
        return Handle(self._last, peer, model)

    def release(self, handle: Handle, now: float) -> None:
        """The call is over, however it ended. A second release is ignored."""
        book = self._books.get(handle.peer, {}).get(handle.model)
        call = book.live.pop(handle.number, None) if book is not None else None
        if book is None or call is None:
            return
        dropped = book.over[0][0] if len(book.over) == MAX_ENDED else None
        book.over.append((call, now))
        if dropped is not None:
            book.add_up()
        else:
            book.struck(call)

    def seen(self, peer: PeerId, reported_at: float, *, rtt_s: float = 0.0) -> None:
        """A load report of this peer came in at `reported_at`; a heartbeat that says "no change" is one as well.

        May be called late, or again: just before a decision, with the time of the peer's last heartbeat.
        """
        books = self._books.get(peer, {})
        for model, book in list(books.items()):
            if reported_at <= book.reported_at:
                continue
            book.reported_at, book.lag_s = reported_at, rtt_s + MARGIN_S
            while book.over and book.over[0][1] <= reported_at:
                book.over.popleft()
            if book.live or book.over:
                book.add_up()
            else:
                del books[model]
        if not books:
            self._books.pop(peer, None)

    def forget(self, peer: PeerId) -> None:
        """The peer is gone; its calls will be released one by one, to no effect."""
        self._books.pop(peer, None)

    def on(self, peer: PeerId, model: str) -> Reservation:
        """What to correct this replica's last report by."""
        book = self._books.get(peer, {}).get(model)
        return NOTHING if book is None else book.sums
