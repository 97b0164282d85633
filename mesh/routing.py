"""Which node runs a request. Pure: what is known comes in, a decision goes out.

Nodes decide at the same time and do not ask each other, so every rule here has to hold when the loads are a second old
and others decide alike: what this node sent since is added (mesh/reservations.py), near ties are not resolved in one
way by all, and the target of a call may send it back once, when it finds itself clearly worse than the runner-up.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mesh.estimate import Candidate, Estimator, Need, Rates, Replica, Terms, estimate
from mesh.explain import explain_candidate
from mesh.records import Offer

__all__ = [
    "POLICIES",
    "Candidate",
    "Decision",
    "Need",
    "Policy",
    "Rates",
    "Replica",
    "Terms",
    "estimate",
    "explain",
    "pick",
    "variants",
]

TIE_RATIO, TIE_S = 1.03, 0.001
"""Times this close are a tie: estimates are not that good."""

STAY_RATIO, STAY_S = 1.5, 0.25
"""A conversation stays where its beginning is cached while that takes at most so much longer than elsewhere: a move
costs the next turns too, and some other conversation its place in a cache. Twelve simulated conversations on twelve
slots get 0.89 of what could come from a cache with these, 0.81 with 1.2 and 0.1, and 0.60 without; the mean time falls
with it, from 2.2 to 1.7 s."""

STAY_SHARE = 0.5
"""Of the prompt that has to be cached for that: a system prompt which all conversations share does not bind them."""

HEARD_SHARE = 0.5
"""Of the busy slots, those whose end this node hears of at once, for it to hold a request rather than queue it. Lower,
and requests wait here for news while slots run empty; higher, and they sit in one queue while another slot is free."""

BOUNCE_RATIO, BOUNCE_S = 1.25, 0.1
"""A call is bounced when the runner-up, as the entry node knew it, is better by more than this: a bounce costs a round
trip, and the runner-up's figures were as old as the target's."""


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
    bounce_above_s: float = math.inf
    """Travels with the call: if the target's own estimate is above this, the call does better elsewhere."""


Policy: TypeAlias = Callable[[Sequence[Candidate], int, random.Random], tuple[Candidate, str]]
"""(who can take it, best ect first; how many decisions went before; randomness) -> who gets it, and why."""


def pick(
    replicas: Iterable[Replica], need: Need, policy: str = "ect", *, rng: random.Random, turn: int = 0
) -> Decision:
    """Choose a replica. `turn` counts this node's decisions (for round-robin). The rules, in this order:

    1. A replica is out that does not serve this model and capability, is another variant than the one asked for, has
       failed this call, or is not the pinned one.
    2. One with too short a context is out while there is another (the length is an estimate: alone, it gets the call
       and counts the tokens itself), and so is one whose last load failed: alone, it answers with its error.
    3. Files of several digests under one name: only those of the digest that would finish first stay.
    4. Nobody left: no choice.
    5. All slots of all of them taken: hold, if the next to end is likely a call of this node's, or no queue is
       short; else queue.
    6. The policy chooses among those that are left, full ones too: waiting for a fast one may be quicker.
    """
    replicas = tuple(replicas)
    estimator = Estimator(replicas)
    able: list[Candidate] = []
    unable: list[Candidate] = []
    for replica in replicas:
        candidate = estimator.candidate(replica, need)
        reason = _unable(replica, need)  # 1
        if reason:
            unable.append(dataclasses.replace(candidate, reason=reason))
        else:
            able.append(candidate)

    short = [candidate for candidate in able if _is_short(candidate.replica.offer, need)]
    if len(short) < len(able):  # 2
        for candidate in short:
            tokens = candidate.replica.offer.context_tokens
            _drop([candidate], f"its context of {tokens} tokens is too short", able, unable)
    failed = [candidate for candidate in able if candidate.replica.load.state == "failed"]
    if len(failed) < len(able):  # 2
        _drop(failed, "its last load failed", able, unable)
    able.sort(key=_order)
    if able:  # 3
        digest = able[0].replica.offer.digest
        others = [candidate for candidate in able if candidate.replica.offer.digest != digest]
        _drop(others, "it has another file under this name", able, unable)
    candidates = (*able, *sorted(unable, key=_order))
    if not able:  # 4
        return Decision(policy, None, candidates, hold=False, reason=_nobody(need, unable))

    weight = max(1, need.weight)
    if not any(candidate.slots_free >= min(weight, candidate.slots) for candidate in able):  # 5
        place, why = _full(able)
        if place is None:
            return Decision(policy, None, candidates, hold=True, reason=why)
        return Decision(policy, place, candidates, False, why, _bounce_above(place, able))
    chosen, why = POLICIES[policy](able, turn, rng)  # 6
    return Decision(policy, chosen, candidates, False, why, _bounce_above(chosen, able))


def variants(replicas: Iterable[Replica]) -> dict[str, frozenset[str]]:
    """Model names under which the swarm holds several files: name -> their digests."""
    digests: dict[str, set[str]] = {}
    for replica in replicas:
        digests.setdefault(replica.offer.model, set()).add(replica.offer.digest)
    return {name: frozenset(found) for name, found in digests.items() if len(found) > 1}


def explain(decision: Decision) -> list[dict[str, str | float | int | bool]]:
    """One plain row a candidate, for `mesh explain`: its terms as numbers, and in words."""
    return [
        {"chosen": candidate is decision.chosen, **explain_candidate(candidate)} for candidate in decision.candidates
    ]


# -- policies --


def _ect(able: Sequence[Candidate], turn: int, rng: random.Random) -> tuple[Candidate, str]:
    """The lowest expected completion time; where the conversation is cached, if that is hardly slower."""
    best = able[0]
    close = _within(able, best, STAY_RATIO, STAY_S)
    stay = [candidate for candidate in close if candidate.cached_share >= STAY_SHARE and candidate.slots_free]
    if stay and best not in stay:
        return stay[0], f"{stay[0].replica.name} has the conversation in its cache"
    ties = _within(stay or able, best, TIE_RATIO, TIE_S)
    least = min(map(_busy_share, ties))
    chosen = rng.choice([candidate for candidate in ties if _busy_share(candidate) == least])
    if len(able) == 1:
        return chosen, f"only {chosen.replica.name} can take it"
    if len(ties) > 1:
        return chosen, f"{len(ties)} nodes would finish at about the same time; {chosen.replica.name} of the emptiest"
    return chosen, f"{chosen.replica.name} finishes first"


def _least_loaded(able: Sequence[Candidate], turn: int, rng: random.Random) -> tuple[Candidate, str]:
    """The fewest calls, whatever the node's speed."""
    least = min(candidate.active for candidate in able)
    chosen = rng.choice([candidate for candidate in able if candidate.active == least])
    return chosen, f"{chosen.replica.name} has the fewest calls: {least}"


def _round_robin(able: Sequence[Candidate], turn: int, rng: random.Random) -> tuple[Candidate, str]:
    """One after the other."""
    chosen = sorted(able, key=lambda candidate: candidate.replica.peer)[turn % len(able)]
    return chosen, f"it is the turn of {chosen.replica.name}"


def _random(able: Sequence[Candidate], turn: int, rng: random.Random) -> tuple[Candidate, str]:
    """Any."""
    chosen = rng.choice(able)
    return chosen, f"{chosen.replica.name} was drawn by lot"


POLICIES: Mapping[str, Policy] = {
    "ect": _ect,
    "least-loaded": _least_loaded,
    "round-robin": _round_robin,
    "random": _random,
}


# -- rules --


def _is_short(offer: Offer, need: Need) -> bool:
    return 0 < offer.context_tokens < need.prompt_tokens


def _unable(replica: Replica, need: Need) -> str:
    """Why this replica cannot take the request; empty if it can."""
    offer = replica.offer
    if need.model != offer.model and need.model not in offer.aliases:
        return f"it does not offer {need.model}"
    if need.capability not in offer.capabilities:
        return f"its {need.model} cannot do {need.capability}"
    if need.digest is not None and need.digest != offer.digest:
        return "it has another file under this name"
    if replica.peer in need.exclude:
        return "this call has failed there"
    if need.pinned is not None and replica.peer != need.pinned:
        return "the request is pinned to another node"
    return ""


def _drop(some: Sequence[Candidate], reason: str, able: list[Candidate], unable: list[Candidate]) -> None:
    for candidate in some:
        able.remove(candidate)
        unable.append(dataclasses.replace(candidate, reason=reason))


def _nobody(need: Need, unable: Sequence[Candidate]) -> str:
    reasons = sorted({f"{candidate.replica.name}: {candidate.reason}" for candidate in unable})
    return f"no node can take it ({'; '.join(reasons)})" if reasons else f"no node offers {need.model}"


def _full(able: Sequence[Candidate]) -> tuple[Candidate | None, str]:
    """Where to queue when every slot is taken; None to hold.

    A call that is sent into a queue stays in it, while one that is held goes wherever a slot frees up first. But this
    node hears at once only of its own calls' ends; of other nodes' calls, a heartbeat later.
    """
    best = able[0]
    taken = sum(min(one.active, one.slots) for one in able)
    if sum(map(_heard_of, able)) >= HEARD_SHARE * taken or best.active >= 2 * best.slots:
        return None, "all slots are busy: the request waits here"
    return best, f"all slots are busy, with other nodes' calls; {best.replica.name} has the shortest queue"


def _heard_of(candidate: Candidate) -> int:
    """Slots there whose end this node would hear of at once."""
    replica = candidate.replica
    return min(candidate.slots, candidate.active if replica.local else replica.reserved.running)


def _bounce_above(chosen: Candidate, able: Sequence[Candidate]) -> float:
    others = (candidate.terms.total_s for candidate in able if candidate is not chosen)
    return min(others, default=math.inf) * BOUNCE_RATIO + BOUNCE_S


def _within(able: Sequence[Candidate], best: Candidate, ratio: float, slack_s: float) -> list[Candidate]:
    limit_s = best.terms.total_s * ratio + slack_s
    return [candidate for candidate in able if candidate.terms.total_s <= limit_s]


def _busy_share(candidate: Candidate) -> float:
    return candidate.active / candidate.slots


def _order(candidate: Candidate) -> tuple[float, str]:
    return candidate.terms.total_s, candidate.replica.peer
