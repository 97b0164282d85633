"""When a replica would finish a request: expected completion time, term by term. Pure.

    ect = queued work / rate + load time if not loaded + (prompt tokens - cached prefix) / prefill rate
        + expected output / decode rate at that batch size + round trip + penalty for recent errors

Rates are what each replica measured. Where one has measured nothing yet, the fastest replica of the same digest stands
in, so that a newcomer is tried; from its third call at a time on, the slowest does, so that it is not flooded before it
has shown what it can do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mesh.records import Load, Offer
from mesh.reservations import NOTHING, Reservation
from mesh.transport import PeerId

BATCH_GAIN = 0.2
"""How a replica's decode rate grows with its batch, all sequences together: batch to this power. 0: not at all; 1: each
sequence is as fast as one alone. This stands in until a replica has measured its own at batches of different sizes.
Measured on two CPU cores: 71, 91 and 106 tokens/s at 1, 4 and 8, which is 0.2. A GPU gains more; the lower figure errs
towards the emptier replica."""

PROBES = 2
"""Calls at a time that a replica without measurements gets on the credit of the fastest."""

PREFILL_TOKENS_PER_S = 500.0
DECODE_TOKENS_PER_S = 20.0
"""Stand in when no replica of the digest has measured anything: the same for all, so that slots decide."""

LOAD_BYTES_PER_S = 500e6
LOAD_LEAST_S = 1.0
"""A load that nobody has measured: its bytes from a disk, and a second for the process."""

RETRY_S = 0.5
"""What a failed attempt costs beyond the time it took: noticing, choosing again, a new stream. It also keeps a node
that fails at once from looking like the fastest of all."""

_WORST_ERROR_RATE = 0.95


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
class Rates:
    """What a replica's times were reckoned with."""

    prefill_tokens_per_s: float
    single_tokens_per_s: float
    """Decode, one sequence alone."""
    measured: bool = True
    gain: float = BATCH_GAIN

    def decode_tokens_per_s(self, batch: int) -> float:
        """Of all sequences of a batch together."""
        return self.single_tokens_per_s * math.pow(max(1, batch), self.gain)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A replica that was looked at."""

    replica: Replica
    need: Need
    terms: Terms
    slots_free: int
    active: int
    """Calls that run or wait there, to this node's knowledge, in slots."""
    batch: int
    """Sequences that would decode together with this request, itself included."""
    cached_tokens: int
    """Of the prompt; none if the model is not loaded there."""
    error_rate: float
    rates: Rates
    reason: str = ""
    """Why it cannot take the request; empty if it can."""

    @property
    def slots(self) -> int:
        """Of the replica in all."""
        return slots_of(self.replica)

    @property
    def cached_share(self) -> float:
        """Of the prompt."""
        return self.cached_tokens / max(1, self.need.prompt_tokens)


def estimate(replica: Replica, need: Need, siblings: Iterable[Replica] = ()) -> Candidate:
    """The terms of one replica; the rates of `siblings` stand in where it has measured none itself.

    The target of a call asks this too, with its own load of now, to see whether it should bounce the call.
    """
    return Estimator((replica, *siblings)).candidate(replica, need)


def slots_of(replica: Replica) -> int:
    """Sequences at a time: what is loaded, or else what is offered."""
    return max(1, replica.load.slots or replica.offer.slots)


class Estimator:
    """Estimates replicas of a view against each other: it knows the fastest and the slowest of each digest."""

    def __init__(self, replicas: Iterable[Replica]) -> None:
        measured: dict[str, list[Rates]] = {}
        for replica in replicas:
            rates = _measured(replica)
            if rates.prefill_tokens_per_s or rates.single_tokens_per_s:
                measured.setdefault(replica.offer.digest, []).append(rates)
        self._fastest = {digest: _extreme(rates, max) for digest, rates in measured.items()}
        self._slowest = {digest: _extreme(rates, min) for digest, rates in measured.items()}

    def candidate(self, replica: Replica, need: Need) -> Candidate:
        """One replica's terms."""
        load, reserved = replica.load, replica.reserved
        slots = slots_of(replica)
        weight = min(max(1, need.weight), slots)
        active = max(0, load.slots_used + load.queued - reserved.ended) + reserved.calls
        batch = min(slots, active + weight)
        rates = self._rates(replica, need, active)
        prefill, decode = rates.prefill_tokens_per_s, rates.decode_tokens_per_s

        cached = min(need.prompt_tokens, replica.cached_tokens) if load.state == "ready" else 0
        # Prompts that are not prefilled yet go first, whether they wait for a slot or not; and each call that we have
        # to wait for, until a slot is ours, decodes about as much as this one will.
        ahead = max(0, active + weight - slots)
        unread = load.queued_tokens or load.queued * need.prompt_tokens  # an engine may not tell
        backlog_tokens = unread + reserved.prompt_tokens
        queue_s = backlog_tokens / prefill + ahead * need.output_tokens / decode(slots)
        # A sequence's last prompt token is always decoded anew.
        prefill_s = max(min(1, need.prompt_tokens), need.prompt_tokens - cached) / prefill
        decode_s = need.output_tokens * batch / decode(batch)
        round_trip_s = 0.0 if replica.local else replica.rtt_s
        load_s = _load_s(replica)
        error_rate = min(_WORST_ERROR_RATE, max(load.error_rate, replica.error_rate))
        try_s = queue_s + load_s + prefill_s + decode_s + round_trip_s + RETRY_S
        penalty_s = try_s * error_rate / (1 - error_rate)  # of 1 / (1 - rate) tries, all but the last are lost
        return Candidate(
            replica=replica,
            need=need,
            terms=Terms(queue_s, load_s, prefill_s, decode_s, round_trip_s, penalty_s),
            slots_free=max(0, slots - active),
            active=active,
            batch=batch,
            cached_tokens=cached,
            error_rate=error_rate,
            rates=rates,
        )

    def _rates(self, replica: Replica, need: Need, active: int) -> Rates:
        own = _measured(replica)
        known = bool(own.single_tokens_per_s if need.output_tokens else own.prefill_tokens_per_s)
        others = self._fastest if known or active < PROBES else self._slowest
        other = others.get(replica.offer.digest, _UNKNOWN)
        return Rates(
            own.prefill_tokens_per_s or other.prefill_tokens_per_s or PREFILL_TOKENS_PER_S,
            own.single_tokens_per_s or other.single_tokens_per_s or DECODE_TOKENS_PER_S,
            known,
            own.gain if own.single_tokens_per_s else other.gain,
        )


_UNKNOWN = Rates(0.0, 0.0, measured=False)


def _measured(replica: Replica) -> Rates:
    """Its own rates; 0 for what it has not measured."""
    load = replica.load
    gain = load.decode_gain or BATCH_GAIN
    single = load.decode_tokens_per_s / max(1.0, load.decode_batch) ** gain
    return Rates(load.prefill_tokens_per_s, single, gain=gain)


def _extreme(rates: Sequence[Rates], which: Callable[[Iterable[float]], float]) -> Rates:
    prefill = [one.prefill_tokens_per_s for one in rates if one.prefill_tokens_per_s]
    gains = {one.single_tokens_per_s: one.gain for one in rates if one.single_tokens_per_s}
    single = which(gains) if gains else 0.0
    return Rates(which(prefill) if prefill else 0.0, single, gain=gains.get(single, BATCH_GAIN))


def _load_s(replica: Replica) -> float:
    load, offer = replica.load, replica.offer
    if load.state == "ready":
        return 0.0
    whole = load.load_s or offer.load_s or LOAD_LEAST_S + offer.memory_bytes / LOAD_BYTES_PER_S
    return whole / 2 if load.state == "loading" else whole  # somewhere in the middle of it
