"""The ring behind the charts, and the copies of it at other nodes."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.history import MAX_FIRST, STEP_S, STEPS, Copy, History, Sample, Totals

NOTHING = {"slots_used": 0, "running": 0, "queued": 0}


def told(history: History, seen: str, now: float) -> Any:
    return msgspec.to_builtins(history.tell(seen, now))


def test_rates_are_differences_of_counters() -> None:
    history = History(0)
    history.take(5, {"m": Totals(100, 10)}, slots_used=2, running=3, queued=1)
    history.take(10, {"m": Totals(100, 60), "n": Totals(0, 5)}, **NOTHING)
    history.take(15, {"m": Totals(7, 3)}, **NOTHING)  # loaded anew
    history.take(20, {}, **NOTHING)  # unloaded
    history.take(25, {"m": Totals(5, 5)}, **NOTHING)
    samples = history.tell("", 26).samples
    assert [sample.prefill_tokens_per_s for sample in samples] == [20, 0, 1.4, 0, 1]
    assert [sample.decode_tokens_per_s for sample in samples] == [2, 11, 0.6, 0, 1]
    assert (samples[0].slots_used, samples[0].running, samples[0].queued) == (2, 3, 1)


def test_a_step_counts_what_ended_in_it() -> None:
    history = History(0)
    for outcome in ("ok", "ok", "cancelled", "engine_crashed"):
        history.ended(outcome)
    history.began(0.25)
    history.take(5, {}, **NOTHING)
    history.take(10, {}, **NOTHING)
    first, second = history.tell("", 10).samples
    assert (first.finished, first.failed, first.first_token_s) == (2, 1, (0.25,))
    assert (second.finished, second.failed, second.first_token_s) == (0, 0, ())


def test_of_many_times_a_sample_is_drawn_by_lot() -> None:
    history = History(0, rng=random.Random(1))
    for number in range(1000):
        history.began(float(number))
    history.take(5, {}, **NOTHING)
    [sample] = history.tell("", 5).samples
    assert len(sample.first_token_s) == MAX_FIRST
    assert 200 < sum(sample.first_token_s) / MAX_FIRST < 800, "from all of them, not from one end"


def test_the_ring_is_bounded() -> None:
    history = History(0)
    for step in range(3 * STEPS):
        history.take(step * STEP_S, {}, **NOTHING)
    answer = history.tell("", 3 * STEPS * STEP_S)
    assert (len(answer.samples), answer.first) == (STEPS, 2 * STEPS)


@pytest.mark.parametrize("seen", ["", ":", "x:3", "x", ":3", "\u0663", "9" * 512])
def test_who_names_nothing_of_ours_gets_all(seen: str) -> None:
    history = History(0)
    history.take(5, {}, **NOTHING)
    assert len(history.tell(seen, 6).samples) == 1


@given(st.lists(st.integers(0, 2 * STEPS), max_size=8))
def test_a_copy_holds_what_the_ring_holds_however_seldom_it_asks(pauses: list[int]) -> None:
    history, copy, now = History(0), Copy(), 0.0
    decoded = 0
    for pause in pauses:
        for _ in range(pause):
            now += STEP_S
            decoded += int(now)
            history.take(now, {"m": Totals(0, decoded)}, **NOTHING)
        assert copy.put(told(history, copy.seen, now), now)
        shown = copy.shown(now)
        whole = history.tell("", now).samples
        rates = [sample.decode_tokens_per_s for sample in whole]
        assert (shown or {"decode_tokens_per_s": []})["decode_tokens_per_s"] == rates


def test_a_copy_is_told_only_what_is_new() -> None:
    history, copy = History(0), Copy()
    history.take(5, {}, **NOTHING)
    copy.put(told(history, copy.seen, 6), 6)
    history.take(10, {}, **NOTHING)
    news = told(history, copy.seen, 11)
    assert (news["first"], len(news["samples"])) == (1, 1)
    copy.put(news, 11)
    shown = copy.shown(13)
    assert shown is not None
    assert (shown["age_s"], shown["up_s"], shown["running"]) == (3, 13, [0, 0])
    assert copy.put(told(history, copy.seen, 14), 14), "nothing new is an answer, too"


def test_a_node_that_has_started_anew_starts_anew_here() -> None:
    copy = Copy()
    for start in (0.0, 100.0):
        history = History(start)
        history.take(start + 5, {}, **NOTHING)
        assert copy.put(told(history, copy.seen, start + 5), start + 5)
        shown = copy.shown(start + 5)
        assert shown is not None
        assert len(shown["running"]) == 1


def test_samples_of_a_silent_node_grow_old_and_go() -> None:
    history, copy = History(0), Copy()
    for step in range(STEPS):
        history.take((step + 1) * STEP_S, {}, **NOTHING)
    now = STEPS * STEP_S
    copy.put(told(history, copy.seen, now), now)
    half = copy.shown(now + now / 2)
    assert half is not None
    assert len(half["running"]) == STEPS // 2 + 1
    assert copy.shown(2 * now) is None
    assert Copy().shown(0) is None


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        "x",
        {"boot": "b"},
        {"boot": "b", "first": -1, "age_s": 0, "up_s": 0, "samples": []},
        {"boot": "b" * 99, "first": 0, "age_s": 0, "up_s": 0, "samples": []},
        {"boot": "b", "first": 0, "age_s": 0, "up_s": 0, "samples": [[]] * (STEPS + 1)},
        {"boot": "b", "first": 0, "age_s": 0, "up_s": 0, "samples": [["<b>"]]},
        {"boot": "b", "first": 0, "age_s": 0, "up_s": 0, "samples": [[0, 0, 0, 0, 0, 0, 0, [0.0] * 99]]},
        {"boot": "b", "first": 0, "age_s": 0, "up_s": 0, "samples": [[-1.0]]},
        {"boot": "b", "first": 0, "age_s": 0, "up_s": 0, "samples": [[1e300]]},
    ],
)
def test_what_is_no_answer_changes_nothing(answer: Any) -> None:
    copy = Copy()
    assert not copy.put(answer, 0)
    assert copy.seen == Copy().seen


def test_an_answer_that_was_told_before_is_not_taken_twice() -> None:
    history, copy = History(0), Copy()
    history.take(5, {}, **NOTHING)
    answer = told(history, "", 5)
    assert copy.put(answer, 5)
    assert not copy.put(answer, 5)
    assert msgspec.convert(answer["samples"], list[Sample]) == [Sample()]
