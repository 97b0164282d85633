"""Embeddings: the mean of a language model's hidden states, taken in chunks so that running answers are not stalled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from backends.chat.jobs import EmbeddingInput, EmbeddingJob, EmbeddingQueue, unit_vector
from backends.engine import Outlet
from backends.mlx.orders import Fill, Forget, Order

_CHUNK_TOKENS = 128


class Device(Protocol):
    """As much of a device as is asked here."""

    def carry_out(self, order: Order) -> Any: ...


class Embedder:
    """Queues inputs and processes one chunk a step."""

    def __init__(self, device: Device, new_entry: Callable[[], int]) -> None:
        self._device = device
        self._new_entry = new_entry
        self._queue = EmbeddingQueue()
        self._current: EmbeddingInput | None = None
        self._entry = 0  # the cache of the current one
        self._processed = 0  # tokens of it
        self._sum: Any = 0.0  # of its hidden states

    @property
    def queued_tokens(self) -> int:
        """Tokens not processed yet."""
        return sum(len(item.tokens) for item in self._queue.inputs) - (self._processed if self._current else 0)

    def submit(self, job: EmbeddingJob) -> None:
        """Queue all inputs of a call."""
        self._queue.submit(job)

    def cancel(self, call: int) -> None:
        """Forget a call."""
        self._queue.cancel(call)
        if self._current is not None and self._current.call == call:
            self._end()

    def step(self, outlet: Outlet) -> bool:
        """Process one chunk. False when there is none."""
        if not self._queue.inputs:
            return False
        item = self._queue.inputs[0]
        if self._current is None:
            self._current, self._entry, self._processed, self._sum = item, self._new_entry(), 0, 0.0
        chunk = item.tokens[self._processed : self._processed + _CHUNK_TOKENS]
        self._sum = self._sum + self._device.carry_out(Fill(self._entry, chunk, hidden=True)).sum(axis=0)
        self._processed += len(chunk)
        if self._processed == len(item.tokens):
            self._queue.inputs.popleft()
            self._end()
            self._queue.finish(item, unit_vector(item.index, self._sum), outlet)
        return True

    def _end(self) -> None:
        self._current = None
        self._device.carry_out(Forget([self._entry]))
