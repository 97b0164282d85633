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

from backends.types import Accepted, Chunk, CompletionRequest, Embedding, Finished, Generation, Request, Text, Usage


@dataclass(slots=True)
class _Choice:
    tokens: list[int] = field(default_factory=list)
    echoed: bool = False  # the prompt itself has been shown
    finished: bool = False


class Progress:
    """What a client has got of one call."""

    def __init__(self, request: Request) -> None:
        self._request = request
        count = request.n if isinstance(request, Generation) else 0
        self._choices = [_Choice() for _ in range(count)]
        self._first = 0  # the choice that the attempt's own choice 0 stands for
        self._accepted = False
        self._embedded: set[int] = set()
        self._usages: list[Usage] = []
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
        self._first = index
        choice = self._choices[index]
        rest = msgspec.structs.replace(
            request, n=1, first_choice=request.first_choice + index, resume=(*request.resume, *choice.tokens)
        )
        if choice.echoed and isinstance(rest, CompletionRequest):
            rest = msgspec.structs.replace(rest, echo=False)
        return rest

    def take(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """What of an attempt's chunks is new to the client, under the call's own indices."""
        return [shown for chunk in chunks if (shown := self._shown(chunk)) is not None]

    def ended(self, usage: Usage) -> None:
        """An attempt has ended well, and cost this."""
        self._usages.append(usage)

    @property
    def usage(self) -> Usage:
        """What the call cost. Durations and cached tokens are those of the attempts that ended well."""
        if len(self._usages) == 1 and not self._begun_again:
            return self._usages[0]
        last = self._usages[-1] if self._usages else Usage()
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

    @property
    def _begun_again(self) -> bool:
        return bool(self._choices) and self.tokens != self._usages[0].completion_tokens

    def _shown(self, chunk: Chunk) -> Chunk | None:
        match chunk:
            case Accepted():
                if self._accepted:
                    return None
                self._accepted = True
                return chunk
            case Text():
                self.answered = True
                choice = self._choices[self._first + chunk.index]
                if chunk.tokens:
                    choice.tokens.extend(chunk.tokens)
                elif chunk.text and not choice.tokens:
                    choice.echoed = True
            case Finished():
                self.answered = True
                self._choices[self._first + chunk.index].finished = True
            case Embedding():
                self.answered = True
                if chunk.index in self._embedded:
                    return None
                self._embedded.add(chunk.index)
                return chunk
            case _:
                self.answered = True
                return chunk
        return msgspec.structs.replace(chunk, index=self._first + chunk.index) if self._first else chunk
