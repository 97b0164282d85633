"""What reading answers for tags and tool calls adds to a streamed token."""

from __future__ import annotations

import time

from api.answer import Readers
from api.openai.render import CHAT, Answer, StreamRenderer
from backends.types import Accepted, AnswerFormat, ChatRequest, Chunk, Message, Text, Tool
from tests.bench.harness import Bench, Row, Session, judged, median
from tests.bench.overhead import TARGET_EVENTS_PER_S

TARGET_SHARE = 0.03
_WORDS = (" hello", " world", ".", " and", " so")
_TOKENS = 20_000
_THINKS = AnswerFormat("hermes", ("<think>", "</think>"))


async def run(session: Session) -> list[Row]:
    """The renderer with a reader beside the one without, token by token."""
    rounds = session.rounds(3, 9)
    sides = {
        "plain answers": (_request(), AnswerFormat()),
        "a model that may think": (_request(), _THINKS),
        "tools and thoughts": (_request(Tool(name="f")), _THINKS),
    }
    rows = []
    for what, (request, form) in sides.items():
        added = [_cost_s(Readers(request), form) - _cost_s(None, form) for _ in range(rounds)]
        # A token costs the whole path, and the rate that the path must reach says how much that is.
        share = median(added) * TARGET_EVENTS_PER_S
        rows.append(
            Row(
                what=f"reading {what}",
                value=f"{median(added) * 1e6:.2f} µs a token",
                against=f"{1e6 / TARGET_EVENTS_PER_S:.0f} µs: a token at {TARGET_EVENTS_PER_S:,} events/s",
                ratio=share,
                target=f"<= {TARGET_SHARE:.0%}",
                met=judged(share, "at most", TARGET_SHARE),
            )
        )
    return rows


def _request(*tools: Tool) -> ChatRequest:
    return ChatRequest(model="m", messages=(Message(role="user", content="x"),), tools=tools)


def _cost_s(readers: Readers | None, form: AnswerFormat) -> float:
    """Seconds to render one token."""
    answer = Answer(shape=CHAT, model="m", version="1", choices=1)
    renderer = StreamRenderer(answer, include_usage=False, readers=readers)
    renderer.batch([Accepted(1, form)])
    words: list[list[Chunk]] = [[Text(0, word, (1,))] for word in _WORDS]
    batches = words * (_TOKENS // len(_WORDS))
    started = time.perf_counter()
    for batch in batches:
        renderer.batch(batch)
    return (time.perf_counter() - started) / len(batches)


BENCH = Bench("parsing", "what looking for reasoning and tool calls adds to a streamed token", run)
