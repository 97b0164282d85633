"""One HTTP request between hypercorn and Quart: the body's end, the call's end, and targets that are not paths.

quart-trio runs a handler and then iterates the response it returned in ONE task, inside a nursery that a hang-up of
the client cancels. So a handler may enter a context (with nurseries and cancel scopes in it) that the response's body
leaves. What it must not do is leave that to the body alone: a client that goes away between the two would leak the
context. Hence `MeshRequest.calls`, a stack that is closed in that same task on every path.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, cast
from urllib.parse import urlsplit

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent
from quart.wrappers import Request
from quart.wrappers.response import ResponseBody
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers.request import TrioBody, TrioRequest
from werkzeug.exceptions import RequestEntityTooLarge


class MeshBody(TrioBody):
    """A request body that knows when its sender has finished, also when it is not kept."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(expected_content_length, max_content_length)
        self.arrived = trio.Event()

    def append(self, data: bytes) -> None:
        """Keep `data`, unless the body is over the limit: then forget it all and wake the handler."""
        if self._must_raise is not None:
            return
        limit = self._max_content_length
        if limit is not None and len(self._data) + len(data) > limit:
            self._must_raise = RequestEntityTooLarge()
            self._data.clear()
            super().set_complete()
            return
        super().append(data)

    def set_complete(self) -> None:
        """The sender has sent all."""
        self.arrived.set()
        super().set_complete()


class MeshRequest(TrioRequest):
    """A request with a stack of what must be left when its response is over, however that ends."""

    body_class = MeshBody
    body: MeshBody

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls = AsyncExitStack()


class HeldBody(ResponseBody):
    """A response body that owns a context, iterates itself, and leaves the context in the task that entered it.

    It may never be entered, if the client goes away before: so its `leave` goes onto `MeshRequest.calls`, too.
    """

    def __init__(self, context: AsyncExitStack) -> None:
        self._context = context

    async def leave(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        """Leave the context. A second time does nothing."""
        return bool(await self._context.__aexit__(exc_type, exc, tb))

    async def __aenter__(self) -> AsyncIterable[bytes]:
        return self

    async def __aexit__(  # type: ignore[override]  # the context may hold a cancel scope that ends with it
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        return await self.leave(exc_type, exc, tb)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        raise NotImplementedError


class Connection(TrioASGIHTTPConnection):
    """quart-trio's, with the two additions above, and connections that end when they are to end."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        # RFC 9112 allows an absolute target and "*"; h11 also lets an empty path through. Quart wants a path.
        path = self.scope["path"]
        if not path.startswith("/"):
            try:
                path = urlsplit(path).path
            except ValueError:
                path = ""
            self.scope["path"] = path if path.startswith("/") else f"/{path}"
        await super().__call__(receive, send)

    async def handle_request(  # type: ignore[override]  # quart-trio's own signature differs from Quart's
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        async with cast(MeshRequest, request).calls:
            await super().handle_request(nursery, request, send if _kept(request) else _uncut(send))


def _kept(request: Request) -> bool:
    """Whether the client keeps its connection after the answer (RFC 9112, section 9.3)."""
    tokens = request.headers.get("Connection", "").lower().split(",")
    return request.http_version != "1.0" and "close" not in (token.strip() for token in tokens)


def _uncut(send: ASGISendCallable) -> ASGISendCallable:
    """`send`, whose last message is not cancelled, for a connection that is to be closed then.

    Within it hypercorn tells the app that the stream is over, which cancels the very task that is sending, and only
    then closes the connection: the client would wait for its end for ever. For a connection that is kept hypercorn
    would instead start its idle timer, which then outlives a client that goes away.
    """

    async def uncut(message: ASGISendEvent) -> None:
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        with trio.CancelScope(shield=last):
            await send(message)

    return uncut
