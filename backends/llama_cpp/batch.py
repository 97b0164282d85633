"""What goes into the next batch. Pure.

Decoding sequences go first, one token each; what room is left is for prompts, first come first served, and while
anybody decodes no more of it than keeps the pause between their tokens short. One 8k prompt therefore slows seven
running answers and never stops them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

STALL_S = 0.2
"""The longest that prompts should hold up running answers, in one step."""

MIN_PROMPT_TOKENS = 16
ECHO_TOKENS = 32
"""Prompt tokens a step when the logits of each are wanted: a row of logits may be a megabyte."""

EXACT_CHUNK_TOKENS = 64
"""Prompt tokens a step in the deterministic mode: a boundary must never depend on company or speed."""


class Pending(NamedTuple):
    """A sequence that has tokens to process."""

    slot: int
    tokens: int  # not yet processed
    decoding: bool  # its one token was drawn in the last step
    every_logit: bool = False


class Share(NamedTuple):
    """How much of a sequence goes into this batch."""

    slot: int
    tokens: int


def plan(pending: Sequence[Pending], *, batch_tokens: int, prefill_tokens_per_s: float) -> list[Share]:
    """The shares of one batch, by slot: llama.cpp wants the sequences of a batch in order. `pending` comes in order
    of arrival."""
    shares = [Share(item.slot, 1) for item in pending if item.decoding][:batch_tokens]
    room = batch_tokens - len(shares)
    if shares and prefill_tokens_per_s:
        room = min(room, max(MIN_PROMPT_TOKENS, int(prefill_tokens_per_s * STALL_S)))
    for item in pending:
        if item.decoding or room <= 0:
            continue
        tokens = min(item.tokens, room, ECHO_TOKENS if item.every_logit else room)
        shares.append(Share(item.slot, tokens))
        # One prompt with all its logits a step, so that the output buffer has a bound.
        room = 0 if item.every_logit else room - tokens
    return sorted(shares)


def plan_exact(pending: Sequence[Pending], *, last: int, position: int, prompt_tokens: int) -> Share:
    """The share of the one sequence `pending[last]`, as it would be if it were alone and new: whole aligned chunks
    of the prompt, then token by token."""
    item = pending[last]
    left_of_prompt = prompt_tokens - position
    if left_of_prompt <= 0:
        return Share(item.slot, 1)
    to_boundary = EXACT_CHUNK_TOKENS - position % EXACT_CHUNK_TOKENS
    limit = min(to_boundary, ECHO_TOKENS) if item.every_logit else to_boundary
    return Share(item.slot, min(left_of_prompt, limit))
