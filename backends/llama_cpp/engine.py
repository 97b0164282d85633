"""Continuous batching over llama.cpp: prompt chunks and decode steps of several calls in one pass.

Follows "Orca" (Yu et al., OSDI 2022) for iteration-level scheduling and "Sarathi-Serve" (Agrawal et al., OSDI
2024) for prompts in chunks that do not stall decoding.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from backends.chat.jobs import AnswerJob, Answers, EmbeddingJob
from backends.engine import Outlet
from backends.llama_cpp.batch import EXACT_CHUNK_TOKENS, Pending, Share, plan, plan_exact
from backends.llama_cpp.choice import Choice
from backends.llama_cpp.embeddings import Embedder
from backends.llama_cpp.jobs import GenerationJob, Job, Preparer
from backends.llama_cpp.native import Context, Model
from backends.llama_cpp.rates import Rates
from backends.llama_cpp.slots import Slots
from backends.types import Accepted, EngineFault, EngineInfo, EngineStats, MeshError, Request, Usage

if TYPE_CHECKING:  # the library behind it may not be there
    from backends.llama_cpp.vision import Sight


class _Running:
    """A generation with its choices, and what it has cost so far."""

    def __init__(self, job: GenerationJob) -> None:
        self.job = job
        self.choices = [
            Choice(job, index, sampler, text, [*job.prompt, *job.resume])
            for index, (sampler, text) in enumerate(zip(job.samplers, job.texts, strict=True))
        ]
        self.cached_tokens = 0
        self.admitted_at = 0.0
        self.first_token_at = 0.0

    def usage(self, now: float) -> Usage:
        resumed = len(self.job.resume)
        return Usage(
            prompt_tokens=len(self.job.prompt),
            cached_tokens=self.cached_tokens,
            completion_tokens=sum(choice.position - resumed for choice in self.choices),
            prefill_s=self.first_token_at - self.admitted_at,
            decode_s=now - self.first_token_at,
        )


class LlamaEngine:
    """Implements backends.engine.Engine."""

    def __init__(
        self,
        model: Model,
        context: Context | None,
        embedder: Embedder,
        preparer: Preparer,
        info: EngineInfo,
        *,
        batch_tokens: int,
        exact: bool,
        sight: Sight | None = None,
    ) -> None:
        """`context` is None for a model that only embeds; `exact` is the deterministic mode."""
        self._sight = sight
        self._model = model
        self._context = context
        self._embedder = embedder
        self._preparer = preparer
        self._info = info
        self._batch_tokens = batch_tokens
        self._exact = exact
        self._slots = Slots(info.slots, chunk=EXACT_CHUNK_TOKENS if exact else 1)
        self._answers = Answers()
        self._calls: dict[int, _Running] = {}
        self._waiting: deque[Choice] = deque()
        self._active: list[Choice] = []  # in order of arrival
        self._turn = 0
        self._rates = Rates()
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0

    def info(self) -> EngineInfo:
        return self._info

    def prepare(self, call: int, request: Request) -> Job:
        return self._preparer.prepare(call, request)

    def submit(self, job: Job) -> None:
        match job:
            case AnswerJob():
                self._answers.submit(job)
            case EmbeddingJob():
                self._embedder.submit(job)
            case GenerationJob():
                running = self._calls[job.call] = _Running(job)
                self._waiting.extend(running.choices)

    def cancel(self, call: int) -> None:
        self._embedder.cancel(call)
        self._answers.cancel(call)
        if running := self._calls.pop(call, None):
            for choice in running.choices:
                self._drop(choice)

    def step(self, outlet: Outlet) -> bool:
        worked = self._answers.step(outlet)
        worked = self._embedder.step(outlet) or worked
        self._admit(outlet)
        return self._decode(outlet) or worked

    def stats(self) -> EngineStats:
        return EngineStats(
            slots_used=self._slots.used,
            queued_tokens=self._embedder.queued_tokens
            + sum(len(choice.tokens) - choice.processed for choice in (*self._waiting, *self._active)),
            prefill_tokens_per_s=self._rates.prefill_tokens_per_s,
            decode_tokens_per_s=self._rates.decode_tokens_per_s,
            decode_batch=self._rates.decode_batch,
            decode_gain=self._rates.decode_gain,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
        )

    def close(self) -> None:
        self._calls.clear()
        self._embedder.close()
        if self._sight is not None:
            self._sight.close()
        if self._context is not None:
            self._context.close()
        self._model.close()

    # -- admission --

    def _admit(self, outlet: Outlet) -> None:
        while self._waiting:
            choice = self._waiting[0]
            job = choice.job
            taken = self._slots.take(choice.tokens, reuse=not choice.wants_every_logit)
            if taken is None:
                return
            self._waiting.popleft()
            choice.slot = taken.slot
            cached = job.pictures.whole(taken.cached) if job.pictures else taken.cached
            choice.processed = self._cut_back(taken.slot, cached)
            self._active.append(choice)
            running = self._calls[job.call]
            if choice.index == 0:
                running.admitted_at = time.monotonic()
                running.cached_tokens = choice.processed
                self._prompt_tokens += len(job.prompt)
                self._cached_tokens += choice.processed
                outlet.chunk(job.call, Accepted(len(job.prompt), job.form))
                self._reserve_forks(running)

    def _cut_back(self, slot: int, cached: int) -> int:
        assert self._context is not None
        if cached and self._context.truncate(slot, cached):
            return cached
        self._context.forget(slot)
        self._slots.lost(slot)
        return 0

    def _reserve_forks(self, running: _Running) -> None:
        """Keep slots for the other choices, which copy the prompt's cache once it is there. Those that get none stay
        in the queue and find the prompt in a slot later."""
        for choice in running.choices[1:]:
            slot = self._slots.reserve()
            if slot is None:
                return
            self._waiting.remove(choice)
            choice.slot = slot
            choice.waits_for_fork = True
            self._active.append(choice)

    # -- one batch --

    def _decode(self, outlet: Outlet) -> bool:
        ready = [choice for choice in self._active if not choice.waits_for_fork and outlet.ready(choice.job.call)]
        looking = next((choice for choice in ready if choice.before_picture), None)
        if looking is not None:  # one a step: the answers of others must not wait for more
            self._look(looking, outlet)
        ready = [choice for choice in ready if choice is not looking and not choice.before_picture]
        if not ready or self._context is None:
            return looking is not None
        by_slot = {choice.slot: choice for choice in ready}
        batch: list[tuple[Choice, int, int]] = []  # choice, its share, index of its last token
        self._context.begin()
        for share in self._plan(ready):
            choice = by_slot[share.slot]
            wanted = choice.tokens[choice.processed : choice.processed + share.tokens]
            last = self._context.add(
                wanted,
                choice.processed,
                share.slot,
                all_logits=choice.wants_every_logit,
                last_logits=choice.processed + share.tokens == len(choice.tokens),
            )
            batch.append((choice, share.tokens, last))
        started = time.monotonic()
        try:
            self._context.decode()
        except EngineFault as error:
            self._fail({choice.job.call for choice, _, _ in batch}, error, outlet)
            return True
        self._measure(batch, time.monotonic() - started)
        for choice, count, last in batch:
            if choice.job.call in self._calls:  # a sibling's failure may have ended the call in this very step
                self._take(choice, count, last, outlet)
        return True

    def _plan(self, ready: list[Choice]) -> Iterable[Share]:
        pending = [
            Pending(choice.slot or 0, choice.text_left, choice.started, choice.wants_every_logit) for choice in ready
        ]
        if not self._exact:
            return plan(pending, batch_tokens=self._batch_tokens, prefill_tokens_per_s=self._rates.prefill_tokens_per_s)
        self._turn = (self._turn + 1) % len(ready)
        choice = ready[self._turn]
        share = plan_exact(pending, last=self._turn, position=choice.processed, prompt_tokens=len(choice.job.prompt))
        return [Share(share.slot, min(share.tokens, choice.text_left))]

    def _look(self, choice: Choice, outlet: Outlet) -> None:
        """Process the picture that is the next of a prompt."""
        picture = choice.before_picture
        assert picture is not None
        assert self._sight is not None
        assert self._context is not None
        try:
            self._sight.look(picture, self._context, choice.slot or 0)
        except EngineFault as error:
            self._fail({choice.job.call}, error, outlet)
            return
        choice.processed = picture.end

    def _measure(self, batch: list[tuple[Choice, int, int]], seconds: float) -> None:
        decoding = sum(choice.started for choice, _, _ in batch)
        prompt = sum(count for choice, count, _ in batch if not choice.started)
        self._rates.note(prompt_tokens=prompt, decoding=decoding, seconds=seconds)

    def _take(self, choice: Choice, count: int, last: int, outlet: Outlet) -> None:
        """Use the results of one sequence's share of the batch."""
        assert self._context is not None
        if choice.wants_every_logit:
            for offset in range(count):
                row = self._context.logits(last - count + 1 + offset)
                choice.note_prompt_logits(self._model, row, choice.processed + offset)
        choice.processed += count
        if choice.processed < len(choice.tokens):
            return
        if choice.started:
            self._draw(choice, last, outlet)
            return
        for drawing in (choice, *self._fork(choice)):
            self._calls[choice.job.call].first_token_at = time.monotonic()
            drawing.show_echo(self._model, outlet)
            self._draw(drawing, last, outlet)
            if choice.job.call not in self._calls:
                return

    def _fork(self, choice: Choice) -> list[Choice]:
        """The choices of the same call that waited for this one's prompt, now with a copy of its cache."""
        assert self._context is not None
        forks = [other for other in self._calls[choice.job.call].choices if other.waits_for_fork]
        for other in forks:
            self._context.fork(choice.slot or 0, other.slot or 0)
            other.waits_for_fork = False
            other.processed = choice.processed
            other.echoed = choice.echoed
        return forks

    def _draw(self, choice: Choice, index: int, outlet: Outlet) -> None:
        assert self._context is not None
        call = choice.job.call
        try:
            choice.draw(self._model, self._context.handle, index, self._context.logits(index), outlet)
        except MeshError as error:
            self._fail({call}, error, outlet)
            return
        self._completion_tokens += 1
        if choice.finished:
            self._drop(choice)
            running = self._calls[call]
            if all(other.finished for other in running.choices):
                del self._calls[call]
                outlet.done(call, running.usage(time.monotonic()))

    # -- the end of a choice --

    def _fail(self, calls: set[int], error: MeshError, outlet: Outlet) -> None:
        for call in calls:
            self.cancel(call)
            outlet.failed(call, error)

    def _drop(self, choice: Choice) -> None:
        """Give back what a choice holds; what it has processed stays in its slot for the next prompt."""
        if choice in self._waiting:
            self._waiting.remove(choice)
        if choice.slot is None:
            return
        self._active.remove(choice)
        if choice.waits_for_fork:
            self._slots.release(choice.slot, None)
        else:
            # Only whole chunks of the prompt are what the deterministic mode may use again.
            aligned = min(choice.processed, len(choice.job.prompt))
            aligned -= aligned % EXACT_CHUNK_TOKENS
            self._slots.release(choice.slot, choice.tokens[: choice.processed], aligned=aligned)
        choice.slot = None
