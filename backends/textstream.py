"""From token bytes to text that may be shown: whole characters only, and never the beginning of a stop string.

Sans-IO, used by every text engine.
"""

from __future__ import annotations

import codecs
from typing import NamedTuple


class Shown(NamedTuple):
    """What one push released."""

    text: str
    stop: str | None  # the stop string that was met; nothing of it, nor after it, is ever released


class TextStream:
    """Assembles one choice's text.

    Holds back an incomplete UTF-8 sequence, and the longest tail that could still become one of `stops`.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stop: str | None = None
        """The stop string that was met: the text is complete. A resumed generation may find itself here at once."""

    def push(self, data: bytes) -> Shown:
        """Add a token's bytes."""
        return self._release(self._utf8.decode(data))

    def finish(self) -> Shown:
        """The end of generation: what was held back in vain. An incomplete character becomes U+FFFD."""
        text, stop = self._release(self._utf8.decode(b"", final=True))
        rest, self._held = self._held, ""
        return Shown(text if stop else text + rest, stop)

    def _release(self, new: str) -> Shown:
        if self.stop is not None:
            return Shown("", self.stop)
        text = self._held + new
        if not self._stops:
            return Shown(text, None)
        # The earliest stop string wins; of two that start together the one given first.
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.stop = min(found, key=lambda hit: hit[0])
            self._held = ""
            return Shown(text[:at], self.stop)
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return Shown(text[: len(text) - keep], None)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that `text` ends with."""
    return next(
        (size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])),
        0,
    )
