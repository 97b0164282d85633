"""POST /v1/messages and /v1/messages/count_tokens. Anthropic API reference, "Messages" and "Count tokens"."""

from __future__ import annotations

from quart import Blueprint, Response, g, request

from api import sse
from api.anthropic.body import CountBody, MessagesBody
from api.anthropic.render import PING, MessageWriter
from api.parse import parse
from api.services import Services, json_response
from api.turns import prompt_tokens, read_whole
from backends.types import CallerError, Capability, ChatRequest

PREFIXES = ("/v1", "")
# Of the API. What tells the newest from the one before is what it refuses, such as a temperature; models here have
# one, and whoever asks for one means it.
VERSIONS = frozenset({"2026-10-21", "2023-06-01", "2023-01-01"})


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("anthropic_messages", __name__)

    async def create_message() -> Response:
        """Anthropic's dialect: answer a conversation, whole or as a stream of events."""
        _check_version()
        body = await parse(MessagesBody)
        asked = body.request(services.model(body.model, Capability.CHAT))
        writer = MessageWriter(asked, model=asked.model, thinking=body.shows_thinking, request_id=g.request_id)
        if body.stream:
            return await sse.stream(services.dispatcher, [asked], services.context(), writer, ping=PING)
        usage = await read_whole(services.dispatcher, asked, services.context(), writer.batch)
        return json_response(writer.whole(usage))

    async def count_message_tokens() -> Response:
        """Anthropic's dialect: how many tokens a message's input has."""
        _check_version()
        body = await parse(CountBody)
        model = services.model(body.model, Capability.CHAT)
        asked = ChatRequest(model=model, max_tokens=1, **body.chat())
        tokens = await prompt_tokens(services.dispatcher, asked, services.context())
        return json_response({"input_tokens": tokens})

    for prefix in PREFIXES:
        routes.add_url_rule(f"{prefix}/messages", view_func=create_message, methods=["POST"])
        routes.add_url_rule(f"{prefix}/messages/count_tokens", view_func=count_message_tokens, methods=["POST"])
    return routes


def _check_version() -> None:
    """A missing version is forgiven, as LocalAI does; a version that we do not speak is not."""
    version = request.headers.get("anthropic-version")
    if version is not None and version not in VERSIONS:
        raise CallerError(f'anthropic-version: "{version[:40]}" is not a valid version', param="anthropic-version")
