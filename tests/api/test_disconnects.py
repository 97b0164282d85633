"""A client that goes away, at every stage: its call ends at once, nothing is left, and the node goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trio

from backends.types import Accepted, Chunk, Finished, Request, Text
from tests.api.double import MODEL
from tests.api.serving import Served, run_asgi, serving

LIMIT_S = 10.0  # of a test that hangs
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}


def post(body: dict[str, Any], path: str = "/v1/chat/completions") -> bytes:
    """A whole request."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def connect(served: Served) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", served.port)


async def answers(served: Served) -> bool:
    """Whether the node still serves a whole call."""
    served.dispatcher.reset()
    async with await connect(served) as stream:
        await stream.send_all(post({**CHAT, "max_tokens": 3}))
        return (await stream.receive_some(65536)).startswith(b"HTTP/1.1 200")


class Stuck:
    """A script that says when it is reached and when it is left."""

    def __init__(self, *first: Chunk) -> None:
        self.reached = trio.Event()
        self.left = trio.Event()
        self._first = first

    async def wait(self) -> None:
        self.reached.set()
        try:
            await trio.sleep_forever()
        finally:
            self.left.set()

    async def batches(self, request: Request) -> AsyncIterator[Sequence[Chunk]]:
        if self._first:
            yield self._first
        await self.wait()


@pytest.mark.parametrize("cut", [0, 10, 60, 100])
async def test_before_the_request_is_whole(cut: int) -> None:
    with trio.fail_after(LIMIT_S):
        async with serving(Served()) as served:
            async with await connect(served) as stream:
                await stream.send_all(post(CHAT)[:cut])
            assert await answers(served)
            assert served.dispatcher.running == 0
            assert len(served.dispatcher.asked) == 1  # that of `answers`


async def test_a_body_that_ends_too_soon_is_refused() -> None:
    with trio.fail_after(LIMIT_S):
        async with serving(Served()) as served:
            async with await connect(served) as stream:
                await stream.send_all(post(CHAT)[:-5])
                await stream.send_eof()
                assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 400")
            assert served.dispatcher.asked == []
            assert await answers(served)


@pytest.mark.parametrize("stream", [False, True])
async def test_in_the_queue(stream: bool) -> None:
    stuck = Stuck()
    with trio.fail_after(LIMIT_S):
        async with serving(Served()) as served:
            served.dispatcher.opening = stuck.wait
            async with await connect(served) as client:
                await client.send_all(post({**CHAT, "stream": stream}))
                await stuck.reached.wait()
            await stuck.left.wait()
            assert await answers(served)
            assert served.dispatcher.running == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_before_the_headers(path: str, stream: bool) -> None:
    stuck = Stuck()
    with trio.fail_after(LIMIT_S):
        async with serving(Served()) as served:
            served.dispatcher.script = stuck.batches
            async with await connect(served) as client:
                await client.send_all(post({**CHAT, "prompt": "x", "stream": stream}, path))
                await stuck.reached.wait()
            await stuck.left.wait()
            assert await answers(served)
            assert served.dispatcher.running == 0


async def test_in_mid_stream() -> None:
    stuck = Stuck(Accepted(1), Text(0, "hello"))
    with trio.fail_after(LIMIT_S):
        async with serving(Served()) as served:
            served.dispatcher.script = stuck.batches
            async with await connect(served) as client:
                await client.send_all(post({**CHAT, "stream": True}))
                seen = b""
                while b"hello" not in seen:
                    seen += await client.receive_some(65536)
            await stuck.left.wait()
            assert await answers(served)
            assert served.dispatcher.running == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_with_several_prompts(stream: bool) -> None:
    stuck = Stuck(Accepted(1), Text(0, "hello"))
    with trio.fail_after(LIMIT_S):
        async with serving(Served()) as served:
            served.dispatcher.script = stuck.batches
            body = {"model": MODEL, "prompt": ["a", "b", "c"] * 5, "stream": stream}
            async with await connect(served) as client:
                await client.send_all(post(body, "/v1/completions"))
                await stuck.reached.wait()
            await stuck.left.wait()
            assert await answers(served)
            assert served.dispatcher.running == 0


async def test_between_the_handler_and_the_body() -> None:
    """The server takes the headers, and the client is gone before the body is entered."""
    served = Served()
    stuck = Stuck(Accepted(1))
    served.dispatcher.script = stuck.batches
    gone = trio.Event()

    async def send(message: Any) -> None:
        assert message["type"] == "http.response.start"
        assert served.dispatcher.running == 1
        gone.set()
        await trio.sleep_forever()

    with trio.fail_after(LIMIT_S):
        await _run_asgi(served, send, gone)
    assert served.dispatcher.running == 0


async def test_a_slow_reader_pauses_its_own_call() -> None:
    """Nothing is asked of the engine while the last bytes have not gone out."""
    served = Served()
    gone = trio.Event()
    made = 0
    sent = 0

    async def words(request: Request) -> AsyncIterator[Sequence[Chunk]]:
        nonlocal made
        yield [Accepted(1)]
        for _ in range(100):
            made += 1
            yield [Text(0, "word")]
        yield [Finished(0, "length")]

    async def send(message: Any) -> None:
        nonlocal sent
        await trio.lowlevel.checkpoint()
        if b"word" in message.get("body", b""):
            sent += 1
            assert made == sent
            if sent == 10:
                gone.set()
                await trio.sleep_forever()

    served.dispatcher.script = words
    with trio.fail_after(LIMIT_S):
        await _run_asgi(served, send, gone)
    assert (made, served.dispatcher.running) == (10, 0)


async def _run_asgi(served: Served, send: Any, gone: trio.Event) -> None:
    """Serve one streamed chat to a client that goes away when `gone` is set."""
    messages = [{"type": "http.request", "body": json.dumps({**CHAT, "stream": True}).encode(), "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    await run_asgi(served, "/v1/chat/completions", receive, send)
