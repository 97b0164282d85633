"""Who gets which slot of which model, and which models are loaded: queue, leases, loads and evictions. Sans-IO.

Events are method calls with the local monotonic time; each returns the effects for node/pool.py to carry out. The
rules:

- Models load when somebody waits for them, within a memory budget. What is least recently used goes first; a pinned
  model, or one with a running call, never goes.
- Waiters are served oldest model first, and within a model one client after the other, so that a client with a
  hundred requests does not starve one with a single request.
- A model that others keep busy does not starve one that does not fit beside it: requests younger than the starved
  one wait until the busy model has emptied and made room.
- A failed load fails its waiters, and is not tried again before a pause that doubles.
- A model that is to be renewed finishes what runs, and is loaded anew for whoever waits.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from backends.types import MeshError
from node.refusals import again, crowded_out, full, shutting_down, too_large

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
_LEASE_WEIGHT = 0.2  # of the newest lease in the average duration


class State(Enum):
    """Where a model is between disk and memory."""

    ABSENT = auto()
    LOADING = auto()
    READY = auto()
    UNLOADING = auto()


@dataclass(frozen=True, slots=True)
class Grant:
    """The ticket holds its slots now."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The ticket will never be granted."""

    ticket: int
    error: MeshError


@dataclass(frozen=True, slots=True)
class Load:
    """Start loading; answer with `loaded` or `load_failed`."""

    model: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Stop the worker; answer with `gone`."""

    model: str


Effect: TypeAlias = Grant | Refuse | Load | Unload


@dataclass(slots=True)
class _Ticket:
    number: int
    model: str
    client: str
    weight: int
    granted_at: float | None = None


@dataclass(slots=True)
class Model:
    """What is known of one model."""

    name: str
    memory_bytes: int
    slots: int
    pinned: bool = False
    state: State = State.ABSENT
    leased: int = 0  # slots
    leases: set[int] = field(default_factory=set)
    waiting: OrderedDict[str, deque[_Ticket]] = field(default_factory=OrderedDict)  # client -> its tickets, in turn
    used_at: float = 0.0
    failures: int = 0  # in a row
    retry_at: float = 0.0
    error: MeshError | None = None  # of the last failed load
    lease_s: float = 1.0  # average
    outdated: bool = False  # what is loaded is to be loaded anew

    @property
    def queue(self) -> int:
        """Tickets that wait."""
        return sum(map(len, self.waiting.values()))

    @property
    def oldest(self) -> float:
        """Number of the oldest waiting ticket; infinite without any."""
        return min((tickets[0].number for tickets in self.waiting.values()), default=math.inf)

    @property
    def idle(self) -> bool:
        return self.state is State.READY and not self.leases and not self.waiting


class Slots:
    """The state machine."""

    def __init__(self, *, budget_bytes: int, queue_limit: int, idle_unload_s: float) -> None:
        self._budget = budget_bytes
        self._queue_limit = queue_limit
        self._idle_unload_s = idle_unload_s
        self._tickets: dict[int, _Ticket] = {}
        self._closed = False
        self._kept: dict[str, float] = {}  # model -> seconds of idleness that a client wants for it
        self.models: dict[str, Model] = {}

    @property
    def committed_bytes(self) -> int:
        """Memory of all models that are not absent."""
        return sum(model.memory_bytes for model in self.models.values() if model.state is not State.ABSENT)

    # -- events --

    def register(self, name: str, *, memory_bytes: int, slots: int, pinned: bool) -> None:
        """Learn of a model, or of a change to its file: sizes take effect at the next load."""
        model = self.models.setdefault(name, Model(name, memory_bytes, slots))
        model.pinned = pinned
        if model.state is State.ABSENT:
            model.memory_bytes, model.slots = memory_bytes, slots

    def request(self, number: int, name: str, *, client: str, weight: int, now: float) -> list[Effect]:
        """A new ticket (numbers rise) wants `weight` slots of a registered model; more than it has means all."""
        model = self.models[name]
        if self._closed:
            return [Refuse(number, shutting_down())]
        if model.memory_bytes > self._budget:
            return [Refuse(number, too_large(model.name, model.memory_bytes, self._budget))]
        if model.state is State.ABSENT and model.error is not None and now < model.retry_at:
            return [Refuse(number, again(model.error))]
        ticket = self._tickets[number] = _Ticket(number, name, client, weight)
        model.waiting.setdefault(client, deque()).append(ticket)
        effects = self._pump(now)
        # Waiting for the first load is not waiting in a queue of others.
        steady = model.state is State.READY and not model.outdated
        if ticket.granted_at is None and model.queue > max(self._queue_limit, not steady):
            self._forget(ticket)
            effects.append(Refuse(number, full(model.name, model.queue * model.lease_s / max(1, model.slots))))
        return effects

    def release(self, number: int, now: float) -> list[Effect]:
        """A ticket is given back, granted or not (a waiter that was cancelled). Unknown ones are ignored."""
        ticket = self._tickets.get(number)
        if ticket is None:
            return []
        model = self.models[ticket.model]
        self._forget(ticket)
        if ticket.granted_at is not None:
            model.used_at = now
            model.lease_s += _LEASE_WEIGHT * (now - ticket.granted_at - model.lease_s)
            if model.state is State.READY:
                model.failures = 0
        return self._pump(now)

    def loaded(self, name: str, *, slots: int, now: float) -> list[Effect]:
        """A load has succeeded; the engine has so many slots."""
        model = self.models[name]
        model.state, model.slots, model.used_at, model.error = State.READY, slots, now, None
        return self._pump(now)

    def load_failed(self, name: str, error: MeshError, now: float) -> list[Effect]:
        """A load has failed: so do all who wait for it."""
        model = self.models[name]
        model.state = State.ABSENT
        self._pause(model, error, now)
        effects: list[Effect] = [Refuse(ticket.number, again(error)) for ticket in self._take_waiting(model)]
        return effects + self._pump(now)

    def gone(self, name: str, now: float, *, crash: MeshError | None = None) -> list[Effect]:
        """A worker has ended, as told or by itself (`crash`). Its leases end when their holders notice.

        The first crash costs nothing but a load; a worker that keeps crashing is paused like a failing load.
        """
        model = self.models[name]
        model.state, model.outdated = State.ABSENT, False
        effects: list[Effect] = []
        if crash is not None:
            if model.failures:
                self._pause(model, crash, now)
                effects = [Refuse(ticket.number, again(crash)) for ticket in self._take_waiting(model)]
            else:
                model.failures = 1
        return effects + self._pump(now)

    def tick(self, now: float) -> list[Effect]:
        """Unload what has been idle for too long."""
        return [self._unload(model) for model in self.models.values() if model.idle and now >= self.expiry(model)]

    def keep(self, name: str, seconds: float) -> None:
        """From now on a model is unloaded after so long without calls; what the node does by itself yields to this."""
        self._kept[name] = seconds

    def pin(self, name: str, *, pinned: bool) -> None:
        """A model's file says something new about that."""
        if name in self.models:
            self.models[name].pinned = pinned

    def expiry(self, model: Model) -> float:
        """The time at which a model is unloaded if it stays idle; infinite if never."""
        if model.pinned:
            return math.inf
        return model.used_at + self._kept.get(model.name, self._idle_unload_s or math.inf)

    def unload(self, name: str) -> list[Effect]:
        """Unload a model now if nothing runs on it (its file changed, or an operator wants it)."""
        model = self.models.get(name)
        return [self._unload(model)] if model is not None and model.idle else []

    def renew(self, name: str, now: float) -> list[Effect]:
        """Unload what is loaded of a model as soon as nothing runs on it; until then nothing new begins."""
        model = self.models.get(name)
        if model is None or model.state is not State.READY:
            return []
        model.outdated = True
        return self._pump(now)

    def close(self) -> list[Effect]:
        """No more grants: refuse all who wait, and all who come."""
        self._closed = True
        return [
            Refuse(ticket.number, shutting_down())
            for model in self.models.values()
            for ticket in self._take_waiting(model)
        ]

    def next_tick(self) -> float:
        """The time at which `tick` may have something to do; infinite if never."""
        return min((self.expiry(model) for model in self.models.values() if model.idle), default=math.inf)

    # -- rules --

    def _pump(self, now: float) -> list[Effect]:
        effects: list[Effect] = [
            self._unload(model)
            for model in self.models.values()
            if model.outdated and model.state is State.READY and not model.leases
        ]
        draining: dict[str, float] = {}  # model -> number of the ticket it makes room for
        promised = 0  # memory that is or becomes free, but is spoken for by older waiters
        for model in sorted(self.models.values(), key=lambda model: model.oldest):
            if not model.waiting:
                break
            if model.state is State.READY and not model.outdated:
                effects += self._grant(model, draining.get(model.name, math.inf), now)
            elif model.state is State.ABSENT:
                promised += self._make_room(model, promised, draining, effects, now)
        return effects

    def _grant(self, model: Model, before: float, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while model.waiting:
            client, tickets = next(iter(model.waiting.items()))
            ticket = tickets[0]
            weight = min(ticket.weight, model.slots)
            if ticket.number > before or model.leased + weight > model.slots:
                break
            tickets.popleft()
            del model.waiting[client]
            if tickets:
                model.waiting[client] = tickets  # behind the other clients
            ticket.weight = weight
            ticket.granted_at = now
            model.leased += weight
            model.leases.add(ticket.number)
            effects.append(Grant(ticket.number))
        return effects

    def _make_room(
        self, model: Model, promised: int, draining: dict[str, float], effects: list[Effect], now: float
    ) -> int:
        """Load `model` if it fits, else clear the way; returns the memory it will take that is not committed yet."""
        missing = model.memory_bytes + promised + self.committed_bytes - self._budget
        if missing <= 0:
            model.state = State.LOADING
            effects.append(Load(model.name))
            return 0
        others = [other for other in self.models.values() if other is not model]
        missing -= sum(other.memory_bytes for other in others if other.state is State.UNLOADING)
        victims = [
            other for other in others if other.state is State.READY and not other.pinned and other.oldest > model.oldest
        ]
        staying = (other for other in others if other.pinned and other.state in (State.LOADING, State.READY))
        pinned = sum(other.memory_bytes for other in staying)
        if model.memory_bytes + pinned > self._budget:
            effects += [
                Refuse(ticket.number, crowded_out(model.name, model.memory_bytes, pinned))
                for ticket in self._take_waiting(model)
            ]
            return 0
        for victim in sorted(victims, key=lambda other: (not other.idle, other.used_at)):
            if missing <= 0:
                break
            missing -= victim.memory_bytes
            if victim.leases:
                draining[victim.name] = min(draining.get(victim.name, math.inf), model.oldest)
            else:
                effects.append(self._unload(victim))
        return model.memory_bytes

    def _unload(self, model: Model) -> Unload:
        model.state, model.outdated = State.UNLOADING, False
        return Unload(model.name)

    def _pause(self, model: Model, error: MeshError, now: float) -> None:
        model.error = error
        model.retry_at = now + min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**model.failures)
        model.failures = min(model.failures + 1, 16)

    def _take_waiting(self, model: Model) -> list[_Ticket]:
        tickets = sorted((t for queue in model.waiting.values() for t in queue), key=lambda ticket: ticket.number)
        model.waiting.clear()
        for ticket in tickets:
            del self._tickets[ticket.number]
        return tickets

    def _forget(self, ticket: _Ticket) -> None:
        del self._tickets[ticket.number]
        model = self.models[ticket.model]
        if ticket.granted_at is not None:
            model.leased -= ticket.weight
            model.leases.discard(ticket.number)
            return
        queue = model.waiting[ticket.client]
        queue.remove(ticket)
        if not queue:
            del model.waiting[ticket.client]
