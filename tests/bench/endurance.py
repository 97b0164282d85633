"""Many requests on the fake backend: what has grown afterwards."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.harness import Bench, BenchError, Row, Session
from tests.bench.http import chat
from tests.bench.nodes import MODEL, fake_model, node
from tests.support.nodes import RunningNode

_CLIENTS = 16
_WARM_UP = 2_000  # requests until caches and arenas have their size
_SETTLE_S = 1.0  # connections that were closed are noticed in it
_SETTLE_TIMES = 10  # at most, on a busy machine
_ALLOWED_MB = 2.0  # beyond it, memory has grown


@dataclass(frozen=True, slots=True)
class State:
    """What a node holds."""

    node_mb: float
    worker_mb: float  # 0 without one
    tasks: int
    streams: int  # of the mesh
    threads: int
    descriptors: int
    children: int


async def run(session: Session) -> list[Row]:
    """Requests of all kinds, streaming and whole, and the node's and its worker's state before and after."""
    requests = session.rounds(2_000, 10_000)
    session.tell(f"{requests:,} requests from {_CLIENTS} clients, after {_WARM_UP:,} to warm up")
    messages = [{"role": "user", "content": "Does anything grow?"}]
    asks = [
        chat(messages, model=MODEL, max_tokens=4, stream=True),
        chat(messages, model=MODEL, max_tokens=4),
        chat(messages, model=MODEL, max_tokens=2, n=2, stream=True),
    ]
    with node(session, fake_model(slots=_CLIENTS * 2), module="tests.bench.observed_node") as running:
        await session.load.run(running.url, asks, clients=_CLIENTS, total=_WARM_UP)
        before = watched_state(running)
        started = time.monotonic()
        await session.load.run(running.url, asks, clients=_CLIENTS, total=requests)
        rate = requests / (time.monotonic() - started)
        after = watched_state(running)
    return growth(f"{requests:,} requests ({rate:.0f}/s): ", before, after)


def growth(after_what: str, before: State, after: State) -> list[Row]:
    """A row for all that a node holds; `after_what` begins each."""
    rows = [_memory(f"{after_what}memory", before.node_mb, after.node_mb)]
    if before.worker_mb:
        rows.append(_memory(f"{after_what}memory of the worker", before.worker_mb, after.worker_mb))
    counts = ("tasks", "streams", "threads", "descriptors", "children")
    first, last = ([getattr(state, what) for what in counts] for state in (before, after))
    rows.append(
        Row(
            what=f"{after_what}{', '.join(counts)}",
            value=", ".join(map(str, last)),
            against=f"before: {', '.join(map(str, first))}",
            target="no growth",
            met=not any(then < now for then, now in zip(first, last, strict=True)),
        )
    )
    return rows


def _memory(what: str, before: float, after: float) -> Row:
    return Row(
        what=what,
        value=f"{after:.1f} MB",
        against=f"before: {before:.1f} MB",
        target=f"grows by < {_ALLOWED_MB:.0f} MB",
        met=after - before < _ALLOWED_MB,
    )


def watched_state(running: RunningNode) -> State:
    """The state of a node that is a tests.bench.observed_node, once it is quiet."""
    process = psutil.Process(running.process.pid)
    seen = -1
    for _ in range(_SETTLE_TIMES):
        time.sleep(_SETTLE_S)
        if process.num_fds() == seen:
            break
        seen = process.num_fds()
    workers = process.children(recursive=True)
    inside = _inside(running)
    return State(
        node_mb=process.memory_info().rss / 1e6,
        worker_mb=sum(worker.memory_info().rss for worker in workers) / 1e6,
        tasks=inside["tasks"],
        streams=inside["streams"],
        threads=sum(one.num_threads() for one in (process, *workers)),
        descriptors=sum(one.num_fds() for one in (process, *workers)),
        children=len(workers),
    )


def _inside(running: RunningNode) -> dict[str, int]:
    """What the node itself counts, which tests/bench/observed_node.py writes down when it is signalled."""
    report: Path = running.data / "inside.json"
    report.unlink(missing_ok=True)
    running.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while not report.exists():
        if time.monotonic() > deadline:
            raise BenchError("The observed node does not answer.")
        time.sleep(0.01)
    return dict(json.loads(report.read_text()))


BENCH = Bench("endurance", "growth of memory, tasks, descriptors and children over thousands of requests", run)
