"""All benches, in the order of the table. A new module adds its `BENCH` here and touches nothing else."""

from __future__ import annotations

from tests.bench import cancel, endurance, idle, overhead, prefix, throughput
from tests.bench.harness import Bench

BENCHES: tuple[Bench, ...] = (
    throughput.BENCH,
    prefix.BENCH,
    overhead.BENCH,
    cancel.BENCH,
    idle.BENCH,
    endurance.BENCH,
)
