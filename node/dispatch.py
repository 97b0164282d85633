"""From a request to the place that runs it: api.ports.Dispatcher. Fits one screen, and shall."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from api.ports import Call, CallContext
from backends.types import Busy, CallerError, MeshError, Request, capability_of
from mesh.transport import PeerId
from node.routed import Machinery, RoutedCall
from node.trace import Trace, Traces


class NodeDispatcher:
    """Runs requests on whichever node finishes them first."""

    def __init__(self, machinery: Machinery, traces: Traces) -> None:
        self._machinery = machinery
        self._traces = traces
        self._closing = False
        self._idle = trio.Event()
        self.running = 0
        self.on_end: list[Callable[[Trace], None]] = []
        """Called with every request that has ended; must be quick."""

    async def drain(self) -> None:
        """Refuse everything new and wait until no call runs."""
        self._closing = True
        while self.running:
            self._idle = trio.Event()
            await self._idle.wait()

    @asynccontextmanager
    async def open(self, request: Request, context: CallContext) -> AsyncIterator[Call]:
        trace = self._traces.begin(context.request_id, model=request.model)
        call: RoutedCall | None = None
        outcome = "cancelled"
        self.running += 1
        try:
            if self._closing:
                raise Busy("This node is shutting down.", code="shutting_down")
            call = RoutedCall(self._machinery, request, context, self._pinned(context), trace)
            await call.start()
            yield call
        except MeshError as error:
            outcome = error.kind
            raise
        finally:
            if call is not None:
                with trio.CancelScope(shield=True):
                    await call.aclose()
                outcome = call.outcome if call.outcome != "cancelled" else outcome
                trace.prompt_tokens = call.usage.prompt_tokens
            trace.note("ended", outcome)
            trace.outcome = outcome
            model = call.model if call is not None and call.node else "-"
            self._machinery.metrics.requests.labels(model, capability_of(request).value, outcome).inc()
            self.running -= 1
            if not self.running:
                self._idle.set()
            for tell in self.on_end:
                tell(trace)

    def _pinned(self, context: CallContext) -> PeerId | None:
        """The peer that X-Mesh-Node names. Raises CallerError."""
        if context.node is None:
            return None
        view = self._machinery.view
        if context.node in (view.own, view.own_name):
            return view.own
        if member := view.member(context.node):
            return member.peer
        raise CallerError(f"There is no node {context.node[:100]} in this swarm.", param="X-Mesh-Node")
