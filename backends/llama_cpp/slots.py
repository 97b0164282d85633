"""Which sequence of the KV cache a prompt gets: the free one that already holds the longest part of it. Sans-IO.

A slot remembers the tokens in its cache after its call has ended, so that the next turn of a conversation only
processes what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(slots=True)
class _Slot:
    tokens: list[int] = field(default_factory=list)  # in the cache, by position
    aligned: int = 0  # of them, from the start, processed as whole prompt chunks
    busy: bool = False
    used: int = 0  # turn of its last release; the least is evicted first


class Taken(NamedTuple):
    """A slot and how much of the prompt it already holds."""

    slot: int
    cached: int  # tokens


class Slots:
    """`count` sequences; `chunk` is the alignment of reuse, 1 for none (see `deterministic` in docs/design.md)."""

    def __init__(self, count: int, *, chunk: int = 1) -> None:
        self._slots = [_Slot() for _ in range(count)]
        self._chunk = chunk
        self._turn = 0

    @property
    def count(self) -> int:
        """How many sequences there are."""
        return len(self._slots)

    @property
    def used(self) -> int:
        """How many of them are taken."""
        return sum(slot.busy for slot in self._slots)

    def take(self, prompt: Sequence[int], *, reuse: bool = True) -> Taken | None:
        """A free slot for `prompt`, or None. At least its last token is left to process, for its logits."""
        free = [index for index, slot in enumerate(self._slots) if not slot.busy]
        if not free:
            return None
        shared = {index: self._shared(index, prompt) if reuse else 0 for index in free}
        best = max(free, key=lambda index: shared[index])
        # A short common beginning is no reason to give up a long conversation that another slot could spare.
        if 2 * shared[best] < min(len(prompt), len(self._slots[best].tokens)):
            best = min(free, key=self._cost_of_eviction)
        cached = min(shared[best], len(prompt) - 1)
        cached -= cached % self._chunk
        slot = self._slots[best]
        slot.busy = True
        slot.tokens = list(prompt[:cached])
        slot.aligned = cached
        return Taken(best, cached)

    def reserve(self) -> int | None:
        """A free slot for the fork of a prompt that is still being processed, or None."""
        free = [index for index, slot in enumerate(self._slots) if not slot.busy]
        if not free:
            return None
        index = min(free, key=self._cost_of_eviction)
        self._slots[index].busy = True
        return index

    def lost(self, slot: int) -> None:
        """The cache of a taken slot is gone."""
        self._slots[slot].tokens = []
        self._slots[slot].aligned = 0

    def release(self, slot: int, tokens: Sequence[int] | None, *, aligned: int = 0) -> None:
        """Free a slot whose cache now holds `tokens`; None: the cache is as it was before (an unused reservation)."""
        self._turn += 1
        freed = self._slots[slot]
        freed.busy = False
        if tokens is not None:
            freed.tokens = list(tokens)
            freed.aligned = aligned
            freed.used = self._turn

    def _shared(self, index: int, prompt: Sequence[int]) -> int:
        slot = self._slots[index]
        shared = common_prefix(slot.tokens, prompt)
        return shared if self._chunk == 1 else min(shared, slot.aligned)

    def _cost_of_eviction(self, index: int) -> tuple[bool, int, int]:
        # Empty ones first, and of those the one nearest to a busy one: llama.cpp joins neighbouring sequences
        # into one pass over the weights. Else the one unused for longest.
        slot = self._slots[index]
        busy = [other for other, candidate in enumerate(self._slots) if candidate.busy]
        distance = min((abs(index - other) for other in busy), default=index)
        return bool(slot.tokens), slot.used if slot.tokens else 0, distance


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    size = min(len(left), len(right))
    if list(left[:size]) == list(right[:size]):  # the usual case, at C's speed
        return size
    return next(index for index in range(size) if left[index] != right[index])
