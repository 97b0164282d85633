"""A client's call, wherever it runs: attempt after attempt until the client has all of its answer.

Two kinds of rescue (docs/design.md, "Never lose an answer"): before the first chunk an attempt that failed is made
again elsewhere, invisibly; after it, another replica of the same digest goes on from the token ids that the client has.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import trio

from api.ports import CallContext
from backends.types import (
    Chunk,
    ContextOverflow,
    EngineFault,
    Generation,
    MeshError,
    NodeGone,
    OutOfMemory,
    Request,
    Text,
    Usage,
    capability_of,
    decode_chunk,
    encode_request,
)
from mesh.estimate import Need
from mesh.transport import PeerId
from node.attempt import Attempt, Bounced
from node.infer import CallHead
from node.local import open_local
from node.metrics import Metrics
from node.need import need_of
from node.offers import Offers
from node.pool import Pool
from node.remote import Remote
from node.resume import Progress, StrangeChunk
from node.router import Placement, Router
from node.trace import Trace
from node.view import View

MAX_RESCUES = 5
"""How often one call may go on elsewhere: a request that kills every engine must not kill them all."""

_PASSING = frozenset({"node_gone", "engine_crashed", "busy", "load_failed", "out_of_memory"})
"""Kinds of errors after which the same call may succeed on another node."""

_WORTH_A_SECOND_TRY = frozenset({"node_gone", "engine_crashed"})
"""Of those: the ones after which it may succeed on the same node, once."""

_STALE = frozenset({"model_missing", "model_disabled"})
"""From a peer: it has the model no longer, and the word has not reached this node yet."""

_MAX_SALT = 2**53


@dataclass(frozen=True, slots=True)
class Machinery:
    """What a call is made with."""

    view: View
    router: Router
    pool: Pool
    offers: Offers
    remote: Remote | None
    metrics: Metrics


class RoutedCall:
    """Implements api.ports.Call. Made and left by node/dispatch.py."""

    def __init__(
        self, machinery: Machinery, request: Request, context: CallContext, pinned: PeerId | None, trace: Trace
    ) -> None:
        if isinstance(request, Generation) and request.salt is None:
            # So that every replica draws alike where nobody named a seed.
            request = msgspec.structs.replace(request, salt=secrets.randbelow(_MAX_SALT))
        self._machinery = machinery
        self._request = request
        self._context = context
        self._need = need_of(request, machinery.router.lengths.expect(request.model), pinned)
        self._progress = Progress(request)
        self._trace = trace
        self._stack = AsyncExitStack()
        self._placement: Placement | None = None  # of the latest attempt
        self._held: Placement | None = None  # the same, until it is given back to the router
        self._attempt: Attempt | None = None
        self._failed: dict[PeerId, list[str]] = {}  # kinds of the errors, by node
        self._rescues = 0
        self._may_bounce = True
        self._first_chunk_seen = self._first_token_seen = False
        self._arrived = trio.current_time()
        self.outcome = "cancelled"  # until it ends otherwise

    @property
    def model(self) -> str:
        return self._placement.model if self._placement is not None else self._request.model

    @property
    def node(self) -> str:
        """The name of the node that answers."""
        return self._placement.name if self._placement is not None else ""

    @property
    def usage(self) -> Usage:
        return self._progress.usage

    async def start(self) -> None:
        """Place the call and open its first attempt that can be opened. Raises MeshError."""
        try:
            await self._open(self._need)
        except MeshError as error:
            await self._recover(error)

    async def batches(self) -> AsyncIterator[Sequence[Chunk]]:
        while True:
            try:
                if self._attempt is None:
                    await self.start()
                attempt = self._attempt
                assert attempt is not None
                async for encoded in attempt.batches():
                    chunks = self._taken(encoded)
                    if chunks:
                        self._note_first(chunks)
                        yield chunks
                await self._on_end(attempt)
                if self._progress.complete:
                    self._machinery.metrics.note_usage(self.model, self.usage)
                    self.outcome = "ok"
                    return
            except Bounced as bounced:
                self._trace.note("bounced", str(bounced), node=self.node)
                self._machinery.metrics.bounced.labels(self.node).inc()
                self._may_bounce = False
                peer = self._peer
                await self.aclose()
                await self._bounce(peer)
            except MeshError as error:
                if not self._progress.whole:
                    await self._recover(error)
                    continue
                # The node went away between the last chunk and the end: nothing is left to ask for.
                await self.aclose(failed=True)
                self._machinery.metrics.note_usage(self.model, self.usage)
                self.outcome = "ok"
                return

    async def aclose(self, *, failed: bool | None = None) -> None:
        """End the current attempt, if there is one."""
        held, self._held, self._attempt = self._held, None, None
        try:
            await self._stack.aclose()
        finally:
            if held is not None:
                self._machinery.router.done(held, failed=failed)

    @property
    def _peer(self) -> PeerId:
        assert self._placement is not None
        return self._placement.peer

    async def _open(self, need: Need) -> None:
        machinery = self._machinery
        rest = self._progress.rest()
        if isinstance(rest, Generation):
            need = replace(need, weight=rest.n)  # what is resumed is one choice, whatever the call began with
        placement = await machinery.router.place(need, self._context.client, self._trace)
        self._placement = self._held = placement
        request = encode_request(rest)
        self._trace.note("send", node=placement.name)
        sent = trio.current_time()
        machinery.metrics.routed.labels(placement.name).inc()
        if placement.local:
            entry = machinery.view.local(placement.model)
            if self._context.keep_s is not None:
                machinery.pool.keep(entry.spec.name, self._context.keep_s)
            opened: Any = open_local(machinery.pool, entry, request, client=self._context.client, weight=need.weight)
        else:
            assert machinery.remote is not None
            head = CallHead(
                request_id=self._context.request_id,
                client=self._context.client,
                model=placement.model,
                digest=placement.digest,
                capability=need.capability,
                weight=need.weight,
                prompt_tokens=need.prompt_tokens,
                cached_tokens=placement.candidate.cached_tokens,
                output_tokens=need.output_tokens,
                bounce_above_s=min(placement.bounce_above_s, 1e9) if self._may_bounce else None,
                keep_s=self._context.keep_s,
            )
            opened = machinery.remote.open(placement.peer, placement.name, head, request)
        self._attempt = await self._stack.enter_async_context(opened)
        loading = machinery.pool.loading(placement.model) if placement.local else None
        if loading is not None and loading.loaded >= sent:  # this call has waited for it
            self._trace.note("prepared", "it was known where to load", at=loading.prepared)
            self._trace.note("loaded", f"in {loading.seconds:.2f} s", at=loading.loaded)

    def _taken(self, encoded: Sequence[bytes]) -> Sequence[Chunk]:
        """What of an attempt's batch is new to the client."""
        try:
            return self._progress.take(decode_chunk(data) for data in encoded)
        except (msgspec.MsgspecError, StrangeChunk) as error:
            if self._placement is not None and not self._placement.local:
                raise NodeGone(f"The node {self.node} answered in a way that is not ours: {error}") from error
            raise EngineFault("The engine answered in a way that is not ours.") from error

    async def _on_end(self, attempt: Attempt) -> None:
        usage = attempt.usage
        self._progress.ended(usage)
        placement = self._placement
        assert placement is not None
        self._machinery.router.answered(
            placement, self._need, cached_tokens=usage.cached_tokens, output_tokens=usage.completion_tokens
        )
        if placement.local:
            self._machinery.offers.record(placement.model, failed=False, now=trio.current_time())
        await self.aclose(failed=False)

    async def _bounce(self, peer: PeerId) -> None:
        """Go to another node than `peer`, which has sent the call back; to it after all where there is no other now."""
        try:
            await self._open(replace(self._need, exclude=self._need.exclude | {peer}))
        except MeshError as error:
            if self._held is not None:
                await self._recover(error)
            # else the next round of `batches` starts anew, and `_may_bounce` is over

    async def _recover(self, error: MeshError) -> None:
        """Open another attempt after `error`, or raise it where there can be none."""
        placement = self._held  # None: it was the router that refused, and nobody has failed
        stale = placement is not None and not placement.local and error.kind in _STALE
        too_long = isinstance(error, ContextOverflow) and not self._progress.accepted  # for that node
        passing = error.kind in _PASSING or stale or too_long
        theirs = (passing or isinstance(error, EngineFault)) and not (stale or too_long or error.kind == "busy")
        if placement is not None:
            if placement.local and theirs:
                self._machinery.offers.record(placement.model, failed=True, now=trio.current_time())
            if placement.local and isinstance(error, EngineFault):
                self._machinery.pool.tell_fault(placement.model, error)
            await self.aclose(failed=theirs or None)
        if placement is None or not passing or self._rescues >= MAX_RESCUES:
            self.outcome = error.kind
            raise error
        self._rescues += 1
        self._failed.setdefault(placement.peer, []).append(error.kind)
        self._trace.note("lost", error.message, node=placement.name)
        need = self._need
        if too_long:
            for peer in self._machinery.view.narrow(need, placement.context_tokens, trio.current_time()):
                self._failed.setdefault(peer, [error.kind])
        if self._progress.accepted or self._progress.answered:
            need = replace(need, digest=placement.digest)  # another digest would continue another text
        await self._place_again(need, error)

    async def _place_again(self, need: Need, error: MeshError) -> None:
        """Prefer nodes that have not failed this call; then one that may have recovered; then give up."""
        spent = {peer for peer, kinds in self._failed.items() if len(kinds) > 1 or kinds[0] not in _WORTH_A_SECOND_TRY}
        metrics = self._machinery.metrics
        for exclude in (frozenset(self._failed), frozenset(spent)):
            self._need = replace(need, exclude=exclude)
            try:
                await self._open(self._need)
            except MeshError as other:
                if self._held is None:
                    if isinstance(other, OutOfMemory):
                        error = other  # more than that it crashed: why it cannot be opened again
                    continue
                await self._recover(other)
                return
            if self._progress.answered:
                self._trace.note("resumed", f"after {self._progress.tokens} tokens", node=self.node)
                metrics.resumed.labels(self.node).inc()
            return
        self.outcome = error.kind
        raise error

    def _note_first(self, chunks: Sequence[Chunk]) -> None:
        self._trace.tokens = self._progress.tokens
        if not self._first_chunk_seen:
            self._first_chunk_seen = True
            self._trace.note("accepted", node=self.node)
        if not self._first_token_seen and any(isinstance(chunk, Text) for chunk in chunks):
            self._first_token_seen = True
            self._trace.note("first_chunk", node=self.node)
            waited_s = trio.current_time() - self._arrived
            self._machinery.metrics.note_first_token(self.model, waited_s)

    @property
    def operation(self) -> str:
        """What was asked for."""
        return capability_of(self._request).value
