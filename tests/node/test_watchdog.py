"""What stands still is noticed, and what is only slow is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import trio
from trio.testing import MockClock

from node.watchdog import HUNG_S, LOOK_S, Watchdog, Watched, processor_s

LAYERS = Watched("m", "rpc", bytes_through=100, workers=("a", "b"), engine_s=5.0, any_idle=False, patience_s=HUNG_S)
RANKS = replace(LAYERS, target="mlx-rank", engine_s=None, any_idle=True)


@dataclass
class World:
    """A model and what its parts do in a second."""

    watched: Watched
    bytes_per_s: int = 0
    engine_share: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)  # of workers; others are idle
    silent: set[str] = field(default_factory=set)
    asked: int = 0

    async def computed(self, peer: str, target: str) -> float | None:
        assert target == self.watched.target
        self.asked += 1
        return None if peer in self.silent else 7.0 + self.shares.get(peer, 0.0) * trio.current_time()

    def now(self) -> Watched:
        at_s = trio.current_time()
        engine = self.watched.engine_s
        return replace(
            self.watched,
            bytes_through=self.watched.bytes_through + int(self.bytes_per_s * at_s),
            engine_s=None if engine is None else engine + self.engine_share * at_s,
        )


async def hung_after_s(
    world: World, *, limit_s: float = 20 * HUNG_S, change: Callable[[], None] | None = None
) -> float:
    """When it was found to stand still; infinite if it was not."""
    dog, began = Watchdog(world.computed), trio.current_time()
    while trio.current_time() - began < limit_s:
        if change is not None:
            change()
        if found := await dog.hung([world.now()]):
            assert "nothing has moved" in found["m"]
            return trio.current_time() - began
        await trio.sleep(LOOK_S)
    return float("inf")


async def test_where_nothing_moves_at_all_it_is_noticed_in_seconds(autojump_clock: MockClock) -> None:
    assert HUNG_S <= await hung_after_s(World(LAYERS)) <= HUNG_S + 2 * LOOK_S


@pytest.mark.parametrize(
    "world",
    [
        World(LAYERS, bytes_per_s=1),
        World(LAYERS, engine_share=0.05),
        World(LAYERS, shares={"b": 0.05}),
        World(RANKS, shares={"a": 1.0, "b": 1.0}),
        World(RANKS, bytes_per_s=1),
    ],
    ids=["bytes", "the head computes", "a worker computes", "all ranks compute", "ranks exchange"],
)
async def test_what_is_slow_is_left_alone(world: World, autojump_clock: MockClock) -> None:
    assert await hung_after_s(world) == float("inf")


async def test_one_idle_rank_among_waiting_ones_is_enough(autojump_clock: MockClock) -> None:
    assert await hung_after_s(World(RANKS, shares={"a": 1.0})) <= HUNG_S + 2 * LOOK_S


async def test_a_node_that_does_not_say_speaks_for_nobody(autojump_clock: MockClock) -> None:
    assert await hung_after_s(World(LAYERS, silent={"a", "b"})) <= HUNG_S + 2 * LOOK_S
    assert await hung_after_s(World(LAYERS, silent={"a"}, shares={"b": 1.0})) == float("inf")


async def test_a_pause_in_what_moves_is_forgiven(autojump_clock: MockClock) -> None:
    world = World(LAYERS)

    def stir() -> None:
        if trio.current_time() % (HUNG_S - 1) < LOOK_S:
            world.watched = replace(world.watched, bytes_through=world.watched.bytes_through + 1)

    assert await hung_after_s(world, change=stir) == float("inf")


async def test_a_model_that_has_had_nothing_to_do_begins_anew(autojump_clock: MockClock) -> None:
    world = World(LAYERS)
    dog = Watchdog(world.computed)
    for _ in range(20):
        assert not await dog.hung([world.now()])
        await trio.sleep(HUNG_S / 2 - 0.1)
        assert not await dog.hung([])
        await trio.sleep(HUNG_S)
    assert not world.asked


async def test_a_loading_model_gets_the_patience_that_it_names(autojump_clock: MockClock) -> None:
    assert await hung_after_s(World(replace(LAYERS, patience_s=90.0))) >= 90.0


def test_processor_time_grows_with_work_and_is_unknown_of_nobody() -> None:
    before = processor_s(os.getpid())
    assert before is not None
    for number in range(2_000_000):
        number * number
    after = processor_s(os.getpid())
    assert after is not None
    assert after > before
    assert processor_s(None) is None
    assert processor_s(2**22 + 1) is None
