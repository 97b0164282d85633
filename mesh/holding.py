"""Requests that wait at the entry node because every slot in the swarm is busy. Sans-IO.

- A lane is what waits for the same slots: a model, or a model on a pinned peer. Within a lane the clients take turns,
  so that one with a hundred requests does not starve one with a single request.
- The queue is bounded. Over the bound, the newest request of the client that holds most is refused: a client with few
  requests is not turned away because another floods.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

_PACE_WEIGHT = 0.2  # of the newest interval between two dispatches in the average
_MAX_PACE_S = 60.0


@dataclass(frozen=True, slots=True)
class Refuse:
    """The ticket will not be dispatched: 429 or 503 with Retry-After."""

    ticket: int
    retry_after_s: float
    expired: bool  # else: the queue is full


@dataclass(frozen=True, slots=True)
class _Held:
    ticket: int
    lane: str
    client: str
    deadline: float


@dataclass(slots=True)
class _Lane:
    clients: OrderedDict[str, dict[int, _Held]] = field(default_factory=OrderedDict)  # whose turn it is comes first
    served_at: float = 0.0  # the last dispatch, or when the first of these began to wait
    pace_s: float = 1.0  # average time between two dispatches

    @property
    def size(self) -> int:
        return sum(map(len, self.clients.values()))


class Holding:
    """The queue. Tickets are numbers that the caller hands out; each arrives once."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._lanes: dict[str, _Lane] = {}
        self._held: dict[int, _Held] = {}
        self._by_client: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    def waiting(self, lane: str) -> int:
        """How many wait in this lane: a newcomer must not overtake them, but `arrive` too."""
        return self._lanes[lane].size if lane in self._lanes else 0

    def lanes(self) -> tuple[str, ...]:
        """Lanes in which somebody waits, to try after a load report."""
        return tuple(self._lanes)

    def arrive(self, ticket: int, *, lane: str, client: str, now: float, deadline: float = math.inf) -> list[Refuse]:
        """A request has to wait, until `deadline` at most. Returns who is refused for it: itself, or another."""
        held = self._held[ticket] = _Held(ticket, lane, client, deadline)
        line = self._lanes.setdefault(lane, _Lane(served_at=now))
        line.clients.setdefault(client, {})[ticket] = held
        self._by_client[client] += 1
        if len(self._held) <= self._limit:
            return []
        # Among those who hold most, the newcomer goes first: it has waited least.
        most = max(self._by_client.values())
        loser = client if self._by_client[client] == most else self._by_client.most_common(1)[0][0]
        newest = max(self._held_by(loser), key=lambda other: other.ticket)
        refusal = Refuse(newest.ticket, self._wait_s(newest.lane), expired=False)
        self.cancel(newest.ticket)
        return [refusal]

    def try_dispatch(self, lane: str, now: float, place: Callable[[int], bool]) -> list[int]:
        """A slot may be free: offer it to the lane's tickets in turn, until `place(ticket)` is False.

        `place` picks and reserves, and returns whether it found a slot. Returns the tickets that go. The first in turn
        blocks the others: one that needs four slots gets them before a later one gets its single slot.
        """
        gone = []
        while (line := self._lanes.get(lane)) is not None:
            client, tickets = next(iter(line.clients.items()))
            ticket = next(iter(tickets))
            if not place(ticket):
                break
            gone.append(ticket)
            line.clients.move_to_end(client)
            line.pace_s += _PACE_WEIGHT * (min(_MAX_PACE_S, max(0.0, now - line.served_at)) - line.pace_s)
            line.served_at = now
            self.cancel(ticket)
        return gone

    def cancel(self, ticket: int) -> None:
        """The client has gone. Unknown tickets are ignored."""
        held = self._held.pop(ticket, None)
        if held is None:
            return
        self._by_client[held.client] -= 1
        if not self._by_client[held.client]:
            del self._by_client[held.client]
        line = self._lanes[held.lane]
        tickets = line.clients[held.client]
        del tickets[ticket]
        if not tickets:
            del line.clients[held.client]
        if not line.clients:
            del self._lanes[held.lane]

    def expire(self, now: float) -> list[Refuse]:
        """Refuse all who have waited until their deadline."""
        due = [held for held in self._held.values() if held.deadline <= now]
        refusals = [Refuse(held.ticket, self._wait_s(held.lane), expired=True) for held in due]
        for held in due:
            self.cancel(held.ticket)
        return refusals

    def next_expiry(self) -> float:
        """The time at which `expire` has something to do; infinite if never."""
        return min((held.deadline for held in self._held.values()), default=math.inf)

    def _held_by(self, client: str) -> list[_Held]:
        return [held for held in self._held.values() if held.client == client]

    def _wait_s(self, lane: str) -> float:
        """When it is worth coming back: the time in which the lane empties at its pace of late."""
        line = self._lanes[lane]
        return max(1.0, line.size * line.pace_s)
