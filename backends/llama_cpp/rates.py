"""Moving averages of what batches took: the figures that routing and the batch planner live on. Sans-IO."""

from __future__ import annotations

from backends.chat.gain import Gain

_WEIGHT = 0.1  # of the newest measurement
_MIN_PROMPT_TOKENS = 16  # fewer say more about fixed costs than about the rate


class Rates:
    """Measured rates; 0 before the first measurement."""

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self.decode_tokens_per_s = 0.0
        self.decode_batch = 0.0
        self._gain = Gain()
        self._step_s = 0.0  # a batch of decoding sequences alone

    @property
    def decode_gain(self) -> float:
        """See Gain."""
        return self._gain.exponent

    def note(self, *, prompt_tokens: int, decoding: int, seconds: float) -> None:
        """One batch: so many tokens of prompts and so many decoding sequences took so long."""
        if seconds <= 0:
            return
        if not prompt_tokens and decoding:
            self._gain.note(decoding, seconds)
            self._step_s = _average(self._step_s, seconds)
            self.decode_tokens_per_s = _average(self.decode_tokens_per_s, decoding / seconds)
            self.decode_batch = _average(self.decode_batch, decoding)
        elif prompt_tokens >= _MIN_PROMPT_TOKENS:
            # In a mixed batch the decoding part costs about what it costs alone.
            own = seconds - (self._step_s if decoding else 0.0)
            if own > seconds / 4:
                self.prefill_tokens_per_s = _average(self.prefill_tokens_per_s, prompt_tokens / own)


def _average(old: float, new: float) -> float:
    return new if not old else old + _WEIGHT * (new - old)
