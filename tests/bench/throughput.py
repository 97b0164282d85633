"""Tokens a second of a real model: eight clients and one, over HTTP, beside the bare engine and beside others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import psutil

from backends.process import Worker
from backends.types import ChatRequest, Message, Sampling
from tests.bench.harness import Bench, BenchError, Measure, Row, Session, in_turn, judged, median, ratio
from tests.bench.http import Ask, chat
from tests.bench.nodes import MODEL, bare_engine, drive, node, real_model
from tests.bench.rivals import Model, llama_cpp_python, xllamacpp
from tests.support.models import smollm2

CLIENTS = 8
TARGETS = {CLIENTS: 0.93, 1: 0.97}
_CONTEXT_TOKENS = 1024
_WARM_UP_TOKENS = 8
_SUBJECTS = ("rivers", "bread", "bridges", "maps", "clocks", "gardens", "ships", "glass")


async def run(session: Session) -> list[Row]:
    """Aggregate tokens a second of each contender, in turn, for eight clients and for one."""
    path = real_model(session, slots=CLIENTS, context_tokens=_CONTEXT_TOKENS)
    rival = Model(smollm2(), _CONTEXT_TOKENS, CLIENTS, session.threads)
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(bare_engine(session, path))
        running = stack.enter_context(node(session, path))
        process = psutil.Process(running.process.pid)
        rivals = [stack.enter_context(start(session, rival)) for start in (xllamacpp, llama_cpp_python)]
        rows: list[Row] = []
        for clients, tokens, rounds in (
            (CLIENTS, session.rounds(48, 96), session.rounds(2, 7)),
            (1, session.rounds(64, 128), session.rounds(3, 11)),
        ):
            session.tell(f"{clients} at a time, {tokens} tokens each, {rounds} rounds")
            sides: dict[str, Measure] = {
                "node": _over_http(session, running.url, clients, tokens, {"ignore_eos": True}),
                "bare": _bare(worker, clients, tokens),
            }
            for other in filter(None, rivals):
                sides[other.name] = _over_http(session, other.url, clients, tokens, other.fields)
            before_s = _cpu_s(process)
            rates = await in_turn(session, sides, rounds)
            rows += _rows(rates, clients)
            rows.append(_cost(_cpu_s(process) - before_s, clients, rounds * clients * tokens))
    return rows


def _rows(rates: dict[str, list[float]], clients: int) -> list[Row]:
    who = f"{clients} streaming clients" if clients > 1 else "1 streaming client"
    ours = rates.pop("node")
    rows = []
    for name, theirs in rates.items():
        share = ratio(ours, theirs)
        target = TARGETS[clients] if name == "bare" else 1.0
        has_target = name == "bare" or clients > 1
        rows.append(
            Row(
                what=f"{who}, SmolLM2",
                value=f"{median(ours):.0f} tokens/s",
                against=f"{'the loop without HTTP' if name == 'bare' else name}: {median(theirs):.0f} tokens/s",
                ratio=share,
                target=f"{'>=' if name == 'bare' else '>'} {target}" if has_target else "",
                met=judged(share, "at least", target) if has_target else None,
            )
        )
    return rows


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _cost(spent_s: float, clients: int, tokens: int) -> Row:
    return Row(
        what=f"the node's own processor time a token, {clients} client{'s' * (clients > 1)}",
        value=f"{spent_s / tokens * 1e6:.0f} µs",
        against="requests and the warm-up round included, the engine's process not",
    )


def _prompt(number: int, client: int) -> str:
    # Another text each round, so that no cache has seen more of it than the template's first words.
    return f"Chapter {number + 1}.{client + 1}: tell me about {_SUBJECTS[client % len(_SUBJECTS)]} and what they need."


def _over_http(session: Session, url: str, clients: int, tokens: int, fields: dict[str, object]) -> Measure:
    async def measure(number: int) -> float:
        wanted = tokens if number else _WARM_UP_TOKENS
        asks: list[Ask] = [
            chat(
                [{"role": "user", "content": _prompt(number, client)}],
                model=MODEL,
                max_tokens=wanted,
                temperature=0,
                stream=True,
                **fields,
            )
            for client in range(clients)
        ]
        outcomes = await session.load.run(url, asks, clients=clients, lazy=True)
        for outcome in outcomes:
            if outcome.finish_reason != "length":
                raise BenchError(f"{url} ended an answer with {outcome.finish_reason} instead of {wanted} tokens.")
        seconds = max(outcome.ended_s for outcome in outcomes) - min(outcome.started_s for outcome in outcomes)
        return clients * wanted / seconds

    return measure


def _bare(worker: Worker, clients: int, tokens: int) -> Callable[[int], Awaitable[float]]:
    async def measure(number: int) -> float:
        requests = [
            ChatRequest(
                model=MODEL,
                messages=(Message(role="user", content=_prompt(number, client)),),
                max_tokens=tokens,
                sampling=Sampling(temperature=0),
                ignore_eos=True,
            )
            for client in range(clients)
        ]
        count, seconds = await drive(worker, requests)
        if count != clients * tokens:
            raise BenchError(f"The bare engine made {count} tokens instead of {clients * tokens}.")
        return count / seconds

    return measure


BENCH = Bench(
    "throughput", "eight clients and one over HTTP, beside the bare engine, xllamacpp and llama-cpp-python", run
)
