"""A model on its device: sequences that mlx-lm batches, and caches that outlive them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from backends.mlx.drawing import Drawer
from backends.mlx.orders import Fill, Forget, Insert, Order, Remove, Step


class Drawn(NamedTuple):
    """A token of a sequence. `row` are the log-probabilities of all, if they were wanted."""

    number: int
    token: int
    row: Any | None


class Device:
    """Carries orders out. The same orders in the same sequence have the same results on every rank."""

    def __init__(self, model: Any, *, slots: int, prompt_tokens: int, group: Any = None) -> None:
        """`group`: the ranks that hold the model together; None: it is here as a whole."""
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._group = group
        self._shared = self._generator(slots)
        self._alone: dict[int, Any] = {}  # generators of exact sequences
        self._uids: dict[int, int] = {}  # mlx-lm's name of each sequence
        self._numbers: dict[int, int] = {}  # of the sequences that share passes, by mlx-lm's name
        self._drawers: dict[int, Drawer] = {}
        self._kept: dict[int, Any] = {}

    def carry_out(self, order: Order) -> Any:
        """What the order gives: a list of `Drawn` for a `Step`, an array of numbers for a `Fill`."""
        match order:
            case Insert():
                return self._insert(order)
            case Remove():
                return self._remove(order)
            case Step():
                return self._step(order.number)
            case Fill():
                return self._fill(order)
            case Forget():
                for entry in order.entries:
                    self._kept.pop(entry, None)
                return None

    def can_cut(self, entry: int) -> bool:
        """Whether a kept cache can be cut back to a prefix of what it holds."""
        return bool(can_trim_prompt_cache(self._kept[entry]))

    def close(self) -> None:
        """Let go of everything."""
        for generator in (self._shared, *self._alone.values()):
            generator.close()

    def _generator(self, slots: int) -> Any:
        return BatchGenerator(
            self._model,
            completion_batch_size=slots,
            prefill_batch_size=slots,
            prefill_step_size=self._prompt_tokens,
        )

    def _insert(self, order: Insert) -> None:
        drawer = Drawer(order.recipe, position=order.position, wants_rows=order.wants_rows, group=self._group)
        cache = None
        if order.entry:
            cache = copy.deepcopy(self._kept[order.entry])
            trim_prompt_cache(cache, _length(cache) - order.kept)
        rest = order.tokens[order.kept :]
        segments = [rest]
        generator = self._shared
        if order.exact:
            generator = self._alone[order.number] = self._generator(1)
            prompt = max(order.prompt - order.kept, 0)
            segments = [rest[: max(prompt - 1, 0)], *([token] for token in rest[max(prompt - 1, 0) :])]
        [uid] = generator.insert_segments(
            [[segment for segment in segments if segment]],
            max_tokens=[order.limit + 1],  # the engine ends it, so that its cache can still be had
            caches=[cache],
            all_tokens=[list(order.tokens[: order.kept])],
            samplers=[drawer],
            logits_processors=[drawer.processors],
            stop_sequences=[StopSequences()],
        )
        self._uids[order.number] = uid
        self._drawers[order.number] = drawer
        if not order.exact:
            self._numbers[uid] = order.number

    def _remove(self, order: Remove) -> None:
        uid = self._uids.pop(order.number)
        self._numbers.pop(uid, None)
        del self._drawers[order.number]
        generator = self._alone.pop(order.number, self._shared)
        removed = generator.remove([uid], return_prompt_caches=bool(order.entry))
        if generator is not self._shared:
            generator.close()
        if not order.entry:
            return
        cache, held = removed[uid]
        surplus = len(held) - order.tokens
        if surplus >= 0 and (not surplus or can_trim_prompt_cache(cache)):
            trim_prompt_cache(cache, surplus)
            mx.eval([layer.state for layer in cache])  # or it would hold on to the batch that it was cut from
            self._kept[order.entry] = cache

    def kept(self, entry: int) -> bool:
        """Whether there is such a cache: one that cannot be cut back may have gone too far to be kept."""
        return entry in self._kept

    def _step(self, number: int) -> list[Drawn]:
        generator = self._alone[number] if number else self._shared
        _, responses = generator.next()
        drawn = []
        for response in responses:
            owner = number or self._numbers[response.uid]
            rows = self._drawers[owner].rows
            row = np.array(rows.popleft()) if rows else None
            drawn.append(Drawn(owner, int(response.token), row))
        return drawn

    def _fill(self, order: Fill) -> Any:
        cache = self._kept.get(order.entry)
        if cache is None:
            cache = self._kept[order.entry] = make_prompt_cache(self._model)
        inputs = mx.array([order.tokens])
        with mx.stream(self._shared.stream):
            run: Callable[..., Any] = self._model.model if order.hidden else self._model
            result = run(inputs, cache=cache)[0].astype(mx.float32)
            mx.eval(result, [layer.state for layer in cache])
        return np.array(result)


def _length(cache: Any) -> int:
    return int(cache[0].offset)
