"""Responses that are made in the background, and streams that follow them from any event on."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from types import TracebackType

import trio
from quart.wrappers.response import ResponseBody

from api import calls
from api.ports import Dispatcher, ResponseStore
from api.responses.making import Making
from api.responses.writer import framed
from api.sse import DONE
from backends.types import ChatRequest, Usage

STORE_S = 10.0  # what the end of a run may take to be stored while the node shuts down


class Run:
    """One response in the making. `events` holds what its stream has told so far, event by event."""

    def __init__(self, making: Making) -> None:
        self.making = making
        self.events: list[bytes] = []
        self.ended = trio.Event()
        self._told = trio.Event()
        self._scope = trio.CancelScope()
        self.tell(making.writer.queued())

    def tell(self, events: Sequence[bytes]) -> None:
        """Add events (JSON), and wake those who follow."""
        self.events += map(framed, events)
        self._told.set()
        self._told = trio.Event()

    async def more(self) -> None:
        """Wait until something is told, or the run has ended."""
        if not self.ended.is_set():
            await self._told.wait()

    async def cancel(self) -> None:
        """Cancel the run and wait for its end."""
        self._scope.cancel()
        await self.ended.wait()

    async def go(self, dispatcher: Dispatcher, store: ResponseStore) -> None:
        """Make the response and store it. Does not raise."""
        writer = self.making.writer
        try:
            with self._scope:
                try:
                    usage = await self.making.start(lambda request: self._call(dispatcher, request))
                    self.tell(writer.ended(usage))
                except Exception as error:  # noqa: BLE001  # there is no other edge: `failed` logs what it does not know
                    self.tell(writer.failed(error))
            if self._scope.cancelled_caught:
                writer.cancelled()
        finally:
            # A node that goes away in the middle leaves the response as it began; whoever asks for it later is told.
            if writer.over:
                with trio.move_on_after(STORE_S, shield=True):
                    events = b"".join(self.events) if self.making.body.stream else None
                    await self.making.keep(store, events)
            self.ended.set()
            self._told.set()

    async def _call(self, dispatcher: Dispatcher, request: ChatRequest) -> Usage:
        async with calls.running(dispatcher, [request], self.making.context) as call:
            async with calls.reading(call) as batches:
                async for batch in batches:
                    self.tell(self.making.writer.events(batch))
            return call.usage


class Following(ResponseBody):
    """A stream of a run's events after number `after`, as far as they are there and then as they come."""

    def __init__(self, run: Run, after: int) -> None:
        self._run = run
        self._next = after + 1
        self._over = False

    async def __aenter__(self) -> AsyncIterable[bytes]:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        pass

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        events = self._run.events
        while self._next >= len(events) and not self._run.ended.is_set():
            await self._run.more()
        data = b"".join(events[self._next :])
        self._next = max(self._next, len(events))
        if self._run.ended.is_set():
            self._over = True
            data += DONE
        return data


def after(events: bytes, number: int) -> bytes:
    """What follows event `number` in a stored stream."""
    whole = events.split(b"\n\n")[:-1]
    return b"".join(event + b"\n\n" for event in whole[number + 1 :]) + DONE
