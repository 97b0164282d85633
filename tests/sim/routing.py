"""Routing in a discrete-event simulation: simulated engines, real decisions.

Entry nodes decide with the modules of mesh/ as a node does: pick, Reservations, Holding, PrefixIndex. They share
nothing but the nodes' load reports, one a second, and do not know what other entry nodes sent since. No clock, no
threads: a heap of events and one seeded generator of random numbers.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mesh.holding import Holding
from mesh.prefix import PrefixIndex
from mesh.records import Load
from mesh.reservations import Handle, Reservations
from mesh.routing import Decision, Need, Replica, estimate, pick
from tests.sim.machines import MODEL, Job, Machine, Node

Again = Callable[["Outcome"], Iterable["Request"]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client asks."""

    at: float
    client: str = "c"
    entry: int = 0
    prompt_tokens: int = 10
    output_tokens: int = 20
    chain: tuple[int, ...] = ()


@dataclass(kw_only=True)
class Outcome:
    """What became of it."""

    request: Request
    node: str = ""
    ended_at: float = math.inf
    cached_tokens: int = 0
    expected_cached_tokens: int = 0
    held: bool = False
    bounced: bool = False
    failures: int = 0
    refused: bool = False

    @property
    def seconds(self) -> float:
        return self.ended_at - self.request.at


@dataclass(eq=False)
class _Call:
    number: int
    outcome: Outcome
    exclude: frozenset[str] = frozenset()
    handle: Handle | None = None
    limit_s: float = math.inf

    @property
    def request(self) -> Request:
        return self.outcome.request


@dataclass(eq=False)
class _Entry:
    """A node as the clients see it."""

    reports: dict[str, Load] = field(default_factory=dict)
    book: Reservations = field(default_factory=Reservations)
    index: PrefixIndex = field(default_factory=PrefixIndex)
    holding: Holding = field(default_factory=lambda: Holding(limit=1000))
    turn: int = 0


class Simulation:
    """Runs requests over machines under a policy."""

    def __init__(
        self,
        machines: Sequence[Machine],
        *,
        policy: str = "ect",
        seed: int = 1,
        entries: int = 1,
        beat_s: float = 1.0,
        delay_s: float = 0.0005,
        bounce: bool = True,
        prefix: bool = True,
    ) -> None:
        self.rng = random.Random(seed)
        self.nodes = {machine.name: Node(machine, self.rng) for machine in machines}
        self.entries = [_Entry() for _ in range(entries)]
        self.policy, self.beat_s, self.delay_s, self.bounce, self.prefix = policy, beat_s, delay_s, bounce, prefix
        self.now = 0.0
        self.decisions: list[Decision] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._open = 0
        self._calls: dict[int, _Call] = {}
        self._plans: dict[str, float] = {}  # node -> when it will be looked at next

    def run(self, requests: Iterable[Request], *, again: Again = lambda outcome: ()) -> list[Outcome]:
        """All outcomes, in the order of their ends. `again` names requests that follow from one."""
        self._again = again
        self._outcomes: list[Outcome] = []
        for node in self.nodes.values():
            node.now = node.machine.joins_at
            first = node.machine.joins_at
            self._at(first, self._beat_of(node))
        for request in requests:
            self._ask(request)
        while self._open:
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self._outcomes

    # -- the network --

    def _at(self, when: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, event))

    def _beat_of(self, node: Node, *, first: bool = True) -> Callable[[], None]:
        def beat() -> None:
            self._advance(node)
            load, name = node.load(), node.machine.name
            for entry in self.entries:
                self._at(self.now + self.delay_s, lambda entry=entry: self._report(entry, name, load))  # type: ignore[misc]
            # The beats of different nodes fall anywhere in the second.
            pause_s = self.beat_s * (self.rng.random() if first else 1)
            self._at(self.now + pause_s, self._beat_of(node, first=False))

        return beat

    def _report(self, entry: _Entry, name: str, load: Load) -> None:
        entry.reports[name] = load
        entry.book.seen(name, self.now, rtt_s=2 * self.delay_s)
        self._try_held(entry)

    # -- a node --

    def _advance(self, node: Node) -> None:
        for job in node.advance(self.now):
            call = self._calls.pop(job.number)
            self._at(self.now + self.delay_s, lambda call=call, job=job: self._answered(call, job, node))  # type: ignore[misc]
        due = node.next_change()
        if due != self._plans.get(node.machine.name) and due < math.inf:
            self._plans[node.machine.name] = due
            self._at(due, lambda: self._advance(node) if self._plans.get(node.machine.name) == due else None)

    def _arrived(self, call: _Call, node: Node, cached_tokens: int) -> None:
        self._advance(node)
        fresh = Replica(
            peer=node.machine.name,
            name=node.machine.name,
            offer=node.machine.offer,
            load=node.load(),
            rtt_s=2 * self.delay_s,
            cached_tokens=cached_tokens,
        )
        if self.bounce and estimate(fresh, self._need(call)).terms.total_s > call.limit_s:
            load = node.load()
            self._at(self.now + self.delay_s, lambda: self._bounced(call, node.machine.name, load))
            return
        self._calls[call.number] = call
        request = call.request
        node.accept(Job(call.number, request.prompt_tokens, request.output_tokens, request.chain))
        self._advance(node)

    # -- an entry node --

    def _ask(self, request: Request) -> None:
        self._open += 1
        self._count += 1
        call = _Call(self._count, Outcome(request=request))
        self._at(request.at, lambda: self._arrive(call))

    def _arrive(self, call: _Call) -> None:
        entry = self._entry(call)
        if entry.holding.waiting(MODEL) or not self._place(call):
            call.outcome.held = True
            self._calls[call.number] = call
            for refusal in entry.holding.arrive(call.number, lane=MODEL, client=call.request.client, now=self.now):
                refused = self._calls.pop(refusal.ticket)
                refused.outcome.refused = True
                self._end(refused)

    def _try_held(self, entry: _Entry) -> None:
        for lane in entry.holding.lanes():
            for ticket in entry.holding.try_dispatch(lane, self.now, lambda ticket: self._place(self._calls[ticket])):
                # Until it arrives at its node, which enters it again.
                del self._calls[ticket]

    def _place(self, call: _Call) -> bool:
        entry, request = self._entry(call), call.request
        cached = entry.index.cached(request.chain, request.prompt_tokens, self.now) if self.prefix else {}
        replicas = [
            Replica(
                peer=name,
                name=name,
                offer=self.nodes[name].machine.offer,
                load=load,
                rtt_s=2 * self.delay_s,
                reserved=entry.book.on(name, MODEL),
                cached_tokens=cached.get(name, 0),
            )
            for name, load in entry.reports.items()
        ]
        decision = pick(replicas, self._need(call), self.policy, rng=self.rng, turn=entry.turn)
        self.decisions.append(decision)
        if decision.chosen is None:
            assert decision.hold, decision.reason
            return False
        entry.turn += 1
        chosen = decision.chosen
        peer = chosen.replica.peer
        call.limit_s = math.inf if call.outcome.bounced or self.policy != "ect" else decision.bounce_above_s
        call.outcome.expected_cached_tokens = chosen.cached_tokens
        call.handle = entry.book.reserve(
            peer,
            MODEL,
            self.now,
            prompt_tokens=request.prompt_tokens - chosen.cached_tokens,
            output_tokens=request.output_tokens,
        )
        entry.index.note(peer, request.chain, self.now)
        self._at(self.now + self.delay_s, lambda: self._arrived(call, self.nodes[peer], chosen.cached_tokens))
        return True

    def _bounced(self, call: _Call, name: str, load: Load) -> None:
        entry = self._entry(call)
        call.outcome.bounced = True
        assert call.handle is not None
        entry.book.release(call.handle, self.now)
        self._report(entry, name, load)
        self._arrive(call)

    def _answered(self, call: _Call, job: Job, node: Node) -> None:
        entry = self._entry(call)
        assert call.handle is not None
        entry.book.release(call.handle, self.now)
        outcome = call.outcome
        if job.failed:
            outcome.failures += 1
            call.exclude |= {node.machine.name}
            if len(call.exclude) == len(entry.reports):
                call.exclude = frozenset()
            self._arrive(call)
        else:
            outcome.node, outcome.cached_tokens = node.machine.name, job.cached_tokens
            entry.index.observed(node.machine.name, outcome.expected_cached_tokens, job.cached_tokens)
            self._end(call)
        self._try_held(entry)

    def _end(self, call: _Call) -> None:
        call.outcome.ended_at = self.now
        self._outcomes.append(call.outcome)
        self._open -= 1
        for request in self._again(call.outcome):
            self._ask(request)

    def _entry(self, call: _Call) -> _Entry:
        return self.entries[call.request.entry]

    def _need(self, call: _Call) -> Need:
        request = call.request
        return Need(
            model=MODEL,
            capability="chat",
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            prefix=request.chain,
            exclude=call.exclude,
        )


def poisson(
    rng: random.Random, *, per_s: float, seconds: float, entries: int = 1, start: float = 2.0
) -> Iterator[Request]:
    """Requests that come independently of each other, each at any of the entry nodes."""
    at = start
    while (at := at + rng.expovariate(per_s)) < start + seconds:
        yield Request(at=at, entry=rng.randrange(entries))


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
