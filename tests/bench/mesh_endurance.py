"""Many forwarded calls, and many connections: what has grown afterwards.

`python -m tests.bench.mesh_endurance TIMES` connects and disconnects in a process of its own, and prints what grew.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import psutil
import trio

from tests.bench.endurance import growth, watched_state
from tests.bench.harness import Bench, Row, Session
from tests.bench.http import chat
from tests.bench.nodes import MODEL, fake_model
from tests.bench.swarms import swarm
from tests.mesh.nodes import reconnect

_CLIENTS = 16
_WARM_UP_RECONNECTS = 50


async def run(session: Session) -> list[Row]:
    """Calls of all kinds from one node to another; then connections."""
    calls, times = session.rounds(1000, 5000), session.rounds(50, 500)
    session.tell(f"{calls:,} forwarded calls from {_CLIENTS} clients, after {calls // 5:,} to warm up")
    messages = [{"role": "user", "content": "Does anything grow?"}]
    asks = [
        chat(messages, model=MODEL, max_tokens=4, stream=True),
        chat(messages, model=MODEL, max_tokens=4),
        chat(messages, model=MODEL, max_tokens=2, n=2, stream=True),
    ]
    models = [fake_model(slots=_CLIENTS * 2), None]
    rows: list[Row] = []
    with swarm(session, models, module="tests.bench.observed_node", holders=1) as (server, entry):
        await session.load.run(entry.url, asks, clients=_CLIENTS, total=calls // 5)
        before = [watched_state(one) for one in (entry, server)]
        started = time.monotonic()
        await session.load.run(entry.url, asks, clients=_CLIENTS, total=calls)
        rate = calls / (time.monotonic() - started)
        after = [watched_state(one) for one in (entry, server)]
    for name, first, last in zip(("entry", "serving"), before, after, strict=True):
        rows += growth(f"{calls:,} forwarded calls ({rate:.0f}/s), {name} node: ", first, last)
    session.tell(f"{times} connections, each dialled, used and dropped")
    command = [sys.executable, "-m", "tests.bench.mesh_endurance", str(times)]
    grown = json.loads(await trio.to_thread.run_sync(lambda: subprocess.check_output(command, text=True)))
    rows.append(
        Row(
            what=f"{times} reconnects: memory of both ends",
            value=f"{grown['mb']:+.1f} MB",
            target="< 2 MB",
            met=grown["mb"] < 2,
        )
    )
    rest = {what: grown[what] for what in ("tasks", "descriptors", "slots")}
    rows.append(
        Row(
            what=f"{times} reconnects: tasks, descriptors, connection slots",
            value=", ".join(f"{count:+d}" for count in rest.values()),
            target="no growth",
            met=not any(count > 0 for count in rest.values()),
        )
    )
    return rows


def _reconnects(times: int) -> None:
    trio.run(reconnect, _WARM_UP_RECONNECTS)
    before = psutil.Process().memory_info().rss
    tasks, descriptors, slots = trio.run(reconnect, times)
    grown = (psutil.Process().memory_info().rss - before) / 1e6
    print(json.dumps({"mb": grown, "tasks": tasks, "descriptors": descriptors, "slots": slots}))


BENCH = Bench("mesh-endurance", "growth over thousands of forwarded calls and hundreds of connections", run)

if __name__ == "__main__":
    _reconnects(int(sys.argv[1]))
