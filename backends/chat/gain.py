"""How an engine's decode rate grows with its batch, from what batches of different sizes took. Sans-IO."""

from __future__ import annotations

from math import log

_WEIGHT = 0.1  # of the newest measurement
_LEAST = 8  # steps of a size, before it says something
_MAX_SIZES = 256
_LEAST_GAIN = 0.01  # 0 says that nothing has been measured


class Gain:
    """The exponent g in rate ~ batch^g, all sequences together: 0, each sequence more slows the others by all it does
    itself; 1, it costs them nothing.

    A mean step time is kept for each batch size, and a line laid through their logarithms (least squares): a size that
    has not occurred for a while still counts, while what is measured now replaces what was measured before.
    """

    def __init__(self) -> None:
        self._steps: dict[int, tuple[int, float]] = {}  # by batch: how many, mean seconds

    def note(self, batch: int, seconds: float) -> None:
        """One step that drew a token for each of so many sequences took so long."""
        count, mean = self._steps.get(batch, (0, 0.0))
        if count or len(self._steps) < _MAX_SIZES:
            # A plain mean at first, so that one slow first step is not half of it for long.
            self._steps[batch] = count + 1, mean + max(_WEIGHT, 1 / (count + 1)) * (seconds - mean)

    @property
    def sizes(self) -> int:
        """Batch sizes that are kept."""
        return len(self._steps)

    @property
    def exponent(self) -> float:
        """From 0.01 to 1; 0 while the batches seen do not differ by a factor of two."""
        known = [(log(batch), log(batch / mean)) for batch, (count, mean) in self._steps.items() if count >= _LEAST]
        if not known or max(known)[0] - min(known)[0] < log(2) - 1e-9:
            return 0.0
        size, rate = (sum(column) / len(known) for column in zip(*known, strict=True))
        slope: float = sum((x - size) * (y - rate) for x, y in known) / sum((x - size) ** 2 for x, _ in known)
        return min(1.0, max(_LEAST_GAIN, slope))
