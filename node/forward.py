"""The protocol `/mesh/http/1`: a whole HTTP exchange with the node that owns what it is about (a response, a model).

    entry -> owner                 owner -> entry
    REQUEST  ForwardedRequest      HEAD   ForwardedHead
    (the end of the stream: the    BODY   bytes of the answer, any number of times
    client has gone)               END    -

The entry node has checked the client's key; the owner trusts a member as it trusts a key, but only for the paths that
it lets be forwarded. A forwarded request is never forwarded again.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from enum import IntEnum
from typing import Annotated, Any, cast

import msgspec
import trio
from hypercorn.typing import ASGIFramework, HTTPScope
from msgspec import Meta

from api.ports import ForwardedAnswer
from backends.types import NodeGone
from mesh.errors import PeerError, PeerGone, PeerMisbehaved
from mesh.framed import Framed
from mesh.transport import PeerId, Stream
from mesh.wire import Decoder
from node.remote import Streams

PROTOCOL = "/mesh/http/1"
MAX_REQUEST_BYTES = 32 << 20
PATHS = re.compile(r"(/v1)?/responses/[^/]{1,200}(/[a-z_]{1,32})?|/api/mesh/models")
"""What may be asked of an owner: a stored response, and to load, unload or pin a model that it has."""


class Kind(IntEnum):
    """What a message is."""

    REQUEST = 1
    HEAD = 16
    BODY = 17
    END = 18


class ForwardedRequest(msgspec.Struct, frozen=True):
    """What the client asked, without its key."""

    method: Annotated[str, Meta(pattern=r"\A(GET|POST|DELETE)\Z")]
    path: Annotated[str, Meta(max_length=512)]
    query: Annotated[str, Meta(max_length=8192)]
    request_id: Annotated[str, Meta(max_length=512)]
    content_type: Annotated[str, Meta(max_length=256)] = ""
    body: bytes = b""


class ForwardedHead(msgspec.Struct, frozen=True):
    """How the answer begins."""

    status: Annotated[int, Meta(ge=100, le=599)]
    content_type: Annotated[str, Meta(max_length=256)]


_requests = msgspec.msgpack.Decoder(ForwardedRequest)
_heads = msgspec.msgpack.Decoder(ForwardedHead)


@asynccontextmanager
async def forward(swarm: Streams, peer: PeerId, name: str, asked: ForwardedRequest) -> AsyncIterator[ForwardedAnswer]:
    """Ask a peer. Leaving the context tells it that the client has gone. Raises NodeGone."""
    try:
        stream = await swarm.open(peer, PROTOCOL)
        framed = Framed(stream, Decoder(kinds={Kind.HEAD, Kind.BODY, Kind.END}))
        try:
            await framed.send(Kind.REQUEST, msgspec.msgpack.encode(asked))
            message = await framed.receive()
            if message is None or message.kind != Kind.HEAD:
                raise PeerGone("It did not answer.")
            head = _heads.decode(message.body)
            yield ForwardedAnswer(head.status, head.content_type, _body(framed, name))
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()
    except (PeerError, msgspec.MsgspecError) as error:
        raise NodeGone(f"The node {name}, which keeps this, cannot be asked: {error}") from error


async def _body(framed: Framed, name: str) -> AsyncIterator[bytes]:
    while True:
        try:
            message = await framed.receive()
        except PeerError as error:
            raise NodeGone(f"The node {name} went away while it answered: {error}") from error
        if message is None:
            raise NodeGone(f"The node {name} went away while it answered.")
        if message.kind == Kind.END:
            return
        yield message.body


class Forwarding:
    """Handles streams of `/mesh/http/1`."""

    def __init__(self, app: ASGIFramework) -> None:
        """`app`: this node's own API."""
        self._app = app

    async def handle(self, stream: Stream) -> None:
        """Serve one exchange. Raises PeerError on foreign bytes."""
        framed = Framed(stream, Decoder(MAX_REQUEST_BYTES, kinds={Kind.REQUEST}))
        message = await framed.receive()
        if message is None:
            return
        try:
            asked = _requests.decode(message.body)
        except msgspec.MsgspecError as error:
            raise PeerMisbehaved(f"A forwarded request that is none of ours: {error}") from None
        if not PATHS.fullmatch(asked.path):
            raise PeerMisbehaved(f"A forwarded request for {asked.path[:100]}, which is not forwarded.")
        scope = cast(HTTPScope, _scope(asked, stream.peer))
        await self._app(scope, cast(Any, _receiver(framed, asked.body)), _sender(framed))


def _scope(asked: ForwardedRequest, peer: PeerId) -> dict[str, Any]:
    """ASGI 3.0's scope of an HTTP request; `mesh.member` says who vouches for it."""
    headers = [(b"host", b"localhost"), (b"x-correlation-id", asked.request_id.encode("latin-1", "replace"))]
    if asked.body:
        headers.append((b"content-length", str(len(asked.body)).encode()))
    if asked.content_type:
        headers.append((b"content-type", asked.content_type.encode("latin-1", "replace")))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": asked.method,
        "path": asked.path,
        "raw_path": asked.path.encode(),
        "query_string": asked.query.encode("latin-1", "replace"),
        "root_path": "",
        "headers": headers,
        "client": (peer, 0),
        "server": None,
        "extensions": {},
        "state": {},
        "mesh.member": peer,
    }


def _receiver(framed: Framed, body: bytes) -> Callable[[], Awaitable[dict[str, Any]]]:
    given = False

    async def receive() -> dict[str, Any]:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        with suppress(PeerError):
            await framed.receive()  # nothing comes but the end
        return {"type": "http.disconnect"}

    return receive


def _sender(framed: Framed) -> Callable[[Any], Awaitable[None]]:
    async def send(event: Any) -> None:
        match event["type"]:
            case "http.response.start":
                headers = {name.lower(): value for name, value in event["headers"]}
                content_type = headers.get(b"content-type", b"").decode("latin-1")[:256]
                head = ForwardedHead(event["status"], content_type)
                await framed.send(Kind.HEAD, msgspec.msgpack.encode(head))
            case "http.response.body":
                if body := event.get("body"):
                    await framed.send(Kind.BODY, body)
                if not event.get("more_body"):
                    await framed.send(Kind.END)

    return send
