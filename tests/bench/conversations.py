"""Conversations of many turns over three nodes: how much of their prompts comes out of a cache.

The policy to compare with is least-loaded: on equal nodes it is what ect is without its prefix term, the emptiest node
and among several any.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import trio

from tests.bench.harness import Bench, BenchError, Row, Session, judged, median
from tests.bench.http import Outcome, chat
from tests.bench.load import load_process
from tests.bench.nodes import MODEL, real_model
from tests.bench.swarms import joining, swarm, until_met

TARGET_SHARE = 0.8
POLICIES = ("ect", "least-loaded")
_NODES = 3
_SLOTS = 2
_CONTEXT_TOKENS = 2048
_FIRST_WORDS = 260  # about 300 tokens of SmolLM2's
_WORDS = 20
_ANSWER_TOKENS = 16
_AT_A_TIME = 4
_PAUSE_S = (0.1, 1.0)  # between turns, drawn anew each: a client that asks at once finds the node it has just left idle
_VOCABULARY = ("water", "stone", "river", "light", "house", "paper", "green", "winter", "market", "travel", "garden")


@dataclass
class _Result:
    prompt: int = 0
    cached: int = 0
    reusable: int = 0  # of the prompts of turns 2 and later: the turn before, as far as the cache could know it
    reused: int = 0
    moves: int = 0
    first_s: list[float] = field(default_factory=list)
    later_s: list[float] = field(default_factory=list)


async def run(session: Session) -> list[Row]:
    """The same number of conversations through each entry, by turns, so that all find the caches alike full."""
    conversations, turns = session.rounds(4, 12), session.rounds(4, 10)
    session.tell(f"{conversations} conversations of {turns} turns, {_AT_A_TIME} at a time, for each policy")
    model = real_model(session, slots=_SLOTS, context_tokens=_CONTEXT_TOKENS) | {"threads": 1}
    results = {policy: _Result() for policy in POLICIES}
    with swarm(session, [model] * _NODES, holders=_NODES) as nodes:
        with (
            joining(session, nodes, "a", None, routing_policy=POLICIES[0]) as first,
            joining(session, nodes, "b", None, routing_policy=POLICIES[1]) as second,
        ):
            until_met([*nodes, first, second], holders=_NODES)
            await _one(session, first.url, turns, -1, _Result())
            for start in range(0, conversations, _AT_A_TIME):
                for policy, entry in zip(POLICIES, (first, second), strict=True):
                    async with trio.open_nursery() as nursery:
                        for number in range(start, start + _AT_A_TIME):
                            seed = number * len(POLICIES) + POLICIES.index(policy)
                            nursery.start_soon(_one, session, entry.url, turns, seed, results[policy])
            first.stop()
            second.stop()
    return [row for policy, result in results.items() for row in _rows(policy, turns, result, results)]


async def _one(session: Session, url: str, turns: int, seed: int, result: _Result) -> None:
    draw = random.Random(seed)
    said = [{"role": "user", "content": f"Note {seed}: {' '.join(draw.choices(_VOCABULARY, k=_FIRST_WORDS))}."}]
    before: Outcome | None = None
    with load_process() as load:
        for turn in range(turns):
            if turn:
                await trio.sleep(draw.uniform(*_PAUSE_S))
            ask = chat(
                said,
                model=MODEL,
                max_tokens=_ANSWER_TOKENS,
                temperature=0,
                stream=True,
                ignore_eos=True,
                stream_options={"include_usage": True},
            )
            [outcome] = await load.run(url, [ask], clients=1)
            _note(result, outcome, before)
            before = outcome
            said.append({"role": "assistant", "content": outcome.text})
            said.append({"role": "user", "content": f"And {' '.join(draw.choices(_VOCABULARY, k=_WORDS))}?"})


def _note(result: _Result, outcome: Outcome, before: Outcome | None) -> None:
    if outcome.usage is None:
        raise BenchError("An answer came without its usage.")
    prompt = outcome.usage["prompt_tokens"]
    cached = outcome.usage["prompt_tokens_details"]["cached_tokens"]
    result.prompt += prompt
    result.cached += cached
    if before is None:
        result.first_s.append(outcome.first_content_after_s)
        return
    assert before.usage is not None
    result.reusable += before.usage["prompt_tokens"]
    result.reused += min(cached, before.usage["prompt_tokens"])
    result.moves += outcome.node != before.node
    result.later_s.append(outcome.first_content_after_s)


def _rows(policy: str, turns: int, result: _Result, results: dict[str, _Result]) -> list[Row]:
    ours = policy == POLICIES[0]
    share = result.cached / result.prompt
    other = results[POLICIES[1]]
    named = policy if ours else f"{policy}, as without the prefix term"
    rows = [
        Row(
            what=f"prompt tokens from a cache, {turns} turns over {_NODES} nodes: {named}",
            value=f"{share:.2f} of all, {result.reused / result.reusable:.2f} of what the turn before left",
            against=f"{result.moves} of {len(result.later_s)} later turns on another node than the turn before",
            target=f">= {TARGET_SHARE} of all" if ours else "",
            met=judged(share, "at least", TARGET_SHARE) if ours else None,
        )
    ]
    if ours:
        rows.append(
            Row(
                what=f"first token of turns 2 and later: {policy}",
                value=f"{median(result.later_s) * 1e3:.0f} ms",
                against=f"{POLICIES[1]}: {median(other.later_s) * 1e3:.0f} ms; "
                f"turn 1: {median(result.first_s) * 1e3:.0f} ms",
                ratio=median(result.later_s) / median(other.later_s),
            )
        )
    return rows


BENCH = Bench("conversations", "turns of conversations that find their beginning in some node's cache", run)
