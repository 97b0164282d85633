"""What every bench shares: rows of the table, rounds in turn, medians, and what a bench is given."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from tests.bench.load import LoadProcess

Better = Literal["at least", "at most"]


class BenchError(Exception):
    """A measurement that would be no measurement: a wrong answer, a missing token, a process that died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    value: str
    against: str = ""  # what the value is compared with, and that one's value
    ratio: float | None = None
    target: str = ""
    met: bool | None = None  # None: there is no target


@dataclass(slots=True)
class Session:
    """What a bench is given."""

    quick: bool
    folder: Path  # for data folders of nodes; gone when the run is over
    load: LoadProcess
    tell: Callable[[str], None]  # what is going on, for who waits
    threads: int  # of every engine that is measured
    warnings: list[str] = field(default_factory=list)  # what a reader of the table must know

    def rounds(self, quick: int, full: int) -> int:
        """How often to measure."""
        return quick if self.quick else full

    def data(self, name: str) -> Path:
        """A fresh data folder."""
        number = sum(1 for _ in self.folder.iterdir())
        return self.folder / f"{name}-{number}"

    def warn(self, text: str) -> None:
        """Say it now and again under the table."""
        self.warnings.append(text)
        self.tell(f"[bold red]{text}[/]")


@dataclass(frozen=True, slots=True)
class Bench:
    """A named family of measurements."""

    name: str
    line: str  # for --list
    run: Callable[[Session], Awaitable[list[Row]]]


Measure = Callable[[int], Awaitable[float]]
"""One measurement; the argument is the round's number, for prompts that no cache has seen."""


async def in_turn(session: Session, sides: Mapping[str, Measure], rounds: int) -> dict[str, list[float]]:
    """Measure all sides once a round, each round beginning with another, so that noise of the machine hits all alike.

    Round 0, not counted, warms all of them up.
    """
    names = list(sides)
    results: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            value = await sides[name](number)
            if number:
                results[name].append(value)
        if number:
            so_far = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in results.items())
            session.tell(f"[dim]round {number}/{rounds}: {so_far}[/]")
    return results


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """The median of the rounds' own ratios: what is slow for a while is slow for both."""
    return median([value / other for value, other in zip(values, others, strict=True)])


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def judged(value: float, better: Better, target: float) -> bool:
    """Whether `value` meets its target."""
    return value >= target if better == "at least" else value <= target


def all_cores() -> int:
    """What an engine takes unless it is told otherwise."""
    return psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
