"""A swarm that nobody asks anything: what each of its nodes holds, computes and sends."""

from __future__ import annotations

import time

import psutil
import trio

from tests.bench.harness import Bench, Row, Session, judged
from tests.bench.swarms import swarm
from tests.support.nodes import RunningNode

TARGET_MB = 180
TARGET_CPU = 0.03
_LARGE = 30
_SETTLE_S = 3.0  # after all have met: what they tell each other once is told


async def run(session: Session) -> list[Row]:
    """Three nodes; in the full run thirty, too."""
    length_s = session.rounds(10, 20)
    rows = await _rows(session, 3, length_s, judge=True)
    if session.quick:
        return rows
    return rows + await _rows(session, _LARGE, length_s, judge=False)


async def _rows(session: Session, count: int, length_s: float, *, judge: bool) -> list[Row]:
    session.tell(f"{count} nodes, {length_s:.0f} s")
    begun = time.monotonic()
    with swarm(session, [None] * count) as nodes:
        together_s = time.monotonic() - begun
        await trio.sleep(_SETTLE_S)
        processes = [_process(node) for node in nodes]
        before, wire_before, started = [_cpu_s(one) for one in processes], _loopback_bytes(), time.monotonic()
        await trio.sleep(length_s)
        wall_s = time.monotonic() - started
        wire = (_loopback_bytes() - wire_before) / wall_s / count
        shares = [(_cpu_s(one) - first) / wall_s for one, first in zip(processes, before, strict=True)]
        resident = [one.memory_info().rss / 1e6 for one in processes]
    share = sum(shares) / count
    return [
        Row(
            what=f"{count} idle nodes: resident memory of each",
            value=f"{max(resident):.0f} MB at most",
            against=f"{sum(resident) / count:.0f} MB on average",
            target=f"< {TARGET_MB} MB" if judge else "",
            met=judged(max(resident), "at most", TARGET_MB) if judge else None,
        ),
        Row(
            what=f"{count} idle nodes: processor time of each",
            value=f"{share:.2%} of a core, {max(shares):.2%} at most",
            against=f"all of them have met after {together_s:.0f} s" if not judge else "",
            target=f"< {TARGET_CPU:.0%}" if judge else "",
            met=judged(max(shares), "at most", TARGET_CPU) if judge else None,
        ),
        Row(
            what=f"{count} idle nodes: bytes that each sends a second",
            value=f"{wire:,.0f}",
            against="of the loopback interface, TCP's own included",
        ),
    ]


def _process(node: RunningNode) -> psutil.Process:
    return psutil.Process(node.process.pid)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _loopback_bytes() -> int:
    counters = psutil.net_io_counters(pernic=True)
    return next((counter.bytes_sent for name, counter in counters.items() if name in ("lo", "lo0")), 0)


BENCH = Bench(
    "idle-swarm", "memory, processor time and bytes of an idle swarm's nodes; thirty of them in a full run", run
)
