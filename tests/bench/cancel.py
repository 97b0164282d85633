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

TARGET_STEPS = 1
_HEARD = 16  # tokens after which the client hangs up
_CONTEXT_TOKENS = 1024
_POLL_S = 0.005
_SETTLE_S = 0.05  # in which the waiting request reaches the node's queue


async def run(session: Session) -> list[Row]:
    """A model with one slot: one call is cancelled while another waits.

    Clients hang up when a token has just arrived, which is when the next step has just begun: the worst moment.
    """
    model = real_model(session, slots=1, context_tokens=_CONTEXT_TOKENS)
    rounds = session.rounds(5, 25)
    session.tell(f"one slot, {rounds} rounds")
    extra: list[int] = []
    waited: list[float] = []
    alone: list[float] = []
    steps: list[float] = []
    async with bare_engine(session, model) as worker:
        with node(session, model) as running:
            for number in range(rounds + 1):
                decoded = await _decoded_after_cancel(worker, number)
                # Prompts of the same length, none of which the slot has seen.
                free = await _on_free_slot(running.url, _short(1000 + 2 * number))
                after, step = await _after_hang_up(running.url, _story(number), _short(1001 + 2 * number))
                if number:
                    extra.append(decoded)
                    alone.append(free)
                    waited.append(after)
                    steps.append(step)
    later = median([(after - free) / step for after, free, step in zip(waited, alone, steps, strict=True)])
    return [
        Row(
            what="engine: decode steps of a call after its cancel",
            value=f"median {median(extra):.0f}, at most {max(extra)}",
            target=f"<= {TARGET_STEPS}",
            met=judged(max(extra), "at most", TARGET_STEPS),
        ),
        Row(
            what="over HTTP: a waiting request's first event after the hang-up",
            value=f"{median(waited) * 1e3:.1f} ms",
            against=f"on a free slot: {median(alone) * 1e3:.1f} ms; 1 step: {median(steps) * 1e3:.1f} ms",
            ratio=later,
            target=f"<= {TARGET_STEPS} step later",
            met=judged(later, "at most", TARGET_STEPS),
        ),
    ]


async def _decoded_after_cancel(worker: Worker, number: int) -> int:
    """Tokens that the engine sampled beyond those that had come when the call was cancelled."""
    request = ChatRequest(
        model=MODEL,
        messages=(Message(role="user", content=_story(number)),),
        sampling=Sampling(temperature=0),
        ignore_eos=True,
    )
    before = worker.stats.completion_tokens
    heard = 0
    async with worker.call(encode_request(request)) as call:
        async for batch in call.batches():
            heard += sum(len(text.tokens) for chunk in batch if isinstance(text := decode_chunk(chunk), Text))
            if heard >= _HEARD:
                break
    # The engine reports when it has become idle; nobody is told.
    while worker.stats.slots_used or worker.stats.completion_tokens < before + heard:  # noqa: ASYNC110
        await trio.sleep(_POLL_S)
    return worker.stats.completion_tokens - before - heard


async def _on_free_slot(url: str, short: Ask) -> float:
    """Seconds from a request to its first event when nobody is in its way."""
    async with _streaming(url, short) as (stream, exchange):
        started = time.monotonic()
        await _hear(stream, exchange, 1)
        return time.monotonic() - started


async def _after_hang_up(url: str, story: str, short: Ask) -> tuple[float, float]:
    """Seconds from a client's hang-up to the first event of the one that waited; seconds of one decode step."""
    times: list[float] = []
    long = chat([{"role": "user", "content": story}], model=MODEL, stream=True, temperature=0, ignore_eos=True)
    async with _streaming(url, long) as (first, talking):
        await _hear(first, talking, 1)
        async with _streaming(url, short) as (second, waiting):
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
