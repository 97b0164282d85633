"""The endpoints of /v1/responses. Open Responses specification; OpenAI API reference, "Responses"."""

from __future__ import annotations

from typing import Any, cast

import msgspec
from quart import Blueprint, Response, current_app, request
from quart_trio import QuartTrio

from api import sse
from api.elsewhere import by_owner
from api.errors import ResponseMissing
from api.parse import parse
from api.ports import StoredResponse
from api.responses.body import CreateBody
from api.responses.ids import ResponseId
from api.responses.making import RUNNING, make
from api.responses.runs import Following, Run, after
from api.responses.socket import converse
from api.services import Services, json_response
from api.turns import read_whole
from backends.types import CallerError, Capability

PREFIXES = ("/v1", "")
MAX_LISTED = 100
PING = b": waiting\n\n"  # a comment, which clients drop
_INTERRUPTED = {"code": "server_error", "message": "The node went away while it made this response."}


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("responses", __name__)
    store = services.responses
    runs: dict[str, Run] = {}

    async def create_response() -> Response:
        """Open Responses: answer, whole or as a stream of events, or begin to in the background."""
        body = await parse(CreateBody)
        making = await make(store, body, services.model(body.model, Capability.CHAT), services.context())
        writer = making.writer
        if body.background:
            run = runs[str(making.identity)] = Run(making)
            await making.keep(store)
            cast(QuartTrio, current_app).nursery.start_soon(_run, run)
            return _following(run, -1) if body.stream else json_response(writer.resource)
        if body.stream:
            return await making.start(
                lambda asked: sse.stream(
                    services.dispatcher,
                    [asked],
                    making.context,
                    writer,
                    ping=PING,
                    settle=lambda: making.keep(store),
                )
            )
        usage = await making.start(lambda asked: read_whole(services.dispatcher, asked, making.context, writer.events))
        writer.ended(usage)
        await making.keep(store)
        return json_response(writer.resource)

    async def _run(run: Run) -> None:
        try:
            await run.go(services.dispatcher, store)
        finally:
            del runs[str(run.making.identity)]

    async def retrieve_response(identity: str) -> Response:
        """Open Responses: a stored response; with `?stream=true` its events after `starting_after`."""
        if request.args.get("stream", "") not in ("", "false"):
            return await stream_again(identity)
        run = runs.get(identity)
        return json_response(run.making.writer.resource if run else _resource(await stored(identity)))

    async def stream_again(identity: str) -> Response:
        number = _integer("starting_after", -1, at_least=-1)
        run = runs.get(identity)
        if run is not None and run.making.body.stream:
            return _following(run, number)
        if run is None:
            await stored(identity)
            events = await store.events(identity)
            if events is not None:
                return Response(after(events, number), content_type=sse.EVENTS)
        raise CallerError(
            "Cannot stream a response that was not created with both background=true and stream=true.",
            param="stream",
            code="invalid_value",
        )

    async def cancel_response(identity: str) -> Response:
        """Open Responses: cancel a response that is made in the background; one that has ended stays as it is."""
        run = runs.get(identity)
        if run is not None:
            await run.cancel()
            return json_response(run.making.writer.resource)
        resource = _resource(await stored(identity))
        if not resource["background"]:
            message = "Cannot cancel a synchronous response: only those created with background=true can be."
            raise CallerError(message, code="invalid_value")
        return json_response(resource)

    async def delete_response(identity: str) -> Response:
        """Open Responses: forget a response; one that is being made is cancelled first."""
        run = runs.get(identity)
        if run is not None:
            await run.cancel()
        if not await store.delete(identity):
            raise _missing(identity)
        return json_response({"id": identity, "object": "response", "deleted": True})

    async def list_input_items(identity: str) -> Response:
        """Open Responses: the items that a response was given, newest first unless `order=asc`."""
        found: list[dict[str, Any]] = msgspec.json.decode((await stored(identity)).input)
        order = request.args.get("order", "desc")
        if order not in ("asc", "desc"):
            raise CallerError("Invalid 'order': expected 'asc' or 'desc'.", param="order", code="invalid_value")
        limit = _integer("limit", 20, at_least=1, at_most=MAX_LISTED)
        if order == "desc":
            found.reverse()
        if start := request.args.get("after"):
            places = [place for place, item in enumerate(found) if item["id"] == start]
            if not places:
                raise CallerError("Invalid 'after': no item has this id.", param="after", code="invalid_value")
            found = found[places[0] + 1 :]
        page = found[:limit]
        return json_response(
            {
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
                "has_more": len(found) > limit,
            }
        )

    async def stored(identity: str) -> StoredResponse:
        """The response of that id. What nobody works on any more has failed, and is stored as such."""
        response = await store.get(identity)
        if response is None:
            raise _missing(identity)
        if response.status in RUNNING and identity not in runs:
            resource = {**_resource(response), "status": "failed", "error": _INTERRUPTED}
            encoded = msgspec.json.encode(resource)
            response = StoredResponse(
                id=response.id,
                previous_id=response.previous_id,
                status="failed",
                input=response.input,
                resource=encoded,
            )
            await store.put(response)
        return response

    async def converse_in_responses() -> None:
        """Open Responses over a WebSocket: a `response.create` in, its events out, one response after the other."""
        await converse(services)

    at_its_node = by_owner(services, _node_of)
    by_id = (
        ("", "GET", at_its_node(retrieve_response)),
        ("", "DELETE", at_its_node(delete_response)),
        ("/cancel", "POST", at_its_node(cancel_response)),
        ("/input_items", "GET", at_its_node(list_input_items)),
    )
    for prefix in PREFIXES:
        one = f"{prefix}/responses/<identity>"
        routes.add_url_rule(f"{prefix}/responses", view_func=create_response, methods=["POST"])
        for path, method, view in by_id:
            routes.add_url_rule(f"{one}{path}", view_func=view, methods=[method])
        routes.add_websocket(f"{prefix}/responses", view_func=converse_in_responses)
    return routes


def _node_of(identity: str) -> str | None:
    read = ResponseId.read(identity)
    return None if read is None else read.node


def _following(run: Run, number: int) -> Response:
    response = Response(Following(run, number), content_type=sse.EVENTS, headers=sse.STREAM_HEADERS)
    response.timeout = None
    return response


def _resource(response: StoredResponse) -> dict[str, Any]:
    resource: dict[str, Any] = msgspec.json.decode(response.resource)
    return resource


def _missing(identity: str) -> ResponseMissing:
    return ResponseMissing(f"Response with id '{identity[:100]}' not found.", param="response_id")


def _integer(name: str, default: int, *, at_least: int, at_most: int = 2**31) -> int:
    text = request.args.get(name, "")
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        value = at_least - 1
    if not at_least <= value <= at_most:
        message = f"Invalid '{name}': expected an integer of at least {at_least}."
        raise CallerError(message, param=name, code="invalid_value")
    return value
