"""How far a call has got, and what to ask of another replica to go on from there. Sans-IO.

The entry node sees every chunk. When the engine or the node behind a call dies, the rest is asked of another replica
of the same digest, with the token ids that the client has already: that engine prefills prompt and ids and continues,
so that no token is repeated or lost (backends/types, `Generation.resume`). A call of several choices is continued
choice by choice, since their answers are of different lengths by then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from backends.types import (
    Accepted,
    Chunk,
    CompletionRequest,
    Embedding,
    EngineFault,
    Finished,
    Generation,
    Request,
    Score,
    Text,
    Usage,
)


class StrangeChunk(Exception):
    """An attempt has answered what it was not asked."""


@dataclass(slots=True)
class _Choice:
    tokens: list[int] = field(default_factory=list)
    tail: str = ""  # text that came after the last token, without one: what was held back for a stop string in vain
    echoed: bool = False  # the prompt itself has been shown
    finished: bool = False


class Progress:
    """What a client has got of one call."""

    def __init__(self, request: Request) -> None:
        self._request = request
        count = request.n if isinstance(request, Generation) else 0
        self._choices = [_Choice() for _ in range(count)]
        self._asked = range(count)  # the choices that the current attempt answers
        self._again = ""  # what it will say once more: the tail of its choice
        self._resumed = False
        self._prompt_tokens = 0
        self._given: set[int] = set()
        self._usages: list[Usage] = []
        self.accepted = False
        """Whether the client knows in what form the answer comes: only the same model may go on then."""
        self.answered = False
        """Whether the client has got anything beyond the acceptance."""

    @property
    def complete(self) -> bool:
        """Whether every choice is finished (of a generation; other calls are complete when their attempt ends)."""
        return all(choice.finished for choice in self._choices)

    @property
    def tokens(self) -> int:
        """Tokens that the client has got."""
        return sum(len(choice.tokens) for choice in self._choices)

    def rest(self) -> Request:
        """The request that asks for what is still missing: at first the request itself."""
        request = self._request
        if not isinstance(request, Generation) or not self._begun:
            return request
        index = next(index for index, choice in enumerate(self._choices) if not choice.finished)
        choice = self._choices[index]
        self._asked, self._again, self._resumed = range(index, index + 1), choice.tail, True
        rest = msgspec.structs.replace(
            request, n=1, first_choice=request.first_choice + index, resume=(*request.resume, *choice.tokens)
        )
        if choice.echoed and isinstance(rest, CompletionRequest):
            rest = msgspec.structs.replace(rest, echo=False)
        return rest

    def take(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """What of an attempt's chunks is new to the client, under the call's own indices.

        Raises StrangeChunk, and then has taken none of them.
        """
        given = list(chunks)
        for chunk in given:
            if isinstance(chunk, (Text, Finished)) and not 0 <= chunk.index < len(self._asked):
                raise StrangeChunk(f"There is no choice {chunk.index} in this call.")
        return [shown for chunk in given if (shown := self._shown(chunk)) is not None]

    def ended(self, usage: Usage) -> None:
        """An attempt has ended well, and cost this. Raises EngineFault if its answer has not."""
        self._usages.append(usage)
        if not all(self._choices[index].finished for index in self._asked):
            raise EngineFault("The engine ended the call before its answer was complete.")

    @property
    def whole(self) -> bool:
        """Whether the client has all of a generation: an attempt that is lost now takes only the bill along."""
        return bool(self._choices) and all(choice.finished for choice in self._choices)

    @property
    def usage(self) -> Usage:
        """What the call cost. Durations and cached tokens are those of the attempts that ended well."""
        if len(self._usages) == 1 and not self._resumed:
            return self._usages[0]
        last = self._usages[-1] if self._usages else Usage(prompt_tokens=self._prompt_tokens)
        return Usage(
            prompt_tokens=last.prompt_tokens,
            cached_tokens=last.cached_tokens,
            completion_tokens=self.tokens,
            prefill_s=sum(usage.prefill_s for usage in self._usages),
            decode_s=sum(usage.decode_s for usage in self._usages),
        )

    @property
    def _begun(self) -> bool:
        return any(choice.tokens or choice.echoed or choice.finished for choice in self._choices)

    def _shown(self, chunk: Chunk) -> Chunk | None:
        match chunk:
            case Accepted():
                known, self.accepted = self.accepted, True
                self._prompt_tokens = chunk.prompt_tokens
                return None if known else chunk
            case Text() | Finished():
                self.answered = True
                return self._of_choice(chunk)
            case Embedding() | Score():
                self.answered = True
                known = chunk.index in self._given
                self._given.add(chunk.index)
                return None if known else chunk
            case _:  # one chunk is the whole answer
                known, self.answered = self.answered, True
                return None if known else chunk

    def _of_choice(self, chunk: Text | Finished) -> Chunk | None:
        index = self._asked[chunk.index]
        choice = self._choices[index]
        if isinstance(chunk, Finished):
            choice.finished = True
        elif chunk.tokens:
            choice.tokens.extend(chunk.tokens)
            choice.tail = self._again = ""
        elif choice.tokens:
            again, self._again = self._again, ""
            new = chunk.text.removeprefix(again)
            choice.tail += new
            if again and not new:
                return None
            chunk = msgspec.structs.replace(chunk, text=new)
        elif chunk.text:
            choice.echoed = True
        return chunk if index == chunk.index else msgspec.structs.replace(chunk, index=index)
