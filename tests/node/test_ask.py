"""Small questions between nodes: the answer, or none, in time; and never an exception that a peer could cause."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from mesh.errors import PeerError, PeerGone, PeerMisbehaved
from mesh.framed import Framed
from mesh.memory import MemoryTransport, Network
from mesh.transport import Stream
from mesh.wire import HEADER, Decoder, encode
from node.ask import ASK_S, PROTOCOL, Answerer, Answering, Kind, Question, ask

Handle = Callable[[Stream], Awaitable[None]]


class Link:
    """Two nodes, the second of which answers."""

    def __init__(self, network: Network) -> None:
        self.near: MemoryTransport = network.join("A")
        self.far: MemoryTransport = network.join("B")
        self.endings: list[BaseException | None] = []

    def serve(self, handle: Handle) -> None:
        async def noted(stream: Stream) -> None:
            try:
                await handle(stream)
            except PeerError as error:
                self.endings.append(error)
                await stream.reset()
            else:
                self.endings.append(None)

        self.far.handle(PROTOCOL, noted)

    def answer(self, **answers: Answerer) -> None:
        self.serve(Answering(answers).handle)

    @property
    def streams(self) -> int:
        """That this side still holds."""
        return sum(len(one.streams(self.near)) for one in self.near.connections["B"])


@asynccontextmanager
async def linked() -> AsyncIterator[Link]:
    async with trio.open_nursery() as nursery:
        network = Network()
        link = Link(network)
        for run in (network.run, link.near.run, link.far.run):
            await nursery.start(run)
        await link.near.dial(link.far.addresses(), "B", timeout_s=5)
        yield link
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answer", [{"a": [1, 2.5, None]}, [], 0, False, "", "text"], ids=repr)
async def test_an_answer_arrives_as_it_was(autojump_clock: MockClock, answer: Any) -> None:
    async with linked() as link:
        asked: list[str] = []

        def tell(of: str) -> Any:
            asked.append(of)
            return answer

        link.answer(trace=tell)
        assert await ask(link.near, "B", "trace", "r/é") == answer
        assert asked == ["r/é"]
        await trio.sleep(1)
        assert link.streams == 0
        assert link.endings == [None]


async def test_an_answer_may_take_a_while(autojump_clock: MockClock) -> None:
    async with linked() as link:

        async def tell(of: str) -> Any:
            await trio.sleep(1)
            return {"of": of}

        link.answer(trace=tell)
        assert await ask(link.near, "B", "trace", "r") == {"of": "r"}


async def test_no_answer_is_none(autojump_clock: MockClock) -> None:
    async with linked() as link:
        link.answer(trace=lambda of: None)
        assert await ask(link.near, "B", "trace", "r") is None
        assert await ask(link.near, "B", "unheard of", "r") is None
        assert await ask(link.near, "C", "trace", "r") is None, "nobody knows C"
    async with linked() as link:
        assert await ask(link.near, "B", "trace", "r") is None, "it does not speak this protocol"


async def test_a_large_answer_comes_in_pieces(autojump_clock: MockClock) -> None:
    async with linked() as link:
        link.answer(trace=lambda of: "x" * (3 << 20))
        assert len(await ask(link.near, "B", "trace", "r")) == 3 << 20


async def _silent(stream: Stream) -> None:
    await trio.sleep_forever()


async def _hangs_up(stream: Stream) -> None:
    await stream.receive()


async def _breaks_off(stream: Stream) -> None:
    await stream.receive()
    raise PeerGone("as if it died")


def _says(data: bytes) -> Handle:
    async def handle(stream: Stream) -> None:
        await stream.receive()
        await stream.send(data)
        await stream.close_write()

    return handle


@pytest.mark.parametrize(
    "handle",
    [
        _silent,
        _hangs_up,
        _breaks_off,
        _says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        _says(HEADER.pack(0xFFFFFFFF, Kind.ANSWER)),
        _says(encode(Kind.ASK)),
        _says(encode(Kind.ANSWER, b"{")),
        _says(encode(Kind.ANSWER, b"\xff")),
        _says(encode(Kind.ANSWER, b"[" * 900_000)),
        _says(encode(Kind.ANSWER, b"1")[:-1]),
    ],
)
async def test_a_peer_that_answers_badly_or_never(autojump_clock: MockClock, handle: Handle) -> None:
    async with linked() as link:
        link.serve(handle)
        assert await ask(link.near, "B", "trace", "r") is None
        assert trio.current_time() <= ASK_S + 1
        await trio.sleep(1)
        assert link.streams == 0


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        HEADER.pack(5000, Kind.ASK),
        encode(Kind.ANSWER),
        encode(Kind.ASK),
        encode(Kind.ASK, b"\xc1"),
        encode(Kind.ASK, msgspec.msgpack.encode({"what": "trace"})),
        encode(Kind.ASK, msgspec.msgpack.encode(Question("x" * 33, "r"))),
        encode(Kind.ASK, msgspec.msgpack.encode(Question("trace", "r" * 513))),
    ],
)
async def test_questions_that_are_none_of_ours_end_their_stream_alone(autojump_clock: MockClock, data: bytes) -> None:
    async with linked() as link:
        asked: list[str] = []
        link.answer(trace=asked.append)
        framed = Framed(await link.near.open("B", PROTOCOL), Decoder())
        await framed.stream.send(data)
        with pytest.raises(PeerGone):
            await framed.receive()
        [ending] = link.endings
        assert isinstance(ending, PeerMisbehaved)
        assert asked == []
        assert await ask(link.near, "B", "trace", "r") is None
        assert asked == ["r"]


async def test_who_asks_nothing_is_no_matter(autojump_clock: MockClock) -> None:
    async with linked() as link:
        link.answer()
        stream = await link.near.open("B", PROTOCOL)
        await stream.aclose()
        await trio.sleep(1)
        assert link.endings == [None]
