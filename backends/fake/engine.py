"""The fake engine: slots, prefix cache, pace and faults like a real one, words from a hash."""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from backends.engine import Outlet
from backends.fake import CAPABILITIES, CONTEXT_TOKENS, SLOTS
from backends.fake.language import (
    EMBEDDING_SIZE,
    VOCABULARY,
    embedding,
    fingerprint,
    next_token,
    piece,
    tokenize,
)
from backends.fake.settings import Settings, read_settings
from backends.textstream import TextStream
from backends.types import (
    Accepted,
    AnswerFormat,
    CallerError,
    ChatRequest,
    Chunk,
    CompletionRequest,
    ContextOverflow,
    DetokenizedText,
    DetokenizeRequest,
    Embedding,
    EmbeddingRequest,
    EngineInfo,
    EngineStats,
    Finished,
    LoadFailed,
    LoadSpec,
    Message,
    RankRequest,
    Request,
    Text,
    TokenIds,
    TokenizeRequest,
    TokenLogprob,
    TopLogprob,
    Unsupported,
    Usage,
)
from backends.types.requests import Generation

_SAY = "say:"
_BATCH_WEIGHT = 0.1  # of the newest step in the average batch
_NAP_S = 0.01  # the longest `step` waits, so that a cancel is never further away


@dataclass(slots=True)
class Sequence:
    """One choice of a call."""

    index: int
    answer: bytes
    text: TextStream
    position: int
    told: tuple[int, ...] | None = None  # the tokens to answer with, in place of words
    due: float = 0.0  # monotonic time of its next token
    finished: bool = False


@dataclass(slots=True)
class Job:
    """A prepared call: either chunks that are known already, or a generation."""

    call: int
    request: Request
    chunks: list[Chunk] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    limit: int = 0  # tokens of one choice
    complete: bool = False  # whether reaching the limit is a natural end
    sequences: list[Sequence] = field(default_factory=list)
    ready_at: float = 0.0  # when the prompt is processed
    usage: Usage = field(default_factory=Usage)
    form: AnswerFormat = field(default_factory=lambda: AnswerFormat(raw=True))


def open_engine(load: LoadSpec, progress: Callable[[float], None]) -> FakeEngine:
    """Open a fake model, in `load_s` seconds. Raises LoadFailed if told to."""
    settings = read_settings(load.engine)
    started = time.monotonic()
    while (share := (time.monotonic() - started) / settings.load_s if settings.load_s else 1.0) < 1.0:
        progress(share)
        time.sleep(min(0.05, settings.load_s))
    if settings.fault.refuse_load is not None:
        raise LoadFailed(settings.fault.refuse_load)
    return FakeEngine(load, settings)


class FakeEngine:
    """Implements backends.engine.Engine."""

    def __init__(self, load: LoadSpec, settings: Settings) -> None:
        self._settings = settings
        self._context = load.context_tokens or CONTEXT_TOKENS
        self._slots = load.slots or SLOTS
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._cached: deque[list[int]] = deque(maxlen=self._slots)
        self._prefill_free_at = 0.0
        self._batch = 0.0
        self._totals = [0, 0, 0]  # prompt, cached, completion tokens

    def info(self) -> EngineInfo:
        return EngineInfo(
            capabilities=CAPABILITIES,
            context_tokens=self._context,
            slots=self._slots,
            embedding_size=EMBEDDING_SIZE,
            details={"architecture": "fake", "vocabulary": VOCABULARY},
        )

    def prepare(self, call: int, request: Request) -> Job:
        match request:
            case TokenizeRequest():
                return Job(call, request, [TokenIds(tuple(tokenize(request.content)))])
            case DetokenizeRequest():
                text = b"".join(map(piece, request.tokens)).decode(errors="replace")
                return Job(call, request, [DetokenizedText(text)])
            case RankRequest():
                raise Unsupported(f"Model {request.model} does not rank.", param="model")
            case EmbeddingRequest():
                inputs = [tokenize(item) if isinstance(item, str) else list(item) for item in request.inputs]
                for tokens in inputs:
                    self._check(tokens)
                chunks = [Embedding(index, embedding(tokens)) for index, tokens in enumerate(inputs)]
                return Job(call, request, list(chunks), usage=Usage(prompt_tokens=sum(map(len, inputs))))
            case _:
                return self._prepare_generation(call, request)

    def _check(self, tokens: list[int]) -> None:
        for token in tokens:
            piece(token)
        if len(tokens) >= self._context:
            raise ContextOverflow(f"The prompt has {len(tokens)} tokens; the model's context is {self._context}.")

    def _prepare_generation(self, call: int, request: ChatRequest | CompletionRequest) -> Job:
        if request.grammar is not None or request.json_schema is not None:
            raise Unsupported("The fake backend has no grammars.", param="response_format")
        if request.resume and request.n != 1:
            raise CallerError("A resumed generation has one choice.", param="resume")
        prompt = self._prompt(request)
        self._check(prompt)
        room = self._context - len(prompt)
        told = self._told(request)
        length = self._settings.answer_tokens if told is None else len(told)
        natural = room if request.ignore_eos and told is None else min(room, length)
        limit = natural if request.max_tokens is None else min(room, request.max_tokens)
        complete = (told is not None or not request.ignore_eos) and limit >= length
        seed = 0
        if request.sampling.temperature:
            given = request.sampling.seed if request.sampling.seed is not None else request.salt
            seed = secrets.randbits(32) if given is None else given
        job = Job(call, request, prompt=prompt, limit=min(limit, natural), complete=complete)
        if isinstance(request, ChatRequest):
            job.form = AnswerFormat(self._settings.calls, self._settings.think, self._settings.thinking)
        for index in range(request.n):
            answer = fingerprint(prompt, (seed + request.first_choice + index) % 2**64 if seed else 0)
            text = TextStream(request.stop)
            for token in request.resume:
                text.push(piece(token))
            job.sequences.append(Sequence(index, answer, text, len(request.resume), told))
        return job

    def _told(self, request: ChatRequest | CompletionRequest) -> tuple[int, ...] | None:
        """The answer that the settings or the request itself name."""
        text = self._settings.says
        if isinstance(request, ChatRequest):
            last = request.messages[-1].text
            if self._settings.obeys and last.startswith(_SAY):
                text = last.removeprefix(_SAY).lstrip(" ")
            elif request.tool_choice.mode == "required" and text is None:
                name = (*request.tool_choice.allowed, *(tool.name for tool in request.tools))[0]
                text = json.dumps({"name": name, "arguments": {}})
        return None if text is None else tuple(tokenize(text))

    @staticmethod
    def _prompt(request: ChatRequest | CompletionRequest) -> list[int]:
        if isinstance(request, CompletionRequest):
            if request.suffix:
                raise Unsupported("The fake backend inserts nothing before a suffix.", param="suffix")
            return tokenize(request.prompt) if isinstance(request.prompt, str) else list(request.prompt)
        if any(isinstance(message.content, tuple) and not message.is_text for message in request.messages):
            raise Unsupported("The fake backend understands text alone.", param="messages")
        parts = [f"<{message.role}>{message.text}{_calls(message)}\n" for message in request.messages]
        if request.tools:
            parts.insert(0, f"<tools>{json.dumps([tool.name for tool in request.tools])}\n")
        return tokenize("".join(parts))

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def cancel(self, call: int) -> None:
        self._running.pop(call, None)
        self._waiting = deque(job for job in self._waiting if job.call != call)

    def step(self, outlet: Outlet) -> bool:
        """One token of every sequence that is due."""
        self._start_waiting(outlet)
        now = time.monotonic()
        next_due = math.inf
        worked = False
        for job in list(self._running.values()):
            if not outlet.ready(job.call):
                continue
            for sequence in job.sequences:
                due = max(job.ready_at, sequence.due)
                if sequence.finished:
                    continue
                if due <= now:
                    worked = True
                    self._advance(job, sequence, now, outlet)
                else:
                    next_due = min(next_due, due)
            if all(sequence.finished for sequence in job.sequences):
                del self._running[job.call]
                outlet.done(job.call, self._used(job))
        if not worked and next_due < math.inf:
            time.sleep(min(_NAP_S, next_due - now))
        return worked or next_due < math.inf

    def _start_waiting(self, outlet: Outlet) -> None:
        while self._waiting:
            job = self._waiting[0]
            used = sum(len(running.sequences) for running in self._running.values())
            if job.sequences and used and used + min(len(job.sequences), self._slots) > self._slots:
                return
            self._waiting.popleft()
            if not job.sequences:
                for chunk in job.chunks:
                    outlet.chunk(job.call, chunk)
                outlet.done(job.call, job.usage)
                continue
            self._start(job, outlet)

    def _start(self, job: Job, outlet: Outlet) -> None:
        cached = max((_common_prefix(job.prompt, known) for known in self._cached), default=0)
        cached = min(cached, len(job.prompt) - 1)
        self._cached.append(job.prompt)
        rate = self._settings.prefill_tokens_per_s
        prefill_s = (len(job.prompt) - cached) / rate if rate else 0.0
        now = time.monotonic()
        job.ready_at = self._prefill_free_at = max(now, self._prefill_free_at) + prefill_s
        job.usage = Usage(prompt_tokens=len(job.prompt), cached_tokens=max(0, cached), prefill_s=prefill_s)
        self._totals[0] += len(job.prompt)
        self._totals[1] += max(0, cached)
        self._running[job.call] = job
        outlet.chunk(job.call, Accepted(len(job.prompt), job.form))
        if isinstance(job.request, CompletionRequest) and job.request.echo and not job.request.resume:
            echoed = b"".join(map(piece, job.prompt)).decode(errors="replace")
            for sequence in job.sequences:
                outlet.chunk(job.call, Text(sequence.index, echoed, (), self._echo_logprobs(job)))

    def _echo_logprobs(self, job: Job) -> tuple[TokenLogprob, ...]:
        if not isinstance(job.request, Generation) or job.request.logprobs is None:
            return ()
        first, *rest = job.prompt
        return (TokenLogprob(first, piece(first), None), *(_logprob(token, job.request.logprobs) for token in rest))

    def _advance(self, job: Job, sequence: Sequence, now: float, outlet: Outlet) -> None:
        if sequence.text.stop is not None:  # with the last of the resumed tokens
            self._finish(job, sequence, "stop", sequence.text.stop, outlet)
            return
        if sequence.position >= job.limit:
            rest, stop = sequence.text.finish()
            if rest:
                outlet.chunk(job.call, Text(sequence.index, rest))
            self._finish(job, sequence, "stop" if stop or job.complete else "length", stop, outlet)
            return
        fault = self._settings.fault
        if fault.crash_after_tokens is not None and sequence.position >= fault.crash_after_tokens:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.hang_after_tokens is not None and sequence.position >= fault.hang_after_tokens:
            signal.pause()
        told = sequence.told
        token = next_token(sequence.answer, sequence.position) if told is None else told[sequence.position]
        sequence.position += 1
        self._totals[2] += 1
        rate = self._settings.decode_tokens_per_s
        sequence.due = max(now, sequence.due + 1 / rate, job.ready_at + 1 / rate) if rate else 0.0
        if rate:
            batch = self._decoding()
            self._batch += _BATCH_WEIGHT * (batch - self._batch) if self._batch else batch
        shown = sequence.text.push(piece(token))
        assert isinstance(job.request, Generation)
        top = job.request.logprobs
        logprobs = () if top is None else (_logprob(token, top),)
        outlet.chunk(job.call, Text(sequence.index, shown.text, (token,), logprobs))
        if shown.stop is not None:
            self._finish(job, sequence, "stop", shown.stop, outlet)

    @staticmethod
    def _finish(job: Job, sequence: Sequence, reason: str, stop: str | None, outlet: Outlet) -> None:
        sequence.finished = True
        outlet.chunk(job.call, Finished(sequence.index, "stop" if reason == "stop" else "length", stop))

    def _used(self, job: Job) -> Usage:
        resumed = len(job.request.resume) if isinstance(job.request, Generation) else 0
        return Usage(
            prompt_tokens=job.usage.prompt_tokens,
            cached_tokens=job.usage.cached_tokens,
            completion_tokens=sum(sequence.position - resumed for sequence in job.sequences),
            prefill_s=job.usage.prefill_s,
            decode_s=time.monotonic() - job.ready_at,
        )

    def stats(self) -> EngineStats:
        return EngineStats(
            slots_used=min(self._slots, self._decoding()),
            queued_tokens=sum(len(job.prompt) for job in self._waiting),
            prefill_tokens_per_s=self._settings.prefill_tokens_per_s,
            decode_tokens_per_s=self._settings.decode_tokens_per_s * self._batch,
            decode_batch=self._batch,
            decode_gain=1.0 if self._batch else 0.0,
            prompt_tokens=self._totals[0],
            cached_tokens=self._totals[1],
            completion_tokens=self._totals[2],
        )

    def _decoding(self) -> int:
        return sum(not sequence.finished for job in self._running.values() for sequence in job.sequences)

    def close(self) -> None:
        self._running.clear()
        self._waiting.clear()


def _calls(message: Message) -> str:
    return "".join(f" {call.name}({call.arguments})" for call in message.tool_calls)


def _common_prefix(left: list[int], right: list[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))


def _logprob(token: int, count: int) -> TokenLogprob:
    best = ((token + step) % VOCABULARY for step in range(count))
    top = tuple(TopLogprob(other, piece(other), -0.5 - rank) for rank, other in enumerate(best))
    return TokenLogprob(token, piece(token), -0.5, top)
