"""Embeddings and rankings, by a context of their own that is made at the first one.

A model whose file says how to pool (mean, cls, last) is pooled by llama.cpp, several inputs in one pass; so is one that
ranks, whose pooled output is a score. A language model says nothing: its mean is taken here, chunk by chunk, so that a
long input neither stalls running answers nor needs the scratch memory of one huge batch.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import llama_cpp as native
import numpy as np

from backends.chat.jobs import EmbeddingInput, EmbeddingJob, EmbeddingQueue, unit_vector
from backends.engine import Outlet
from backends.llama_cpp.native import Context, Floats, Model
from backends.types import EngineFault, Score

_MAX_SEQUENCES = 8  # inputs in one pass
_CHUNK_TOKENS = 128
_POOLING_NONE = 0


class _Pass(Protocol):
    def run(self, inputs: deque[EmbeddingInput]) -> list[tuple[EmbeddingInput, Floats]]:
        """Do one unit of work for the first `inputs`; take out and return the finished ones with their vectors."""

    def close(self) -> None:
        """Free the context."""


class Embedder:
    """Queues inputs and does one unit of work a step."""

    def __init__(self, model: Model, *, pools: bool, ranks: bool, context_tokens: int, threads: int) -> None:
        """`pools`: the file says how to pool; `ranks`: it says that what comes of it is a score."""
        self._model = model
        self._ranks = ranks
        self._pools = pools
        self._context_tokens = context_tokens
        self._threads = threads
        self._pass: _Pass | None = None
        self._queue = EmbeddingQueue()
        # A ranking model's head may have several outputs; the first is the score.
        size = native.llama_model_n_cls_out if ranks else native.llama_model_n_embd_out
        self.size = int(size(model.handle))

    @property
    def queued_tokens(self) -> int:
        """Tokens not processed yet."""
        return sum(len(item.tokens) for item in self._queue.inputs)

    def submit(self, job: EmbeddingJob) -> None:
        """Queue all inputs of a call."""
        self._queue.submit(job)

    def cancel(self, call: int) -> None:
        """Forget a call."""
        self._queue.cancel(call)

    def step(self, outlet: Outlet) -> bool:
        """Do one unit of work. False when there is none."""
        if not self._queue.inputs:
            return False
        try:
            self._pass = self._pass or self._open()
            finished = self._pass.run(self._queue.inputs)
        except EngineFault as error:
            call = self._queue.inputs[0].call
            self.cancel(call)
            outlet.failed(call, error)
            return True
        for item, vector in finished:
            score = Score(item.index, float(vector[0])) if self._ranks else None
            self._queue.finish(item, score or unit_vector(item.index, vector), outlet)
        return True

    def close(self) -> None:
        """Free the context."""
        if self._pass is not None:
            self._pass.close()

    def _open(self) -> _Pass:
        made = _PooledPass if self._pools else _MeanPass
        return made(self._model, self.size, context_tokens=self._context_tokens, threads=self._threads)


class _PooledPass:
    """Inputs pooled by llama.cpp. Each must fit one physical batch, which is as long as the longest input."""

    def __init__(self, model: Model, size: int, *, context_tokens: int, threads: int) -> None:
        params = _params(threads)
        params.n_ctx = context_tokens * _MAX_SEQUENCES
        params.n_batch = params.n_ubatch = context_tokens
        params.n_seq_max = _MAX_SEQUENCES
        self._context = Context(model, params, batch_tokens=context_tokens)
        self._size = size

    def run(self, inputs: deque[EmbeddingInput]) -> list[tuple[EmbeddingInput, Floats]]:
        context = self._context
        batch: list[EmbeddingInput] = []
        context.begin()
        while inputs and len(batch) < _MAX_SEQUENCES and len(inputs[0].tokens) <= context.room:
            sequence, item = len(batch), inputs[0]
            context.forget(sequence)
            context.add(item.tokens, 0, sequence, all_logits=True, last_logits=True)
            batch.append(inputs.popleft())
        context.decode()
        return [(item, context.sequence_embedding(sequence, self._size)) for sequence, item in enumerate(batch)]

    def close(self) -> None:
        self._context.close()


@dataclass(slots=True)
class _MeanPass:
    """One input at a time, in chunks, its mean summed up here."""

    model: Model
    size: int
    context_tokens: int
    threads: int
    _context: Context = field(init=False)
    _current: EmbeddingInput | None = None
    _processed: int = 0
    _sum: Floats = field(init=False)

    def __post_init__(self) -> None:
        params = _params(self.threads)
        params.n_ctx = self.context_tokens
        params.n_batch = params.n_ubatch = _CHUNK_TOKENS
        params.n_seq_max = 1
        params.pooling_type = _POOLING_NONE
        self._context = Context(self.model, params, batch_tokens=_CHUNK_TOKENS)
        self._sum = np.zeros(self.size, np.float32)

    def run(self, inputs: deque[EmbeddingInput]) -> list[tuple[EmbeddingInput, Floats]]:
        item = inputs[0]
        if item is not self._current:  # also after the last one was cancelled half-way
            self._current, self._processed = item, 0
            self._sum = np.zeros(self.size, np.float32)
            self._context.forget(0)
        chunk = item.tokens[self._processed : self._processed + _CHUNK_TOKENS]
        self._context.begin()
        self._context.add(chunk, self._processed, 0, all_logits=True, last_logits=True)
        self._context.decode()
        for index in range(len(chunk)):
            self._sum += self._context.token_embedding(index, self.size)
        self._processed += len(chunk)
        if self._processed < len(item.tokens):
            return []
        self._current = None
        return [(inputs.popleft(), self._sum / np.float32(len(item.tokens)))]

    def close(self) -> None:
        self._context.close()


def _params(threads: int) -> native.llama_context_params:
    params: native.llama_context_params = native.llama_context_default_params()
    params.n_threads = params.n_threads_batch = threads
    params.embeddings = True
    params.kv_unified = False
    params.no_perf = True
    return params
