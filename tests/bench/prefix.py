"""The second turn of a long conversation: what the KV cache of the first one saves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack

from tests.bench.harness import Bench, Row, Session, judged, median, ratio
from tests.bench.http import Outcome, chat
from tests.bench.nodes import MODEL, node, real_model
from tests.bench.rivals import Model, xllamacpp
from tests.support.models import smollm2

TARGET = 0.15
_CONTEXT_TOKENS = 2048
_SLOTS = 2
_WORDS = 880  # about 1,000 tokens of SmolLM2's
_VOCABULARY = ("water", "stone", "river", "light", "house", "paper", "green", "winter", "market", "travel", "garden")


async def run(session: Session) -> list[Row]:
    """Time to first token of the first turn and of the second, conversation after conversation, each a new one."""
    with ExitStack() as stack:
        model = real_model(session, slots=_SLOTS, context_tokens=_CONTEXT_TOKENS)
        running = stack.enter_context(node(session, model))
        rival = stack.enter_context(xllamacpp(session, Model(smollm2(), _CONTEXT_TOKENS, _SLOTS, session.threads)))
        first: dict[str, list[float]] = {"node": []}
        second: dict[str, list[float]] = {"node": []}
        sides = {"node": running.url}
        if rival is not None:
            sides[rival.name], first[rival.name], second[rival.name] = rival.url, [], []
        rounds = session.rounds(2, 5)
        session.tell(f"{rounds} conversations of about 1,000 tokens")
        tokens = 0
        for number in range(rounds + 1):
            for name, url in sides.items():
                turns = await _conversation(session, url, number)
                if number:
                    first[name].append(turns[0].first_content_after_s)
                    second[name].append(turns[1].first_content_after_s)
                if turns[1].usage:
                    tokens = int(turns[1].usage["prompt_tokens"])
    return [_row(name, tokens, first[name], second[name]) for name in sides]


def _row(name: str, tokens: int, first: Sequence[float], second: Sequence[float]) -> Row:
    share = ratio(second, first)
    ours = name == "node"
    return Row(
        what=f"first token of turn 2, {tokens} tokens" + ("" if ours else f", {name}"),
        value=f"{median(second) * 1e3:.0f} ms",
        against=f"turn 1: {median(first) * 1e3:.0f} ms",
        ratio=share,
        target=f"<= {TARGET}" if ours else "",
        met=judged(share, "at most", TARGET) if ours else None,
    )


async def _conversation(session: Session, url: str, number: int) -> list[Outcome]:
    words = random.Random(number).choices(_VOCABULARY, k=_WORDS)
    messages = [{"role": "user", "content": f"Note {number}: {' '.join(words)}. What is this about?"}]
    turns = []
    for _ in range(2):
        ask = chat(
            messages,
            model=MODEL,
            max_tokens=24,
            temperature=0,
            stream=True,
            ignore_eos=True,
            stream_options={"include_usage": True},
        )
        turns += await session.load.run(url, [ask], clients=1)
        messages.append({"role": "assistant", "content": turns[-1].text})
        messages.append({"role": "user", "content": "Say it in other words."})
    return turns


BENCH = Bench("prefix", "time to first token of a conversation's second turn", run)
