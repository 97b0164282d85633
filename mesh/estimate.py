"""When a replica would finish a request: expected completion time, term by term. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mesh.records import Load, Offer
from mesh.reservations import NOTHING, Reservation
from mesh.transport import PeerId


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """A request, as far as routing has to know it."""

    model: str
    capability: str
    digest: str | None = None
    """Set when a call is resumed: another digest would continue another text."""
    prompt_tokens: int = 0
    prefix: tuple[int, ...] = ()
    """The prompt's hash chain (mesh/prefix.py)."""
    output_tokens: int = 0
    """Expected, not the limit that the client set."""
    pinned: PeerId | None = None
    exclude: frozenset[PeerId] = frozenset()
    """Peers that have failed this very call."""
    weight: int = 1
    """Slots that it takes: its choices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """One peer's offer of one model, with all that this node knows of it."""

    peer: PeerId
    name: str
    offer: Offer
    load: Load
    """The last report. Of this node itself: read now."""
    rtt_s: float = 0.0
    reserved: Reservation = NOTHING
    """Of this node itself: nothing, as the load is not old."""
    cached_tokens: int = 0
    """Of this prompt, by mesh/prefix.py."""
    local: bool = False
    error_rate: float = 0.0
    """As this node saw it: calls that broke on the way, of which the peer may not know."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The parts of an expected completion time, in seconds."""

    queue_s: float = 0.0
    load_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    round_trip_s: float = 0.0
    penalty_s: float = 0.0

    @property
    def total_s(self) -> float:
        """The expected completion time."""
        return self.queue_s + self.load_s + self.prefill_s + self.decode_s + self.round_trip_s + self.penalty_s


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that was looked at."""

    replica: Replica
    terms: Terms
    slots_free: int
    reason: str = ""
    """Why it cannot take the request; empty if it can."""


def estimate(replica: Replica, need: Need, siblings: Iterable[Replica] = ()) -> Candidate:
    """The terms of one replica; the rates of `siblings` stand in where it has measured none itself.

    The target of a call asks this too, with its own load of now, to see whether it should bounce the call.
    """
    raise NotImplementedError
