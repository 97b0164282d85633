"""Which nodes share a model as ranks: a pure function, as node/plan.py is for layers.

Ranks work at the same time (tensor) or one after the other (pipeline), and wait for each other several times a token:

    token_s = the slowest rank's weights / its speed         (tensor; for a pipeline: the sum over all ranks)
            + exchanges * (2 * ranks - 2) * (round trip / 2 + handling)

since a sum over all ranks goes twice around MLX's ring. The fewest ranks that have room share it, those with the most
memory first: each costs memory of its own, and a word in every exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backends.sharding import RankShape
from backends.types import LoadFailed, ModelNeeds
from node.plan import LAYER_S, Asked, Place, Plan, Share, Split, decide, pace, whole_token_s

HANDLING_S = 0.0005
"""What one message between two ranks costs beside the way: relays and tunnels, on both machines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankQuestion(Asked):
    """All that a plan in ranks is made from."""

    shape: Callable[[int], RankShape]
    """For so many ranks. Raises LoadFailed with the reason why so many cannot share it."""
    needs: Callable[[int, int], ModelNeeds]
    """What each of so many ranks takes, of so much memory. Raises LoadFailed."""


def plan_ranks(question: RankQuestion) -> tuple[Plan, ModelNeeds | None]:
    """Decide; with what each rank takes, where there is a split."""
    split, needs, missing = _best(question)
    alone = question.shape(1)
    whole_s = whole_token_s(question, alone.weight_bytes, sum(alone.layers))
    decided = decide(question, split, missing, whole_s)
    return decided, needs if decided.split is not None else None


def _best(question: RankQuestion) -> tuple[Split | None, ModelNeeds | None, str]:
    workers = question.workers
    if question.named:
        workers = tuple(place for place in workers if {place.name, place.id} & set(question.named))
    # By name where memory is the same, so that the choice does not change by itself.
    free = sorted(workers, key=lambda place: (-place.memory_bytes, place.name))
    why = [] if free else ["No node lends a rank (--mlx-rank) that is free."]
    for size in range(2, len(free) + 2):
        chosen = free[: size - 1]
        room = min(question.head.memory_bytes, *(place.memory_bytes for place in chosen))
        try:
            needs = question.needs(room, size)
            return _priced(question, question.shape(size), needs, chosen), needs, ""
        except LoadFailed as error:
            why.append(error.message)
    return None, None, " ".join(why)


def _priced(question: RankQuestion, shape: RankShape, needs: ModelNeeds, chosen: list[Place]) -> Split:
    shares = [
        Share(place, layers, shape.weight_bytes, needs.memory_bytes)
        for place, layers in zip((question.head, *chosen), shape.layers, strict=True)
    ]
    reading = [share.weight_bytes / pace(share.place) + LAYER_S * share.layers for share in shares]
    way_s = max(place.rtt_s for place in chosen) / 2 + HANDLING_S
    token_s = max(reading) if shape.way == "tensor" else sum(reading)
    token_s += shape.exchanges * (2 * len(shares) - 2) * way_s
    return Split(shares[0], tuple(shares[1:]), token_s * question.slowdown, max(reading), shape.way)
