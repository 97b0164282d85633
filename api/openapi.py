"""GET /openapi.json and /docs: what this API is, for programs (OpenAPI 3.1) and for people.

Made from the routes and the pydantic classes that check the bodies, so neither can say what the code does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic.json_schema import models_json_schema
from quart import Blueprint, Quart, Response, current_app
from werkzeug.routing import Rule

from api import mesh
from api.anthropic import body as anthropic_body
from api.docpage import CONTENT_SECURITY, page
from api.ollama import chat as ollama_chat
from api.ollama import embed as ollama_embed
from api.ollama import generate as ollama_generate
from api.ollama import models as ollama_models
from api.openai.chat import ChatBody
from api.openai.completions import CompletionBody
from api.openai.edits import EditBody
from api.openai.embeddings import EmbeddingBody
from api.openai.moderations import ModerationBody
from api.openai.rerank import RerankBody
from api.openai.tokenize import DetokenizeBody, TokenizeBody
from api.parse import Body
from api.responses.body import CreateBody
from api.services import Services

EVENTS = "text/event-stream"
LINES = "application/x-ndjson"

BODIES: Mapping[str, type[Body]] = {
    "openai_chat.create_chat_completion": ChatBody,
    "openai_completions.create_completion": CompletionBody,
    "openai_edits.create_edit": EditBody,
    "openai_embeddings.create_embeddings": EmbeddingBody,
    "openai_moderations.create_moderation": ModerationBody,
    "openai_rerank.rerank": RerankBody,
    "openai_tokenize.tokenize": TokenizeBody,
    "openai_tokenize.detokenize": DetokenizeBody,
    "anthropic_messages.create_message": anthropic_body.MessagesBody,
    "anthropic_messages.count_message_tokens": anthropic_body.CountBody,
    "responses.create_response": CreateBody,
    "ollama_chat.chat": ollama_chat.ChatBody,
    "ollama_generate.generate": ollama_generate.GenerateBody,
    "ollama_embed.embed": ollama_embed.EmbedBody,
    "ollama_embed.embeddings": ollama_embed.EmbeddingsBody,
    "ollama_models.show": ollama_models.ShowBody,
    "mesh.act": mesh.ModelBody,
    "mesh.kick": mesh.NodeBody,
    "mesh.pardon": mesh.NodeBody,
}
"""What each endpoint parses."""

BODILESS = frozenset({"openai_models.reload_models", "responses.cancel_response", "mesh.leave"})
"""Endpoints that are POSTed to without a body."""

_STREAMS: Mapping[str, str] = {
    "openai_chat.create_chat_completion": EVENTS,
    "openai_completions.create_completion": EVENTS,
    "anthropic_messages.create_message": EVENTS,
    "responses.create_response": EVENTS,
    "responses.retrieve_response": EVENTS,
    "mesh.events": EVENTS,
    "ollama_chat.chat": LINES,
    "ollama_generate.generate": LINES,
}
_TEXTS = frozenset({"system.metrics", "system.healthz", "localai_p2p.token", "openapi.docs"})
_QUERIES: Mapping[str, Mapping[str, str]] = {
    "openai_models.list_models": {"filter": "string"},
    "openai_metrics.token_metrics": {"model": "string"},
    "responses.retrieve_response": {"stream": "boolean", "starting_after": "integer"},
    "responses.list_input_items": {"limit": "integer", "order": "string", "after": "string"},
}
_TAGS: Mapping[str, str] = {
    "openai": "OpenAI",
    "anthropic": "Anthropic",
    "responses": "Open Responses",
    "ollama": "Ollama",
    "localai": "LocalAI",
    "mesh": "Mesh",
}
_ERRORS: Mapping[str, str] = {
    "400": "The request is wrong; `param` names the field.",
    "401": "No key, or a wrong one.",
    "403": "A page of another site, or a model that its operator has switched off.",
    "404": "No such model, response or path.",
    "405": "The path takes other methods.",
    "408": "The body did not arrive in time.",
    "409": "What is asked for is no longer kept.",
    "413": "The body is too large.",
    "429": "All are busy; see `Retry-After`.",
    "500": "The model cannot be loaded, or the engine failed.",
    "502": "The engine died under the call.",
    "503": "Out of memory, or this node is shutting down.",
    "504": "No node answered in time.",
    "529": "All are busy, in Anthropic's dialect.",
}
_REFUSALS = {status: {"$ref": f"#/components/responses/{status}"} for status in _ERRORS}
_SCHEMA = "#/components/schemas/"


@dataclass(frozen=True, slots=True)
class _Documents:
    json: bytes
    html: str


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("openapi", __name__)
    made: list[_Documents] = []  # when first asked for: all routes are known then

    def documents() -> _Documents:
        if not made:
            whole = document(current_app._get_current_object(), services.options.version)  # type: ignore[attr-defined]
            made.append(_Documents(msgspec.json.encode(whole), page(whole)))
        return made[0]

    @routes.get("/openapi.json")
    async def openapi() -> Response:
        """This API as an OpenAPI 3.1 document."""
        return Response(documents().json, content_type="application/json")

    @routes.get("/docs")
    async def docs() -> Response:
        """This API as a page for people."""
        response = Response(documents().html, content_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY
        return response

    return routes


def document(app: Quart, version: str) -> dict[str, Any]:
    """The OpenAPI document of `app`."""
    classes = sorted(set(BODIES.values()), key=lambda cls: (cls.__module__, cls.__name__))
    schemas, shared = models_json_schema([(cls, "validation") for cls in classes], ref_template=_SCHEMA + "{model}")
    bodies = {cls: schemas[cls, "validation"] for cls in classes}
    paths: dict[str, dict[str, Any]] = {}
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: (not rule.rule.startswith("/v1/"), rule.rule)):
        if rule.websocket:
            continue  # OpenAPI has no words for them
        meaning = (app.view_functions[rule.endpoint].__doc__ or "").strip()
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            operation = _operation(rule, method, meaning, bodies)
            paths.setdefault(_path(rule), {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "mesh", "version": version, "description": "Several machines as one inference service."},
        "security": [{}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": {**shared.get("$defs", {}), "Error": _ERROR},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "responses": {
                status: {"description": text, "content": {"application/json": {"schema": {"$ref": _SCHEMA + "Error"}}}}
                for status, text in _ERRORS.items()
            },
        },
    }


_ERROR = {
    "type": "object",
    "description": "The dialect's own envelope: `error` is an object, but a text in Ollama's.",
    "properties": {"error": {"type": ["object", "string"]}},
    "required": ["error"],
}


def _path(rule: Rule) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)


def _operation(rule: Rule, method: str, meaning: str, bodies: Mapping[type[Body], Any]) -> dict[str, Any]:
    endpoint = rule.endpoint
    summary, _, rest = meaning.partition("\n")
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", _path(rule))
    ]
    parameters += [
        {"name": name, "in": "query", "schema": {"type": kind}} for name, kind in _QUERIES.get(endpoint, {}).items()
    ]
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", method.lower() + _path(rule)).strip("_"),
        "tags": [_TAGS.get(re.split(r"[._]", endpoint)[0], "Node")],
        "summary": summary,
        "responses": {"200": _answer(endpoint)} | _REFUSALS,
    }
    if rest.strip():
        operation["description"] = " ".join(rest.split())
    if endpoint == "system.readyz":
        operation["responses"]["503"] = _answer(endpoint)
    if parameters:
        operation["parameters"] = parameters
    if endpoint in BODIES:
        content = {"application/json": {"schema": bodies[BODIES[endpoint]]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _answer(endpoint: str) -> dict[str, Any]:
    if endpoint in _TEXTS:
        kind = "text/html" if endpoint == "openapi.docs" else "text/plain"
        return {"description": "The answer.", "content": {kind: {"schema": {"type": "string"}}}}
    content: dict[str, Any] = {"application/json": {"schema": {"type": ["object", "array"]}}}
    if endpoint in _STREAMS:
        content[_STREAMS[endpoint]] = {"schema": {"type": "string"}}
    return {"description": "The answer.", "content": content}
