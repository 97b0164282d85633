"""The one builder of streams: server-sent events, and Ollama's lines of JSON.

A token must cost little: a renderer makes bytes of a batch of chunks from pre-encoded pieces, and all events that are
ready at once leave in one send, because one send through hypercorn and h11 costs more than everything else here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Protocol, cast

from quart import Response, request

from api import errors
from api.calls import first_batch, noticing_silence, reading, running
from api.connection import HeldBody, MeshRequest
from api.ports import Call, CallContext, Dispatcher
from backends.types import Chunk, Request, Usage

DONE = b"data: [DONE]\n\n"

EVENTS = "text/event-stream; charset=utf-8"
LINES = "application/x-ndjson"
PING_S = 5.0  # of silence; proxies cut connections that are silent for longer

STREAM_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would collect the events otherwise
}


class Renderer(Protocol):
    """How a dialect writes a stream. Each method returns whole events, or nothing."""

    def opening(self, model: str) -> bytes:
        """Before the first token; `model` is the name of the model that answers."""

    def batch(self, chunks: Sequence[Chunk]) -> bytes:
        """The events of `chunks`."""

    def closing(self, usage: Usage) -> bytes:
        """After the last token. Raises EngineFault when a choice was left unfinished."""

    def failure(self, error: Exception) -> bytes:
        """The end of a stream that failed."""


async def stream(
    dispatcher: Dispatcher,
    requests: Sequence[Request],
    context: CallContext,
    renderer: Renderer,
    *,
    media: str = EVENTS,
    ping: bytes = b"",
    settle: Callable[[], Awaitable[None]] | None = None,
) -> Response:
    """Start the call and answer with its stream.

    `ping` is sent after each `PING_S` of silence. `settle` runs between the last event's making and its sending; not
    at all when the client has gone away before. Returns only when the engine has sent its first chunk, so that
    everything that goes wrong before is a status of its own: raises MeshError like `Dispatcher.open`. The call ends
    with the response, whichever way that ends.
    """
    async with AsyncExitStack() as opening:
        call = await opening.enter_async_context(running(dispatcher, requests, context))
        batches = await opening.enter_async_context(reading(call))
        first = await first_batch(batches)
        if ping:
            batches = await opening.enter_async_context(noticing_silence(batches, PING_S))
        body = EventStream(call, batches, first, renderer, opening.pop_all(), ping=ping, settle=settle)
        # The body may never be entered: the client can go away before. See api/connection.py.
        cast(MeshRequest, request).calls.push_async_exit(body.leave)
    response = Response(body, headers=STREAM_HEADERS, content_type=media)
    response.timeout = None  # Quart's RESPONSE_TIMEOUT would cut the whole stream, not a silence in it
    return response


class EventStream(HeldBody):
    """A running call as a response body. It owns the call's context and leaves it in the task that entered it."""

    def __init__(
        self,
        call: Call,
        batches: AsyncIterator[Sequence[Chunk]],
        first: Sequence[Chunk],
        renderer: Renderer,
        context: AsyncExitStack,
        *,
        ping: bytes = b"",
        settle: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(context)
        self._call = call
        self._batches = batches
        self._first: Sequence[Chunk] | None = first
        self._renderer = renderer
        self._ping = ping
        self._settle = settle
        self._over = False

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        renderer = self._renderer
        try:
            if self._first is not None:
                data = renderer.opening(self._call.model) + renderer.batch(self._first)
                self._first = None
                if data:
                    return data
            async for batch in self._batches:
                if data := renderer.batch(batch) if batch else self._ping:
                    return data
            self._over = True
            data = renderer.closing(self._call.usage)
        # The status has been sent: the error's place is the stream. `errors` logs what it does not know.
        except Exception as error:  # noqa: BLE001
            self._over = True
            data = renderer.failure(error)
        if self._settle is not None:
            await self._settle()
        return data


def error_event(error: Exception) -> bytes:
    """`error` as OpenAI and LocalAI write it in mid-stream. LocalAI ends such a stream with [DONE], and so do we."""
    return b"data: " + errors.envelope(errors.fault_of(error), "openai") + b"\n\n" + DONE
