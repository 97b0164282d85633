"""Text that arrives in pieces, for parsers that are generators: they yield where they need more of it.

No decision depends on where a piece ends, so any split of a text is read alike: a primitive either has what it needs
or yields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Parser: TypeAlias = Generator[None, None, T]

_IN_STRING = re.compile(r'["\\]')
_BETWEEN = re.compile(r'["{}\[\]]')
_SCALAR_END = re.compile(r"[\s,\]}]")


class Markers:
    """Strings to be found in a text. None may contain another: then the earliest one found is the right one."""

    def __init__(self, strings: Iterable[str]) -> None:
        self.strings = tuple(dict.fromkeys(strings))
        assert not any(one != other and one in other for one in self.strings for other in self.strings)
        self.pattern = re.compile("|".join(map(re.escape, self.strings)) or r"(?!)")
        firsts = "".join(sorted({re.escape(string[0]) for string in self.strings}))
        self.first = re.compile(f"[{firsts}]" if firsts else r"(?!)")
        self._longest = max(map(len, self.strings), default=0)

    def overlap(self, text: str) -> int:
        """Length of the longest end of `text` that may be the beginning of a marker."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            tail = text[at:]
            if any(string.startswith(tail) for string in self.strings):
                return len(tail)
        return 0


class Source:
    """What has arrived and has not been read."""

    def __init__(self) -> None:
        self.text = ""
        self.ended = False
        self._read: list[str] | None = None

    def remember(self) -> None:
        """From now on keep what is read, so that `forgotten` can give it back."""
        self._read = []

    def recall(self) -> str:
        """What was read since `remember`, which ends with this."""
        read, self._read = "".join(self._read or ()), None
        return read

    def take(self, count: int) -> str:
        """Read `count` characters that are there."""
        taken, self.text = self.text[:count], self.text[count:]
        if self._read is not None:
            self._read.append(taken)
        return taken

    def until(self, markers: Markers, emit: Callable[[str], None]) -> Parser[str | None]:
        """Read up to the first marker and pass on what comes before it. Returns the marker; None at the end.

        What may be the beginning of a marker at the end is left unread.
        """
        while True:
            if found := markers.pattern.search(self.text):
                emit(self.take(found.start()))
                return self.take(len(found[0]))
            emit(self.take(len(self.text) - markers.overlap(self.text)))
            if self.ended:
                return None
            yield

    def rest(self) -> str:
        """Read all that is there."""
        return self.take(len(self.text))

    def space(self) -> Parser[str]:
        """Read white space. Returns it when something else follows, or the end."""
        read = ""
        while True:
            read += self.take(len(self.text) - len(self.text.lstrip()))
            if self.text or self.ended:
                return read
            yield

    def follows(self, *strings: str) -> Parser[str | None]:
        """Read whichever of `strings` comes next; none of them begins with another. None: something else does."""
        while True:
            for string in strings:
                if self.text.startswith(string):
                    return self.take(len(string))
            if self.ended or not any(string.startswith(self.text) for string in strings):
                return None
            yield

    def peek(self) -> Parser[str]:
        """The next character, unread; empty at the end."""
        while not self.text and not self.ended:
            yield
        return self.text[:1]

    def matching(self, pattern: re.Pattern[str], limit: int) -> Parser[str]:
        """Read characters as long as each of them matches, at most `limit`."""
        read = ""
        while len(read) < limit:
            end = next((at for at, one in enumerate(self.text) if not pattern.match(one)), len(self.text))
            end = min(end, limit - len(read))
            read += self.take(end)
            if self.text or self.ended:
                break
            yield
        return read

    def value(self, emit: Callable[[str], None]) -> Parser[bool]:
        """Read one JSON value and pass its text on, byte by byte as it stands. False: it was cut off, or is none.

        Brackets are counted, not matched: what a model writes is passed on even where it is wrong.
        """
        first = yield from self.peek()
        if first not in ("{", "[", '"'):
            return (yield from self._scalar(emit))
        depth = 0
        quoted = False
        while True:
            found = (_IN_STRING if quoted else _BETWEEN).search(self.text)
            if found is None:
                emit(self.take(len(self.text)))
            elif found[0] == "\\":
                if len(self.text) > found.end():  # with the character that it escapes
                    emit(self.take(found.end() + 1))
                    continue
                emit(self.take(found.start()))
            else:
                emit(self.take(found.end()))
                if found[0] == '"':
                    quoted = not quoted
                else:
                    depth += 1 if found[0] in "{[" else -1
                if not quoted and depth <= 0:
                    return True
                continue
            if self.ended:
                emit(self.take(len(self.text)))
                return False
            yield

    def _scalar(self, emit: Callable[[str], None]) -> Parser[bool]:
        some = False
        while True:
            found = _SCALAR_END.search(self.text)
            read = self.take(found.start() if found else len(self.text))
            some = some or bool(read)
            emit(read)
            if found or self.ended:
                return some and found is not None
            yield
