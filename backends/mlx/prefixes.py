"""Which caches of ended sequences are kept, and which of them a prompt goes on from. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Found(NamedTuple):
    """A kept cache, of which the first `tokens` are wanted."""

    entry: int
    tokens: int


class Prefixes:
    """At most `limit_tokens` in all caches together; those used longest ago go first."""

    def __init__(self, limit_tokens: int) -> None:
        self._limit_tokens = limit_tokens
        self._entries: dict[int, list[int]] = {}  # least recently used first
        self._last = 0

    def find(self, tokens: Sequence[int], can_cut: Callable[[int], bool]) -> Found | None:
        """The cache with the longest common prefix. At least the last of `tokens` is left over: it has to be processed
        for what follows it. A cache that cannot be cut back is of use only as a whole."""
        best: Found | None = None
        for entry, held in self._entries.items():
            common = min(_common(held, tokens), len(tokens) - 1)
            if common > (best.tokens if best else 0) and (common == len(held) or can_cut(entry)):
                best = Found(entry, common)
        if best:
            self._entries[best.entry] = self._entries.pop(best.entry)
        return best

    def new(self) -> int:
        """A number for a cache that is to be made."""
        self._last += 1
        return self._last

    def keep(self, entry: int, tokens: list[int], *, can_cut: bool) -> list[int]:
        """`entry` holds `tokens` now; the entries to forget for it. One that is a prefix of it has no use any more, if
        the new one can be cut."""
        gone = [other for other, held in self._entries.items() if can_cut and tokens[: len(held)] == held]
        for other in gone:
            del self._entries[other]
        self._entries[entry] = tokens
        held_tokens = sum(map(len, self._entries.values()))
        while held_tokens > self._limit_tokens and len(self._entries) > 1:
            oldest = next(iter(self._entries))
            held_tokens -= len(self._entries.pop(oldest))
            gone.append(oldest)
        return gone


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    size = min(len(left), len(right))
    if list(left[:size]) == list(right[:size]):
        return size
    return next(index for index in range(size) if left[index] != right[index])
