"""All benches, in the order of the table. A new module adds its `BENCH` here and touches nothing else."""

from __future__ import annotations

from tests.bench import (
    bulk,
    cancel,
    conversations,
    dashboard,
    endurance,
    forward,
    idle,
    idle_swarm,
    mesh_endurance,
    overhead,
    parsing,
    policies,
    prefix,
    promises,
    replan,
    shards,
    spread,
    streams,
    throughput,
)
from tests.bench.harness import Bench

BENCHES: tuple[Bench, ...] = (
    throughput.BENCH,
    prefix.BENCH,
    overhead.BENCH,
    parsing.BENCH,
    cancel.BENCH,
    idle.BENCH,
    endurance.BENCH,
    streams.BENCH,
    forward.BENCH,
    policies.BENCH,
    spread.BENCH,
    conversations.BENCH,
    idle_swarm.BENCH,
    dashboard.BENCH,
    mesh_endurance.BENCH,
    shards.BENCH,
    bulk.BENCH,
    promises.BENCH,
    replan.BENCH,
)
