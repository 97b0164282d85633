"""When a connection ends: after its answer where the client wants it so, and with the client in any case."""

from __future__ import annotations

import json
import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.api.double import MODEL
from tests.api.serving import Served, serving


def request(*, stream: bool = False, version: str = "1.1", headers: str = "") -> bytes:
    body = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 2, "stream": stream})
    head = f"POST /v1/completions HTTP/{version}\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return (head + body).encode()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("version", "headers"),
    [("1.1", "Connection: close\r\n"), ("1.1", "Connection: TE, Close\r\nTE: trailers\r\n"), ("1.0", "")],
)
async def test_a_connection_that_is_not_to_be_kept_is_closed(stream: bool, version: str, headers: str) -> None:
    async with serving(Served()) as served, await trio.open_tcp_stream("127.0.0.1", served.port) as client:
        await client.send_all(request(stream=stream, version=version, headers=headers))
        received = b""
        with trio.fail_after(10):
            async for data in client:
                received += data
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"[DONE]" in received if stream else received.endswith(b"}")


async def test_kept_connections_end_with_their_clients() -> None:
    """Nothing waits for a keep-alive timeout once the client is gone, not even if it goes at the very end."""
    async with serving(Served()) as served:
        await wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(12):
            async with trio.open_nursery() as clients:
                for _ in range(16):  # in threads, to be as abrupt as other processes
                    clients.start_soon(trio.to_thread.run_sync, ask_twice, served.port)
        with trio.fail_after(20):
            while trio.lowlevel.current_statistics().tasks_living > before:
                await wait_all_tasks_blocked(0.01)


def ask_twice(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        for _ in range(2):
            client.sendall(request())
            received = b""
            while not received.endswith(b"}"):
                received += client.recv(65536)
