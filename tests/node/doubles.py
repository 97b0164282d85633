"""A scripted worker in place of a child process, and a pool that runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import trio

from api.ports import CallContext
from backends.engine import Backend
from backends.process import LogRing, Worker
from backends.types import (
    Accepted,
    Capability,
    ChatRequest,
    Chunk,
    CompletionRequest,
    DetokenizedText,
    DetokenizeRequest,
    Embedding,
    EmbeddingRequest,
    EngineCrashed,
    EngineInfo,
    EngineStats,
    Finished,
    LoadSpec,
    MeshError,
    ModelNeeds,
    RankRequest,
    Request,
    Score,
    Text,
    TokenIds,
    TokenizeRequest,
    Usage,
    decode_request,
    encode_chunk,
)
from node.catalog import ModelFile, ModelSpec
from node.metrics import Metrics
from node.pool import OpenWorker, Pool

CONTEXT = CallContext(request_id="r", client="c")
NEEDS = ModelNeeds(memory_bytes=4, context_tokens=100, slots=2, capabilities=(Capability.COMPLETION,))
ANSWER: tuple[Chunk, ...] = (
    Accepted(prompt_tokens=3),
    Text(index=0, text="hello", tokens=(1,)),
    Text(index=0, text=" you", tokens=(2,)),
    Finished(index=0, reason="stop"),
)
USAGE = Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=2, decode_s=0.5)


Steps = Iterable[Chunk | MeshError | trio.Event]
Answer = Steps | Callable[[Request], Steps]


@dataclass
class Script:
    """What workers do: how loads end, and each call's chunks."""

    load_s: float = 0.0
    load_errors: list[MeshError] = field(default_factory=list)  # of the next loads
    dead_at_birth: int = 0  # how many of the next workers die as soon as they are loaded
    slots: int = 2
    answers: list[Answer] = field(default_factory=list)  # of the next calls
    otherwise: Answer = ANSWER  # of all others
    loads: list[LoadSpec] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    open: int = 0  # workers
    cancelled: int = 0  # calls left before their end

    @asynccontextmanager
    async def open_worker(
        self, backend: Backend, load: LoadSpec, *, log: LogRing, progress: Callable[[float], None]
    ) -> AsyncIterator[Worker]:
        self.loads.append(load)
        log.append(f"loading {load.name}")
        progress(0.5)
        await trio.sleep(self.load_s)
        if self.load_errors:
            raise self.load_errors.pop(0)
        worker = ScriptedWorker(self)
        if self.dead_at_birth:
            self.dead_at_birth -= 1
            worker.died.set()
        self.open += 1
        try:
            yield cast(Worker, worker)
        finally:
            self.open -= 1


class ScriptedWorker:
    """Has what node/ uses of backends.process.Worker."""

    def __init__(self, script: Script) -> None:
        self.info = EngineInfo(capabilities=NEEDS.capabilities, context_tokens=100, slots=script.slots)
        self.stats = EngineStats(memory_bytes=5, decode_tokens_per_s=7.0)
        self.pid = 1
        self.died = trio.Event()
        self.script = script

    @asynccontextmanager
    async def call(self, request: bytes) -> AsyncIterator[ScriptedCall]:
        if self.died.is_set():
            raise EngineCrashed("dead already")
        decoded = decode_request(request)
        self.script.requests.append(decoded)
        answer = self.script.answers.pop(0) if self.script.answers else self.script.otherwise
        call = ScriptedCall(self, answer(decoded) if callable(answer) else answer)
        try:
            yield call
        finally:
            self.script.cancelled += not call.ended


class ScriptedCall:
    """One chunk a batch; an event in the script is waited for, an error ends the call, a crash the worker."""

    def __init__(self, worker: ScriptedWorker, answer: Steps) -> None:
        self._worker = worker
        self._answer = answer
        self.usage = Usage()
        self.ended = False

    async def batches(self) -> AsyncIterator[list[bytes]]:
        for step in self._answer:
            await trio.lowlevel.checkpoint()
            if isinstance(step, trio.Event):
                await step.wait()
            elif isinstance(step, MeshError):
                self.ended = True
                if isinstance(step, EngineCrashed):
                    self._worker.died.set()
                raise step
            else:
                yield [encode_chunk(step)]
        self.usage = USAGE
        self.ended = True


def spoken(request: Request) -> list[Chunk]:
    """What a good engine answers to any request: it has read the contract of `Generation.resume`.

    Choice c of the whole call says 4 + c tokens of its own; the last text comes without one, as what was held back.
    """
    match request:
        case EmbeddingRequest():
            return [Embedding(index, bytes([index])) for index in range(len(request.inputs))]
        case RankRequest():
            return [Score(index, float(index)) for index in range(len(request.documents))]
        case TokenizeRequest():
            return [TokenIds((1, 2))]
        case DetokenizeRequest():
            return [DetokenizedText("text")]
    assert isinstance(request, (ChatRequest, CompletionRequest))
    echo = isinstance(request, CompletionRequest) and request.echo and not request.resume
    choices: list[list[Chunk]] = []
    for index in range(request.n):
        number = request.first_choice + index
        length = 4 + number if request.max_tokens is None else min(request.max_tokens, 4 + number)
        tokens = [1000 * number + at for at in range(length)]
        assert request.resume == tuple(tokens[: len(request.resume)]), "another text is to be continued"
        said: list[Chunk] = [Text(index, "the prompt ")] if echo else []
        said += [Text(index, f"{token} ", (token,)) for token in tokens[len(request.resume) :]]
        choices.append([*said, *([Text(index, "held")] if tokens else []), Finished(index, "length")])
    turns = range(max(map(len, choices)))
    return [Accepted(3), *(said[turn] for turn in turns for said in choices if turn < len(said))]


def cost(chunks: Iterable[Chunk]) -> Usage:
    """What an engine says that a `spoken` answer cost."""
    tokens = sum(len(chunk.tokens) for chunk in chunks if isinstance(chunk, Text))
    return Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=tokens, prefill_s=0.5, decode_s=1.0)


def by_choice(chunks: Iterable[Chunk]) -> dict[int, list[Chunk]]:
    """The chunks of each choice or input, in order; -1: those of none."""
    found: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        found.setdefault(getattr(chunk, "index", -1), []).append(chunk)
    return found


def spec(name: str = "m", **fields: Any) -> ModelSpec:
    """A model of the scripted backend."""
    return ModelSpec(ModelFile(name=name, backend="fake", **fields), "fake", "", 1, Path(f"{name}.yaml"))


def needs(**changes: Any) -> ModelNeeds:
    """NEEDS with changes."""
    return msgspec.structs.replace(NEEDS, **changes)


def request(model: str = "m", **fields: Any) -> CompletionRequest:
    """A request for a completion."""
    return CompletionRequest(model=model, prompt="hi", **fields)


def context(client: str) -> CallContext:
    """CONTEXT of another client."""
    return replace(CONTEXT, client=client)


def make_pool(script: Script, metrics: Metrics | None = None, **settings: Any) -> Pool:
    """A pool whose workers follow `script`; run it with `running`."""
    options: dict[str, Any] = {"budget_bytes": 10, "queue_limit": 4, "idle_unload_s": 0.0, "load_timeout_s": 60.0}
    backends = {"fake": cast(Backend, object())}
    return Pool(
        backends, metrics or Metrics(), **(options | settings), open_worker=cast(OpenWorker, script.open_worker)
    )


@asynccontextmanager
async def running(pool: Pool) -> AsyncIterator[None]:
    """Run `pool` and stop it at the end."""
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        yield
        nursery.cancel_scope.cancel()


def count(metrics: Metrics, name: str, **labels: str) -> float:
    """The value of one sample; 0 when there is none."""
    for family in metrics.families():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return 0.0
