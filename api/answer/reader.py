"""The reader of one answer, and of all the answers of a chat.

Most answers are plain text. A reader finds out early and then costs a token nothing: see `AnswerReader.plain`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from api.answer.deltas import Content, Delta, Writer
from api.answer.families import FAMILIES
from api.answer.source import Markers, Parser, Source
from backends.types import THINK_TAGS, Accepted, AnswerFormat, ChatRequest, Chunk, Finished, Text, Tool


class AnswerReader:
    """Reads one answer. Its deltas, joined, are the same however the text is cut."""

    def __init__(self, form: AnswerFormat, tools: Sequence[Tool] = (), *, parallel: bool = True) -> None:
        """`tools` are those that may be called; without any, nothing is read as a call. Not `parallel`: what follows
        the first call is dropped."""
        self._source = Source()
        self._writer = Writer()
        self._form = form
        self._parallel = parallel
        offered = {tool.name: tool for tool in tools}
        self._family = FAMILIES[form.calls](self._source, self._writer, offered) if tools else None
        pairs = dict([form.think] if form.think else [])
        self._pairs = dict(THINK_TAGS) | pairs
        # Tags of reasoning that the template knows are tags wherever they stand, others only where an answer begins.
        self._markers = Markers(
            [
                *(tag for pair in pairs.items() for tag in pair),
                *((*self._family.opens, *self._family.closes) if self._family else ()),
            ]
        )
        self._starts = tuple(dict.fromkeys([*self._pairs, *self._markers.strings]))
        self._scanning = False
        self._thinking = False
        self.plain = form.raw
        """Whether all that follows is content as it stands."""
        self.reasoning_tokens = 0
        self._parser: Parser[None] | None = None if form.raw else self._answer()

    @property
    def calls(self) -> int:
        """How many tool calls have begun."""
        return self._writer.calls

    def push(self, text: str, tokens: int = 0) -> list[Delta]:
        """Read more of the answer, which took so many tokens."""
        if self.plain:
            return [Content(text)] if text else []
        between = self._scanning and self._writer.clear and not self._source.text
        if between and text and not self._markers.first.search(text) and not text[-1].isspace():
            return [Content(text)]  # nothing in sight of the next tag
        thought = self._thinking
        self._source.text += text
        self._advance()
        if thought or self._thinking:
            self.reasoning_tokens += tokens
        return self._writer.take()

    def finish(self) -> list[Delta]:
        """The answer is over: what was held back, as what it turned out to be."""
        if not self.plain:
            self._source.ended = True
            self._advance()
            self._writer.flush()
        return self._writer.take()

    def _advance(self) -> None:
        if self._parser is not None and next(self._parser, self) is self:
            self._parser = None  # it has returned: the rest is plain
            if self._source.text:
                self._writer.content(self._source.rest())
            self._writer.flush()
            self.plain = True

    def _answer(self) -> Parser[None]:
        source, writer, family = self._source, self._writer, self._family
        if self._form.thinking and self._form.think:
            writer.boundary()
            yield from self._think(*self._form.think)
        while True:
            space = yield from source.space()
            marker = yield from source.follows(*self._starts)
            writer.content(space)
            if marker is None:
                if family is not None and (yield from family.bare()):
                    if self._over():
                        return (yield from self._drop())
                    continue
                if not self._markers.strings:
                    return
                self._scanning = True
                marker = yield from source.until(self._markers, writer.content)
                self._scanning = False
                if marker is None:
                    rest = source.rest()
                    if not writer.calls:  # after calls it is the beginning of another one, cut off
                        writer.content(rest)
                    return
            if family is not None and marker in family.opens:
                yield from family.opened(marker)
                if self._over():
                    return (yield from self._drop())
                continue
            writer.boundary()
            if marker in self._pairs:
                yield from self._think(marker, self._pairs[marker])

    def _think(self, opener: str, closer: str) -> Parser[None]:
        """Reasoning up to its end, or that of the answer. An opening tag that is repeated is no text."""
        markers = Markers([opener, closer])
        self._thinking = True
        while (yield from self._source.until(markers, self._writer.reasoning)) == opener:
            pass
        if self._source.ended and self._source.text:
            self._writer.reasoning(self._source.rest())
        self._writer.boundary()
        self._thinking = False

    def _over(self) -> bool:
        return not self._parallel and self._writer.calls > 0

    def _drop(self) -> Parser[None]:
        while not self._source.ended:
            self._source.text = ""
            yield
        self._source.text = ""


class Readers:
    """Reads the chunks of a chat, all its choices."""

    def __init__(self, request: ChatRequest) -> None:
        choice = request.tool_choice
        allowed = set(choice.allowed) or {tool.name for tool in request.tools}
        self._tools = tuple(tool for tool in request.tools if tool.name in allowed and choice.mode != "none")
        self._parallel = choice.parallel
        self._choices = range(request.n)
        self._readers = self._made(AnswerFormat())

    def __getitem__(self, index: int) -> AnswerReader:
        """The reader of choice `index`."""
        return self._readers[index]

    def feed(self, chunk: Chunk) -> list[Delta]:
        """What `chunk` adds to its choice. `Accepted` tells the format, `Finished` releases what was held."""
        if isinstance(chunk, Text):
            return self._readers[chunk.index].push(chunk.text, len(chunk.tokens))
        if isinstance(chunk, Finished):
            return self._readers[chunk.index].finish()
        if isinstance(chunk, Accepted):
            self._readers = self._made(chunk.format)
        return []

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of reasoning so far, all choices together."""
        return sum(reader.reasoning_tokens for reader in self._readers.values())

    def _made(self, form: AnswerFormat) -> Mapping[int, AnswerReader]:
        return {index: AnswerReader(form, self._tools, parallel=self._parallel) for index in self._choices}
