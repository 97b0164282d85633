"""Running calls on behalf of a handler: one or several as one, read whole or kept for a stream.

Nothing here knows a dialect. Every path out of these contexts cancels what still runs.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import trio
from quart import g, has_app_context

from api.answer import Delta, Readers, Reply
from api.ports import Call, CallContext, Dispatcher
from backends.types import (
    CallerError,
    ChatRequest,
    Chunk,
    CompletionRequest,
    ContextOverflow,
    Embedding,
    EmbeddingRequest,
    EngineFault,
    Finished,
    FinishReason,
    Request,
    Text,
    TokenLogprob,
    Usage,
)

PARALLEL_CALLS = 8  # calls of ONE request at a time; more would only queue in front of other clients

# Where each request class has its prompt, to name it when it is too long.
_PROMPT_PARAM: dict[type, str] = {ChatRequest: "messages", CompletionRequest: "prompt", EmbeddingRequest: "input"}


@asynccontextmanager
async def running(dispatcher: Dispatcher, requests: Sequence[Request], context: CallContext) -> AsyncIterator[Call]:
    """All `requests` as one call: choice c of request r of n choices each has index r * n + c.

    Several run side by side, at most `PARALLEL_CALLS`; the first to fail fails them all. Raises what
    `Dispatcher.open` raises.
    """
    if len(requests) == 1:
        try:
            async with dispatcher.open(requests[0], context) as call:
                _note(call)
                yield call
        except CallerError as error:
            _name_param(error, requests[0])
            raise
        return
    async with trio.open_nursery() as nursery:
        merged = _Merged(requests[0])
        limit = trio.CapacityLimiter(PARALLEL_CALLS)
        async with merged.send:
            for number, request in enumerate(requests):
                nursery.start_soon(merged.run, number, request, dispatcher, context, limit, merged.send.clone())
        yield merged
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def reading(call: Call) -> AsyncIterator[AsyncIterator[Sequence[Chunk]]]:
    """The call's batches, closed in this task rather than by the garbage collector."""
    batches = call.batches()
    try:
        yield batches
    finally:
        close = getattr(batches, "aclose", None)  # generators have it, plain iterators need none
        if close is not None:
            await close()


@asynccontextmanager
async def noticing_silence(
    batches: AsyncIterator[Sequence[Chunk]], after_s: float
) -> AsyncIterator[AsyncIterator[Sequence[Chunk]]]:
    """`batches`, with an empty one for each `after_s` in which nothing came."""
    # A generator that is interrupted while it waits is over, a channel is not; so another task does the waiting.
    send, receive = trio.open_memory_channel[Sequence[Chunk] | Exception](0)

    async def pump() -> None:
        async with send:
            try:
                async for batch in batches:
                    await send.send(batch)
            except Exception as error:  # noqa: BLE001  # carried to the reader's task, as in `_Merged`
                await send.send(error)

    async def taken() -> AsyncGenerator[Sequence[Chunk], None]:
        while True:
            item: Sequence[Chunk] | Exception = ()
            try:
                with trio.move_on_after(after_s):
                    item = await receive.receive()
            except trio.EndOfChannel:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump)
        async with aclosing(taken()) as reader:
            yield reader
        nursery.cancel_scope.cancel()


async def first_batch(batches: AsyncIterator[Sequence[Chunk]]) -> Sequence[Chunk]:
    """The batch that says that the engine has accepted the call. Raises EngineFault if there is none."""
    async for batch in batches:
        return batch
    raise EngineFault("The engine ended the call without an answer.")


def now() -> int:
    """The time of an answer: whole seconds of Unix time."""
    return int(time.time())


@dataclass(slots=True)
class Choice:
    """One whole answer. `reply` is what it means, in a chat."""

    text: str = ""
    reply: Reply | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    drawn: list[float] = field(default_factory=list)  # log-probabilities of the answer's own tokens, without an echo
    reason: FinishReason | None = None

    @property
    def mean_logprob(self) -> float:
        """How likely the model found its answer, token by token."""
        return sum(self.drawn) / len(self.drawn) if self.drawn else 0.0


async def collect(call: Call, choices: int, readers: Readers | None = None) -> list[Choice]:
    """All choices of `call`, read to the end; with `readers` also what they mean.

    Raises MeshError; EngineFault if one was not finished.
    """
    answers = [Choice() for _ in range(choices)]
    texts: list[list[str]] = [[] for _ in range(choices)]
    deltas: list[list[Delta]] = [[] for _ in range(choices)]
    async with reading(call) as batches:
        async for batch in batches:
            for chunk in batch:
                read = readers.feed(chunk) if readers is not None else ()
                if isinstance(chunk, Text):
                    texts[chunk.index].append(chunk.text)
                    answers[chunk.index].logprobs.extend(chunk.logprobs)
                    if chunk.tokens:
                        answers[chunk.index].drawn.extend(item.logprob or 0.0 for item in chunk.logprobs)
                elif isinstance(chunk, Finished):
                    answers[chunk.index].reason = chunk.reason
                if read and isinstance(chunk, (Text, Finished)):
                    deltas[chunk.index] += read
    for answer, parts, pieces in zip(answers, texts, deltas, strict=True):
        if answer.reason is None:
            raise EngineFault("The engine ended the call before its answer was complete.")
        answer.text = "".join(parts)
        if readers is not None:
            answer.reply = Reply.of(pieces)
    return answers


async def only(dispatcher: Dispatcher, request: Request, context: CallContext) -> tuple[list[Chunk], Usage]:
    """All chunks of one call and what it cost, for requests whose answers are small. Raises MeshError."""
    async with running(dispatcher, [request], context) as call, reading(call) as batches:
        chunks = [chunk async for batch in batches for chunk in batch]
    return chunks, call.usage


class _Merged:
    """Several calls as one `Call`."""

    def __init__(self, first: Request) -> None:
        self.model = first.model
        self.node = ""
        # No buffer: a slow reader is to pause the engine, not to fill the memory here.
        self.send, self._receive = trio.open_memory_channel[Sequence[Chunk] | Exception](0)
        self._usages: list[Usage] = []

    async def batches(self) -> AsyncIterator[Sequence[Chunk]]:
        async for item in self._receive:
            if isinstance(item, Exception):
                raise item
            yield item

    @property
    def usage(self) -> Usage:
        return Usage(**{name: sum(getattr(u, name) for u in self._usages) for name in Usage.__struct_fields__})

    async def run(
        self,
        number: int,
        request: Request,
        dispatcher: Dispatcher,
        context: CallContext,
        limit: trio.CapacityLimiter,
        send: trio.MemorySendChannel[Sequence[Chunk] | Exception],
    ) -> None:
        """Run one of the calls and pass its chunks on."""
        offset = number * getattr(request, "n", 1)
        async with send, limit:
            try:
                async with dispatcher.open(request, context) as call:
                    self.model, self.node = call.model, call.node
                    _note(call)
                    async with reading(call) as batches:
                        async for batch in batches:
                            await send.send([_shifted(chunk, offset) for chunk in batch] if offset else batch)
                    self._usages.append(call.usage)
            # Not swallowed but carried: `batches` raises it, so that the reader learns of it in its own task. Raised
            # here it would cancel the reader in the middle of a response.
            except Exception as error:  # noqa: BLE001
                if isinstance(error, CallerError):
                    _name_param(error, request)
                await send.send(error)


def _note(call: Call) -> None:
    """For X-Mesh-Node, which is read when the answer begins: until then a call may move. Not for a call that is made in
    the background, under no request."""
    if has_app_context():
        g.answering = call


def _shifted(chunk: Chunk, offset: int) -> Chunk:
    if isinstance(chunk, (Text, Finished, Embedding)):
        return msgspec.structs.replace(chunk, index=chunk.index + offset)
    return chunk


def _name_param(error: CallerError, request: Request) -> None:
    """Name the parameter as the client spells it, where the engine does not know the dialect."""
    if isinstance(error, ContextOverflow) and error.param is None:
        error.param = _PROMPT_PARAM.get(type(request))
