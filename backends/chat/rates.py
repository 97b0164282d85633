"""The measured speeds of an engine, as moving averages: what routing and planning live on. Sans-IO."""

from __future__ import annotations

from backends.chat.gain import Gain

_WEIGHT = 0.1  # of the newest measurement


class Rates:
    """0 before the first measurement."""

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self.decode_tokens_per_s = 0.0
        self.decode_batch = 0.0
        self._gain = Gain()

    @property
    def decode_gain(self) -> float:
        """See Gain."""
        return self._gain.exponent

    def note_step(self, *, drawn: int, seconds: float) -> None:
        """One pass drew a token for each of so many sequences."""
        if drawn and seconds > 0:
            self._gain.note(drawn, seconds)
            self.decode_tokens_per_s = average(self.decode_tokens_per_s, drawn / seconds)
            self.decode_batch = average(self.decode_batch, drawn)

    def note_prompt(self, *, tokens: int, seconds: float) -> None:
        """So many tokens of prompts took so long."""
        if tokens and seconds > 0:
            self.prefill_tokens_per_s = average(self.prefill_tokens_per_s, tokens / seconds)


def average(old: float, new: float) -> float:
    """The mean `old`, moved by one measurement; the first counts whole."""
    return new if not old else old + _WEIGHT * (new - old)
