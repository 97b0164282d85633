"""A gigabyte of weights through a tunnel: how fast, at what cost to both ends, and what it does to a node's calls."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import trio

from mesh.tunnel.direct import Carrier
from mesh.tunnel.pump import Meter
from tests.bench.harness import Bench, BenchError, Measure, Row, Session, in_turn, judged, median, percentile, ratio
from tests.bench.heads import MIB, engine, head, lenders, load_spec, port_of
from tests.bench.http import chat
from tests.bench.nodes import MODEL, fake_model
from tests.bench.weights import LAYER_BYTES, write_weights

TARGET_CACHED = 0.1
TARGET_LATENCY = 3.0
_MEMORY_MIB = 4096
_COPY_BYTES = 1 << 30

_SINK = """
import socket
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    room = bytearray(1 << 20)
    while True:
        with listener.accept()[0] as peer:
            while peer.recv_into(room):
                pass
            peer.sendall(b"!")
"""
_SOURCE = """
import socket, sys, time
piece = bytes(1 << 20)
started = time.monotonic()
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as peer:
    for _ in range(int(sys.argv[2]) >> 20):
        peer.sendall(piece)
    peer.shutdown(socket.SHUT_WR)
    assert peer.recv(1) == b"!"
print(time.monotonic() - started)
"""


async def run(session: Session) -> list[Row]:
    """Copies first, then loads of a real engine, then calls beside such loads."""
    model = session.folder / "weights.gguf"
    layers = session.rounds(2, 6)
    session.tell(f"writing {layers * LAYER_BYTES / 1e9:.2f} GB of weights")
    await trio.to_thread.run_sync(write_weights, model, layers)
    try:
        return [*await _copies(session), *await _loads(session, model, layers), *await _calls(session, model, layers)]
    finally:
        model.unlink()


# -- a copy --


async def _copies(session: Session) -> list[Row]:
    size, rounds = session.rounds(_COPY_BYTES // 4, _COPY_BYTES), session.rounds(2, 5)
    session.tell(f"{rounds} rounds of {size / 1e9:.2f} GB from one program to another")
    costs: list[tuple[float, float]] = []
    with _sink() as sink:
        async with trio.open_nursery() as nursery:
            ours, theirs = Carrier(hosts=lambda _: ["127.0.0.1"]), Carrier()
            for carrier in (ours, theirs):
                nursery.start_soon(carrier.run)
            await trio.lowlevel.checkpoint()

            async def bare(_: int) -> float:
                return size / await _source(sink, size)

            async def tunnel(number: int) -> float:
                before = _cpu(ours), _cpu(theirs)
                async with _joined(ours, theirs, sink) as port:
                    took_s = await _source(port, size)
                if number:
                    costs.append(((_cpu(ours) - before[0]) / size, (_cpu(theirs) - before[1]) / size))
                return size / took_s

            rates = await in_turn(session, {"bare": bare, "tunnel": tunnel}, rounds)
            nursery.cancel_scope.cancel()
    return [
        Row(
            what="a copy through a tunnel",
            value=f"{median(rates['tunnel']) / 1e6:,.0f} MB/s",
            against=f"a bare TCP copy: {median(rates['bare']) / 1e6:,.0f} MB/s",
            ratio=ratio(rates["tunnel"], rates["bare"]),
        ),
        Row(
            what="its processor time at either end, beside the programs'",
            value=f"{median([a for a, _ in costs]) * 1e9:.2f} s/GB sending",
            against=f"{median([b for _, b in costs]) * 1e9:.2f} s/GB receiving",
        ),
    ]


@contextmanager
def _sink() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", _SINK], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


async def _source(port: int, size: int) -> float:
    done = await trio.run_process([sys.executable, "-c", _SOURCE, str(port), str(size)], capture_stdout=True)
    return float(done.stdout)


@asynccontextmanager
async def _joined(ours: Carrier, theirs: Carrier, target: int) -> AsyncIterator[int]:
    """A port that leads through both pump processes to `target`."""
    there = await theirs.invite(await ours.certificate_for("the bench"))
    here = await ours.dial("the bench", there.invitation) if there is not None and there.invitation else None
    if there is None or here is None:
        raise BenchError("No direct tunnel could be had on loopback.")
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, trio.open_nursery() as nursery:

        async def near() -> None:
            await ours.carry(here, await listener.accept(), Meter())

        async def far() -> None:
            await theirs.carry(there, await trio.open_tcp_stream("127.0.0.1", target), Meter())

        nursery.start_soon(near)
        nursery.start_soon(far)
        yield listener.socket.getsockname()[1]


def _cpu(carrier: Carrier) -> float:
    if carrier.pid is None:
        return 0.0
    times = psutil.Process(carrier.pid).cpu_times()
    return float(times.user + times.system)


# -- a load --


async def _loads(session: Session, model: Path, layers: int) -> list[Row]:
    rounds = session.rounds(1, 3)
    session.tell(f"{rounds} rounds of loads, without a cache and into one")
    with lenders(session, [None], memory_mib=_MEMORY_MIB, rpc_cache_bytes="0") as nodes:
        async with head(nodes) as made:
            sent: list[int] = []

            async def bare(_: int) -> float:
                return await _loaded_s(model, layers, port_of(made.nodes[0]))

            async def tunnel(_: int) -> float:
                async with made.leased(1) as [end]:
                    took_s = await _loaded_s(model, layers, end.port)
                    sent.append(end.traffic.sent_bytes)
                    return took_s

            times = await in_turn(session, {"bare": bare, "tunnel": tunnel}, rounds)
    rows = [
        Row(
            what=f"a load of {median(sent) / 1e9:.2f} GB through a tunnel",
            value=f"{median(times['tunnel']):.2f} s, {median(sent) / median(times['tunnel']) / 1e6:,.0f} MB/s",
            against=f"bare RPC: {median(times['bare']):.2f} s",
            ratio=ratio(times["tunnel"], times["bare"]),
        )
    ]
    with lenders(session, [None], memory_mib=_MEMORY_MIB) as nodes:
        async with head(nodes) as made:
            both: list[tuple[float, int]] = []
            for _ in range(2):
                async with made.leased(1) as [end]:
                    both.append((await _loaded_s(model, layers, end.port), end.traffic.sent_bytes))
    (first_s, first), (second_s, second) = both
    rows.append(
        Row(
            what="the second load, where the worker kept the weights",
            value=f"{second / 1e6:,.1f} MB in {second_s:.2f} s",
            against=f"the first: {first / 1e6:,.0f} MB in {first_s:.2f} s",
            ratio=second / first,
            target=f"<= {TARGET_CACHED} of the bytes",
            met=judged(second / first, "at most", TARGET_CACHED),
        )
    )
    return rows


async def _loaded_s(model: Path, layers: int, port: int) -> float:
    """All layers to the server behind that port; the seconds that the engine took, its own start left out."""
    async with engine(load_spec(model, layers, [port], own=0)) as worker:
        return worker.info.load_s


# -- calls beside it --


async def _calls(session: Session, model: Path, layers: int) -> list[Row]:
    calls, rounds = session.rounds(150, 500), session.rounds(1, 5)
    session.tell(f"{rounds} rounds of {calls} forwarded calls, beside loads and without")
    ask = chat([{"role": "user", "content": "Quick?"}], model=MODEL, max_tokens=1, ignore_eos=True)
    lending = {"rpc_cache_bytes": "0", "memory_budget_bytes": str(512 * MIB)}
    with lenders(session, [fake_model(slots=4), None], memory_mib=_MEMORY_MIB, holders=1, **lending) as nodes:
        lender, entry = nodes
        async with head(nodes) as made:
            took: dict[str, list[float]] = {}

            async def ask_all(number: int, name: str) -> float:
                outcomes = await session.load.run(entry.url, [ask], clients=1, total=calls)
                if wrong := {outcome.node for outcome in outcomes} - {lender.name}:
                    raise BenchError(f"Calls were answered by {wrong}.")
                times = [outcome.took_s * 1e3 for outcome in outcomes[1:]]
                if number:
                    took.setdefault(name, []).extend(times)
                return percentile(times, 99) * 1e3

            async def idle(number: int) -> float:
                return await ask_all(number, "idle")

            def beside(name: str, keep_loading: Callable[[], Awaitable[None]]) -> Measure:
                async def one(number: int) -> float:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_again_and_again, keep_loading)
                        p99 = await ask_all(number, name)
                        nursery.cancel_scope.cancel()
                    return p99

                return one

            async def bare() -> None:
                await _loaded_s(model, layers, port_of(lender))

            async def tunnel() -> None:
                async with made.leased(1) as [end]:
                    await _loaded_s(model, layers, end.port)

            sides = {"idle": idle, "bare": beside("bare", bare), "tunnel": beside("tunnel", tunnel)}
            p99 = await in_turn(session, sides, rounds)
    share = ratio(p99["tunnel"], p99["idle"])

    def figures(name: str) -> str:
        return f"p50 {percentile(took[name], 50):.1f}, p99 {median(p99[name]) / 1e3:.1f} ms"

    return [
        Row(
            what="a forwarded call while a load runs through the tunnels of the node that answers it",
            value=figures("tunnel"),
            against=f"idle: {figures('idle')}",
            ratio=share,
            target=f"p99 <= {TARGET_LATENCY:.0f} times",
            met=judged(share, "at most", TARGET_LATENCY),
        ),
        Row(
            what="the same while the load goes past the mesh: what the machine's cores alone cost",
            value=figures("bare"),
            against=f"idle: {figures('idle')}",
            ratio=ratio(p99["bare"], p99["idle"]),
        ),
    ]


async def _again_and_again(action: Callable[[], Awaitable[None]]) -> None:
    while True:
        await action()


BENCH = Bench("bulk", "a gigabyte of weights through a tunnel: speed, cost, cache, and calls beside it", run)
