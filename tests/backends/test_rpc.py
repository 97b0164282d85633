"""llama.cpp's RPC servers: what the probe takes for one, and what loads through one say and do."""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from backends.llama_cpp import backend
from backends.llama_cpp.gguf import read_header
from backends.llama_cpp.needs import shape
from backends.process import LogRing, open_worker
from backends.sharding import ServerSettings
from backends.shardserver import ShardServer, open_server
from backends.types import (
    CompletionRequest,
    EngineCrashed,
    LoadFailed,
    LoadSpec,
    Sampling,
    Shard,
    Text,
    decode_chunk,
    encode_request,
)
from tests.support.models import smollm2

MIB = 1 << 20
LAYERS = 30
LOAD = LoadSpec(name="smol", path=str(smollm2()), context_tokens=512, slots=1, threads=1)


# -- the probe --


@asynccontextmanager
async def answering(serve: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A server of our own making; its port."""

    async def quiet(stream: trio.SocketStream) -> None:
        try:
            await serve(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, quiet, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def hello(major: int, minor: int = 0) -> bytes:
    return struct.pack("<Q", 28) + bytes([major, minor, 0, 0]) + bytes(24)


async def say(data: bytes, stream: trio.SocketStream) -> None:
    await stream.receive_some(33)
    await stream.send_all(data)
    await stream.receive_some()


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (hello(6), "speaks version 6.0.0; this node's llama.cpp speaks 7.0"),
        (hello(8), "speaks version 8.0.0"),
        (hello(7, 1), "speaks version 7.1.0"),
        (struct.pack("<Q", 4) + bytes(4), "no RPC server"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no RPC server"),
        (hello(7) + struct.pack("<QI", 4, 0), "claims 0 devices"),
        (hello(7) + struct.pack("<QI", 4, 1 << 31), "claims 2147483648 devices"),
    ],
)
async def test_what_is_no_server_of_ours(said: bytes, heard: str) -> None:
    async with answering(partial(say, said)) as port:
        with pytest.raises(LoadFailed, match=heard):
            await backend.probe(port, timeout_s=5.0)


async def test_a_server_that_hangs_up_and_one_that_is_silent(autojump_clock: trio.testing.MockClock) -> None:
    async def leave(stream: trio.SocketStream) -> None:
        await stream.receive_some(33)
        await stream.aclose()

    async def sleep(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with answering(sleep) as port:
        with pytest.raises(LoadFailed, match="serving another"):
            await backend.probe(port, timeout_s=5.0)
    with pytest.raises(LoadFailed, match="cannot be reached"):
        await backend.probe(port, timeout_s=5.0)
    autojump_clock.autojump_threshold = float("inf")
    async with answering(leave) as port:
        with pytest.raises(LoadFailed, match="hung up"):
            await backend.probe(port, timeout_s=5.0)


async def test_random_answers_are_never_taken_for_a_server() -> None:
    for seed in range(50):
        async with answering(partial(say, random.Random(seed).randbytes(200))) as port:
            with pytest.raises(LoadFailed):
                await backend.probe(port, timeout_s=5.0)


# -- the server --


@asynccontextmanager
async def serving(**settings: object) -> AsyncIterator[ShardServer]:
    async with _free() as port:
        made = ServerSettings(port=port, threads=1, **settings)  # type: ignore[arg-type]
        async with open_server(backend, made, log=LogRing()) as server:
            yield server


@asynccontextmanager
async def _free() -> AsyncIterator[int]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listener.socket.getsockname()[1]
    await listener.aclose()
    yield port


async def test_it_tells_of_its_device_and_how_fast_that_is() -> None:
    async with serving() as server:
        assert server.ready.devices
        assert 1e8 < server.ready.bytes_per_s < 1e14
        assert server.facts.version == "7.0.0"
        assert server.facts.devices[0].total_bytes > 0
        again = await backend.probe(server.port, timeout_s=10.0)
        assert again.version == server.facts.version


async def test_a_device_that_is_not_there() -> None:
    with pytest.raises(LoadFailed, match="There is no device ABACUS"):
        async with serving(device="ABACUS"):
            pass


async def test_random_bytes_end_a_connection_and_at_worst_the_server_which_is_told() -> None:
    async with serving() as server:
        for seed in range(20):
            data = random.Random(seed).randbytes(3000)
            if seed % 2:  # past the greeting
                data = bytes([14]) + struct.pack("<Q", 24) + bytes(24) + data
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                try:
                    await stream.send_all(data)
                    await stream.send_eof()
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
            if server.died.is_set():
                return
        assert (await backend.probe(server.port, timeout_s=10.0)).version == "7.0.0"


# -- loads --


def shards(*held: tuple[ShardServer, int]) -> tuple[Shard, ...]:
    return tuple(Shard(endpoint=f"127.0.0.1:{server.port}", layers=layers) for server, layers in held)


async def text(load: LoadSpec) -> str:
    request = CompletionRequest(
        model="smol", prompt="Once upon a time", max_tokens=24, sampling=Sampling(temperature=0.0)
    )
    async with open_worker(backend, load, log=LogRing()) as worker, worker.call(encode_request(request)) as call:
        chunks = [decode_chunk(data) async for batch in call.batches() for data in batch]
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, Text))


def over(local: int, *held: tuple[ShardServer, int]) -> LoadSpec:
    return LoadSpec(
        name=LOAD.name,
        path=LOAD.path,
        context_tokens=512,
        slots=1,
        threads=1,
        local_layers=local,
        shards=shards(*held),
    )


async def test_the_text_does_not_depend_on_where_the_layers_are() -> None:
    expected = await text(LOAD)
    assert expected
    async with serving() as one, serving() as two:
        for load in (
            over(0, (one, LAYERS)),
            over(LAYERS, (one, 0)),  # the output alone
            over(7, (one, 12), (two, 11)),
            over(29, (two, 1)),
        ):
            assert await text(load) == expected


async def test_a_plan_for_another_model_is_refused() -> None:
    async with serving() as one:
        with pytest.raises(LoadFailed, match="has 30 layers; the plan knows of 12"):
            await text(over(2, (one, 10)))


async def test_a_server_with_too_little_memory_is_named() -> None:
    """Whatever it had said before: it says no when it comes to it, and lives."""
    async with serving(memory_bytes=20 * MIB) as one:
        with pytest.raises(LoadFailed, match=rf"127\.0\.0\.1:{one.port}\]"):
            await text(over(0, (one, LAYERS)))
        assert not one.died.is_set()


async def test_a_server_that_dies_while_loading_takes_the_engine_along_and_nothing_else() -> None:
    async def hang_up_late(stream: trio.SocketStream) -> None:
        """As far as the hello, and no further."""
        await stream.receive_some(33)
        await stream.send_all(hello(7))
        await stream.receive_some()

    async with answering(hang_up_late) as port:
        load = LoadSpec(
            name="smol", path=LOAD.path, threads=1, shards=(Shard(endpoint=f"127.0.0.1:{port}", layers=LAYERS),)
        )
        with pytest.raises(EngineCrashed, match="SIGABRT while loading"):
            await text(load)


# -- the shape of a model --


def test_a_models_shape_adds_up() -> None:
    header = read_header(LOAD.path)
    found = shape(header, LOAD, backend.needs(LOAD))
    assert len(found.layer_bytes) == LAYERS
    assert sum(header.block_bytes) + sum(header.other_bytes.values()) == header.file_bytes - header.data_offset
    # Its embeddings are its output, too.
    assert found.output_bytes == header.other_bytes["token_embd.weight"] + header.other_bytes["output_norm.weight"]
    assert backend.shape(LOAD, backend.needs(LOAD)) == found
