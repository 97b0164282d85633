"""The inbound side of node/remote.py: calls that other nodes send here run on this node's own workers, and nowhere
else. A forwarded request is never forwarded again; the one thing it can be is bounced to where it came from."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import trio

from backends.types import CallerError, EngineFault, MeshError, ModelMissing, to_failure
from mesh.errors import PeerMisbehaved
from mesh.estimate import Need
from mesh.framed import Framed
from mesh.transport import Stream
from mesh.wire import Decoder, encode
from node import infer
from node.infer import CallHead, Kind
from node.inventory import Entry, Inventory
from node.local import open_local
from node.pool import Pool
from node.router import Router
from node.trace import Trace, Traces


class Judge:
    """How long a call would take here, by this node's own load of now."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def __call__(self, entry: Entry, head: CallHead) -> float:
        need = Need(
            model=entry.spec.name,
            capability=head.capability,
            digest=head.digest,
            prompt_tokens=head.prompt_tokens,
            output_tokens=head.output_tokens,
            weight=head.weight,
        )
        candidate = self._router.judge(need, cached_tokens=head.cached_tokens)
        return candidate.terms.total_s if candidate is not None else 0.0


class _Caller:
    """The control messages of one call, read while its chunks are written."""

    def __init__(self, framed: Framed) -> None:
        self.credit = infer.CREDIT
        self.cancelled = False
        self.next_call: bytes | None = None  # it came before we had stopped reading for this one
        self._framed = framed
        self._changed = trio.Event()

    async def read(self, on_cancel: Callable[[], None]) -> None:
        while True:
            message = await self._framed.receive()
            if message is None or message.kind == Kind.CANCEL:
                self.cancelled = True
                on_cancel()
                return
            if message.kind == Kind.CALL:
                self.next_call = message.body
                return
            self.credit += infer.decode_credit(message.body)
            self._changed.set()

    async def spend(self, chunks: int) -> None:
        """Wait until the caller can take more; a batch may overdraw, as the worker's own credit bounds it."""
        while self.credit <= 0:
            self._changed = trio.Event()
            await self._changed.wait()
        self.credit -= chunks


class Serving:
    """Handles streams of `/mesh/infer/1`."""

    def __init__(
        self,
        inventory: Inventory,
        pool: Pool,
        traces: Traces,
        judge: Judge,
        served: Callable[[str, str], None] = lambda peer, outcome: None,
    ) -> None:
        """`judge` tells how long a call would take here; `served` counts calls by peer and outcome."""
        self._inventory = inventory
        self._pool = pool
        self._traces = traces
        self._judge = judge
        self._served = served

    async def handle(self, stream: Stream) -> None:
        """Serve one call after the other until the peer closes the stream. Raises PeerError on foreign bytes."""
        framed = Framed(stream, Decoder(infer.MAX_CALL_BYTES, kinds=infer.FROM_ENTRY))
        waiting: bytes | None = None
        while True:
            if waiting is None:
                message = await framed.receive()
                if message is None:
                    return
                if message.kind != Kind.CALL:
                    continue  # a CREDIT or CANCEL that crossed the end of its call
                waiting = message.body
            try:
                body = infer.decode_call(waiting)
            except msgspec.MsgspecError as error:
                raise PeerMisbehaved(f"A call that is none of ours: {error}") from None
            waiting = await self._serve(framed, body.head, body.request)

    async def _serve(self, framed: Framed, head: CallHead, request: bytes) -> bytes | None:
        """Run one call to its end message; the next call, if it is here already."""
        caller = _Caller(framed)
        trace = self._traces.begin(head.request_id, entry=framed.stream.peer)
        kind, body, outcome = Kind.FAILED, b"", "cancelled"
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(caller.read, scope.cancel)
            with scope:
                try:
                    kind, body, outcome = await self._run(framed, caller, head, request, trace)
                except MeshError as error:
                    outcome = error.kind
                    if isinstance(error, EngineFault):
                        self._pool.tell_fault(head.model, error)
                    body = infer.encode(to_failure(error))
            if scope.cancelled_caught:
                body = infer.encode(to_failure(CallerError("The call was cancelled.")))
            trace.note("served", outcome)
            self._served(framed.stream.peer, outcome)
            # The reader stops first, at a message's boundary: a call that follows is not lost to it.
            nursery.cancel_scope.cancel()
        await framed.send(kind, body)
        return caller.next_call

    async def _run(
        self, framed: Framed, caller: _Caller, head: CallHead, request: bytes, trace: Trace
    ) -> tuple[Kind, bytes, str]:
        entry = self._inventory.resolve(head.model)
        if entry.digest != head.digest:
            raise ModelMissing(f'model "{head.model}" is another file on this node than the caller was told of.')
        expected_s = self._judge(entry, head)
        if head.bounce_above_s is not None and expected_s > head.bounce_above_s:
            return Kind.BOUNCED, infer.encode(expected_s), "bounced"
        trace.note("lease", "waiting for a slot")
        async with open_local(
            self._pool, entry, request, client=f"{framed.stream.peer}/{head.client}", weight=head.weight
        ) as call:
            trace.note("open", "sent to the worker")
            first = True
            async for chunks in call.batches():
                if first:
                    trace.note("first_chunk")
                    first = False
                await caller.spend(len(chunks))
                await framed.send_raw(encode(Kind.CHUNKS, infer.encode(chunks)))
            return Kind.DONE, infer.encode(call.usage), "ok"
