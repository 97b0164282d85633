"""The rules of node/slots.py, one at a time."""

from __future__ import annotations

import math

import pytest

from backends.types import Busy, EngineCrashed, LoadFailed, OutOfMemory
from node.slots import FIRST_PAUSE_S, MAX_PAUSE_S, Effect, Grant, Load, Refuse, Slots, State, Unload


def make(
    *models: tuple[str, int, int], budget: int = 10, queue_limit: int = 100, idle_s: float = 0, pinned: str = ""
) -> Slots:
    """Slots with models (name, memory, slots) registered; `pinned` is one's name."""
    slots = Slots(budget_bytes=budget, queue_limit=queue_limit, idle_unload_s=idle_s)
    for name, memory, count in models:
        slots.register(name, memory_bytes=memory, slots=count, pinned=name == pinned)
    return slots


def ask(slots: Slots, ticket: int, model: str, *, client: str = "x", weight: int = 1, now: float = 0) -> list[Effect]:
    return slots.request(ticket, model, client=client, weight=weight, now=now)


def load(slots: Slots, ticket: int, model: str, *, count: int = 1, now: float = 0) -> None:
    """Ask for a model and let it load; the ticket is granted."""
    assert ask(slots, ticket, model, now=now) == [Load(model)]
    assert slots.loaded(model, slots=count, now=now) == [Grant(ticket)]


def error_of(effects: list[Effect]) -> Exception:
    (effect,) = effects
    assert isinstance(effect, Refuse)
    return effect.error


def test_the_second_request_for_a_loading_model_waits_for_that_load() -> None:
    slots = make(("a", 4, 2))
    assert ask(slots, 1, "a") == [Load("a")]
    assert ask(slots, 2, "a") == []
    assert slots.loaded("a", slots=2, now=1) == [Grant(1), Grant(2)]


def test_the_engines_own_count_of_slots_decides() -> None:
    slots = make(("a", 4, 8))
    ask(slots, 1, "a")
    ask(slots, 2, "a")
    assert slots.loaded("a", slots=1, now=1) == [Grant(1)]
    assert slots.release(1, 2) == [Grant(2)]


def test_a_request_of_several_choices_takes_as_many_slots() -> None:
    slots = make(("a", 4, 4))
    load(slots, 1, "a", count=4)
    assert ask(slots, 2, "a", weight=3) == [Grant(2)]
    assert ask(slots, 3, "a") == []
    assert slots.release(2, 1) == [Grant(3)]


def test_one_of_more_choices_than_slots_takes_them_all_and_is_not_overtaken() -> None:
    slots = make(("a", 4, 2))
    load(slots, 1, "a", count=2)
    assert ask(slots, 2, "a", weight=9) == []
    assert ask(slots, 3, "a") == []  # a slot is free, but 2 was first
    assert slots.release(1, 1) == [Grant(2)]
    assert slots.models["a"].leased == 2
    assert slots.release(2, 2) == [Grant(3)]


def test_clients_take_turns() -> None:
    slots = make(("a", 4, 1))
    load(slots, 1, "a")
    for ticket in (2, 3, 4):
        ask(slots, ticket, "a", client="greedy")
    ask(slots, 5, "a", client="modest")
    order = []
    holder = 1
    for _ in range(4):
        (grant,) = slots.release(holder, 1)
        assert isinstance(grant, Grant)
        holder = grant.ticket
        order.append(holder)
    assert order == [2, 5, 3, 4]


def test_the_least_recently_used_idle_model_goes_first() -> None:
    slots = make(("a", 4, 1), ("b", 4, 1), ("c", 4, 1))
    load(slots, 1, "a", now=0)
    load(slots, 2, "b", now=1)
    slots.release(2, 2)
    slots.release(1, 3)
    assert ask(slots, 3, "c", now=4) == [Unload("b")]
    assert slots.gone("b", 5) == [Load("c")]


def test_no_more_is_evicted_than_is_needed() -> None:
    slots = make(("a", 2, 1), ("b", 5, 1), ("c", 3, 1), ("d", 5, 1))
    for ticket, name in enumerate("abc", 1):
        load(slots, ticket, name)
        slots.release(ticket, ticket)
    assert ask(slots, 9, "d", now=9) == [Unload("a"), Unload("b")]
    assert slots.models["c"].state is State.READY


def test_a_running_model_is_waited_for() -> None:
    slots = make(("a", 8, 1), ("b", 8, 1))
    load(slots, 1, "a")
    assert ask(slots, 2, "b") == []
    assert slots.release(1, 1) == [Unload("a")]
    assert slots.gone("a", 2) == [Load("b")]


def test_a_busy_model_does_not_starve_one_that_needs_its_memory() -> None:
    slots = make(("busy", 8, 2), ("starved", 8, 1))
    load(slots, 1, "busy", count=2)
    ask(slots, 2, "busy")
    ask(slots, 3, "starved")
    assert ask(slots, 4, "busy") == []
    assert slots.release(1, 1) == []  # a slot is free, but 4 is younger than 3
    assert slots.release(2, 2) == [Unload("busy")]
    assert slots.gone("busy", 3) == [Load("starved")]


def test_a_small_model_may_overtake_one_that_waits_for_memory_it_does_not_take() -> None:
    slots = make(("a", 6, 1), ("big", 8, 1), ("small", 2, 1))
    load(slots, 1, "a")
    assert ask(slots, 2, "big") == []
    assert ask(slots, 3, "small") == [], "2 of 10 are free, but big needs them"
    slots.release(2, 1)
    assert slots.models["small"].state is State.LOADING, "big has left the queue"


def test_what_pinned_models_take_is_out_of_reach() -> None:
    slots = make(("a", 6, 1), ("b", 6, 1), pinned="a")
    load(slots, 1, "a")
    slots.release(1, 1)
    error = error_of(ask(slots, 2, "b"))
    assert isinstance(error, OutOfMemory)
    assert "pinned" in str(error)


def test_a_pinned_model_does_not_become_idle() -> None:
    slots = make(("a", 1, 1), pinned="a", idle_s=5)
    load(slots, 1, "a")
    slots.release(1, 0)
    assert slots.next_tick() == math.inf
    assert slots.tick(1000) == []


def test_idle_models_unload_after_their_time_and_not_before() -> None:
    slots = make(("a", 1, 1), idle_s=5)
    load(slots, 1, "a")
    assert slots.next_tick() == math.inf  # running
    slots.release(1, 7)
    assert slots.next_tick() == 12
    assert slots.tick(11.9) == []
    assert slots.tick(12) == [Unload("a")]


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    slots = make(("a", 4, 1), queue_limit=2)
    load(slots, 1, "a", now=0)
    for ticket in (2, 3):
        assert ask(slots, ticket, "a") == []
    error = error_of(ask(slots, 4, "a"))
    assert isinstance(error, Busy)
    assert error.retry_after_s is not None
    assert error.retry_after_s >= 1
    assert slots.release(1, 1000) == [Grant(2)]
    ask(slots, 5, "a", now=1000)
    patient = error_of(ask(slots, 6, "a", now=1000))
    assert isinstance(patient, Busy)
    assert patient.retry_after_s is not None
    assert patient.retry_after_s > 100, "calls of this model have taken long"


def test_without_a_queue_one_may_still_wait_for_the_load() -> None:
    slots = make(("a", 4, 2), queue_limit=0)
    assert ask(slots, 1, "a") == [Load("a")]
    assert isinstance(error_of(ask(slots, 2, "a")), Busy)
    assert slots.loaded("a", slots=1, now=1) == [Grant(1)]
    assert isinstance(error_of(ask(slots, 3, "a")), Busy)


def test_a_failed_load_fails_its_waiters_and_is_tried_again_after_a_pause_that_doubles() -> None:
    slots = make(("a", 4, 1))
    now, pause = 0.0, FIRST_PAUSE_S
    for _ in range(10):
        assert ask(slots, 1, "a", now=now) == [Load("a")]
        failure = error_of(slots.load_failed("a", OutOfMemory("too little"), now))
        assert isinstance(failure, OutOfMemory)
        assert isinstance(error_of(ask(slots, 2, "a", now=now + pause - 0.01)), OutOfMemory)
        now, pause = now + pause, min(MAX_PAUSE_S, pause * 2)


def test_waiters_get_errors_of_their_own() -> None:
    slots = make(("a", 4, 1))
    ask(slots, 1, "a")
    ask(slots, 2, "a")
    original = LoadFailed("no")
    errors = [effect.error for effect in slots.load_failed("a", original, 0) if isinstance(effect, Refuse)]
    assert len({id(error) for error in [original, *errors]}) == 3, "tracebacks must not pile up on one instance"


def test_a_first_crash_costs_a_load_and_a_crash_loop_is_paused() -> None:
    slots = make(("a", 4, 1))
    load(slots, 1, "a")
    ask(slots, 2, "a")
    assert slots.gone("a", 1, crash=EngineCrashed("dead")) == [Load("a")]  # for 2, at once
    slots.release(1, 1)
    assert slots.loaded("a", slots=1, now=2) == [Grant(2)]
    ask(slots, 3, "a", now=3)
    again = error_of(slots.gone("a", 3, crash=EngineCrashed("keeps dying")))
    assert isinstance(again, LoadFailed)
    slots.release(2, 3)
    assert isinstance(error_of(ask(slots, 4, "a", now=3.5)), LoadFailed)
    assert ask(slots, 5, "a", now=100) == [Load("a")]


def test_a_call_that_ends_well_forgives_earlier_crashes() -> None:
    slots = make(("a", 4, 1))
    load(slots, 1, "a")
    slots.gone("a", 1, crash=EngineCrashed("dead"))
    slots.release(1, 1)
    load(slots, 2, "a", now=2)
    slots.release(2, 3)
    assert ask(slots, 3, "a", now=4) == [Grant(3)]
    assert ask(slots, 4, "a", now=4) == []
    assert slots.gone("a", 5, crash=EngineCrashed("dead")) == [Load("a")]


def test_slots_of_the_dead_are_not_given_out_twice() -> None:
    slots = make(("a", 4, 2))
    load(slots, 1, "a", count=2)
    slots.gone("a", 1, crash=EngineCrashed("dead"))  # the holder of 1 has not noticed yet
    assert ask(slots, 2, "a", weight=2, now=2) == [Load("a")]
    assert slots.loaded("a", slots=2, now=3) == []
    assert slots.release(1, 4) == [Grant(2)]


def test_a_changed_file_takes_effect_at_the_next_load() -> None:
    slots = make(("a", 4, 1))
    load(slots, 1, "a")
    slots.register("a", memory_bytes=8, slots=2, pinned=False)
    assert slots.committed_bytes == 4
    assert slots.unload("a") == []  # running
    slots.release(1, 1)
    assert slots.unload("a") == [Unload("a")]
    slots.gone("a", 2)
    slots.register("a", memory_bytes=8, slots=2, pinned=False)
    ask(slots, 2, "a")
    assert slots.committed_bytes == 8


@pytest.mark.parametrize("ticket", [7, 1])
def test_releasing_twice_or_what_never_was_is_nothing(ticket: int) -> None:
    slots = make(("a", 4, 1))
    load(slots, 1, "a")
    slots.release(1, 1)
    assert slots.release(ticket, 1) == []
    assert slots.unload("unknown") == []


def test_a_client_says_how_long_a_model_stays() -> None:
    slots = make(("a", 1, 1), ("b", 1, 1), idle_s=5)
    load(slots, 1, "a")
    load(slots, 2, "b")
    slots.keep("a", 0.0)
    slots.keep("b", math.inf)
    assert slots.tick(100) == []  # both are in use
    slots.release(1, 100)
    slots.release(2, 100)
    assert slots.next_tick() == 100
    assert slots.tick(100) == [Unload("a")]
    assert slots.next_tick() == math.inf
    assert slots.tick(10_000) == []


# -- renewing --


def test_an_idle_model_is_renewed_at_once_and_a_busy_one_when_nothing_runs_on_it() -> None:
    slots = make(("a", 4, 3))
    load(slots, 1, "a", count=3)
    assert slots.renew("a", 1) == []
    assert ask(slots, 2, "a") == []  # slots are free, but of what is to go
    assert slots.release(1, 2) == [Unload("a")]
    assert slots.gone("a", 3) == [Load("a")]
    assert slots.loaded("a", slots=3, now=4) == [Grant(2)]
    assert slots.release(2, 5) == []
    assert slots.renew("a", 6) == [Unload("a")]
    assert slots.gone("a", 7) == []


def test_what_is_not_loaded_is_not_renewed() -> None:
    slots = make(("a", 4, 1))
    assert slots.renew("a", 0) == []
    assert slots.renew("unknown", 0) == []
    ask(slots, 1, "a")
    assert slots.renew("a", 0) == []
    assert slots.loaded("a", slots=1, now=1) == [Grant(1)]


def test_a_crash_renews_as_well() -> None:
    slots = make(("a", 4, 1))
    load(slots, 1, "a")
    slots.renew("a", 1)
    slots.gone("a", 2, crash=EngineCrashed("dead"))
    slots.release(1, 2)
    load(slots, 2, "a", now=3)
    assert slots.release(2, 4) == []
