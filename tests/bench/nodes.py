"""The node and the bare engine, on the same model file."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio

from backends.process import LogRing, Worker, open_worker
from backends.registry import find_backends
from backends.types import Request, encode_request
from node.catalog import read_model
from tests.bench.harness import Session
from tests.support.models import smollm2
from tests.support.nodes import RunningNode, running_node, write_model

MODEL = "bench"


def real_model(session: Session, *, slots: int, context_tokens: int) -> dict[str, Any]:
    """SmolLM2's model file."""
    return {
        "backend": "llama-cpp",
        "parameters": {"model": os.fspath(smollm2())},
        "context_size": context_tokens,
        "slots": slots,
        "threads": session.threads,
        "pinned": True,
    }


def fake_model(*, slots: int, **engine: Any) -> dict[str, Any]:
    """The fake backend's model file; without further fields it is as fast as the machine."""
    return {"backend": "fake", "slots": slots, "pinned": True, "engine": engine}


@contextmanager
def node(session: Session, model: dict[str, Any], *, module: str = "node.cli") -> Iterator[RunningNode]:
    """A node that serves `model`, loaded."""
    data = session.data("node")
    write_model(data, MODEL, **model)
    with running_node(data, module=module) as running:
        with running.http as client:
            client.post("/v1/completions", json={"model": MODEL, "prompt": "Hi", "max_tokens": 1}).raise_for_status()
        yield running
        running.stop()


@asynccontextmanager
async def bare_engine(session: Session, model: dict[str, Any]) -> AsyncIterator[Worker]:
    """The same worker process as the node's, with nothing between it and the bench."""
    path: Path = write_model(session.data("bare"), MODEL, **model)
    backends = find_backends()
    spec = read_model(path, backends)
    async with open_worker(backends[spec.backend], spec.load_spec(None), log=LogRing()) as worker:
        yield worker


async def drive(worker: Worker, requests: Sequence[Request]) -> tuple[int, float]:
    """All `requests` at once; how many tokens came, and the seconds from the first call to the last one's end."""
    tokens = 0

    async def one(encoded: bytes) -> None:
        nonlocal tokens
        async with worker.call(encoded) as call:
            async for _ in call.batches():
                pass
        tokens += call.usage.completion_tokens

    encoded = [encode_request(request) for request in requests]
    started = time.monotonic()
    async with trio.open_nursery() as nursery:
        for request in encoded:
            nursery.start_soon(one, request)
    return tokens, time.monotonic() - started
