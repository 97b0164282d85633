"""The port to where a swarm keeps what it knows between runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mesh.records import SignedRecord


@dataclass(frozen=True, slots=True)
class Remembered:
    """What outlives a run: enough to rejoin without a token as long as one known address lives."""

    records: tuple[SignedRecord, ...] = ()
    bans: tuple[bytes, ...] = ()
    """Opaque: signed bans as they travel."""


class Memory(Protocol):
    """Implemented by the node; `save` is called on change, at most every few seconds."""

    def load(self) -> Remembered:
        """What was saved last; empty at first, and when it cannot be read (log it)."""

    async def save(self, remembered: Remembered) -> None:
        """Replace what was saved. Must not raise."""
