"""node/plan.py: what is split, over whom, how, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.sharding import Shape
from node.plan import HANDLING_S, LAYER_S, UNKNOWN_BYTES_PER_S, Place, Plan, Question, Split, plan

MIB = 1 << 20
FAST, SLOW = 20e9, 2e9


def shape(layers: int = 10, *, layer: int = 100, cache: int = 10, output: int = 50, head: int = 40) -> Shape:
    """In MiB."""
    return Shape(
        layer_bytes=(layer * MIB,) * layers,
        layer_cache_bytes=(cache * MIB,) * layers,
        output_bytes=output * MIB,
        head_bytes=head * MIB,
        scratch_bytes=20 * MIB,
        border_bytes=16 << 10,
        result_bytes=512 << 10,
    )


def place(name: str, memory: int, **facts: Any) -> Place:
    return Place(name, name, memory * MIB, **{"bytes_per_s": 10e9, "rtt_s": 0.001, **facts})


HEAD = place("head", 300, rtt_s=0.0)


def ask(*workers: Place, head: Place = HEAD, need: int = 1300, of: Shape | None = None, **facts: object) -> Plan:
    asked = {"model": "m", "shape": of or shape(), "need_bytes": need * MIB, "head": head, "workers": workers}
    return plan(Question(**asked | facts))  # type: ignore[arg-type]


def layers(split: Split | None) -> dict[str, int]:
    assert split is not None
    return {share.place.name: share.layers for share in (split.head, *split.workers)}


# -- whether --


def test_what_fits_here_is_not_split() -> None:
    found = ask(place("w", 2000), head=place("head", 2000))
    assert (found.split, found.fits, found.whole) == (None, ("head",), True)
    assert "tokens/s; split it would make" in found.why[0]


def test_what_fits_elsewhere_is_not_split_unless_forced() -> None:
    refused = ask(place("w", 2000), elsewhere=("big",))
    assert refused.split is None
    assert refused.fits == ("big",)
    assert refused.why[0].startswith("It fits on big")
    forced = ask(place("w", 2000), elsewhere=("big",), force=True)
    assert forced.split is not None
    assert "shard: always" in forced.why[0]


def test_never_means_never() -> None:
    assert ask(place("w", 2000), never=True).split is None
    assert ask(place("w", 2000), never=True, force=True).split is None


def test_nobody_to_ask() -> None:
    found = ask()
    assert found.split is None
    assert "--rpc-worker" in found.why[0]


def test_too_little_memory_in_all_says_how_much() -> None:
    found = ask(place("one", 300), place("two", 200))
    assert found.split is None
    assert "Its layers need 1.12 GiB" in found.why[0]
    assert "one 0.29 GiB" in found.why[0]


def test_a_head_that_cannot_even_hold_its_own_part() -> None:
    assert ask(place("w", 5000), head=place("head", 30)).split is None


# -- over whom --


def test_one_worker_that_can_hold_it_is_enough_and_the_other_is_named_as_spare() -> None:
    found = ask(place("one", 2000), place("two", 2000, rtt_s=0.02))
    assert layers(found.split) == {"head": 0, "one": 10}
    assert any("two" in reason and "round trip" in reason for reason in found.why)


def test_two_where_one_is_too_small() -> None:
    found = ask(place("one", 700), place("two", 700))
    assert sum(layers(found.split).values()) == 10
    assert set(layers(found.split)) == {"head", "one", "two"}


def test_the_faster_machine_gets_what_it_can_hold() -> None:
    slow_head = ask(place("w", 2000, bytes_per_s=FAST), head=place("head", 900, bytes_per_s=SLOW, rtt_s=0.0))
    assert layers(slow_head.split) == {"head": 0, "w": 10}
    fast_head = ask(place("w", 2000, bytes_per_s=SLOW), head=place("head", 900, bytes_per_s=FAST, rtt_s=0.0))
    assert layers(fast_head.split) == {"head": 7, "w": 3}


def test_a_far_worker_is_left_out_where_a_near_one_does() -> None:
    found = ask(place("far", 2000, rtt_s=0.3), place("near", 2000))
    assert [share.place.name for share in found.split.workers] == ["near"]  # type: ignore[union-attr]


def test_a_slow_near_one_loses_to_a_fast_one_a_little_further_off() -> None:
    found = ask(place("near", 2000, bytes_per_s=SLOW), place("fast", 2000, bytes_per_s=FAST, rtt_s=0.005))
    assert [share.place.name for share in found.split.workers] == ["fast"]  # type: ignore[union-attr]


def test_named_workers_are_all_used_and_no_others() -> None:
    found = ask(place("one", 2000), place("two", 2000), place("three", 9000), named=("one", "two"))
    assert set(layers(found.split)) == {"head", "one", "two"}
    assert min(layers(found.split)["one"], layers(found.split)["two"]) >= 3  # by speed, and they are alike
    alone = ask(place("two", 2000), place("three", 9000), named=("one", "two"))
    assert set(layers(alone.split)) == {"head", "two"}
    gone = ask(place("three", 9000), named=("one", "two"))
    assert gone.split is None
    assert "one, two" in gone.why[0]


def test_named_workers_share_by_speed() -> None:
    found = ask(
        place("fast", 3000, bytes_per_s=FAST),
        place("slow", 3000, bytes_per_s=FAST / 4),
        head=place("head", 60, rtt_s=0.0),
        named=("fast", "slow"),
    )
    assert layers(found.split)["fast"] >= 2 * layers(found.split)["slow"]
    assert layers(found.split)["slow"] >= 1


# -- what it costs --


def test_the_time_of_a_token_is_the_sum_of_its_parts() -> None:
    split = ask(place("w", 2000, link_bytes_per_s=1e9), head=place("head", 60, rtt_s=0.0)).split
    assert split is not None
    expected = 1050 * MIB / 10e9 + 10 * LAYER_S + 0.001 + HANDLING_S + (2 * (16 << 10) + (512 << 10)) / 1e9
    assert split.token_s == pytest.approx(expected)
    assert split.tokens_per_s == pytest.approx(1 / expected)
    assert split.load_s == pytest.approx(1050 * MIB / 1e9 + 1050 * MIB / 10e9)


def test_a_cache_saves_the_link_and_a_slowdown_shows() -> None:
    one, two = (ask(place("w", 2000, cached=cached, link_bytes_per_s=1e8)).split for cached in (False, True))
    assert one is not None
    assert two is not None
    assert two.load_s < one.load_s / 5
    slower = ask(place("w", 2000, link_bytes_per_s=1e8), slowdown=3.0).split
    assert slower is not None
    assert slower.token_s == pytest.approx(3 * one.token_s)


def test_an_unmeasured_machine_is_named() -> None:
    found = ask(Place("w", "w", 2000 * MIB))
    assert any("assumed, not measured: w" in reason for reason in found.why)
    assert found.split is not None
    assert found.split.workers[0].weight_bytes / UNKNOWN_BYTES_PER_S < found.split.token_s


# -- always --

places = st.builds(
    lambda number, memory, speed, rtt: (number, memory, speed, rtt),
    st.integers(0, 5),
    st.integers(0, 2500),
    st.sampled_from([0.0, 1e9, 5e9, 40e9]),
    st.sampled_from([0.0, 0.001, 0.05]),
)


@settings(max_examples=300)
@given(
    workers=st.lists(places, max_size=6, unique_by=lambda item: item[0]),
    head=st.integers(0, 2000),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=24),
    output=st.integers(0, 300),
    named=st.booleans(),
)
def test_a_split_holds_every_layer_once_and_nobody_more_than_it_can(
    workers: list[tuple[int, int, float, float]], head: int, sizes: list[int], output: int, named: bool
) -> None:
    of = Shape(
        layer_bytes=tuple(size * MIB for size in sizes),
        layer_cache_bytes=(5 * MIB,) * len(sizes),
        output_bytes=output * MIB,
        head_bytes=40 * MIB,
        scratch_bytes=20 * MIB,
        border_bytes=4096,
        result_bytes=4096,
    )
    made = tuple(place(f"w{number}", memory, bytes_per_s=speed, rtt_s=rtt) for number, memory, speed, rtt in workers)
    names = tuple(one.name for one in made) if named else ()
    found = ask(*made, head=place("head", head, rtt_s=0.0), of=of, need=10**6, named=names)
    assert found.why
    if found.split is None:
        return
    split = found.split
    assert split.head.layers + sum(share.layers for share in split.workers) == len(sizes)
    assert split.workers
    for share in (split.head, *split.workers):
        assert 0 <= share.memory_bytes <= share.place.memory_bytes
    weights = sum(share.weight_bytes for share in (split.head, *split.workers))
    assert weights == sum(of.layer_bytes) + of.output_bytes
    assert split.token_s > 0
    if named:
        assert {share.place.name for share in split.workers} == set(names)


@settings(max_examples=150)
@given(memories=st.lists(st.integers(100, 1500), min_size=1, max_size=5), extra=st.integers(1, 2000))
def test_more_memory_never_makes_it_slower(memories: list[int], extra: int) -> None:
    before = ask(*(place(f"w{n}", memory) for n, memory in enumerate(memories)), need=10**6)
    more = ask(*(place(f"w{n}", memory + extra) for n, memory in enumerate(memories)), need=10**6)
    if before.split is not None:
        assert more.split is not None
        assert more.split.token_s <= before.split.token_s * 1.0001
