"""Inbound connections that have not proven anything yet: bounded, so that silence is no way to lock others out.

py-libp2p holds a slot for each for 10 s, and has 250 (facts, trap 9). Here a newcomer is always let in, and the oldest
of the address that has the most of them goes: a flood from one address pushes out its own, and an honest handshake is
over within milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

MAX_PENDING = 128
MAX_PENDING_PER_ADDRESS = 32
HANDSHAKE_S = 5.0


class Pending:
    """The handshakes under way."""

    def __init__(self) -> None:
        self._scopes: dict[str, list[trio.CancelScope]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def handshake(self, host: str) -> Iterator[trio.CancelScope]:
        """Bound one handshake with `host`: by time, and by those that come after it."""
        scopes = self._scopes.setdefault(host, [])
        if len(scopes) >= MAX_PENDING_PER_ADDRESS:
            self._evict(host)
        elif self._count >= MAX_PENDING:
            self._evict(max(self._scopes, key=lambda each: len(self._scopes[each])))
        scope = trio.CancelScope(deadline=trio.current_time() + HANDSHAKE_S)
        self._scopes.setdefault(host, scopes).append(scope)
        self._count += 1
        try:
            with scope:
                yield scope
        finally:
            self._remove(host, scope)

    def _evict(self, host: str) -> None:
        scope = self._scopes[host][0]
        scope.cancel()
        self._remove(host, scope)

    def _remove(self, host: str, scope: trio.CancelScope) -> None:
        scopes = self._scopes.get(host, [])
        if scope in scopes:
            scopes.remove(scope)
            self._count -= 1
            if not scopes:
                self._scopes.pop(host, None)
