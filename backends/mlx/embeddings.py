"""Embeddings: the mean of a language model's hidden states, taken in chunks so that running answers are not stalled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from backends.engine import Outlet
from backends.mlx.jobs import EmbeddingJob
from backends.mlx.orders import Fill, Forget, Order
from backends.types import Embedding, Usage

_CHUNK_TOKENS = 128


class Device(Protocol):
    """As much of a device as is asked here."""

    def carry_out(self, order: Order) -> Any: ...


@dataclass(slots=True)
class _Input:
    call: int
    index: int
    tokens: list[int]
    entry: int = 0
    processed: int = 0
    total: Any = 0.0  # of the hidden states


class Embedder:
    """Queues inputs and processes one chunk a step."""

    def __init__(self, device: Device, new_entry: Callable[[], int]) -> None:
        self._device = device
        self._new_entry = new_entry
        self._inputs: deque[_Input] = deque()
        self._left: dict[int, int] = {}  # inputs left of each call
        self._tokens: dict[int, int] = {}  # prompt tokens of each call

    @property
    def queued_tokens(self) -> int:
        """Tokens not processed yet."""
        return sum(len(item.tokens) - item.processed for item in self._inputs)

    def submit(self, job: EmbeddingJob) -> None:
        """Queue all inputs of a call."""
        self._left[job.call] = len(job.inputs)
        self._tokens[job.call] = sum(map(len, job.inputs))
        self._inputs.extend(_Input(job.call, index, tokens) for index, tokens in enumerate(job.inputs))

    def cancel(self, call: int) -> None:
        """Forget a call."""
        if self._left.pop(call, None) is not None:
            self._tokens.pop(call, None)
            if begun := [item.entry for item in self._inputs if item.call == call and item.entry]:
                self._device.carry_out(Forget(begun))
            self._inputs = deque(item for item in self._inputs if item.call != call)

    def step(self, outlet: Outlet) -> bool:
        """Process one chunk. False when there is none."""
        if not self._inputs:
            return False
        item = self._inputs[0]
        item.entry = item.entry or self._new_entry()
        chunk = item.tokens[item.processed : item.processed + _CHUNK_TOKENS]
        item.total = item.total + self._device.carry_out(Fill(item.entry, chunk, hidden=True)).sum(axis=0)
        item.processed += len(chunk)
        if item.processed == len(item.tokens):
            self._inputs.popleft()
            self._device.carry_out(Forget([item.entry]))
            self._finish(item, outlet)
        return True

    def _finish(self, item: _Input, outlet: Outlet) -> None:
        vector = item.total / max(float(np.linalg.norm(item.total)), 1e-12)
        outlet.chunk(item.call, Embedding(item.index, vector.astype("<f4").tobytes()))
        self._left[item.call] -= 1
        if not self._left[item.call]:
            del self._left[item.call]
            outlet.done(item.call, Usage(prompt_tokens=self._tokens.pop(item.call)))
