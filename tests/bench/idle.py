"""A node that nobody has asked for anything: how soon it is there, and how much it holds."""

from __future__ import annotations

import time

import psutil

from tests.bench.harness import Bench, Row, Session, judged, median
from tests.bench.http import Ask
from tests.support.nodes import running_node

TARGET_MB = 150
TARGET_S = 3.0


async def run(session: Session) -> list[Row]:
    """Start a node on an empty data folder, several times."""
    ready_s: list[float] = []
    resident_mb: list[float] = []
    rounds = session.rounds(3, 7)
    session.tell(f"{rounds} starts")
    for _ in range(rounds):
        started = time.monotonic()
        with running_node(session.data("idle")) as node:
            await session.load.run(node.url, [Ask(path="/readyz")], clients=1)
            ready_s.append(time.monotonic() - started)
            tree = [psutil.Process(node.process.pid), *node.workers()]
            resident_mb.append(sum(process.memory_info().rss for process in tree) / 1e6)
            node.stop()
    return [
        Row(
            what="from the command to a ready API",
            value=f"{median(ready_s):.2f} s",
            target=f"< {TARGET_S:.0f} s",
            met=judged(median(ready_s), "at most", TARGET_S),
        ),
        Row(
            what="resident memory of the node and its children, no model loaded",
            value=f"{median(resident_mb):.0f} MB",
            target=f"< {TARGET_MB} MB",
            met=judged(median(resident_mb), "at most", TARGET_MB),
        ),
    ]


BENCH = Bench("idle", "start-up time and resident memory of a node without a model", run)
