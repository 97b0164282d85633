"""The API on a real socket, over the double: in the test's own trio run, or in a thread for blocking clients."""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from api.app import create_app
from api.images import no_images
from api.ports import ApiOptions, ImageFetcher
from tests.api.double import DoubleDispatcher, DoubleMesh, DoubleNode

VERSION = "1.2.3"


@dataclass
class Served:
    """A served double and where it answers."""

    options: ApiOptions = field(default_factory=lambda: ApiOptions(version=VERSION))
    dispatcher: DoubleDispatcher = field(default_factory=DoubleDispatcher)
    node: DoubleNode = field(default_factory=DoubleNode)
    mesh: DoubleMesh | None = None
    fetch_image: ImageFetcher = no_images
    port: int = 0

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(served: Served) -> AsyncIterator[Served]:
    """Serve in a task of this run."""
    app = create_app(served.dispatcher, served.node, served.options, served.mesh, fetch_image=served.fetch_image)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served.port = listener.getsockname()[1]
        config = Config()
        config.bind = [f"fd://{listener.detach()}"]
        config.include_server_header = False
        config.keep_alive_timeout = 75.0  # as the node has it: longer than any test waits
        config.errorlog = logging.getLogger("tests.http")
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, app, config, shutdown_trigger=trio.sleep_forever))
            yield served
            nursery.cancel_scope.cancel()


@contextmanager
def serving_in_thread(served: Served) -> Iterator[Served]:
    """Serve in a thread."""
    started: queue.SimpleQueue[tuple[trio.lowlevel.TrioToken, trio.Event]] = queue.SimpleQueue()

    async def main() -> None:
        stop = trio.Event()
        async with serving(served):
            started.put((trio.lowlevel.current_trio_token(), stop))
            await stop.wait()

    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    token, stop = started.get(timeout=30)
    try:
        yield served
    finally:
        trio.from_thread.run_sync(stop.set, trio_token=token)
        thread.join()


async def run_asgi(
    served: Served, path: str, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """One POST without a server in between, for what depends on the order of messages."""
    scope: Any = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": None,
        "extensions": {},
    }
    app: Any = create_app(served.dispatcher, served.node, served.options, served.mesh, fetch_image=served.fetch_image)
    await app(scope, receive, send)
