"""The waiting room of the entry node: drives mesh/holding.py for requests that find every slot in the swarm taken."""

from __future__ import annotations

from collections.abc import Callable

import trio

from backends.types import Busy
from mesh.holding import Holding, Refuse


class _Ticket:
    def __init__(self, place: Callable[[], bool]) -> None:
        self.place = place
        self.decided = trio.Event()
        self.refusal: Refuse | None = None


class WaitingRoom:
    """Everything from the trio thread; `poke` it whenever a slot may have become free anywhere."""

    def __init__(self, *, limit: int, patience_s: float) -> None:
        """At most `limit` requests wait, each for at most `patience_s` seconds."""
        self._holding = Holding(limit=limit)
        self._patience_s = patience_s
        self._tickets: dict[int, _Ticket] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._holding)

    def occupied(self, lane: str) -> bool:
        """Whether somebody waits in this lane already: a newcomer must not overtake."""
        return self._holding.waiting(lane) > 0

    async def wait(self, lane: str, client: str, place: Callable[[], bool]) -> None:
        """Wait until `place` has found and taken a slot. It must not block, and returns False when there is none.

        Raises Busy when the room is full or the patience at its end.
        """
        self._last += 1
        number = self._last
        ticket = self._tickets[number] = _Ticket(place)
        try:
            self._refuse(self._holding.arrive(number, lane=lane, client=client, now=trio.current_time()))
            self.poke()  # a slot may have come free since the caller looked
            with trio.move_on_after(self._patience_s) as scope:
                await ticket.decided.wait()
            if scope.cancelled_caught:
                raise Busy("All slots of this model stayed busy.", retry_after_s=self._patience_s)
            if ticket.refusal is not None:
                raise Busy("Too many requests wait for this model.", retry_after_s=ticket.refusal.retry_after_s)
        finally:
            del self._tickets[number]
            self._holding.cancel(number)

    def poke(self) -> None:
        """Offer what is free to those who wait, lane by lane, in turn."""
        for lane in self._holding.lanes():
            for number in self._holding.try_dispatch(lane, trio.current_time(), lambda n: self._tickets[n].place()):
                self._tickets[number].decided.set()

    def _refuse(self, refusals: list[Refuse]) -> None:
        for refusal in refusals:
            ticket = self._tickets[refusal.ticket]
            ticket.refusal = refusal
            ticket.decided.set()
