"""How soon a cancelled call's slot is free, in decode steps of the model that was answering."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import trio

from backends.process import Worker
from backends.types import ChatRequest, Message, Sampling, Text, decode_chunk, encode_request
from tests.bench.harness import Bench, BenchError, Row, Session, judged, median
from tests.bench.http import Ask, Exchange, address, chat, encode
from tests.bench.nodes import MODEL, bare_engine, node, real_model

TARGET_STEPS = 1.0
_HEARD = 16  # tokens after which the client hangs up
_CONTEXT_TOKENS = 1024
_SETTLE_S = 0.05  # in which the waiting request reaches the node's queue


async def run(session: Session) -> list[Row]:
    """A model with one slot: one call is cancelled while another waits."""
    model = real_model(session, slots=1, context_tokens=_CONTEXT_TOKENS)
    rounds = session.rounds(5, 15)
    session.tell(f"one slot, {rounds} rounds")
    async with bare_engine(session, model) as worker:
        with node(session, model) as running:
            engine: list[float] = []
            waited: list[float] = []
            alone: list[float] = []
            steps: list[float] = []
            for number in range(rounds + 1):
                took, step = await _in_engine(worker, number)
                free = await _on_free_slot(running.url, number)
                after, step_over_http = await _after_hang_up(running.url, number)
                if number:
                    engine.append(took / step)
                    alone.append(free / step_over_http)
                    waited.append(after / step_over_http)
                    steps.append(step)
    extra = median(waited) - median(alone)
    return [
        Row(
            what="engine: from the cancel to an idle engine",
            value=f"{median(engine):.2f} decode steps",
            against=f"1 step: {median(steps) * 1e3:.1f} ms",
            target=f"<= {TARGET_STEPS:.0f} step",
            met=judged(median(engine), "at most", TARGET_STEPS),
        ),
        Row(
            what="over HTTP: from the hang-up to the waiting request's first event",
            value=f"{median(waited):.2f} decode steps",
            against=f"the same on a free slot: {median(alone):.2f}; more: {extra:.2f}",
            target=f"<= {TARGET_STEPS:.0f} step more",
            met=judged(extra, "at most", TARGET_STEPS),
        ),
    ]


async def _in_engine(worker: Worker, number: int) -> tuple[float, float]:
    """Seconds from the cancel until the engine reports no used slot; seconds of one decode step."""
    request = ChatRequest(
        model=MODEL,
        messages=(Message(role="user", content=_story(number)),),
        sampling=Sampling(temperature=0),
        ignore_eos=True,
    )
    times: list[float] = []
    async with worker.call(encode_request(request)) as call:
        async for batch in call.batches():
            times += [time.monotonic()] * sum(isinstance(decode_chunk(chunk), Text) for chunk in batch)
            if len(times) >= _HEARD:
                break
        busy = worker.stats
        cancelled_at = time.monotonic()
    while worker.stats is busy or worker.stats.slots_used:  # noqa: ASYNC110
        await trio.sleep(0.0002)  # the report comes as a frame, and nobody is told
    return time.monotonic() - cancelled_at, _step_s(times)


async def _on_free_slot(url: str, number: int) -> float:
    """Seconds from a request to its first event when nobody is in its way."""
    async with _streaming(url, _short(number)) as (stream, exchange):
        started = time.monotonic()
        await _hear(stream, exchange, 1)
        return time.monotonic() - started


async def _after_hang_up(url: str, number: int) -> tuple[float, float]:
    """Seconds from a client's hang-up to the first event of the one that waited; seconds of one decode step."""
    times: list[float] = []
    long = chat([{"role": "user", "content": _story(number)}], model=MODEL, stream=True, temperature=0, ignore_eos=True)
    async with _streaming(url, long) as (first, talking):
        await _hear(first, talking, 1)
        async with _streaming(url, _short(number + 1000)) as (second, waiting):
            with trio.move_on_after(_SETTLE_S):
                await _hear(second, waiting, 1)
                raise BenchError("The second request did not wait, though there is one slot.")
            times = await _hear(first, talking, _HEARD)
            hung_up = time.monotonic()
            await first.aclose()
            await _hear(second, waiting, 1)
            return time.monotonic() - hung_up, _step_s(times)


def _story(number: int) -> str:
    return f"Tale {number}: tell me everything you know about the sea."


def _short(number: int) -> Ask:
    messages = [{"role": "user", "content": f"{number}?"}]
    return chat(messages, model=MODEL, stream=True, temperature=0, max_tokens=1, ignore_eos=True)


@asynccontextmanager
async def _streaming(url: str, ask: Ask) -> AsyncIterator[tuple[trio.SocketStream, Exchange]]:
    host, port = address(url)
    async with await trio.open_tcp_stream(host, port) as stream:
        await stream.send_all(encode(ask, host))
        yield stream, Exchange(time.monotonic())


async def _hear(stream: trio.SocketStream, exchange: Exchange, events: int) -> list[float]:
    """Read until that many events have come; the times of arrival."""
    times: list[float] = []
    while exchange.events < events:
        data = await stream.receive_some()
        if not data:
            raise BenchError("The node ended a stream early.")
        exchange.feed(time.monotonic(), data)
        times.append(time.monotonic())
    return times


def _step_s(times: list[float]) -> float:
    return median([later - earlier for earlier, later in pairwise(times)])


BENCH = Bench("cancel", "how many decode steps after a hang-up the slot is free", run)
