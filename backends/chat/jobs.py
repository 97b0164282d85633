"""The jobs that are the same on every engine: answers that are known already, and inputs to embed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.engine import Outlet
from backends.types import Chunk, Embedding, Usage


@dataclass(frozen=True, slots=True)
class AnswerJob:
    """A call whose answer is already known."""

    call: int
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class EmbeddingJob:
    """One vector for each of the token lists, or one score."""

    call: int
    inputs: tuple[list[int], ...]


class Answers:
    """Queues answers that are known; all leave at the next step."""

    def __init__(self) -> None:
        self._jobs: deque[AnswerJob] = deque()

    def submit(self, job: AnswerJob) -> None:
        """Queue one."""
        self._jobs.append(job)

    def cancel(self, call: int) -> None:
        """Forget a call."""
        self._jobs = deque(job for job in self._jobs if job.call != call)

    def step(self, outlet: Outlet) -> bool:
        """Send all. False when there are none."""
        worked = bool(self._jobs)
        while self._jobs:
            job = self._jobs.popleft()
            outlet.chunk(job.call, job.chunk)
            outlet.done(job.call, Usage())
        return worked


@dataclass(slots=True, eq=False)
class EmbeddingInput:
    """One of the inputs of a call."""

    call: int
    index: int
    tokens: list[int]


class EmbeddingQueue:
    """The inputs of all calls in order, and what is left of each call."""

    def __init__(self) -> None:
        self.inputs: deque[EmbeddingInput] = deque()
        self._left: dict[int, int] = {}  # inputs left of each call
        self._tokens: dict[int, int] = {}  # prompt tokens of each call

    def submit(self, job: EmbeddingJob) -> None:
        """Queue all inputs of a call."""
        self._left[job.call] = len(job.inputs)
        self._tokens[job.call] = sum(map(len, job.inputs))
        self.inputs.extend(EmbeddingInput(job.call, index, tokens) for index, tokens in enumerate(job.inputs))

    def cancel(self, call: int) -> None:
        """Forget a call."""
        if self._left.pop(call, None) is not None:
            del self._tokens[call]
            self.inputs = deque(item for item in self.inputs if item.call != call)

    def finish(self, item: EmbeddingInput, result: Chunk, outlet: Outlet) -> None:
        """Send what has come of an input that was taken from `inputs`; with the last of a call it is done."""
        outlet.chunk(item.call, result)
        self._left[item.call] -= 1
        if not self._left[item.call]:
            del self._left[item.call]
            outlet.done(item.call, Usage(prompt_tokens=self._tokens.pop(item.call)))


def unit_vector(index: int, vector: NDArray[np.float32]) -> Embedding:
    """The result of input `index`, brought to length one."""
    return Embedding(index, (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype("<f4").tobytes())
