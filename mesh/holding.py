"""Requests that wait at the entry node because every slot in the swarm is busy. Sans-IO.

- A lane is what waits for the same slots: a model, or a model on a pinned peer. Within a lane the clients take turns,
  so that one with a hundred requests does not starve one with a single request.
- The queue is bounded. Over the bound, the newest request of the client that holds most is refused: a client with few
  requests is not turned away because another floods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refuse:
    """The ticket will not be dispatched: 429 or 503 with Retry-After."""

    ticket: int
    retry_after_s: float
    expired: bool  # else: the queue is full


class Holding:
    """The queue. Tickets are numbers that the caller hands out; they rise."""

    def __init__(self, *, limit: int) -> None:
        raise NotImplementedError

    def waiting(self, lane: str) -> int:
        """How many wait in this lane: a newcomer must not overtake them, but `arrive` too."""
        raise NotImplementedError

    def lanes(self) -> tuple[str, ...]:
        """Lanes in which somebody waits, to try after a load report."""
        raise NotImplementedError

    def arrive(self, ticket: int, *, lane: str, client: str, now: float, deadline: float) -> list[Refuse]:
        """A request has to wait, until `deadline` at most. Returns who is refused for it: itself, or another."""
        raise NotImplementedError

    def try_dispatch(self, lane: str, now: float, place: Callable[[int], bool]) -> list[int]:
        """A slot may be free: offer it to the lane's tickets in turn, until `place(ticket)` is False.

        `place` picks and reserves, and returns whether it found a slot. Returns the tickets that go.
        """
        raise NotImplementedError

    def cancel(self, ticket: int) -> None:
        """The client has gone. Unknown tickets are ignored."""
        raise NotImplementedError

    def expire(self, now: float) -> list[Refuse]:
        """Refuse all who have waited until their deadline."""
        raise NotImplementedError

    def next_expiry(self) -> float:
        """The time at which `expire` has something to do; infinite if never."""
        raise NotImplementedError
