"""The port of all finders, and the one that knows its addresses beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from mesh.transport import Address, PeerId


@dataclass(frozen=True)
class Found:
    """A possible member. Nothing here is proven: a dial and the challenge decide."""

    peer: PeerId | None
    """Who it claims to be; None where only an address is known."""
    addresses: tuple[Address, ...]
    source: str
    """`lan`, `token`, `memory`: for logs and `mesh doctor`."""


@dataclass(frozen=True)
class Check:
    """One line of `mesh doctor`."""

    name: str
    ok: bool
    finding: str
    """A sentence: what was seen."""
    advice: str = ""
    """A sentence: what to do about it; empty when all is well."""


class Finder(Protocol):
    """Looks for members until cancelled."""

    async def run(
        self, found: Callable[[Found], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Call `found`, in the trio thread, for every sighting; the same one may be reported again.

        Never raises for a network that does not play along: `problem` then says why.
        """

    @property
    def problem(self) -> str:
        """A sentence that says why nothing can be found at present; empty when all is well."""


class ListFinder:
    """Reports given addresses, at once and again every `repeat_s` seconds, since dialling them may fail for long."""

    def __init__(self, addresses: tuple[Address, ...], *, source: str, repeat_s: float = 30.0) -> None:
        self._addresses, self._source, self._repeat_s = addresses, source, repeat_s

    @property
    def problem(self) -> str:
        """A list has none."""
        return ""

    async def run(
        self, found: Callable[[Found], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """One sighting an address, so that each is tried by itself."""
        task_status.started()
        while True:
            for address in self._addresses:
                found(Found(None, (address,), self._source))
            await trio.sleep(self._repeat_s)
