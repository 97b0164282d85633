"""What HTTP itself costs: the fake backend at infinite speed, beside the same worker without HTTP."""

from __future__ import annotations

import time

import trio

from backends.process import Worker
from backends.types import ChatRequest, Message, encode_request
from tests.bench.harness import Bench, BenchError, Row, Session, in_turn, judged, median, percentile, ratio
from tests.bench.http import Ask, chat
from tests.bench.nodes import MODEL, bare_engine, drive, fake_model, node

TARGET_EVENTS_PER_S = 5000
_CLIENTS = 32
_MESSAGES = [{"role": "user", "content": "How long does a short answer take?"}]
_REQUEST = ChatRequest(
    model=MODEL, messages=(Message(role="user", content=_MESSAGES[0]["content"]),), max_tokens=1, ignore_eos=True
)


async def run(session: Session) -> list[Row]:
    """Latency of the shortest answer, and the rate of stream events."""
    model = fake_model(slots=_CLIENTS)
    async with bare_engine(session, model) as worker:
        with node(session, model) as running:
            rows = []
            for clients in (1, _CLIENTS):
                rows.append(await _latency(session, running.url, worker, clients))
            rows.append(await _floor(session, running.url))
            rows += [await _events(session, running.url, worker, clients) for clients in (8, _CLIENTS)]
    return rows


async def _latency(session: Session, url: str, worker: Worker, clients: int) -> Row:
    requests = session.rounds(300, 1000) if clients > 1 else session.rounds(200, 500)
    rounds = session.rounds(2, 5)
    session.tell(f"{clients} at a time, {rounds} rounds of {requests} requests of 1 token")
    ask = chat(_MESSAGES, model=MODEL, max_tokens=1, ignore_eos=True)
    http: list[float] = []
    bare: list[float] = []
    for number in range(rounds + 1):
        outcomes = await session.load.run(url, [ask], clients=clients, total=requests)
        direct = await _bare_latencies(worker, clients, requests)
        if number:
            http += [outcome.took_s for outcome in outcomes[clients:]]  # the first ones also open a connection
            bare += direct[clients:]
    return Row(
        what=f"a 1-token answer, {clients} client{'s' * (clients > 1)}",
        value=f"p50 {percentile(http, 50) * 1e3:.2f} ms, p99 {percentile(http, 99) * 1e3:.2f} ms",
        against=f"without HTTP: p50 {percentile(bare, 50) * 1e3:.2f} ms, p99 {percentile(bare, 99) * 1e3:.2f} ms",
    )


async def _bare_latencies(worker: Worker, clients: int, requests: int) -> list[float]:
    encoded = encode_request(_REQUEST)
    took: list[float] = []
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            started = time.monotonic()
            async with worker.call(encoded) as call:
                async for _ in call.batches():
                    pass
            took.append(time.monotonic() - started)

    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(client)
    return took


async def _floor(session: Session, url: str) -> Row:
    requests = session.rounds(200, 1000)
    took = [o.took_s for o in await session.load.run(url, [Ask(path="/healthz")], clients=1, total=requests)]
    return Row(
        what="GET /healthz, 1 client: the HTTP stack alone",
        value=f"p50 {percentile(took, 50) * 1e3:.2f} ms, p99 {percentile(took, 99) * 1e3:.2f} ms",
    )


async def _events(session: Session, url: str, worker: Worker, clients: int) -> Row:
    tokens = session.rounds(256, 512)
    rounds = session.rounds(2, 5)
    session.tell(f"{clients} clients, {rounds} rounds of {tokens} stream events each")
    ask = chat(_MESSAGES, model=MODEL, max_tokens=tokens, ignore_eos=True, stream=True)

    async def over_http(_: int) -> float:
        outcomes = await session.load.run(url, [ask], clients=clients, total=clients)
        events = sum(len(outcome.event_s) for outcome in outcomes)
        if any(len(outcome.content_s) != tokens for outcome in outcomes):
            raise BenchError("A stream lost or merged tokens.")
        return events / (max(o.ended_s for o in outcomes) - min(o.started_s for o in outcomes))

    async def bare(_: int) -> float:
        request = ChatRequest(model=MODEL, messages=_REQUEST.messages, max_tokens=tokens, ignore_eos=True)
        count, seconds = await drive(worker, [request] * clients)
        return count / seconds

    rates = await in_turn(session, {"http": over_http, "bare": bare}, rounds)
    value = median(rates["http"])
    return Row(
        what=f"stream events, {clients} clients",
        value=f"{value:,.0f} events/s",
        against=f"without HTTP: {median(rates['bare']):,.0f} chunks/s",
        ratio=ratio(rates["http"], rates["bare"]),
        target=f">= {TARGET_EVENTS_PER_S:,} events/s",
        met=judged(value, "at least", TARGET_EVENTS_PER_S),
    )


BENCH = Bench("overhead", "latency and stream events a second with an engine that takes no time", run)
