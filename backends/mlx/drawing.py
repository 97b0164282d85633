"""A recipe carried out on the device: penalties, truncation in llama.cpp's order, and the draw.

Nothing here waits for a result: mlx-lm computes a token while the one before it is being sent.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import mlx.core as mx

from backends.mlx.recipe import Recipe

_NEVER = -float("inf")


class Drawer:
    """Draws the tokens of one sequence, from `position` of its answer on. Called once for each token, in order.

    With a `group` the first rank's draw is everybody's: on unlike machines the last bits of the logits may differ, and
    sequences that part never meet again.
    """

    def __init__(self, recipe: Recipe, *, position: int, wants_rows: bool, group: Any = None) -> None:
        self._recipe = recipe
        self._position = position
        self._wants_rows = wants_rows
        self._group = group
        self._bias = (
            (mx.array(list(recipe.bias), mx.int32), mx.array(list(recipe.bias.values()), mx.float32))
            if recipe.bias
            else None
        )
        self.rows: deque[Any] = deque()
        """Log-probabilities of the model's own distribution, a row for each token drawn, if they are wanted."""

    @property
    def processors(self) -> list[Any]:
        """What mlx-lm is to call with the logits before it calls the drawer itself."""
        return [self._process] if self._wants_rows or self._recipe.window or self._bias else []

    def _process(self, context: Any, logits: Any) -> Any:
        logits = logits.astype(mx.float32)
        if self._wants_rows:
            self.rows.append(logits[0] - mx.logsumexp(logits[0]))
        recipe = self._recipe
        if self._bias:
            logits = logits.at[:, self._bias[0]].add(self._bias[1])
        if recipe.window:
            seen = context[-recipe.window :]
            counts = mx.zeros(logits.shape[-1], mx.float32).at[seen].add(1.0)
            scaled = mx.where(logits > 0, logits / recipe.repeat_penalty, logits * recipe.repeat_penalty)
            lowered = scaled - counts * recipe.frequency_penalty - recipe.presence_penalty
            logits = mx.where(counts > 0, lowered, logits)
        return logits

    def __call__(self, logprobs: Any) -> Any:
        """The next token of a sequence with these log-probabilities, both with a leading axis of one."""
        recipe, position = self._recipe, self._position
        self._position += 1
        if recipe.temperature <= 0:
            token = mx.argmax(logprobs, axis=-1)
        else:
            kept = truncated(logprobs.astype(mx.float32), recipe)
            key = mx.random.key(recipe.draw_seed(position))
            token = mx.random.categorical(kept * (1.0 / recipe.temperature), key=key)
        token = token.astype(mx.int32)
        if self._group is not None:
            mine = token if self._group.rank() == 0 else mx.zeros_like(token)
            token = mx.distributed.all_sum(mine, group=self._group)
        return token.astype(mx.uint32)


def truncated(logprobs: Any, recipe: Recipe) -> Any:
    """`logprobs` with minus infinity for what may not be drawn. The likeliest may always."""
    if 0 < recipe.top_k < logprobs.shape[-1]:
        least = mx.sort(logprobs, axis=-1)[..., -recipe.top_k, None]
        logprobs = mx.where(logprobs < least, _NEVER, logprobs)
    if recipe.typical_p < 1.0:
        logprobs = _typical(logprobs, recipe.typical_p)
    if recipe.top_p < 1.0:
        logprobs = _nucleus(logprobs, recipe.top_p)
    if recipe.min_p > 0.0:
        least = mx.max(logprobs, axis=-1, keepdims=True) + math.log(recipe.min_p)
        logprobs = mx.where(logprobs < least, _NEVER, logprobs)
    return logprobs


def _nucleus(logprobs: Any, share: float) -> Any:
    ordered = -mx.sort(-logprobs, axis=-1)
    chances = mx.softmax(ordered, axis=-1)
    before = mx.cumsum(chances, axis=-1) - chances  # the share of all that are likelier
    least = mx.min(mx.where(before < share, ordered, float("inf")), axis=-1, keepdims=True)
    return mx.where(logprobs < least, _NEVER, logprobs)


def _typical(logprobs: Any, share: float) -> Any:
    """Those whose surprise is nearest to the expected one."""
    chances = mx.softmax(logprobs, axis=-1)
    own = mx.log(chances)
    possible = chances > 0
    expected = -mx.sum(mx.where(possible, chances * own, 0.0), axis=-1, keepdims=True)
    distance = mx.where(possible, mx.abs(-own - expected), float("inf"))
    order = mx.argsort(distance, axis=-1)
    sorted_chances = mx.take_along_axis(chances, order, axis=-1)
    before = mx.cumsum(sorted_chances, axis=-1) - sorted_chances
    nearest = mx.take_along_axis(distance, order, axis=-1)
    farthest = mx.max(mx.where(before < share, nearest, _NEVER), axis=-1, keepdims=True)
    return mx.where(distance > farthest, _NEVER, logprobs)
