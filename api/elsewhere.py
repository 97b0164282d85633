"""Requests about things that another node keeps: that node answers, and this one passes its answer on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import wraps
from typing import cast

from quart import Response, g, request

from api.connection import HeldBody, MeshRequest
from api.ports import ForwardedCall
from api.services import Services
from backends.types import MeshError

View = Callable[[str], Awaitable[Response]]


def by_owner(services: Services, part_of: Callable[[str], str | None]) -> Callable[[View], View]:
    """A decorator for views of one thing by its id: `part_of` reads from the id which node made it."""

    def decorate(view: View) -> View:
        @wraps(view)
        async def answer(identity: str) -> Response:
            part = part_of(identity)
            if services.mesh is None or part is None or request.scope.get("mesh.member"):
                return await view(identity)  # a forwarded request is never forwarded again
            owner = services.mesh.owner(part)
            return await view(identity) if owner is None else await forwarded(services, owner)

        return answer

    return decorate


async def forwarded(services: Services, owner: str, body: bytes | None = None) -> Response:
    """What `owner` answers to the current request, with another body if one is given. Raises NodeGone."""
    assert services.mesh is not None
    call = ForwardedCall(
        method=request.method,
        path=request.path,
        query=request.query_string.decode("latin-1"),
        content_type=request.headers.get("Content-Type", ""),
        body=cast(bytes, await request.get_data(as_text=False)) if body is None else body,
        request_id=g.request_id,
    )
    async with AsyncExitStack() as opening:
        answer = await opening.enter_async_context(services.mesh.forward(owner, call))
        passed = _Passed(answer.body, opening.pop_all())
        cast(MeshRequest, request).calls.push_async_exit(passed.leave)
    response = Response(passed, status=answer.status, content_type=answer.content_type or None)
    response.timeout = None
    return response


class _Passed(HeldBody):
    """The owner's bytes; leaves the exchange in the task that entered it."""

    def __init__(self, body: AsyncIterator[bytes], context: AsyncExitStack) -> None:
        super().__init__(context)
        self._body = body

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._body)
        except MeshError:
            raise StopAsyncIteration from None  # the status has been sent: all that is left is to end
