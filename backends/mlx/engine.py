"""Continuous batching over mlx-lm: what runs, what waits, what is kept of the caches, and what is sent.

mlx-lm batches the passes (its BatchGenerator); here are the calls. A sequence whose reader is slow is taken out with
its cache, and comes back as any other that finds its beginning in a kept cache.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from backends.chat.jobs import AnswerJob, Answers, EmbeddingJob
from backends.chat.rates import Rates
from backends.engine import Outlet
from backends.mlx.embeddings import Embedder
from backends.mlx.jobs import GenerationJob, Job, Preparer
from backends.mlx.orders import Fill, Forget, Insert, Order, Remove, Step
from backends.mlx.pieces import Pieces
from backends.mlx.prefixes import Prefixes
from backends.mlx.scores import token_logprob
from backends.textstream import TextStream
from backends.types import (
    Accepted,
    EngineInfo,
    EngineStats,
    Finished,
    FinishReason,
    Request,
    Text,
    TokenLogprob,
    Usage,
)

SCORED_TOKENS = 32
"""Prompt tokens a step when the log-probabilities of each are wanted: a row may be a megabyte."""


class Device(Protocol):
    """As much of backends/mlx/device.py as is asked here, or all ranks of a model together."""

    def carry_out(self, order: Order) -> Any: ...

    def can_cut(self, entry: int) -> bool: ...

    def kept(self, entry: int) -> bool: ...

    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Choice:
    """One choice of a generation. `tokens`: prompt, resumed and drawn."""

    job: GenerationJob
    index: int
    text: TextStream
    tokens: list[int]
    number: int = 0  # on the device, while it runs
    stop: str | None = None  # met with the last of the resumed tokens
    finished: bool = False

    @property
    def position(self) -> int:
        return len(self.tokens) - len(self.job.prompt)


@dataclass(slots=True, eq=False)
class _Running:
    """A generation, and what it has cost so far."""

    job: GenerationJob
    choices: list[_Choice] = field(default_factory=list)
    accepted: bool = False
    cached_tokens: int = 0
    admitted_at: float = 0.0
    first_token_at: float = 0.0
    filled: int = 0  # tokens of the prompt that were processed ahead of the choices
    entry: int = 0  # where they are
    echoed: list[TokenLogprob] = field(default_factory=list)

    @property
    def scores(self) -> bool:
        return self.job.echo is not None and self.job.logprobs is not None

    def usage(self, now: float) -> Usage:
        resumed = len(self.job.resume)
        first = self.first_token_at or now
        return Usage(
            prompt_tokens=len(self.job.prompt),
            cached_tokens=self.cached_tokens,
            completion_tokens=sum(choice.position - resumed for choice in self.choices),
            prefill_s=first - self.admitted_at,
            decode_s=now - first,
        )


class MlxEngine:
    """Implements backends.engine.Engine."""

    def __init__(
        self,
        device: Device,
        pieces: Pieces,
        preparer: Preparer,
        info: EngineInfo,
        *,
        end_tokens: tuple[int, ...],
        kept_tokens: int,
        prompt_tokens: int,
        exact: bool,
    ) -> None:
        """`exact` is the deterministic mode: every sequence is computed alone, and none goes on from a kept cache."""
        self._device = device
        self._pieces = pieces
        self._preparer = preparer
        self._info = info
        self._end_tokens = frozenset(end_tokens)
        self._exact = exact
        self._prompt_tokens = prompt_tokens
        self._prefixes = Prefixes(kept_tokens)
        self._embedder = Embedder(device, self._prefixes.new)
        self._answers = Answers()
        self._calls: dict[int, _Running] = {}
        self._waiting: deque[_Choice] = deque()
        self._active: dict[int, _Choice] = {}  # by number, in order of arrival
        self._filling: _Running | None = None
        self._last_number = 0
        self._turn = 0
        self._rates = Rates()
        self._totals = [0, 0, 0]  # prompt, cached, completion tokens

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
                for index in range(len(job.recipes)):
                    choice = _Choice(job, index, job.text(), [*job.prompt, *job.resume])
                    for token in job.resume:
                        choice.stop = choice.text.push(self._piece(choice, token)).stop
                    running.choices.append(choice)
                self._waiting.extend(running.choices)

    def cancel(self, call: int) -> None:
        self._embedder.cancel(call)
        self._answers.cancel(call)
        if running := self._calls.pop(call, None):
            self._waiting = deque(choice for choice in self._waiting if choice.job.call != call)
            if self._filling is running:
                self._device.carry_out(Forget([running.entry]))
                self._filling = None
            for choice in running.choices:
                self._take_out(choice)

    def step(self, outlet: Outlet) -> bool:
        worked = self._answers.step(outlet)
        worked = self._embedder.step(outlet) or worked
        self._pause(outlet)
        worked = self._admit(outlet) or worked
        return self._decode(outlet) or worked

    def stats(self) -> EngineStats:
        return EngineStats(
            slots_used=len(self._active) + (self._filling is not None),
            queued_tokens=self._embedder.queued_tokens + sum(len(choice.tokens) for choice in self._waiting),
            prefill_tokens_per_s=self._rates.prefill_tokens_per_s,
            decode_tokens_per_s=self._rates.decode_tokens_per_s,
            decode_batch=self._rates.decode_batch,
            decode_gain=self._rates.decode_gain,
            prompt_tokens=self._totals[0],
            cached_tokens=self._totals[1],
            completion_tokens=self._totals[2],
        )

    def close(self) -> None:
        self._calls.clear()
        self._device.close()

    # -- who runs --

    def _pause(self, outlet: Outlet) -> None:
        if self._exact:
            return  # it is left out of the turns
        for choice in [choice for choice in self._active.values() if not outlet.ready(choice.job.call)]:
            self._take_out(choice)
            self._waiting.appendleft(choice)

    def _admit(self, outlet: Outlet) -> bool:
        """Let in who waits, in order, but for those whose readers do not keep up. Whether there was work in it."""
        if self._filling is not None:
            return self._fill(self._filling, outlet)
        for choice in list(self._waiting):
            if len(self._active) >= self._info.slots:
                return False
            running = self._calls.get(choice.job.call)
            if running is None or choice.finished or not outlet.ready(choice.job.call):
                continue
            if not running.accepted:
                self._accept(running, outlet)
            if not running.filled and (running.scores or (len(running.choices) > 1 and not self._exact)):
                self._filling = running
                return self._fill(running, outlet)
            self._waiting.remove(choice)
            if choice.stop is not None:
                self._close(choice, "stop", choice.stop, outlet)
            elif choice.position >= choice.job.limit:
                self._finish(choice, "length", None, outlet)
            else:
                self._insert(choice, running)
                continue
            self._end(running, outlet)
        return False

    def _accept(self, running: _Running, outlet: Outlet) -> None:
        running.accepted = True
        running.admitted_at = time.monotonic()
        self._totals[0] += len(running.job.prompt)
        outlet.chunk(running.job.call, Accepted(len(running.job.prompt), running.job.form))
        if not running.scores:
            self._echo(running, outlet)

    def _echo(self, running: _Running, outlet: Outlet) -> None:
        """Send the prompt itself, where it was asked for."""
        job = running.job
        if job.echo is None:
            return
        logprobs: tuple[TokenLogprob, ...] = ()
        if job.logprobs is not None:
            first = job.prompt[0]
            logprobs = (TokenLogprob(first, self._pieces[first], None), *running.echoed)
        for choice in running.choices:
            outlet.chunk(job.call, Text(choice.index, job.echo, (), logprobs))

    def _fill(self, running: _Running, outlet: Outlet) -> bool:
        """Process a prompt ahead of its choices, a piece a step: for its own log-probabilities, or for all of them at
        once. Its last token is left to the choices."""
        job = running.job
        end = len(job.prompt) - 1
        running.entry = running.entry or self._prefixes.new()
        size = SCORED_TOKENS if running.scores else self._prompt_tokens
        tokens = job.prompt[running.filled : min(end, running.filled + size)]
        if tokens:
            rows = self._device.carry_out(Fill(running.entry, tokens))
            if job.logprobs is not None and running.scores:
                following = job.prompt[running.filled + 1 :]
                running.echoed += [
                    token_logprob(self._pieces, row, token, job.logprobs)
                    for row, token in zip(rows, following, strict=False)
                ]
            running.filled += len(tokens)
        if running.filled < end:
            return True
        self._filling = None
        if end == 0:
            running.filled = 1  # nothing to do, and it is done
        else:
            self._keep(running.entry, job.prompt[:end])
        if running.scores:
            self._echo(running, outlet)
        return True

    def _insert(self, choice: _Choice, running: _Running) -> None:
        found = None if self._exact else self._prefixes.find(choice.tokens, self._device.can_cut)
        kept = found.tokens if found else 0
        if choice.index == 0 and choice.position == len(choice.job.resume) and not running.filled:
            running.cached_tokens = min(kept, len(choice.job.prompt))
            self._totals[1] += running.cached_tokens
        self._last_number += 1
        choice.number = self._last_number
        self._active[choice.number] = choice
        self._device.carry_out(
            Insert(
                number=choice.number,
                tokens=list(choice.tokens),
                prompt=len(choice.job.prompt),
                entry=found.entry if found else 0,
                kept=kept,
                limit=choice.job.limit - choice.position,
                recipe=choice.job.recipes[choice.index],
                position=choice.position,
                wants_rows=choice.job.logprobs is not None,
                exact=self._exact,
            )
        )

    def _take_out(self, choice: _Choice) -> None:
        """Give back a choice's place. What is cached of it is kept for the next prompt, or for itself."""
        if not choice.number:
            return
        number, choice.number = choice.number, 0
        del self._active[number]
        if self._exact:
            self._device.carry_out(Remove(number))
            return
        entry, tokens = self._prefixes.new(), choice.tokens[:-1]  # the last has perhaps not been processed
        self._device.carry_out(Remove(number, entry, len(tokens)))
        if self._device.kept(entry):
            self._keep(entry, tokens)

    def _keep(self, entry: int, tokens: list[int]) -> None:
        if gone := self._prefixes.keep(entry, tokens, can_cut=self._device.can_cut(entry)):
            self._device.carry_out(Forget(gone))

    # -- one pass --

    def _decode(self, outlet: Outlet) -> bool:
        number = 0
        if self._exact:
            ready = [number for number, choice in self._active.items() if outlet.ready(choice.job.call)]
            if not ready:
                return False
            self._turn += 1
            number = ready[self._turn % len(ready)]
        elif not self._active:
            return False
        before = time.monotonic()
        drawn = self._device.carry_out(Step(number))
        self._rates.note_step(drawn=len(drawn), seconds=time.monotonic() - before)
        for item in drawn:
            choice = self._active.get(item.number)
            if choice is not None:
                self._take(choice, item.token, item.row, outlet)
        return True

    def _take(self, choice: _Choice, token: int, row: Any, outlet: Outlet) -> None:
        running = self._calls[choice.job.call]
        if not running.first_token_at:
            running.first_token_at = time.monotonic()
            fresh = len(running.job.prompt) - running.cached_tokens
            self._rates.note_prompt(tokens=fresh, seconds=running.first_token_at - running.admitted_at)
        self._totals[2] += 1
        if token in self._end_tokens:
            self._finish(choice, "stop", None, outlet)
        else:
            choice.tokens.append(token)
            shown = choice.text.push(self._piece(choice, token))
            logprobs: tuple[TokenLogprob, ...] = ()
            if choice.job.logprobs is not None and row is not None:
                logprobs = (token_logprob(self._pieces, row, token, choice.job.logprobs),)
            outlet.chunk(choice.job.call, Text(choice.index, shown.text, (token,), logprobs))
            if shown.stop is not None:
                self._close(choice, "stop", shown.stop, outlet)
            elif choice.position >= choice.job.limit:
                self._finish(choice, "length", None, outlet)
        if choice.finished:
            self._take_out(choice)
            self._end(running, outlet)

    def _piece(self, choice: _Choice, token: int) -> bytes:
        return choice.job.shown.get(token) or self._pieces[token]

    def _finish(self, choice: _Choice, reason: FinishReason, stop: str | None, outlet: Outlet) -> None:
        rest = choice.text.finish()
        if rest.text:
            outlet.chunk(choice.job.call, Text(choice.index, rest.text))
        self._close(choice, "stop" if rest.stop else reason, rest.stop or stop, outlet)

    @staticmethod
    def _close(choice: _Choice, reason: FinishReason, stop: str | None, outlet: Outlet) -> None:
        choice.finished = True
        outlet.chunk(choice.job.call, Finished(choice.index, reason, stop))

    def _end(self, running: _Running, outlet: Outlet) -> None:
        if all(choice.finished for choice in running.choices):
            del self._calls[running.job.call]
            outlet.done(running.job.call, running.usage(time.monotonic()))
