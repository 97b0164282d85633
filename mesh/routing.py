"""Which node runs a request. Pure: what is known comes in, a decision goes out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mesh.estimate import Candidate, Need, Replica, Terms, estimate

__all__ = [
    "POLICIES",
    "Candidate",
    "Decision",
    "Need",
    "Policy",
    "Replica",
    "Terms",
    "estimate",
    "explain",
    "pick",
    "variants",
]


@dataclass(frozen=True, slots=True)
class Decision:
    """What `pick` has decided, and all it has looked at."""

    policy: str
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]
    """Best first; those that cannot take the request come last."""
    hold: bool
    """Nobody has a slot: wait at the entry node (mesh/holding.py) and pick again when one is free."""
    reason: str
    bounce_above_s: float = float("inf")
    """Travels with the call: if the target's own estimate is above this, the call does better elsewhere."""


Policy: TypeAlias = Callable[[Sequence[Candidate], Need, int, random.Random], Candidate]
"""(who can take it, best first; the request; how many decisions went before; randomness) -> who gets it."""

POLICIES: Mapping[str, Policy] = {}


def pick(
    replicas: Iterable[Replica], need: Need, policy: str = "ect", *, rng: random.Random, turn: int = 0
) -> Decision:
    """Choose a replica. `turn` counts this node's decisions (for round-robin)."""
    raise NotImplementedError


def variants(replicas: Iterable[Replica]) -> dict[str, frozenset[str]]:
    """Model names under which the swarm holds several files: name -> their digests."""
    raise NotImplementedError


def explain(decision: Decision) -> list[dict[str, str | float | int | bool]]:
    """One plain row a candidate, for `mesh explain`: its terms as numbers, and in words."""
    raise NotImplementedError
