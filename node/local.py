"""A call on this node's own worker: lease a slot, stream chunks, and start anew if the worker dies too early."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from api.ports import CallContext
from backends.process import WorkerCall
from backends.types import (
    Accepted,
    Chunk,
    EngineCrashed,
    EngineFault,
    MeshError,
    ModelNeeds,
    Request,
    Text,
    Usage,
    capability_of,
    decode_chunk,
    encode_request,
)
from backends.types.requests import Generation
from node.catalog import ModelSpec
from node.metrics import Metrics
from node.pool import Pool

MAX_RESTARTS = 1
"""How often a call may start anew after its worker died before it had answered anything."""


class LocalCall:
    """Implements api.ports.Call."""

    def __init__(
        self,
        pool: Pool,
        metrics: Metrics,
        spec: ModelSpec,
        needs: ModelNeeds,
        request: Request,
        context: CallContext,
        stack: AsyncExitStack,
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._spec = spec
        self._needs = needs
        self._request = request
        self._context = context
        self._stack = stack
        self._call: WorkerCall | None = None
        self._arrived = trio.current_time()
        self._restarts = 0
        self.outcome = "cancelled"  # until it ends otherwise

    @property
    def model(self) -> str:
        return self._spec.name

    @property
    def usage(self) -> Usage:
        return self._call.usage if self._call is not None else Usage()

    async def start(self) -> None:
        """Get a slot and send the request to the worker. Raises Busy, LoadFailed, OutOfMemory or EngineCrashed."""
        while True:
            try:
                await self._stack.aclose()  # of an earlier attempt
                await self._attempt()
                return
            except EngineCrashed:
                if not self._may_restart():
                    raise

    async def batches(self) -> AsyncIterator[Sequence[Chunk]]:
        accepted = answered = False
        while True:
            assert self._call is not None
            try:
                async for encoded in self._call.batches():
                    chunks = [decode_chunk(data) for data in encoded]
                    if accepted:  # a second attempt accepts the call again
                        chunks = [chunk for chunk in chunks if not isinstance(chunk, Accepted)]
                    accepted = True
                    if not answered and any(not isinstance(chunk, Accepted) for chunk in chunks):
                        answered = True
                        self._note_first(chunks)
                    if chunks:
                        yield chunks
                self._metrics.note_usage(self.model, self.usage)
                self.outcome = "ok"
                return
            except MeshError as error:
                if answered or not isinstance(error, EngineCrashed) or not self._may_restart():
                    self.outcome = error.kind
                    if isinstance(error, EngineFault):
                        self._pool.tell_fault(self.model, error)
                    raise
            try:
                await self.start()
            except MeshError as error:
                self.outcome = (
                    error.kind
                )  # noted here: the API tells a client whose stream has begun, and does not raise
                raise

    async def _attempt(self) -> None:
        lease = self._pool.lease(
            self._spec,
            memory_bytes=self._needs.memory_bytes,
            slots=self._needs.slots,
            client=self._context.client,
            weight=self._request.n if isinstance(self._request, Generation) else 1,
        )
        worker = await self._stack.enter_async_context(lease)
        self._call = await self._stack.enter_async_context(worker.call(encode_request(self._request)))

    def _may_restart(self) -> bool:
        self._restarts += 1
        return self._restarts <= MAX_RESTARTS

    def _note_first(self, chunks: Sequence[Chunk]) -> None:
        if any(isinstance(chunk, Text) for chunk in chunks):
            self._metrics.first_token_s.labels(self.model).observe(trio.current_time() - self._arrived)


@asynccontextmanager
async def open_local(
    pool: Pool, metrics: Metrics, spec: ModelSpec, needs: ModelNeeds, request: Request, context: CallContext
) -> AsyncIterator[LocalCall]:
    """Run `request` on this node. Raises Busy, LoadFailed, OutOfMemory or EngineCrashed on entry."""
    async with AsyncExitStack() as stack:
        call = LocalCall(pool, metrics, spec, needs, request, context, stack)
        try:
            await call.start()
            yield call
        except MeshError as error:
            call.outcome = error.kind
            raise
        finally:
            metrics.requests.labels(spec.name, capability_of(request).value, call.outcome).inc()
