"""Notices that a model over several nodes stands still though nobody has died: a server that hangs closes nothing.

A step may take long: a machine that computes shows it by the time of its processors, one that loads by the bytes in its
tunnel. So a model is given up when for a while

1. it has something to do (a call runs, or it loads), and
2. nothing went through any of its tunnels, and
3. no worker's processors worked for it, as its node says (`/mesh/ask/1`), nor this node's engine. MLX's ranks are
   always at work, also while they wait for each other: there it is enough that one of them is idle.

The node of a worker cannot tell by itself: it sees a server that waits, and not whether it is its turn.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

import psutil
import trio

from mesh.transport import PeerId

LOOK_S = 2.0
HUNG_S = 10.0
"""Without a sign of life while a call runs."""
HUNG_LOADING_S = 40.0
"""While it loads: a head that reads its own layers from a slow disk does little else."""
IDLE_SHARE = 0.01
"""Of one processor: what processes that do nothing take all the same."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A model that is over several nodes and has something to do."""

    model: str
    target: str
    bytes_through: int
    """Its tunnels so far."""
    workers: tuple[PeerId, ...]
    engine_s: float | None
    """Processor time of its engine here so far; None: not counted."""
    any_idle: bool
    """One idle worker is enough."""
    patience_s: float


@dataclass(slots=True)
class _Still:
    """Since when what has not moved."""

    bytes_through: int
    since: float
    engine_s: float | None
    workers: dict[PeerId, tuple[float, float]] = field(default_factory=dict)  # time, processor seconds


class Watchdog:
    """Ask it again and again what stands still."""

    def __init__(self, ask: Callable[[PeerId, str], Awaitable[float | None]]) -> None:
        """`ask` a node for the processor seconds of a target's processes; None: it does not say."""
        self._ask = ask
        self._still: dict[str, _Still] = {}

    async def hung(self, watched: Iterable[Watched]) -> Mapping[str, str]:
        """Which of them stand still, and what to say of it. Those that are not named any more are forgotten."""
        found: dict[str, str] = {}
        kept: dict[str, _Still] = {}
        for one in watched:
            now = trio.current_time()
            still = self._still.get(one.model)
            if still is None or still.bytes_through != one.bytes_through or _worked(still, one, now):
                kept[one.model] = _Still(one.bytes_through, now, one.engine_s)
                continue
            kept[one.model] = still
            if now - still.since < one.patience_s / 2:
                continue
            idle_s = [await self._idle_s(still, worker, one.target) for worker in one.workers]
            if (max if one.any_idle else min)(idle_s, default=0.0) >= one.patience_s / 2:
                for_s = trio.current_time() - still.since
                found[one.model] = f"nothing has moved for {for_s:.0f} s while there was something to do: given up."
        self._still = {model: still for model, still in kept.items() if model not in found}
        return found

    async def _idle_s(self, still: _Still, worker: PeerId, target: str) -> float:
        """For how long a worker has not computed. One whose node does not say, has not."""
        told = await self._ask(worker, target)
        now = trio.current_time()
        before = still.workers.get(worker)
        if before is None or (told is not None and told - before[1] > IDLE_SHARE * (now - before[0])):
            still.workers[worker] = (now, told or 0.0)
            return 0.0
        return now - before[0]


def _worked(still: _Still, one: Watched, now: float) -> bool:
    if one.engine_s is None or still.engine_s is None:
        return False
    return one.engine_s - still.engine_s > max(IDLE_SHARE * (now - still.since), 0.05)


def processor_s(pid: int | None, *, itself: bool = True) -> float | None:
    """What a process and all that it has started have computed so far; None where there is no such process."""
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        return sum(_own_s(one) for one in (*([process] if itself else []), *process.children(recursive=True)))
    except psutil.Error:
        return None


def _own_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it has ended since
        return 0.0
    return float(times.user + times.system)
