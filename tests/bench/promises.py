"""What a plan promises before anything is loaded, beside what then comes of it."""

from __future__ import annotations

import os
from typing import Any

from tests.bench.harness import Bench, BenchError, Row, Session, median
from tests.bench.heads import THREADS, lenders
from tests.bench.http import chat
from tests.bench.swarms import token, until_met
from tests.support.models import smollm2
from tests.support.nodes import RunningNode, running_node, write_model

TARGET = 0.3
_MODEL = "promised"
_QUESTION = [{"role": "user", "content": "Tell me about rivers, and the boats on them."}]
_SPLITS: dict[str, list[str]] = {"in one piece": [], "over one worker": ["n0"], "over two workers": ["n0", "n1"]}


async def run(session: Session) -> list[Row]:
    """For each way a new head, which has learnt nothing; beside it two nodes that lend."""
    rounds = session.rounds(2, 7)
    rows = []
    with lenders(session, [None, None], memory_mib=1024) as nodes:
        for how, workers in _SPLITS.items():
            promised, measured = await _one(session, nodes, workers, rounds)
            # The best: a plan is made from what a machine does undisturbed (its pace is the best of twelve runs).
            share = max(measured) / promised
            rows.append(
                Row(
                    what=f"SmolLM2 {how}: planned",
                    value=f"{promised:.0f} tokens/s",
                    against=f"measured: at best {max(measured):.0f} tokens/s, median {median(measured):.0f}",
                    ratio=share,
                    target=f"1 +- {TARGET}",
                    met=abs(share - 1) <= TARGET,
                )
            )
    return rows


async def _one(
    session: Session, nodes: list[RunningNode], workers: list[str], rounds: int
) -> tuple[float, list[float]]:
    """What is promised, and the rates that came of it."""
    data = session.data("planner")
    split = {"shard": "always", "workers": workers} if workers else {"shard": "never"}
    write_model(
        data,
        _MODEL,
        parameters={"model": os.fspath(smollm2())},
        context_size=512,
        slots=1,
        threads=THREADS,
        **split,
    )
    settings = {"solo": "false", "lan_discovery": "false", "mesh_host": "127.0.0.1", "name": "planner"}
    with running_node(data, **settings, token=token(nodes[0])) as planner:
        until_met([planner, *nodes])
        # All workers are offered again: the head before this one has given them back.
        planner.until(
            lambda view: {n["name"] for n in view["nodes"] for t in n["targets"] if not t["leased_by"]} >= {"n0", "n1"}
        )
        promised = _promised(planner)
        await _rate(session, planner, 8)
        measured = [await _rate(session, planner, session.rounds(48, 96)) for _ in range(rounds)]
        session.tell(f"[dim]{', '.join(workers) or 'alone'}: {promised:.0f} planned, {median(measured):.0f} came[/]")
        planner.stop()
    return promised, measured


def _free(view: dict[str, Any]) -> list[str]:
    """Whose memory can be had."""
    return [node["name"] for node in view["nodes"] for target in node["targets"] if not target["leased_by"]]


def _promised(planner: RunningNode) -> float:
    [found] = planner.get(f"/api/mesh/plans?model={_MODEL}")["plans"]
    rate = found["split"]["tokens_per_s"] if found["split"] else found["whole_tokens_per_s"]
    if not rate:
        raise BenchError(f"There is no plan: {found['why']}")
    return float(rate)


async def _rate(session: Session, planner: RunningNode, tokens: int) -> float:
    """Tokens a second, from the first one on, as a client gets them."""
    ask = chat(_QUESTION, model=_MODEL, max_tokens=tokens, temperature=0, ignore_eos=True, stream=True)
    [outcome] = await session.load.run(planner.url, [ask], clients=1)
    usage = outcome.usage or {}
    if outcome.finish_reason != "length":
        raise BenchError(f"The answer ended with {outcome.finish_reason} instead of {tokens} tokens ({usage}).")
    return (tokens - 1) / (outcome.content_s[-1] - outcome.content_s[0])


BENCH = Bench("promises", "the tokens/s of a plan beside the measured ones: in one piece, over one worker and two", run)
