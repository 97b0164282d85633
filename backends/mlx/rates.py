"""The measured speeds of an engine, as moving averages."""

from __future__ import annotations

from backends.chat.gain import Gain

_WEIGHT = 0.1  # of a new measurement


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

    def note(self, *, drawn: int, seconds: float) -> None:
        """One pass that drew so many tokens."""
        if drawn and seconds > 0:
            self._gain.note(drawn, seconds)
            self.decode_tokens_per_s = _mean(self.decode_tokens_per_s, drawn / seconds)
            self.decode_batch = _mean(self.decode_batch, float(drawn))

    def note_prompt(self, *, tokens: int, seconds: float) -> None:
        """A prompt of so many tokens took so long, from its admission to its first token."""
        if tokens and seconds > 0:
            self.prefill_tokens_per_s = _mean(self.prefill_tokens_per_s, tokens / seconds)


def _mean(old: float, new: float) -> float:
    return new if old == 0 else old + _WEIGHT * (new - old)
