"""The hold queue: turns, bounds, deadlines."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.holding import Holding, Refuse


def hold(
    queue: Holding, ticket: int, client: str = "c", *, lane: str = "m", deadline: float = math.inf
) -> list[Refuse]:
    return queue.arrive(ticket, lane=lane, client=client, now=float(ticket), deadline=deadline)


def free(queue: Holding, count: int, *, lane: str = "m", now: float = 100.0) -> list[int]:
    """Let `count` slots be free."""
    left = [count]

    def place(ticket: int) -> bool:
        left[0] -= 1
        return left[0] >= 0

    return queue.try_dispatch(lane, now, place)


def test_one_client_is_served_in_the_order_of_arrival() -> None:
    queue = Holding(limit=10)
    for ticket in (1, 2, 3):
        assert hold(queue, ticket) == []
    assert free(queue, 2) == [1, 2]
    assert queue.waiting("m") == 1
    assert free(queue, 5) == [3]
    assert queue.lanes() == ()


def test_clients_take_turns_over_several_slots() -> None:
    queue = Holding(limit=100)
    for ticket in range(1, 6):
        hold(queue, ticket, "greedy")
    hold(queue, 6, "modest")
    hold(queue, 7, "third")
    assert free(queue, 1) == [1]
    assert free(queue, 2) == [6, 7]
    hold(queue, 8, "modest")
    assert free(queue, 2) == [2, 8]
    assert free(queue, 9) == [3, 4, 5]


def test_lanes_do_not_wait_for_each_other() -> None:
    queue = Holding(limit=10)
    hold(queue, 1, lane="a")
    hold(queue, 2, lane="b")
    assert free(queue, 0, lane="a") == []
    assert free(queue, 1, lane="b") == [2]
    assert queue.lanes() == ("a",)
    assert free(queue, 1, lane="nobody waits here") == []


def test_the_first_in_turn_is_not_overtaken() -> None:
    queue = Holding(limit=10)
    hold(queue, 1, "wide")
    hold(queue, 2, "narrow")
    assert queue.try_dispatch("m", 5.0, lambda ticket: ticket == 2) == []
    assert queue.try_dispatch("m", 5.0, lambda ticket: True) == [1, 2]


def test_over_the_bound_the_newest_of_who_holds_most_is_refused() -> None:
    queue = Holding(limit=4)
    for ticket in (1, 2, 3, 4):
        hold(queue, ticket, "greedy")
    (refused,) = hold(queue, 5, "greedy")
    assert (refused.ticket, refused.expired) == (5, False)
    (refused,) = hold(queue, 6, "modest")
    assert refused.ticket == 4
    (refused,) = hold(queue, 7, "modest")  # two each
    assert refused.ticket == 3
    (refused,) = hold(queue, 8, "modest")  # now it is this client that holds most
    assert refused.ticket == 8
    assert len(queue) == 4


def test_retry_after_follows_the_pace_of_the_lane() -> None:
    def refused_after(pause_s: float) -> float:
        queue = Holding(limit=100)
        for ticket in range(1, 101):
            hold(queue, ticket)
        for step in range(1, 51):
            free(queue, 1, now=100 + step * pause_s)
        for ticket in range(101, 151):
            hold(queue, ticket)
        (refusal,) = hold(queue, 151)
        return refusal.retry_after_s

    quick, slow = refused_after(0.1), refused_after(2.0)
    assert 8 < quick < 15
    assert 150 < slow < 250
    assert hold(Holding(limit=0), 1)[0].retry_after_s == 1.0


def test_the_expired_are_refused_in_time() -> None:
    queue = Holding(limit=10)
    hold(queue, 1, deadline=20.0)
    hold(queue, 2, deadline=15.0)
    hold(queue, 3)
    assert queue.next_expiry() == 15.0
    assert queue.expire(14.9) == []
    assert [(refusal.ticket, refusal.expired) for refusal in queue.expire(20.0)] == [(1, True), (2, True)]
    assert queue.next_expiry() == math.inf
    assert free(queue, 9) == [3]


def test_a_cancelled_ticket_leaves_nothing_behind() -> None:
    queue = Holding(limit=1)
    hold(queue, 1)
    queue.cancel(1)
    queue.cancel(1)
    queue.cancel(99)
    assert (len(queue), queue.lanes(), queue.waiting("m")) == (0, (), 0)
    assert hold(queue, 2) == []


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("arrive"), st.sampled_from("abc"), st.sampled_from("xy")),
            st.tuples(st.just("free"), st.integers(0, 3).map(str), st.sampled_from("xy")),
            st.tuples(st.just("cancel"), st.integers(1, 20).map(str), st.just("")),
        ),
        max_size=60,
    )
)
@settings(max_examples=300, deadline=None)
def test_every_ticket_ends_once_and_the_bound_holds(steps: list[tuple[str, str, str]]) -> None:
    """300 cases, against plain sets."""
    queue = Holding(limit=8)
    waiting: dict[int, tuple[str, str]] = {}
    last = 0
    for what, argument, lane in steps:
        if what == "arrive":
            last += 1
            waiting[last] = (argument, lane)
            most = Counter(client for client, _ in waiting.values())
            for refusal in queue.arrive(last, lane=lane, client=argument, now=float(last)):
                client, _ = waiting.pop(refusal.ticket)
                assert most[client] == max(most.values())
        elif what == "free":
            gone = free(queue, int(argument), lane=lane)
            assert len(gone) == min(int(argument), sum(where == lane for _, where in waiting.values()))
            for ticket in gone:
                assert waiting.pop(ticket)[1] == lane
        else:
            queue.cancel(int(argument))
            waiting.pop(int(argument), None)
        assert len(queue) == len(waiting) <= 8
        assert set(queue.lanes()) == {where for _, where in waiting.values()}


@given(greedy=st.integers(1, 50), others=st.integers(1, 10))
@settings(max_examples=100, deadline=None)
def test_nobody_waits_for_more_than_one_turn_of_each_other_client(greedy: int, others: int) -> None:
    """100 cases."""
    queue = Holding(limit=1000)
    for ticket in range(greedy):
        hold(queue, ticket, "greedy")
    for ticket in range(others):
        hold(queue, 1000 + ticket, f"client {ticket}")
    order = free(queue, greedy + others)
    assert max(order.index(1000 + ticket) for ticket in range(others)) <= others
