"""What llama.cpp's batches say of its speeds: prompts and decoding sequences share them. Sans-IO."""

from __future__ import annotations

from backends.chat import rates
from backends.chat.rates import average

_MIN_PROMPT_TOKENS = 16  # fewer say more about fixed costs than about the rate


class Rates(rates.Rates):
    """Measured rates; 0 before the first measurement."""

    def __init__(self) -> None:
        super().__init__()
        self._step_s = 0.0  # a batch of decoding sequences alone

    def note(self, *, prompt_tokens: int, decoding: int, seconds: float) -> None:
        """One batch: so many tokens of prompts and so many decoding sequences took so long."""
        if seconds <= 0:
            return
        if not prompt_tokens and decoding:
            self._step_s = average(self._step_s, seconds)
            self.note_step(drawn=decoding, seconds=seconds)
        elif prompt_tokens >= _MIN_PROMPT_TOKENS:
            # In a mixed batch the decoding part costs about what it costs alone.
            own = seconds - (self._step_s if decoding else 0.0)
            if own > seconds / 4:
                self.note_prompt(tokens=prompt_tokens, seconds=own)
