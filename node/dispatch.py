"""From a request to the place that runs it: api.ports.Dispatcher. Fits one screen, and shall."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from api.ports import Call, CallContext
from backends.types import LoadFailed, MeshError, Request, Unsupported, capability_of
from node.inventory import Inventory
from node.local import open_local
from node.metrics import Metrics
from node.pool import Pool


class NodeDispatcher:
    """Runs requests on this node's own models."""

    def __init__(self, inventory: Inventory, pool: Pool, metrics: Metrics) -> None:
        self._inventory = inventory
        self._pool = pool
        self._metrics = metrics

    @asynccontextmanager
    async def open(self, request: Request, context: CallContext) -> AsyncIterator[Call]:
        capability = capability_of(request)
        try:
            entry = self._inventory.resolve(request.model)
            if entry.needs is None:
                error = entry.error or LoadFailed(f"Model {request.model} cannot be opened.")
                raise type(error)(error.message)
            if capability not in entry.capabilities:
                can = ", ".join(entry.capabilities) or "nothing"
                raise Unsupported(f"Model {entry.spec.name} cannot do {capability}; it can do {can}.", param="model")
        except MeshError as error:
            self._metrics.requests.labels("-", capability.value, error.kind).inc()
            raise
        async with open_local(self._pool, self._metrics, entry.spec, entry.needs, request, context) as call:
            yield call
