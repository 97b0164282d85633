"""One answer of a conversation, read from an engine's chunks: what every dialect but OpenAI's own renders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from api import calls
from api.answer import Content, Delta, Readers
from api.ports import CallContext, Dispatcher
from backends.types import Accepted, ChatRequest, Chunk, CompletionRequest, EngineFault, Finished, Request, Text, Usage


class Turn:
    """The chunks of an answer with one choice, as deltas; and what was said of it at its beginning and end.

    What continues a prompt as it stands is content from end to end.
    """

    def __init__(self, request: ChatRequest | CompletionRequest) -> None:
        self._readers = Readers(request) if isinstance(request, ChatRequest) else None
        self.accepted: Accepted | None = None
        self.finished: Finished | None = None

    @property
    def calls(self) -> int:
        """Tool calls that have begun."""
        return self._readers[0].calls if self._readers else 0

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of reasoning so far."""
        return self._readers.reasoning_tokens if self._readers else 0

    def read(self, chunks: Sequence[Chunk]) -> list[Delta]:
        """The deltas of `chunks`, in order."""
        deltas: list[Delta] = []
        for chunk in chunks:
            if type(chunk) is Accepted:
                self.accepted = chunk
            elif type(chunk) is Finished:
                self.finished = chunk
            if self._readers is not None:
                deltas += self._readers.feed(chunk)
            elif type(chunk) is Text and chunk.text:
                deltas.append(Content(chunk.text))
        return deltas

    def ending(self) -> Finished:
        """How the answer ended. Raises EngineFault if it has not."""
        if self.finished is None:
            raise EngineFault("The engine ended the call before its answer was complete.")
        return self.finished


async def prompt_tokens(dispatcher: Dispatcher, request: ChatRequest, context: CallContext) -> int:
    """How many tokens the conversation has, by the engine's own count. Nothing is generated. Raises MeshError.

    Only the engine can tell: it renders the template, with the tools in it. It says so before it computes.
    """
    async with calls.running(dispatcher, [request], context) as call, calls.reading(call) as batches:
        for chunk in await calls.first_batch(batches):
            if isinstance(chunk, Accepted):
                return chunk.prompt_tokens
    raise EngineFault("The engine ended the call without an answer.")


async def read_whole(
    dispatcher: Dispatcher, request: Request, context: CallContext, take: Callable[[Sequence[Chunk]], object]
) -> Usage:
    """Run the call to its end, hand every batch to `take`, and tell what it cost. Raises MeshError."""
    async with calls.running(dispatcher, [request], context) as call:
        async with calls.reading(call) as batches:
            async for batch in batches:
                take(batch)
        return call.usage


def arguments_object(text: str) -> dict[str, Any]:
    """The arguments of a call; none where they were cut off or are no object."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
