"""Two fast and two slow replicas under load: each routing policy, and other load balancers on the same replicas."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import ExitStack

from tests.bench import proxies
from tests.bench.harness import Bench, Row, Session, percentile
from tests.bench.http import Outcome, chat
from tests.bench.nodes import MODEL, fake_model, node
from tests.bench.swarms import joining, swarm, until_met
from tests.support.nodes import RunningNode

TARGET_S = 0.6
POLICIES = ("ect", "least-loaded", "round-robin", "random")
_PER_S = 12.0
_WARM_UP_S = 4.0  # of the load, not counted
_TOKENS = 20
_SLOTS = (4, 4, 1, 1)
_ASKS = [  # no two alike: a balancer that looks at prompts shall not find the same one again and again
    chat(
        [{"role": "user", "content": f"{number}: who finishes this first?"}],
        model=MODEL,
        max_tokens=_TOKENS,
        ignore_eos=True,
    )
    for number in range(1000)
]


async def run(session: Session) -> list[Row]:
    """The same arrivals at every entry."""
    length_s = session.rounds(8, 30)
    session.tell(f"{_PER_S:.0f} requests a second for {length_s} s at each; Poisson, the same for all")
    arrivals = _arrivals(_WARM_UP_S + length_s)
    models = [fake_model(slots=slots, decode_tokens_per_s=_TOKENS / _took_s(slots)) for slots in _SLOTS]
    results: dict[str, list[Outcome]] = {}
    with swarm(session, models, holders=len(models)) as nodes, ExitStack() as stack:
        entries: list[RunningNode] = []
        for policy in POLICIES:
            entries.append(stack.enter_context(joining(session, nodes, policy, None, routing_policy=policy)))
        until_met([*nodes, *entries], holders=len(nodes))
        for policy, entry in zip(POLICIES, entries, strict=True):
            results[policy] = await session.load.arriving(entry.url, _ASKS, arrivals)
            session.tell(f"[dim]{policy}: p99 {_percentile(results[policy], 99):.2f} s[/]")
    with ExitStack() as stack:
        alone = [stack.enter_context(node(session, model)) for model in models]
        for proxy in (
            proxies.haproxy(session, alone, _SLOTS),
            proxies.litellm(session, alone, strategy="least-busy"),
            proxies.sglang_router(session, alone, policy="cache_aware"),
        ):
            with proxy as rival:
                if rival is None:
                    continue
                try:
                    results[rival.name] = await session.load.arriving(rival.url, _ASKS, arrivals)
                    session.tell(f"[dim]{rival.name}: p99 {_percentile(results[rival.name], 99):.2f} s[/]")
                except RuntimeError as error:
                    session.warn(f"NOT COMPARED with {rival.name}: {error}")
    best = min(_percentile(outcomes, 99) for name, outcomes in results.items() if name != "ect")
    return [_row(name, outcomes, best) for name, outcomes in results.items()]


def _took_s(slots: int) -> float:
    return 0.2 if slots > 1 else 1.0


def _arrivals(length_s: float) -> list[float]:
    draw = random.Random(12)
    times: list[float] = []
    now = 0.0
    while (now := now + draw.expovariate(_PER_S)) < length_s:
        times.append(now)
    return times


def _percentile(outcomes: list[Outcome], percent: float) -> float:
    begun = min(outcome.started_s for outcome in outcomes) + _WARM_UP_S
    return percentile([outcome.took_s for outcome in outcomes if outcome.started_s > begun], percent)


def _row(name: str, outcomes: list[Outcome], best: float) -> Row:
    p50, p99 = _percentile(outcomes, 50), _percentile(outcomes, 99)
    shares = Counter(outcome.node for outcome in outcomes)
    where = ", ".join(f"{shares[name]}" for name in sorted(shares)) if len(shares) > 1 else ""
    ours = name == "ect"
    return Row(
        what=f"2 fast, 2 slow, {_PER_S:.0f} requests/s: {name}",
        value=f"p50 {p50:.2f} s, p99 {p99:.2f} s",
        against=f"requests by node: {where}" if where else "",
        target=f"p99 < {TARGET_S} s and below all others" if ours else "",
        met=p99 < min(TARGET_S, best) if ours else None,
    )


BENCH = Bench("policies", "tail latency over unequal replicas: our policies, haproxy, LiteLLM, sglang-router", run)
