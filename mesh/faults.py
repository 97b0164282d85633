"""How often calls have failed lately: counts that fade with time, so that a node is forgiven without being tried."""

from __future__ import annotations

HALF_LIFE_S = 15.0
"""After this time a failure counts half. Shorter: a node that recovers is used again sooner. Longer: one that fails now
and then is not mistaken for a healthy one."""

_DOUBT = 1.0  # calls without a failure that everybody starts with: one failure in one call is not 100 %


class Faults:
    """The error rate of one replica, as whoever counts it has seen it. Sans-IO."""

    def __init__(self, *, half_life_s: float = HALF_LIFE_S) -> None:
        self._half_life_s = half_life_s
        self._at = 0.0
        self._calls = 0.0
        self._failed = 0.0

    def record(self, *, failed: bool, now: float) -> None:
        """A call has ended; `failed` if that was the node's fault, not the caller's."""
        self._fade(now)
        self._calls += 1
        self._failed += failed

    def rate(self, now: float) -> float:
        """The share of recent calls that failed, below 1."""
        self._fade(now)
        return self._failed / (self._calls + _DOUBT)

    def _fade(self, now: float) -> None:
        factor = 0.5 ** (max(0.0, now - self._at) / self._half_life_s)
        self._calls *= factor
        self._failed *= factor
        self._at = max(self._at, now)
