"""Who shares a model as ranks, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from backends.sharding import RankShape
from backends.types import Capability, LoadFailed, ModelNeeds, OutOfMemory
from node.plan import Place
from node.rankplan import RankQuestion, plan_ranks

MIB = 1 << 20
LAYERS = 6


def shape(size: int, *, way: str = "tensor") -> RankShape:
    """A model of 600 MiB whose heads divide by two and three."""
    if size > 3:
        raise LoadFailed(f"its heads do not divide by {size}.")
    layers = (LAYERS // size,) * size if way == "pipeline" else (LAYERS,) * size
    return RankShape(way=way, layers=layers, weight_bytes=600 * MIB // size, exchanges=2 * LAYERS)


def needs(room: int, size: int) -> ModelNeeds:
    taken = 600 * MIB // size + 50 * MIB
    shape(size)
    if taken > room:
        raise OutOfMemory(f"{size} ranks take {taken // MIB} MiB each.")
    return ModelNeeds(memory_bytes=taken, context_tokens=10, slots=size, capabilities=(Capability.CHAT,))


def place(name: str, mib: int, **facts: Any) -> Place:
    return Place(name, name, mib * MIB, **facts)


def ask(*workers: Place, head: int = 500, **more: Any) -> RankQuestion:
    options: dict[str, Any] = {"shape": shape, "needs": needs, "need_bytes": 650 * MIB, **more}
    return RankQuestion(model="m", head=Place("", "head", head * MIB), workers=workers, **options)


def test_the_fewest_ranks_that_have_room_those_with_the_most_memory_first() -> None:
    found, taken = plan_ranks(ask(place("a", 400), place("b", 450), place("c", 400)))
    assert found.split is not None
    assert taken == needs(1 << 40, 2)
    assert [(share.place.name, share.layers) for share in found.split.workers] == [("b", LAYERS)]
    assert found.split.head.memory_bytes == 350 * MIB
    assert any("Not needed" in why and "a, c" in why for why in found.why)


def test_small_ones_share_it_among_more() -> None:
    found, _ = plan_ranks(ask(place("a", 260), place("b", 260), head=260))
    assert found.split is not None
    assert [share.place.name for share in found.split.workers] == ["a", "b"]
    assert found.split.way == "tensor"


def test_a_pipeline_gives_each_its_layers_and_takes_one_after_the_other() -> None:
    def stretch(size: int) -> RankShape:
        return shape(size, way="pipeline")

    tensor, _ = plan_ranks(ask(place("a", 400)))
    pipeline, _ = plan_ranks(ask(place("a", 400), shape=stretch))
    assert tensor.split is not None
    assert pipeline.split is not None
    assert [share.layers for share in (pipeline.split.head, *pipeline.split.workers)] == [3, 3]
    assert pipeline.split.token_s > tensor.split.token_s


def test_what_stands_in_the_way_is_said() -> None:
    found, taken = plan_ranks(ask())
    assert (found.split, taken) == (None, None)
    assert "--mlx-rank" in found.why[0]
    found, _ = plan_ranks(ask(*(place(name, 100) for name in "abc"), head=100))
    assert found.split is None
    assert "2 ranks take 350 MiB each" in found.why[0]
    assert "do not divide by 4" in found.why[0]


def test_what_fits_somewhere_is_not_shared_unless_forced() -> None:
    here, taken = plan_ranks(ask(place("a", 400), head=700))
    assert (here.split, here.fits, taken) == (None, ("head",), None)
    assert "tokens/s" in here.why[0]
    elsewhere, _ = plan_ranks(ask(place("a", 400), elsewhere=("big",)))
    assert (elsewhere.split, elsewhere.fits) == (None, ("big",))
    forced, _ = plan_ranks(ask(place("a", 400), head=700, force=True))
    assert forced.split is not None
    never, _ = plan_ranks(ask(place("a", 400), never=True))
    assert never.split is None


def test_named_ones_alone_count() -> None:
    found, _ = plan_ranks(ask(place("a", 400), place("b", 450), named=("a",)))
    assert found.split is not None
    assert [share.place.name for share in found.split.workers] == ["a"]


@pytest.mark.parametrize("rtt_s", [0.001, 0.05])
def test_a_long_way_and_a_slowdown_show(rtt_s: float) -> None:
    near, _ = plan_ranks(ask(place("a", 400)))
    far, _ = plan_ranks(ask(place("a", 400, rtt_s=rtt_s)))
    slow, _ = plan_ranks(ask(place("a", 400), slowdown=2.0))
    assert near.split is not None
    assert far.split is not None
    assert slow.split is not None
    assert far.split.token_s == pytest.approx(near.split.token_s + 2 * LAYERS * 2 * rtt_s / 2)
    assert slow.split.token_s == pytest.approx(2 * near.split.token_s)
