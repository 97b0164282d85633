"""The engines that must pass the conformance suite, and how to talk to one."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import trio

from backends import fake, llama_cpp, mlx
from backends.engine import Backend
from backends.process import LogRing, Worker, open_worker
from backends.types import (
    Accepted,
    ChatRequest,
    Chunk,
    CompletionRequest,
    Finished,
    LoadSpec,
    Message,
    Request,
    Sampling,
    Text,
    Usage,
    decode_chunk,
    encode_request,
)
from tests.support.mlxmodels import write_tiny_llama
from tests.support.models import smollm2


@dataclass
class Answer:
    """All of one call."""

    chunks: list[Chunk] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    def text(self, index: int = 0) -> str:
        return "".join(chunk.text for chunk in self.chunks if isinstance(chunk, Text) and chunk.index == index)

    def tokens(self, index: int = 0) -> list[int]:
        return [
            token for chunk in self.chunks if isinstance(chunk, Text) and chunk.index == index for token in chunk.tokens
        ]

    def finished(self, index: int = 0) -> Finished:
        [last] = [chunk for chunk in self.chunks if isinstance(chunk, Finished) and chunk.index == index]
        return last

    @property
    def accepted(self) -> Accepted:
        first = self.chunks[0]
        assert isinstance(first, Accepted)
        return first


async def ask(worker: Worker, request: Request) -> Answer:
    """Run a call to its end."""
    answer = Answer()
    async with worker.call(encode_request(request)) as call:
        async for batch in call.batches():
            answer.chunks += [decode_chunk(data) for data in batch]
        answer.usage = call.usage
    return answer


async def ask_all(worker: Worker, requests: list[Request]) -> list[Answer]:
    """Run calls side by side."""
    answers: dict[int, Answer] = {}

    async def one(number: int, request: Request) -> None:
        answers[number] = await ask(worker, request)

    async with trio.open_nursery() as nursery:
        for number, request in enumerate(requests):
            nursery.start_soon(one, number, request)
    return [answers[number] for number in range(len(requests))]


def chat(text: str, *, max_tokens: int | None = 16, temperature: float = 0.0, **options: object) -> ChatRequest:
    """A conversation of one turn."""
    return ChatRequest(
        model="m",
        messages=(Message(role="user", content=text),),
        max_tokens=max_tokens,
        sampling=Sampling(temperature=temperature, seed=5),
        **options,  # type: ignore[arg-type]
    )


def complete(prompt: str, *, max_tokens: int | None = 16, **options: object) -> CompletionRequest:
    """A prompt to continue, greedily."""
    return CompletionRequest(
        model="m",
        prompt=prompt,
        max_tokens=max_tokens,
        sampling=Sampling(temperature=0.0),
        **options,  # type: ignore[arg-type]
    )


def engines() -> Iterator[tuple[str, Backend, LoadSpec]]:
    """Name, backend and load of each."""
    yield "fake", fake.backend, LoadSpec(name="m", slots=4, context_tokens=512)
    yield (
        "llama-cpp",
        llama_cpp.backend,
        LoadSpec(name="m", path=str(smollm2()), slots=4, context_tokens=512, threads=1),
    )
    yield (
        "llama-cpp-exact",
        llama_cpp.backend,
        LoadSpec(name="m", path=str(smollm2()), slots=4, context_tokens=512, threads=1, deterministic=True),
    )
    if mlx.backend.unavailable() is None:  # else tests/backends/mlx says so
        yield "mlx", mlx.backend, LoadSpec(name="m", path=str(tiny_llama()), slots=4, context_tokens=512)


@lru_cache(maxsize=1)
def tiny_llama() -> Path:
    """The model that MLX is tried with; its folder is of this run of the tests."""
    folder = Path(tempfile.mkdtemp(prefix="mesh-mlx-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_tiny_llama(folder)


def opened(backend: Backend, load: LoadSpec) -> object:
    """A worker with that model."""
    return open_worker(backend, load, log=LogRing())
