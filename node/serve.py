"""The inbound side of node/remote.py: calls that other nodes send here run on this node's own workers, and nowhere
else. A forwarded request is never forwarded again; the one thing it can be is bounced to where it came from."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import trio

from backends.types import CallerError, EngineFault, MeshError, ModelMissing, to_failure
from mesh.errors import PeerError, PeerGone, PeerMisbehaved
from mesh.estimate import Need
from mesh.framed import Framed
from mesh.transport import Stream
from mesh.wire import Decoder
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
    """The other end of one call: its control messages are read while its chunks are written."""

    def __init__(self, framed: Framed) -> None:
        self.credit = infer.CREDIT
        self.error: PeerError | None = None
        self.peer = framed.stream.peer
        self._framed = framed
        self._changed = trio.Event()
        self._sending = False

    async def read(self, on_cancel: Callable[[], None]) -> None:
        """Until the call is cancelled, or the stream is no good any more."""
        try:
            while (message := await self._framed.receive()) is not None and message.kind != Kind.CANCEL:
                if message.kind == Kind.CALL:
                    raise PeerMisbehaved("A call within a call.")
                self.credit += infer.decode_credit(message.body)
                self._changed.set()
        except PeerError as error:
            self.error = error
        except msgspec.MsgspecError as error:
            self.error = PeerMisbehaved(f"A credit that is none of ours: {error}")
        on_cancel()

    async def send(self, chunks: list[bytes]) -> None:
        """Send a batch when the caller can take more; it may overdraw, as the worker's own credit bounds it."""
        while self.credit <= 0:
            self._changed = trio.Event()
            await self._changed.wait()
        self.credit -= len(chunks)
        self._sending = True
        await self._framed.send(Kind.CHUNKS, infer.encode(chunks))
        self._sending = False

    def check(self) -> None:
        """Raises PeerError if nothing can follow on the stream."""
        if self.error is not None:
            raise self.error
        if self._sending:
            raise PeerGone("The call was cancelled in the middle of a message.")


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
        while (message := await framed.receive()) is not None:
            if message.kind != Kind.CALL:
                continue  # a CREDIT or CANCEL that crossed the end of its call
            try:
                body = infer.decode_call(message.body)
            except msgspec.MsgspecError as error:
                raise PeerMisbehaved(f"A call that is none of ours: {error}") from None
            await self._serve(framed, body.head, body.request)

    async def _serve(self, framed: Framed, head: CallHead, request: bytes) -> None:
        """Run one call to its end message. Raises PeerError when its stream is good for no other."""
        caller = _Caller(framed)
        trace = self._traces.begin(head.request_id, entry=framed.stream.peer)
        end = Kind.FAILED, infer.encode(to_failure(CallerError("The call was cancelled."))), "cancelled"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.read, nursery.cancel_scope.cancel)
                try:
                    end = await self._run(caller, head, request, trace)
                except MeshError as error:
                    end = Kind.FAILED, infer.encode(to_failure(error)), error.kind
                    if isinstance(error, EngineFault):
                        self._pool.tell_fault(head.model, error)
                except PeerError as error:
                    caller.error = error
                # The reader stops first, at a message's boundary: the call that follows the end is not lost to it.
                nursery.cancel_scope.cancel()
        finally:
            trace.note("served", end[2])
            self._served(framed.stream.peer, end[2])
        caller.check()
        await framed.send(*end[:2])

    async def _run(self, caller: _Caller, head: CallHead, request: bytes, trace: Trace) -> tuple[Kind, bytes, str]:
        """The call's end: the message's kind and body, and the outcome."""
        entry = self._inventory.resolve(head.model)
        if entry.digest != head.digest:
            raise ModelMissing(f'model "{head.model}" is another file on this node than the caller was told of.')
        expected_s = self._judge(entry, head)
        if head.bounce_above_s is not None and expected_s > head.bounce_above_s:
            return Kind.BOUNCED, infer.encode(expected_s), "bounced"
        if head.keep_s is not None:
            self._pool.keep(entry.spec.name, head.keep_s)
        trace.note("lease", "waiting for a slot")
        async with open_local(
            self._pool, entry, request, client=f"{caller.peer}/{head.client}", weight=head.weight
        ) as call:
            trace.note("open", "sent to the worker")
            first = True
            async for chunks in call.batches():
                if first:
                    trace.note("first_chunk")
                    first = False
                await caller.send(chunks)
            return Kind.DONE, infer.encode(call.usage), "ok"
