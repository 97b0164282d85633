"""Timelines: bounded, by this node's clock alone, over all nodes in one."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from node.trace import MAX_EVENTS, Trace, Traces, merged

TERMS = ("total_s", "queue_s", "load_s", "prefill_s", "decode_s", "round_trip_s", "penalty_s")


async def test_a_summary_tells_where_it_went_and_how_long_it_took(autojump_clock: MockClock) -> None:
    traces = Traces()
    trace = traces.begin("r", model="m")
    assert trace.summary()["outcome"] == "running"
    trace.note("send", node="a")
    await trio.sleep(1)
    trace.note("bounced", node="a")
    trace.note("send", node="b")
    await trio.sleep(1)
    trace.note("accepted", node="b")
    await trio.sleep(1)
    trace.note("first_chunk", node="b")
    trace.note("first_chunk", node="b")
    trace.note("resumed", node="b")
    await trio.sleep(4)
    trace.tokens = 9
    trace.note("ended", "ok")
    trace.outcome = "ok"
    await trio.sleep(10)
    assert trace.summary() == {
        "id": "r",
        "model": "m",
        "outcome": "ok",
        "node": "b",
        "route": ["a", "b"],
        "why": None,
        "ago_s": pytest.approx(17),
        "queue_s": pytest.approx(2),
        "first_chunk_s": pytest.approx(3),
        "prompt_tokens": 0,
        "tokens": 9,
        "tokens_per_s": pytest.approx(2),
        "total_s": pytest.approx(7),
        "resumed": 1,
        "bounced": 1,
    }
    assert [event["what"] for event in trace.timeline()][:2] == ["arrived", "send"]


async def test_why_is_the_last_choice_with_its_terms() -> None:
    trace = Trace("r")
    terms = dict.fromkeys(TERMS, 0.25)
    rows = [{"node": name, "chosen": False} | terms | {"total_s": 1.5} for name in "ab"]
    trace.decided({"policy": "ect", "reason": "none is free", "chosen": "", "candidates": rows})
    assert trace.summary()["why"] is None
    trace.decided({"policy": "ect", "reason": "its own queue", "chosen": "b", "candidates": rows})
    told = {"policy": "ect", "reason": "its own queue", "node": "b", "candidates": 2}
    assert trace.summary()["why"] == told | terms | {"total_s": 1.5}


async def test_the_rate_of_an_answer_that_came_at_once_is_not_known(autojump_clock: MockClock) -> None:
    trace = Trace("r")
    trace.note("first_chunk")
    trace.tokens = 400
    trace.outcome = "ok"
    assert trace.summary()["tokens_per_s"] is None
    running = Trace("s")
    await trio.sleep(4)
    assert (running.summary()["total_s"], running.summary()["queue_s"]) == (pytest.approx(4), None)


async def test_the_oldest_requests_are_forgotten_each_kind_for_itself() -> None:
    traces = Traces(limit=2)
    for name in "abc":
        traces.begin(name)
        traces.begin(name, entry="P")
    traces.begin("b")  # the same id again is the newest
    traces.begin("d")
    assert [trace.request_id for trace in traces.recent(9)] == ["d", "b"]
    assert [trace.request_id for trace in traces.recent(1)] == ["d"]
    assert traces.get("a") is traces.get("c") is None
    assert traces.served("a") is None
    served = traces.served("c")
    assert served is not None
    assert served.entry == "P"
    assert traces.served("d") is None, "it entered here"


async def test_a_trace_stays_small_whatever_happens() -> None:
    trace = Trace("r")
    for _ in range(10 * MAX_EVENTS):
        trace.note("lost", "x" * 10_000)
        trace.decided({"policy": "ect"})
    assert len(trace.events) == len(trace.decisions) == MAX_EVENTS
    assert max(len(event.detail) for event in trace.events) == 200
    assert "at_s" in trace.decisions[0]


async def test_a_peers_events_lie_behind_the_moment_of_sending(autojump_clock: MockClock) -> None:
    own = Trace("r")
    await trio.sleep(1)
    own.note("send", node="b")
    await trio.sleep(10)
    own.note("ended")
    theirs = [{"at_s": 0.0, "what": "arrived", "detail": "", "node": ""}, {"at_s": 2.0, "what": "open"}]
    assert [(row["at_s"], row["where"], row["what"]) for row in merged(own, "a", {"b": theirs})] == [
        (0.0, "a", "arrived"),
        (1.0, "a", "send"),
        (1.0, "b", "arrived"),
        (3.0, "b", "open"),
        (11.0, "a", "ended"),
    ]


@pytest.mark.parametrize("told", [None, 7, "x", {}, [7], [{"what": "x"}], [{"at_s": "x", "what": "y"}]], ids=repr)
async def test_what_is_no_timeline_is_left_out(told: Any) -> None:
    own = Trace("r")
    assert [row["where"] for row in merged(own, "a", {"b": told})] == ["a"]


async def test_a_peer_cannot_make_it_long() -> None:
    told = [{"at_s": 1.0, "what": "x", "surprise": "y"}] * 100_000
    rows = merged(Trace("r"), "a", {"b": told})
    assert len(rows) == 1 + MAX_EVENTS
    assert "surprise" not in rows[-1]
