"""A request that another node answers, beside the same one sent straight to that node, and through other proxies."""

from __future__ import annotations

from contextlib import ExitStack

from tests.bench import proxies
from tests.bench.harness import Bench, BenchError, Measure, Row, Session, in_turn, judged, median, percentile, ratio
from tests.bench.http import chat
from tests.bench.nodes import MODEL, fake_model
from tests.bench.swarms import swarm

TARGET_ADDED_MS = 4.0
TARGET_SHARE = 0.9
_CLIENTS = 8
_PACE_PER_S = 250.0  # of each client: together, what a large GPU gives
_MESSAGES = [{"role": "user", "content": "How long does a short answer take?"}]
_MESH = "forwarded by a node"
_DIRECT = "direct"


async def run(session: Session) -> list[Row]:
    """Two nodes, one with the model; nginx and LiteLLM's proxy in front of the same one."""
    with ExitStack() as stack:
        server, entry = stack.enter_context(swarm(session, [fake_model(slots=32), None], holders=1))
        sides = {_DIRECT: server.url, _MESH: entry.url}
        for proxy in (proxies.nginx(session, [server]), proxies.litellm(session, [server])):
            rival = stack.enter_context(proxy)
            if rival is not None:
                sides[rival.name] = rival.url
        rows = await _latency(session, sides)
        rows += await _events(session, sides)
    paced = fake_model(slots=32, decode_tokens_per_s=_PACE_PER_S)
    with swarm(session, [paced, None], holders=1) as (server, entry):
        rows.append(await _paced(session, server.url, entry.url))
    return rows


async def _latency(session: Session, sides: dict[str, str]) -> list[Row]:
    requests, rounds = session.rounds(100, 400), session.rounds(2, 7)
    session.tell(f"one at a time, {rounds} rounds of {requests} requests of 1 token")
    ask = chat(_MESSAGES, model=MODEL, max_tokens=1, ignore_eos=True)
    took: dict[str, list[list[float]]] = {name: [] for name in sides}

    def measure(name: str, url: str) -> Measure:
        async def one(number: int) -> float:
            outcomes = await session.load.run(url, [ask], clients=1, total=requests)
            times = [outcome.took_s * 1e3 for outcome in outcomes[1:]]  # the first one also opens a connection
            if number:
                took[name].append(times)
            return percentile(times, 50) * 1e3

        return one

    await in_turn(session, {name: measure(name, url) for name, url in sides.items()}, rounds)

    def added(name: str, percent: float) -> float:
        pairs = zip(took[name], took[_DIRECT], strict=True)
        return median([percentile(mine, percent) - percentile(direct, percent) for mine, direct in pairs])

    def figures(name: str) -> str:
        return ", ".join(f"p{p} {median([percentile(one, p) for one in took[name]]):.2f} ms" for p in (50, 99))

    return [
        Row(
            what=f"added to a 1-token answer, serial: {name}",
            value=f"p50 {added(name, 50):+.2f} ms, p99 {added(name, 99):+.2f} ms",
            against=f"{figures(name)}; direct: {figures(_DIRECT)}",
            target=f"p50 <= {TARGET_ADDED_MS:.0f} ms" if name == _MESH else "",
            met=judged(added(name, 50), "at most", TARGET_ADDED_MS) if name == _MESH else None,
        )
        for name in sides
        if name != _DIRECT
    ]


async def _events(session: Session, sides: dict[str, str]) -> list[Row]:
    tokens = session.rounds(1000, 6000)
    rounds = session.rounds(2, 9)
    session.tell(f"{_CLIENTS} clients, {rounds} rounds of {tokens} stream events each")
    ask = chat(_MESSAGES, model=MODEL, max_tokens=tokens, ignore_eos=True, stream=True)
    # LiteLLM takes a tenth of a second for what the others do in a millisecond.
    few = chat(_MESSAGES, model=MODEL, max_tokens=tokens // 10, ignore_eos=True, stream=True)

    def measure(url: str, *, slow: bool) -> Measure:
        async def one(_: int) -> float:
            outcomes = await session.load.run(url, [few if slow else ask], clients=_CLIENTS, total=_CLIENTS, lazy=True)
            if any(len(outcome.content_s) != (tokens // 10 if slow else tokens) for outcome in outcomes):
                raise BenchError("A stream lost or merged tokens.")
            events = sum(len(outcome.event_s) for outcome in outcomes)
            return events / (max(o.ended_s for o in outcomes) - min(o.started_s for o in outcomes))

        return one

    measures = {name: measure(url, slow=name.startswith("LiteLLM")) for name, url in sides.items()}
    rates = await in_turn(session, measures, rounds)
    return [
        Row(
            what=f"stream events, {_CLIENTS} clients: {name}",
            value=f"{median(rates[name]):,.0f} events/s",
            against=f"direct: {median(rates[_DIRECT]):,.0f} events/s",
            ratio=ratio(rates[name], rates[_DIRECT]),
            target=f">= {TARGET_SHARE}" if name == _MESH else "",
            met=judged(ratio(rates[name], rates[_DIRECT]), "at least", TARGET_SHARE) if name == _MESH else None,
        )
        for name in sides
        if name != _DIRECT
    ]


async def _paced(session: Session, direct: str, forwarded: str) -> Row:
    """At an engine's pace, where each event leaves by itself and there is time between two."""
    tokens, rounds = session.rounds(250, 1000), session.rounds(1, 3)
    session.tell(f"{_CLIENTS} clients, {rounds} rounds of {tokens} stream events each, {_PACE_PER_S:.0f} a second")
    ask = chat(_MESSAGES, model=MODEL, max_tokens=tokens, ignore_eos=True, stream=True)

    def measure(url: str) -> Measure:
        async def one(_: int) -> float:
            outcomes = await session.load.run(url, [ask], clients=_CLIENTS, total=_CLIENTS)
            events = sum(len(outcome.content_s) for outcome in outcomes)
            return events / (max(o.ended_s for o in outcomes) - min(o.started_s for o in outcomes))

        return one

    rates = await in_turn(session, {_DIRECT: measure(direct), _MESH: measure(forwarded)}, rounds)
    return Row(
        what=f"stream events, {_CLIENTS} clients, an engine of {_PACE_PER_S:.0f} tokens/s each: {_MESH}",
        value=f"{median(rates[_MESH]):,.0f} events/s",
        against=f"direct: {median(rates[_DIRECT]):,.0f} events/s",
        ratio=ratio(rates[_MESH], rates[_DIRECT]),
    )


BENCH = Bench("forward", "what a request costs that another node answers, beside nginx and LiteLLM", run)
