"""A model over several nodes: tokens a second by the mesh's tunnels beside bare RPC, and what a token sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import trio

from backends.process import Worker
from mesh.tunnel import LocalEnd, Traffic
from tests.bench.harness import Bench, Measure, Row, Session, in_turn, judged, median, ratio
from tests.bench.heads import THREADS, Head, decode_rate, engine, head, lenders, load_spec, port_of
from tests.bench.relays import Relay, counted
from tests.support.models import smollm2

TARGET_SHARE = 0.85
LAYERS = 30  # of SmolLM2
_WARM_UP_TOKENS = 8
_SETTLED_S = 0.05  # what the last token sends may be under way until then
_LOCAL = "local"


async def run(session: Session) -> list[Row]:
    """Two nodes that lend; the head is the bench itself."""
    with lenders(session, [None, None], memory_mib=1024) as nodes:
        async with head(nodes) as made:
            return await _speed(session, made) + await _per_token(session, made)


# -- tokens a second --


async def _speed(session: Session, made: Head) -> list[Row]:
    tokens, rounds = session.rounds(48, 96), session.rounds(2, 7)
    session.tell(f"{rounds} rounds of {tokens} tokens, {THREADS} thread an engine, each arm with an engine of its own")

    def measure(count: int, way: str) -> Measure:
        async def one(_: int) -> float:
            async with AsyncExitStack() as stack:
                ports = [port_of(node) for node in made.nodes[:count]]
                if way in ("tunnel", "stream"):
                    ends = await stack.enter_async_context(made.leased(count, direct=way == "tunnel"))
                    ports = [end.port for end in ends]
                worker = await stack.enter_async_context(engine(load_spec(smollm2(), LAYERS, ports)))
                await decode_rate(worker, _WARM_UP_TOKENS)
                return await decode_rate(worker, tokens)

        return one

    sides = {_LOCAL: measure(0, _LOCAL)}
    for count in (1, 2):
        sides |= {f"{way} {count}": measure(count, way) for way in ("bare", "tunnel", "stream")}
    rates = await in_turn(session, sides, rounds)
    rows = [Row(what="SmolLM2 in one piece", value=f"{median(rates[_LOCAL]):.0f} tokens/s")]
    for count in (1, 2):
        bare = rates[f"bare {count}"]
        for way, name in (("tunnel", "tunnels"), ("stream", "the mesh's streams, where no direct tunnel can be had")):
            mine = rates[f"{way} {count}"]
            share = ratio(mine, bare)
            rows.append(
                Row(
                    what=f"{count} worker{'s' * (count > 1)}, {name}",
                    value=f"{median(mine):.0f} tokens/s",
                    against=f"bare RPC: {median(bare):.0f} tokens/s",
                    ratio=share,
                    target=f">= {TARGET_SHARE}" if way == "tunnel" else "",
                    met=judged(share, "at least", TARGET_SHARE) if way == "tunnel" else None,
                )
            )
    return rows


# -- bytes and round trips --


async def _per_token(session: Session, made: Head) -> list[Row]:
    tokens = session.rounds(32, 96)
    rows = []
    for count in (1, 2):
        async with made.leased(count) as ends:
            tunnelled = await _per_worker(ends, tokens)
        async with counted([port_of(node) for node in made.nodes[:count]]) as relays:
            bare = await _per_worker(relays, tokens)
        rows.append(
            Row(
                what=f"a token over {count} worker{'s' * (count > 1)}: round trips, kB up, kB down, by worker",
                value=_figures(tunnelled),
                against=f"bare RPC: {_figures(bare)}",
            )
        )
    return rows


async def _per_worker(ends: Sequence[Relay | LocalEnd], tokens: int) -> list[tuple[float, float, float]]:
    """For each worker, per token: round trips, bytes up, bytes down."""

    def read() -> list[Traffic]:
        return [end.traffic for end in ends]

    async with engine(load_spec(smollm2(), LAYERS, [end.port for end in ends])) as worker:
        await decode_rate(worker, _WARM_UP_TOKENS)
        # The same prompt twice: what the two have in common is not a token's.
        short, long = await _spent(worker, 2, read), await _spent(worker, 2 + tokens, read)
    return [
        (
            (b.round_trips - a.round_trips) / tokens,
            (b.sent_bytes - a.sent_bytes) / tokens,
            (b.received_bytes - a.received_bytes) / tokens,
        )
        for a, b in zip(short, long, strict=True)
    ]


async def _spent(worker: Worker, tokens: int, read: Callable[[], list[Traffic]]) -> list[Traffic]:
    before = read()
    await decode_rate(worker, tokens)
    await trio.sleep(_SETTLED_S)
    return [
        Traffic(b.sent_bytes - a.sent_bytes, b.received_bytes - a.received_bytes, b.round_trips - a.round_trips)
        for a, b in zip(before, read(), strict=True)
    ]


def _figures(rows: Sequence[tuple[float, float, float]]) -> str:
    return "; ".join(f"{trips:.2f}, {up / 1e3:.1f}, {down / 1e3:.1f}" for trips, up, down in rows)


BENCH = Bench("shards", "tokens/s over RPC workers: local, bare RPC, tunnels; bytes and round trips a token", run)
