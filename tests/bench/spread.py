"""How calls spread over equal nodes, and how soon one that joins takes part."""

from __future__ import annotations

import time
from collections import Counter

import httpx
import trio

from tests.bench.harness import Bench, BenchError, Row, Session, judged, median
from tests.bench.http import chat
from tests.bench.nodes import MODEL, fake_model
from tests.bench.swarms import joining, swarm, until_met

TARGET_JOIN_S = 3.0
_CALLS = 32
_NODES = 4
_SLOTS = 16
_TOKENS = 25
_TOKENS_PER_S = 50.0  # an answer takes half a second: all calls are there before the first one ends
_IDLE_S = 2.0  # before each burst: whoever looks has heard from all nodes that they are idle
_ASK = chat([{"role": "user", "content": "Whose turn is it?"}], model=MODEL, max_tokens=_TOKENS, ignore_eos=True)


async def run(session: Session) -> list[Row]:
    """Bursts over four nodes, then over five; then a swarm that gets the model by a join."""
    model = fake_model(slots=_SLOTS, decode_tokens_per_s=_TOKENS_PER_S)
    bursts = session.rounds(2, 5)
    rows: list[Row] = []
    with swarm(session, [*[model] * _NODES, None], holders=_NODES) as nodes:
        entry = nodes[-1]
        session.tell(f"{bursts} bursts of {_CALLS} calls over {_NODES} idle nodes")
        counts = [await _burst(session, entry.url, _CALLS) for _ in range(bursts)]
        even = _CALLS // _NODES
        rows.append(
            Row(
                what=f"{_CALLS} calls at once over {_NODES} equal idle nodes",
                value="; ".join(_shown(count) for count in counts),
                target=f"{even} each",
                met=all(sorted(count.values()) == [even] * _NODES for count in counts),
            )
        )
        with joining(session, nodes, "fifth", model) as fifth:
            until_met([entry], holders=_NODES + 1)
            total = even * (_NODES + 1)
            session.tell(f"{bursts} bursts of {total} calls, after a fifth node has joined")
            counts = [await _burst(session, entry.url, total) for _ in range(bursts)]
            fifth.stop()
        shares = [count["fifth"] for count in counts]
        rows.append(
            Row(
                what=f"{total} calls at once after a fifth has joined",
                value="; ".join(_shown(count) for count in counts),
                against=f"of the fifth: {', '.join(map(str, shares))}",
                target=f"{even} on the fifth, give or take 2",
                met=all(abs(share - even) <= 2 for share in shares),
            )
        )
    rows.append(await _join(session))
    return rows


async def _burst(session: Session, url: str, calls: int) -> Counter[str]:
    """So many calls at once; how many each node answered."""
    await trio.sleep(_IDLE_S)
    outcomes = await session.load.run(url, [_ASK], clients=calls, total=calls)
    return Counter(outcome.node for outcome in outcomes)


def _shown(count: Counter[str]) -> str:
    return " ".join(str(count[name]) for name in sorted(count))


async def _join(session: Session) -> Row:
    """From the command of the only node with the model until a node that was there before has an answer from it."""
    rounds = session.rounds(2, 5)
    session.tell(f"{rounds} joins")
    took: list[float] = []
    started_s: list[float] = []
    with swarm(session, [None]) as nodes, nodes[0].http as client:
        for number in range(rounds):
            started = time.monotonic()
            with joining(session, nodes, f"j{number}", fake_model(slots=1)) as joined:
                started_s.append(time.monotonic() - started)
                _until_answered(client, f"j{number}", started)
                took.append(time.monotonic() - started)
                joined.stop()
    return Row(
        what="from the command `mesh join` to the first request that the new node answers",
        value=f"{median(took):.2f} s",
        against=f"its own API is ready after {median(started_s):.2f} s; slowest of {rounds}: {max(took):.2f} s",
        target=f"< {TARGET_JOIN_S:.0f} s",
        met=judged(median(took), "at most", TARGET_JOIN_S),
    )


def _until_answered(client: httpx.Client, name: str, started: float) -> None:
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": 1}
    while True:
        answer = client.post("/v1/completions", json=body)
        if answer.status_code == 200 and answer.headers["X-Mesh-Node"] == name:
            return
        if time.monotonic() - started > 30:
            raise BenchError(f"{name} answers nothing: {answer.text[:200]}")
        time.sleep(0.01)


BENCH = Bench(
    "spread", "how a burst spreads over equal nodes, a fifth one's share, and how soon a node takes part", run
)
