"""Several ranks, one model: processes on this machine, joined as they would be through tunnels."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest
import trio

from backends.mlx import backend, environment
from backends.mlx.folder import FAMILIES_THAT_PIPELINE, FAMILIES_THAT_SHARD, read_folder, way_for
from backends.mlx.ring import Facts, Hello, Part, Word, free_port, line
from backends.process import LogRing, Worker, open_worker
from backends.types import EmbeddingRequest, EngineCrashed, LoadFailed, LoadSpec, Shard, encode_request
from tests.conformance.engines import ask, ask_all, chat
from tests.support.mlxmodels import write_tiny_llama, write_tiny_qwen2

missing = backend.unavailable()
needs_mlx = pytest.mark.skipif(missing is not None, reason=f"NOTHING OF MLX IS TESTED: {missing}")


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "shards", "pipelines", "way"),
    [
        (9, 3, 3, True, False, "tensor"),
        (9, 3, 3, True, True, "tensor"),
        (9, 3, 2, True, True, "pipeline"),
        (8, 8, 2, False, True, "pipeline"),
    ],
)
def test_the_way(heads: int, kv_heads: int, size: int, shards: bool, pipelines: bool, way: str) -> None:
    assert way_for(heads, kv_heads, 30, size, shards=shards, pipelines=pipelines) == way


@pytest.mark.parametrize(
    ("size", "shards", "pipelines", "why"),
    [
        (2, True, False, "9 heads .3 of keys and values. do not divide by 2"),
        (3, False, False, "cannot share a model of this architecture"),
        (40, False, True, "cannot share this model's 30 layers"),
    ],
)
def test_no_way(size: int, shards: bool, pipelines: bool, why: str) -> None:
    with pytest.raises(LoadFailed, match=why):
        way_for(9, 3, 30, size, shards=shards, pipelines=pipelines)


# -- with the libraries --


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "model")


@asynccontextmanager
async def rank_server(*folders: Path) -> AsyncIterator[int]:
    """The port of a server that runs."""
    ours, theirs = socket.socketpair()
    port = free_port()
    models = folders[0].parent / "models.json"
    models.write_text(json.dumps([str(folder) for folder in folders]))
    settings = json.dumps({"port": port, "models": str(models)})
    command = [backend.command()[0], "-m", "backends.mlx.rankserver", settings, str(theirs.fileno())]
    with ours:
        with theirs:
            process = await trio.lowlevel.open_process(
                command, pass_fds=[theirs.fileno()], env=dict(os.environ) | backend.environment()
            )
        assert json.loads(await trio.to_thread.run_sync(ours.recv, 1000))["devices"]
        yield port
    with trio.fail_after(20):
        assert await process.wait() == 0


def loads(folder: Path, *ports: int) -> LoadSpec:
    shards = tuple(Shard(endpoint=f"127.0.0.1:{port}", layers=0) for port in ports)
    return LoadSpec(name="m", path=str(folder), slots=2, context_tokens=256, shards=shards)


async def said(port: int, hello: bytes) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(hello)
        await stream.send_eof()
        return b"".join([piece async for piece in stream])


async def facts(port: int) -> Facts:
    return msgspec.json.decode(await said(port, line(Hello(role="probe"))), type=Facts)


@needs_mlx
def test_the_families_are_those_of_mlx_lm() -> None:
    [models] = environment().glob("lib/python*/site-packages/mlx_lm/models")
    sources = {file.stem: file.read_text() for file in models.glob("*.py")}
    pipelines = {name for name, source in sources.items() if "PipelineMixin" in source or "def pipeline(" in source}
    shards = {name for name, source in sources.items() if "def shard(self" in source}
    assert pipelines - {"pipeline"} == FAMILIES_THAT_PIPELINE
    assert shards == FAMILIES_THAT_SHARD - {"mistral"}  # which is llama there


@needs_mlx
async def test_three_ranks_say_what_one_says(folder: Path) -> None:
    requests = [chat("Hello there", max_tokens=6), chat("Well", max_tokens=5, temperature=1.0)]
    vectors = EmbeddingRequest(model="m", inputs=("one",))
    async with open_worker(backend, loads(folder), log=LogRing()) as worker:
        alone = [await ask(worker, request) for request in requests]
        vector = (await ask(worker, vectors)).chunks
    async with (
        rank_server(folder) as one,
        rank_server(folder) as two,
        open_worker(backend, loads(folder, one, two), log=LogRing()) as worker,
    ):
        assert worker.info.details["machines"] == 3
        together = await ask_all(worker, list(requests))
        assert [answer.tokens() for answer in together] == [answer.tokens() for answer in alone]
        assert len((await ask(worker, vectors)).chunks) == len(vector)
        head = tuple(alone[0].tokens()[:3])
        resumed = await ask(worker, msgspec.structs.replace(requests[0], resume=head))
        assert resumed.tokens() == alone[0].tokens()[3:]


@needs_mlx
async def test_a_pipeline_where_heads_do_not_divide(tmp_path: Path) -> None:
    folder = write_tiny_qwen2(tmp_path / "model")
    assert read_folder(str(folder)).way(2) == "pipeline"
    request = chat("Hello there", max_tokens=6)
    async with open_worker(backend, loads(folder), log=LogRing()) as worker:
        alone = await ask(worker, request)
    async with rank_server(folder) as port, open_worker(backend, loads(folder, port), log=LogRing()) as worker:
        assert (await ask(worker, request)).tokens() == alone.tokens()


@needs_mlx
async def test_a_rank_that_dies_ends_the_engine_and_its_server_takes_the_next_model(folder: Path) -> None:
    async with rank_server(folder) as port:
        async with open_worker(backend, loads(folder, port), log=LogRing()) as worker:
            assert (await facts(port)).busy
            with pytest.raises(EngineCrashed):
                await _answer_until_killed(worker)
        async with open_worker(backend, loads(folder, port), log=LogRing()) as worker:
            assert len((await ask(worker, chat("Hello", max_tokens=2))).tokens()) == 2


async def _answer_until_killed(worker: Worker) -> None:
    async with worker.call(encode_request(chat("Hello", max_tokens=None, ignore_eos=True))) as call:
        killed = False
        async for _ in call.batches():
            if not killed:
                [rank] = _ranks()
                rank.send_signal(signal.SIGKILL)
                killed = True


def _ranks() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "backends.mlx.rank" in _command(child)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@needs_mlx
async def test_the_head_killed_frees_the_rank(folder: Path) -> None:
    async with rank_server(folder) as port:
        async with open_worker(backend, loads(folder, port), log=LogRing()) as worker:
            os.kill(worker.pid, signal.SIGKILL)
            await worker.died.wait()
        with trio.fail_after(20):
            while (await facts(port)).busy:
                await trio.lowlevel.checkpoint()
        assert not _ranks()


@needs_mlx
async def test_what_a_head_is_refused(folder: Path, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other", heads=3)
    nobody = free_port()
    async with rank_server(other) as port:
        for ports, why in (
            ((port,), rf"Rank 1 \[127.0.0.1:{port}\] refuses: This node has no model with these weights"),
            ((nobody,), rf"Rank 1 \[127.0.0.1:{nobody}\] does not answer"),
            ((port,) * 3, "6 heads .* do not divide by 4"),
        ):
            with pytest.raises(LoadFailed, match=why):
                async with open_worker(backend, loads(folder, *ports), log=LogRing()):
                    pass
        assert not (await facts(port)).busy


@needs_mlx
async def test_what_is_no_greeting_does_no_harm(folder: Path) -> None:
    part = Part(identity="x", rank=1, size=2, way="tensor", slots=1, prompt_tokens=16)
    async with rank_server(folder) as port:
        for hello in (b"\x00" * 70_000, b"{}\n", b"\xff\n", b"GET / HTTP/1.1\r\n\r\n", line(Hello(role="in"))):
            await said(port, hello)
        for refused in (
            Hello(role="control"),
            Hello(role="control", version="0", part=part),
            Hello(role="control", part=msgspec.structs.replace(part, rank=2)),
        ):
            word = msgspec.json.decode(await said(port, line(refused)), type=Word)
            assert word.kind == "failed"
            assert word.message
        assert not (await facts(port)).busy
        assert len((await facts(port)).identities) == 1
