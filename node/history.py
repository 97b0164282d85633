"""The last quarter of an hour of a node, in steps, for charts: a ring of samples. Sans-IO.

Every node keeps its own ring; who draws charts asks the others for what is new in theirs (`/mesh/ask/1`, "history").
Samples are numbered from the node's start, and their time is "so many seconds ago": no clocks are compared.

- Tokens are what this node's engines did, for whoever asked: their counters' difference over a step.
- Requests are those that entered here, wherever they ran. So the sum over all nodes counts everything once.
- Times to first token are kept as they are, at most `MAX_FIRST` of a step, drawn by lot where there are more: medians
  of several nodes cannot be put together, their values can.
"""

from __future__ import annotations

import random
import secrets
from collections import deque
from collections.abc import Iterable
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

STEP_S = 5.0
STEPS = 180
"""A quarter of an hour."""
MAX_FIRST = 16

_Number: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=1_000_000_000)]


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One step of a node."""

    prefill_tokens_per_s: _Number = 0.0
    decode_tokens_per_s: _Number = 0.0
    slots_used: _Count = 0
    """Of this node's engines, at the end of the step."""
    running: _Count = 0
    """Requests that entered here, at the end of the step."""
    queued: _Count = 0
    """Those that wait for a slot: held here, or in the queues of this node's models; at the end of the step."""
    finished: _Count = 0
    failed: _Count = 0
    """By whosever fault; what its client has cancelled is neither."""
    first_token_s: Annotated[tuple[_Number, ...], Meta(max_length=MAX_FIRST)] = ()


class Told(msgspec.Struct, frozen=True):
    """What a node answers: the samples that the asker has not seen."""

    boot: Annotated[str, Meta(max_length=32)]
    """Of this run of the node: numbers of another run mean nothing."""
    first: Annotated[int, Meta(ge=0)]
    """Number of the first of `samples`."""
    age_s: Annotated[float, Meta(ge=0, le=1e9)]
    """How long ago the last one ended."""
    up_s: Annotated[float, Meta(ge=0, le=1e12)]
    """How long the node has run."""
    samples: Annotated[tuple[Sample, ...], Meta(max_length=STEPS)]


class Totals(msgspec.Struct, frozen=True):
    """An engine's counters since its model was loaded."""

    prefilled: int
    decoded: int


class History:
    """This node's own ring."""

    def __init__(self, now: float, *, rng: random.Random | None = None) -> None:
        self._boot = secrets.token_hex(8)
        self._rng = rng or random.Random()  # noqa: S311  # chooses what is shown, guards nothing
        self._started = self._last = now
        self._samples: deque[Sample] = deque(maxlen=STEPS)
        self._taken = 0
        self._totals: dict[str, Totals] = {}
        self._finished = self._failed = self._begun = 0
        self._first: list[float] = []

    def began(self, first_token_s: float) -> None:
        """An answer has begun, so long after its request had arrived."""
        self._begun += 1
        value = round(max(0.0, min(first_token_s, 1e9)), 4)
        if len(self._first) < MAX_FIRST:
            self._first.append(value)
        elif (place := self._rng.randrange(self._begun)) < MAX_FIRST:
            self._first[place] = value

    def ended(self, outcome: str) -> None:
        """A request that entered here has ended."""
        self._finished += outcome == "ok"
        self._failed += outcome not in ("ok", "cancelled")

    def take(self, now: float, totals: dict[str, Totals], *, slots_used: int, running: int, queued: int) -> None:
        """End a step: `totals` are the counters of all loaded models."""
        step_s = max(now - self._last, 0.001)
        prefilled = decoded = 0
        for model, total in totals.items():
            before = self._totals.get(model, Totals(0, 0))
            if total.decoded < before.decoded or total.prefilled < before.prefilled:
                before = Totals(0, 0)  # it has been loaded anew
            prefilled += total.prefilled - before.prefilled
            decoded += total.decoded - before.decoded
        self._totals = totals
        self._samples.append(
            Sample(
                round(prefilled / step_s, 2),
                round(decoded / step_s, 2),
                slots_used,
                running,
                queued,
                self._finished,
                self._failed,
                tuple(self._first),
            )
        )
        self._taken += 1
        self._last = now
        self._finished = self._failed = self._begun = 0
        self._first = []

    def tell(self, seen: str, now: float) -> Told:
        """What an asker lacks who has `seen` all before a number: "<boot>:<number>"; anything else has seen nothing."""
        boot, _, number = seen.partition(":")
        oldest = self._taken - len(self._samples)
        known = int(number) if boot == self._boot and number.isascii() and number.isdigit() else 0
        first = min(max(known, oldest), self._taken)
        samples = tuple(self._samples)[first - oldest :]
        return Told(self._boot, first, round(now - self._last, 3), round(now - self._started, 3), samples)


class Copy:
    """What is known here of another node's ring."""

    def __init__(self) -> None:
        self._boot = ""
        self._next = 0
        self._samples: deque[Sample] = deque(maxlen=STEPS)
        self._ended = 0.0
        self._started = 0.0

    @property
    def seen(self) -> str:
        """For `History.tell`."""
        return f"{self._boot}:{self._next}"

    def put(self, told: Any, now: float) -> bool:
        """Take in an answer, as plain JSON values; False for one that is none of ours."""
        try:
            news = msgspec.convert(told, Told)
        except msgspec.ValidationError:
            return False
        if news.boot != self._boot or news.first > self._next:  # it has started anew, or we have missed some
            self._samples.clear()
        elif news.first < self._next and news.samples:  # not asked for, and known
            return False
        self._boot = news.boot
        self._samples.extend(news.samples)
        self._next = news.first + len(news.samples)
        self._ended = now - news.age_s
        self._started = now - news.up_s
        return True

    def shown(self, now: float) -> dict[str, Any] | None:
        """The samples by field, oldest first, without those that are older than the ring is long; None for none."""
        age_s = max(0.0, now - self._ended)
        return columns(self._samples, age_s, now - self._started)


def columns(samples: Iterable[Sample], age_s: float, up_s: float) -> dict[str, Any] | None:
    """Samples by field, oldest first, those that have ended within the last quarter of an hour; None without any."""
    kept = list(samples)
    room = int((STEPS * STEP_S - age_s) // STEP_S) + 1 if age_s < STEPS * STEP_S else 0
    kept = kept[-room:] if room else []
    if not kept:
        return None
    fields = {name: [getattr(sample, name) for sample in kept] for name in Sample.__struct_fields__}
    return {"age_s": round(age_s, 3), "up_s": round(up_s, 3), **fields}
