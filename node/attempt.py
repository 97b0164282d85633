"""One try at a request, here or on a peer: what node/local.py and node/remote.py give alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from backends.types import Usage


class Attempt(Protocol):
    """A request that an engine is answering. Leaving its context cancels it and frees its slot."""

    def batches(self) -> AsyncIterator[list[bytes]]:
        """The encoded chunks, all that are ready at once together.

        Raises the MeshError that ended the attempt, after the chunks that came before it; NodeGone when the peer or
        the way to it is gone, Bounced when the peer says that the call does better elsewhere.
        """

    @property
    def usage(self) -> Usage:
        """What the attempt cost; complete once `batches` has ended."""


class Bounced(Exception):  # no error: an answer
    """The peer would take clearly longer than the runner-up; nothing has been done there."""

    def __init__(self, expected_s: float) -> None:
        super().__init__(f"the node expects to take {expected_s:.2f} s")
        self.expected_s = expected_s
