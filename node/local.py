"""A try at a request on this node's own worker: lease a slot, pass the chunks on as the worker encoded them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from backends.process import WorkerCall
from node.inventory import Entry
from node.pool import Pool


@asynccontextmanager
async def open_local(
    pool: Pool, entry: Entry, request: bytes, *, client: str, weight: int
) -> AsyncIterator[WorkerCall]:
    """Run `request` (an encoded Request) here. The yielded call is a node.attempt.Attempt.

    Raises Busy, LoadFailed, OutOfMemory or EngineCrashed on entry; LoadFailed, too, where the model's file could not
    even be read.
    """
    needs = entry.checked_needs
    lease = pool.lease(entry.spec, memory_bytes=needs.memory_bytes, slots=needs.slots, client=client, weight=weight)
    async with lease as worker, worker.call(request) as call:
        yield call
