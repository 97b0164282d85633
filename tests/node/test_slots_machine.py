"""Any sequence of events keeps the promises of node/slots.py."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.types import Busy, EngineCrashed, LoadFailed, MeshError, OutOfMemory
from node.slots import Effect, Grant, Load, Refuse, Slots, State, Unload

BUDGET = 10
QUEUE_LIMIT = 6
IDLE_S = 30.0
NAMES = ("a", "b", "c", "d")
names = st.sampled_from(NAMES)


class SlotsMachine(RuleBasedStateMachine):
    """Plays the pool: keeps the books on what the effects say, from outside."""

    @initialize(
        sizes=st.tuples(*[st.integers(1, BUDGET + 1)] * len(NAMES)),
        slots=st.tuples(*[st.integers(1, 3)] * len(NAMES)),
        pinned=st.sets(names, max_size=1),
    )
    def start(self, sizes: tuple[int, ...], slots: tuple[int, ...], pinned: set[str]) -> None:
        self.now = 0.0
        self.slots = Slots(budget_bytes=BUDGET, queue_limit=QUEUE_LIMIT, idle_unload_s=IDLE_S)
        self.sizes = dict(zip(NAMES, sizes, strict=True))
        self.pinned = pinned
        for name, size, count in zip(NAMES, sizes, slots, strict=True):
            self.slots.register(name, memory_bytes=size, slots=count, pinned=name in pinned)
        self.last = 0
        self.waiting: dict[int, tuple[str, str]] = {}  # ticket -> model, client
        self.running: dict[int, str] = {}
        self.dead: set[int] = set()  # of the running: their worker died
        self.loading: set[str] = set()
        self.unloading: set[str] = set()
        self.ready: set[str] = set()
        self.renewed: set[str] = set()  # an operator has asked for it

    def absorb(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Grant(ticket):
                    model, client = self.waiting.pop(ticket)
                    assert model in self.ready
                    older = [t for t, who in self.waiting.items() if who == (model, client) and t < ticket]
                    assert not older, "first in, first out within one client"
                    self.running[ticket] = model
                case Refuse(ticket, error):
                    del self.waiting[ticket]
                    assert isinstance(error, MeshError)
                case Load(model):
                    assert model not in self.loading | self.ready | self.unloading
                    self.loading.add(model)
                case Unload(model):
                    assert model in self.ready
                    assert model not in {self.running[t] for t in self.running if t not in self.dead}
                    self.ready.remove(model)
                    self.unloading.add(model)
                    evicted = self.evicting and model not in self.renewed
                    assert not (evicted and model in self.pinned), "a pinned model is never evicted"
                    self.renewed.discard(model)

    evicting = True

    @rule(name=names, client=st.sampled_from("xyz"), weight=st.integers(1, 4))
    def request(self, name: str, client: str, weight: int) -> None:
        self.last += 1
        self.waiting[self.last] = (name, client)
        self.absorb(self.slots.request(self.last, name, client=client, weight=weight, now=self.now))
        if self.sizes[name] > BUDGET:
            assert self.last not in self.waiting

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[ticket]
        self.dead.discard(ticket)
        self.absorb(self.slots.release(ticket, self.now))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[ticket]
        self.absorb(self.slots.release(ticket, self.now))

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), slots=st.integers(1, 3))
    def load_succeeds(self, data: st.DataObject, slots: int) -> None:
        self._loaded(data.draw(st.sampled_from(sorted(self.loading))), slots)

    def _loaded(self, name: str, slots: int) -> None:
        self.loading.remove(name)
        self.ready.add(name)
        self.absorb(self.slots.loaded(name, slots=slots, now=self.now))

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def load_fails(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.loading)))
        self.loading.remove(name)
        self.absorb(self.slots.load_failed(name, LoadFailed("no"), self.now))
        assert all(model != name for model, _ in self.waiting.values()), "a failed load fails its waiters"
        assert name not in self.loading, "and is not tried again at once"

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.ready)))
        self.ready.remove(name)
        self.dead |= {ticket for ticket, model in self.running.items() if model == name}
        self.absorb(self.slots.gone(name, self.now, crash=EngineCrashed("dead")))

    @precondition(lambda self: self.unloading)
    @rule(data=st.data())
    def unload_finishes(self, data: st.DataObject) -> None:
        self._gone(data.draw(st.sampled_from(sorted(self.unloading))))

    def _gone(self, name: str) -> None:
        self.unloading.remove(name)
        self.absorb(self.slots.gone(name, self.now))

    @rule(name=names)
    def told_to_unload(self, name: str) -> None:
        self.evicting = False  # an operator may, also a pinned one
        self.absorb(self.slots.unload(name))
        self.evicting = True

    @rule(name=names)
    def told_to_renew(self, name: str) -> None:
        if name in self.ready:
            self.renewed.add(name)
        self.absorb(self.slots.renew(name, self.now))

    @rule(seconds=st.floats(0.1, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        due = self.slots.next_tick()
        effects = self.slots.tick(self.now)
        assert bool(effects) == (due <= self.now)
        self.absorb(effects)
        assert self.slots.next_tick() > self.now

    @rule()
    def everything_in_progress_ends(self) -> None:
        """Progress: once loads, unloads and calls end, nobody waits."""
        for _ in range(100):
            if self.loading:
                self._loaded(min(self.loading), 2)
            elif self.unloading:
                self._gone(min(self.unloading))
            elif self.running:
                ticket = min(self.running)
                del self.running[ticket]
                self.dead.discard(ticket)
                self.absorb(self.slots.release(ticket, self.now))
        assert not self.waiting
        assert not self.running

    @invariant()
    def memory_stays_within_the_budget(self) -> None:
        assert sum(self.sizes[name] for name in self.loading | self.ready | self.unloading) <= BUDGET

    @invariant()
    def books_agree(self) -> None:
        state = {State.LOADING: self.loading, State.READY: self.ready, State.UNLOADING: self.unloading}
        for model in self.slots.models.values():
            assert all((model.name in members) == (model.state is which) for which, members in state.items())
            assert model.queue == sum(name == model.name for name, _ in self.waiting.values())
            assert model.leases == {ticket for ticket, name in self.running.items() if name == model.name}
            assert model.leased >= len(model.leases)

    @invariant()
    def never_more_leases_than_slots(self) -> None:
        for model in self.slots.models.values():
            if not any(self.running[ticket] == model.name for ticket in self.dead):
                assert model.leased <= model.slots

    @invariant()
    def queues_are_bounded(self) -> None:
        assert all(model.queue <= QUEUE_LIMIT for model in self.slots.models.values())

    @invariant()
    def what_is_outdated_goes_as_soon_as_nothing_runs_on_it(self) -> None:
        for model in self.slots.models.values():
            assert not model.outdated or (model.state is State.READY and model.leases)

    @invariant()
    def nobody_waits_who_could_run(self) -> None:
        """Unless an older waiter of another model needs the memory."""
        absent = [m.oldest for m in self.slots.models.values() if m.state is State.ABSENT]
        for model in self.slots.models.values():
            if model.state is State.READY and model.waiting and not model.leases:
                assert min(absent, default=model.oldest) < model.oldest
        if not (self.loading or self.unloading or self.running):
            assert not self.waiting, "nothing is going on that could ever wake them"


SlotsMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestSlotsMachine = SlotsMachine.TestCase


def test_after_closing_nobody_is_granted_anything() -> None:
    slots = Slots(budget_bytes=BUDGET, queue_limit=QUEUE_LIMIT, idle_unload_s=0)
    slots.register("a", memory_bytes=1, slots=1, pinned=False)
    slots.request(1, "a", client="x", weight=1, now=0)
    refused = slots.close()
    assert [(effect.ticket, type(effect.error)) for effect in refused if isinstance(effect, Refuse)] == [(1, Busy)]
    (late,) = slots.request(2, "a", client="x", weight=1, now=0)
    assert isinstance(late, Refuse)
    assert late.error.code == "shutting_down"
    assert slots.loaded("a", slots=1, now=1) == []


def test_a_model_larger_than_the_budget_is_refused_with_both_figures() -> None:
    slots = Slots(budget_bytes=1 << 30, queue_limit=QUEUE_LIMIT, idle_unload_s=0)
    slots.register("big", memory_bytes=3 << 30, slots=1, pinned=False)
    (refusal,) = slots.request(1, "big", client="x", weight=1, now=0)
    assert isinstance(refusal, Refuse)
    assert isinstance(refusal.error, OutOfMemory)
    assert "3.00 GiB" in refusal.error.message
    assert "1.00 GiB" in refusal.error.message
