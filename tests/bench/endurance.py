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
_SETTLE_S = 1.0  # connections that were closed are noticed in it
_ALLOWED_MB = 2.0  # beyond it, memory has grown


@dataclass(frozen=True, slots=True)
class _State:
    node_mb: float
    worker_mb: float
    tasks: int
    threads: int
    descriptors: int
    children: int


async def run(session: Session) -> list[Row]:
    """Requests of all kinds, streaming and whole, and the node's and its worker's state before and after."""
    requests = session.rounds(2_000, 10_000)
    session.tell(f"{requests:,} requests from {_CLIENTS} clients, after {requests // 5:,} to warm up")
    messages = [{"role": "user", "content": "Does anything grow?"}]
    asks = [
        chat(messages, model=MODEL, max_tokens=4, stream=True),
        chat(messages, model=MODEL, max_tokens=4),
        chat(messages, model=MODEL, max_tokens=2, n=2, stream=True),
    ]
    with node(session, fake_model(slots=_CLIENTS * 2), module="tests.bench.observed_node") as running:
        await session.load.run(running.url, asks, clients=_CLIENTS, total=requests // 5)
        before = _state(running)
        started = time.monotonic()
        await session.load.run(running.url, asks, clients=_CLIENTS, total=requests)
        rate = requests / (time.monotonic() - started)
        after = _state(running)
    return [
        _row(f"memory after {requests:,} requests ({rate:.0f}/s)", before.node_mb, after.node_mb, "MB"),
        _row("memory of the worker", before.worker_mb, after.worker_mb, "MB"),
        *(
            _row(what, getattr(before, what), getattr(after, what), "")
            for what in ("tasks", "threads", "descriptors", "children")
        ),
    ]


def _row(what: str, before: float, after: float, unit: str) -> Row:
    grown = after - before
    shown = (f"{value:.1f} {unit}" if unit else f"{value:.0f}" for value in (after, before))
    return Row(
        what=what,
        value=next(shown),
        against=f"before: {next(shown)}",
        target=f"grows by < {_ALLOWED_MB:.0f} MB" if unit else "no growth",
        met=grown < _ALLOWED_MB if unit else grown <= 0,
    )


def _state(running: RunningNode) -> _State:
    time.sleep(_SETTLE_S)
    process = psutil.Process(running.process.pid)
    [worker] = process.children(recursive=True)
    return _State(
        node_mb=process.memory_info().rss / 1e6,
        worker_mb=worker.memory_info().rss / 1e6,
        tasks=_tasks(running),
        threads=process.num_threads() + worker.num_threads(),
        descriptors=process.num_fds() + worker.num_fds(),
        children=len(process.children(recursive=True)),
    )


def _tasks(running: RunningNode) -> int:
    """Trio tasks that live in the node, which tests/bench/observed_node.py writes down when it is signalled."""
    report: Path = running.data / "tasks.json"
    report.unlink(missing_ok=True)
    running.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while not report.exists():
        if time.monotonic() > deadline:
            raise BenchError("The observed node does not answer.")
        time.sleep(0.01)
    return int(json.loads(report.read_text())["tasks"])


BENCH = Bench("endurance", "growth of memory, tasks, descriptors and children over thousands of requests", run)
