"""What an answer is made of, piece by piece, and put together again."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from backends.types import ToolCall


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the model thinks before it speaks."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins. Calls follow each other: the one before it, if any, is complete."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of call `index`'s arguments."""

    index: int
    text: str


Delta: TypeAlias = Content | Reasoning | CallStart | CallArguments


@dataclass(slots=True)
class Reply:
    """A whole answer."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    @classmethod
    def of(cls, deltas: Iterable[Delta]) -> Reply:
        """The answer whose pieces `deltas` are, in linear time."""
        content: list[str] = []
        reasoning: list[str] = []
        starts: list[CallStart] = []
        arguments: list[list[str]] = []
        for delta in deltas:
            match delta:
                case Content():
                    content.append(delta.text)
                case Reasoning():
                    reasoning.append(delta.text)
                case CallStart():
                    starts.append(delta)
                    arguments.append([])
                case CallArguments():
                    arguments[delta.index].append(delta.text)
        calls = [
            ToolCall(id=start.id, name=start.name, arguments="".join(parts))
            for start, parts in zip(starts, arguments, strict=True)
        ]
        return cls("".join(content), "".join(reasoning), calls)


class Writer:
    """Collects deltas: neighbours of a kind become one, and white space around tags is nobody's.

    White space at the end of content is held until it is known what follows: more content, or a tag.
    """

    def __init__(self) -> None:
        self._deltas: list[Delta] = []
        self._held = ""
        self._fresh = False  # nothing has been said since the last tag
        self._speaking = True  # what was said last is content
        self.calls = 0

    @property
    def clear(self) -> bool:
        """Whether content would be passed on as it is."""
        return not self._held and not self._fresh

    def take(self) -> list[Delta]:
        """The deltas since the last time."""
        taken, self._deltas = self._deltas, []
        return taken

    def content(self, text: str) -> None:
        """Say `text`."""
        self._say(Content, text)

    def reasoning(self, text: str) -> None:
        """Think `text`."""
        self._say(Reasoning, text)

    def boundary(self) -> None:
        """A tag stands here."""
        self._held = ""
        self._fresh = True

    def flush(self) -> None:
        """The answer is over: held white space belonged to its content."""
        if self._held and self._speaking:
            self._append(Content, self._held)
        self._held = ""

    def start(self, name: str) -> None:
        """A call of `name` begins."""
        self.boundary()
        self._deltas.append(CallStart(self.calls, f"call_{uuid.uuid4().hex[:24]}", name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that began last."""
        if not text:
            return
        last = self._deltas[-1] if self._deltas else None
        if isinstance(last, CallArguments):
            self._deltas[-1] = CallArguments(last.index, last.text + text)
        else:
            self._deltas.append(CallArguments(self.calls - 1, text))

    def _say(self, kind: type[Content] | type[Reasoning], text: str) -> None:
        if self._fresh:
            text = text.lstrip()
        if not text:
            return
        self._fresh = False
        self._speaking = kind is Content
        said = text.rstrip()
        if said:
            self._append(kind, self._held + said)
            self._held = ""
        self._held += text[len(said) :]

    def _append(self, kind: type[Content] | type[Reasoning], text: str) -> None:
        last = self._deltas[-1] if self._deltas else None
        if isinstance(last, kind):
            self._deltas[-1] = kind(last.text + text)
        else:
            self._deltas.append(kind(text))
