"""A simulated node's engine: slots, a queue, prefill and decode that its sequences share, a cache, faults."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from mesh.faults import Faults
from mesh.records import Load, Offer

MODEL = "m"
_MEMORY_S = 5.0  # busy time over which a node averages its rates
_FAILS_AFTER_S = 0.02


def _never(now: float) -> float:
    return 0.0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a simulated node is like. Its name is its peer id too."""

    name: str
    slots: int
    decode_tokens_per_s: float = 100.0
    """One sequence alone."""
    gain: float = 1.0
    """All sequences together decode batch**gain as fast; 1: each is as fast as one alone."""
    prefill_tokens_per_s: float = 1e4
    joins_at: float = 0.0
    measured: bool = True
    """Its rates are known at the start, from earlier days."""
    fails: Callable[[float], float] = _never
    """Probability that a call which starts at this time fails."""

    @property
    def offer(self) -> Offer:
        return Offer(
            model=MODEL, digest="d", backend="sim", capabilities=("chat",), context_tokens=100_000, slots=self.slots
        )


@dataclass(eq=False)
class Job:
    """A call at a node."""

    number: int
    prompt_tokens: int
    output_tokens: int
    chain: tuple[int, ...] = ()
    cached_tokens: int = 0
    failed: bool = False
    prefill_left: float = 0.0
    decode_left: float = 0.0


@dataclass(eq=False)
class Node:
    """Its engine. `advance` brings it to a time; `next_change` tells when something will end by itself."""

    machine: Machine
    rng: random.Random
    running: list[Job] = field(default_factory=list)
    waiting: deque[Job] = field(default_factory=deque)
    faults: Faults = field(default_factory=Faults)
    now: float = 0.0
    served: int = 0
    peak: int = 0  # calls at a time, running and waiting
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    batch: float = 0.0
    caches: list[tuple[int, ...]] = field(default_factory=list)  # one chain a slot, least recently used first

    def __post_init__(self) -> None:
        if self.machine.measured:
            self.prefill_rate = self.machine.prefill_tokens_per_s
            self.decode_rate, self.batch = self.machine.decode_tokens_per_s, 1.0

    def load(self) -> Load:
        """Its report of now."""
        return Load(
            model=MODEL,
            state="ready",
            slots_used=len(self.running),
            slots=self.machine.slots,
            queued=len(self.waiting),
            queued_tokens=int(sum(job.prefill_left for job in (*self.running, *self.waiting))),
            prefill_tokens_per_s=self.prefill_rate,
            decode_tokens_per_s=self.decode_rate,
            decode_batch=self.batch,
            error_rate=self.faults.rate(self.now),
        )

    def accept(self, job: Job) -> None:
        """A call arrives, at the time to which the node has advanced."""
        job.prefill_left, job.decode_left = float(job.prompt_tokens), float(job.output_tokens)
        self.waiting.append(job)
        self.peak = max(self.peak, len(self.running) + len(self.waiting))
        self._start()

    def advance(self, now: float) -> list[Job]:
        """Let time pass; returns the jobs that ended on the way, and must be called at each `next_change`."""
        elapsed, self.now = now - self.now, now
        prefilling, decoding = self._phases()
        for job in prefilling:
            job.prefill_left -= elapsed * self.machine.prefill_tokens_per_s / len(prefilling)
        for job in decoding:
            job.decode_left -= elapsed * self._each(len(decoding))
        self._measure(elapsed, len(prefilling), len(decoding))
        done = [job for job in self.running if job.prefill_left < 1e-6 and job.decode_left < 1e-6]
        for job in done:
            self.running.remove(job)
            self.faults.record(failed=job.failed, now=now)
            self.served += not job.failed
        self._start()
        return done

    def next_change(self) -> float:
        """When the next of its jobs ends its prefill or its last token; infinite when idle."""
        prefilling, decoding = self._phases()
        ends = [job.prefill_left * len(prefilling) / self.machine.prefill_tokens_per_s for job in prefilling]
        ends += [job.decode_left / self._each(len(decoding)) for job in decoding]
        return self.now + max(1e-9, min(ends)) if ends else math.inf

    def _phases(self) -> tuple[list[Job], list[Job]]:
        prefilling = [job for job in self.running if job.prefill_left >= 1e-6]
        return prefilling, [job for job in self.running if job.prefill_left < 1e-6]

    def _each(self, batch: int) -> float:
        return self.machine.decode_tokens_per_s * math.pow(batch, self.machine.gain - 1)

    def _measure(self, elapsed: float, prefilling: int, decoding: int) -> None:
        if prefilling and elapsed:
            self.prefill_rate = self.machine.prefill_tokens_per_s
        if not decoding or not elapsed:
            return
        weight = 1 - math.exp(-elapsed / _MEMORY_S) if self.decode_rate else 1.0
        self.decode_rate += weight * (self._each(decoding) * decoding - self.decode_rate)
        self.batch += weight * (decoding - self.batch)

    def _start(self) -> None:
        while self.waiting and len(self.running) < self.machine.slots:
            job = self.waiting.popleft()
            self.running.append(job)
            job.failed = self.rng.random() < self.machine.fails(self.now)
            if job.failed:
                job.prefill_left, job.decode_left = 0.0, _FAILS_AFTER_S * self.machine.decode_tokens_per_s
            elif job.chain:
                job.cached_tokens = self._cache(job)
                job.prefill_left = max(1.0, job.prefill_left - job.cached_tokens)

    def _cache(self, job: Job) -> int:
        """Take the slot whose cache shares most with the prompt, or else the one not used for longest."""
        shared = [_common(chain, job.chain) for chain in self.caches]
        best = max(shared, default=0)
        # As llama.cpp does: a slot that holds most of the prompt is continued, else the oldest is overwritten.
        if best * 2 > len(job.chain):
            del self.caches[shared.index(best)]
        elif len(self.caches) >= self.machine.slots:
            del self.caches[0]
        self.caches.append(job.chain)
        return job.prompt_tokens * best // (len(job.chain) + 1)


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
