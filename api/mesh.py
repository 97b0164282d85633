"""/api/mesh: the swarm as this node sees it, why requests went where they went, and what an operator may do to it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Annotated, Any, cast

import msgspec
import trio
from pydantic import Field
from quart import Blueprint, Response, request

from api.connection import HeldBody, MeshRequest
from api.elsewhere import forwarded
from api.errors import NoSwarm, UnknownRequest
from api.parse import Body, parse
from api.ports import Mesh, ModelAction
from api.services import Services, json_response
from api.sse import STREAM_HEADERS
from backends.types import CallerError

MAX_REQUESTS = 1000
QUIET_S = 15.0
"""After so long without an event a comment is sent, so that proxies and pages know that the stream lives."""


class NodeBody(Body):
    """Which node is meant."""

    node: Annotated[str, Field(min_length=1, max_length=128)]


class ModelBody(Body):
    """What is to be done to which model, and where."""

    node: Annotated[str, Field(max_length=128)] = ""  # empty: this node
    model: Annotated[str, Field(min_length=1, max_length=256)]
    action: ModelAction


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("mesh", __name__)

    def mesh() -> Mesh:
        if services.mesh is None:
            raise NoSwarm("This node takes part in no swarm (it was started with --solo).")
        return services.mesh

    @routes.get("/api/mesh")
    async def view() -> Response:
        """This node and its peers: names, addresses, hardware, models with their load, round trips."""
        return json_response(mesh().view())

    @routes.get("/api/mesh/events")
    async def events() -> Response:
        """Server-sent events of the swarm: joined, left, suspect, alive, dead, load, record, route, ended."""
        async with AsyncExitStack() as opening:
            watch = await opening.enter_async_context(mesh().watch())
            body = _Events(watch, opening.pop_all())
            cast(MeshRequest, request).calls.push_async_exit(body.leave)
        response = Response(body, headers=STREAM_HEADERS, content_type="text/event-stream")
        response.timeout = None
        return response

    @routes.get("/api/mesh/requests")
    async def requests() -> Response:
        """The last requests that entered here, newest first; `?limit=` bounds them."""
        limit = request.args.get("limit", "100")
        if not re.fullmatch(r"[0-9]{1,4}", limit) or not 1 <= int(limit) <= MAX_REQUESTS:
            raise CallerError(f"Invalid 'limit': 1 to {MAX_REQUESTS} are allowed.", param="limit")
        return json_response({"requests": mesh().requests(int(limit))})

    @routes.get("/api/mesh/requests/<path:request_id>/explain")
    async def explain(request_id: str) -> Response:
        """Why a request went where it went: every candidate with its terms."""
        return json_response(_known(mesh().explain(request_id)))

    @routes.get("/api/mesh/requests/<path:request_id>/trace")
    async def trace(request_id: str) -> Response:
        """The timeline of a request over all nodes that worked on it."""
        return json_response(_known(await mesh().trace(request_id)))

    @routes.get("/api/mesh/plans")
    async def plans() -> Response:
        """Which nodes can hold each model of this node, or how its layers are split over several; `?model=` for one."""
        return json_response({"plans": mesh().plans(request.args.get("model"))})

    @routes.get("/api/mesh/charts")
    async def charts() -> Response:
        """Tokens, requests, queues and times to first token of each node, the last 15 minutes; `?node=` for one."""
        return json_response(await mesh().charts(request.args.get("node")))

    @routes.get("/api/mesh/models")
    async def models() -> Response:
        """What each node has, loaded or on disk, and how it is doing."""
        return json_response({"nodes": await mesh().models()})

    @routes.post("/api/mesh/models")
    async def act() -> Response:
        """Load, unload, pin or unpin a model of a node; loading answers when it is loaded."""
        body = await parse(ModelBody)
        place = mesh().place_of(body.node)
        if place is None:
            name = await mesh().act(body.model, body.action)
            return json_response({"model": name, "action": body.action})
        if request.scope.get("mesh.member"):
            raise CallerError("A forwarded request is never forwarded again.", param="node")
        return await forwarded(services, place, body.model_copy(update={"node": place}).model_dump_json().encode())

    @routes.post("/api/mesh/kick")
    async def kick() -> Response:
        """Ban a node by its name or id; the word spreads to every member."""
        body = await parse(NodeBody)
        return json_response({"banned": mesh().kick(body.node)})

    @routes.post("/api/mesh/pardon")
    async def pardon() -> Response:
        """Lift a ban."""
        body = await parse(NodeBody)
        return json_response({"pardoned": mesh().pardon(body.node)})

    @routes.post("/api/mesh/leave")
    async def leave() -> Response:
        """Say good-bye to the swarm and forget it; this node serves on alone."""
        await mesh().leave()
        return json_response({"message": "This node has left the swarm."})

    return routes


def _known(found: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if found is None:
        raise UnknownRequest(
            "This node knows of no request with that id; it remembers the last 1000 that entered here."
        )
    return found


class _Events(HeldBody):
    """The events as a response body, which leaves the watch in the task that entered it."""

    def __init__(self, watch: AsyncIterator[Mapping[str, Any]], context: AsyncExitStack) -> None:
        super().__init__(context)
        self._watch = watch
        self._begun = False

    async def __anext__(self) -> bytes:
        if not self._begun:
            self._begun = True
            return b": the events of this swarm\n\n"  # headers and this leave at once
        with trio.move_on_after(QUIET_S):
            event = await anext(self._watch)
            return b"event: " + str(event["kind"]).encode() + b"\ndata: " + msgspec.json.encode(event) + b"\n\n"
        return b": quiet\n\n"
