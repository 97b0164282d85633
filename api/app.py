"""The HTTP application: blueprints, and what holds for every request (keys, origins, headers, errors)."""

from __future__ import annotations

import re
import uuid

from quart import Request, Response, Websocket, g, request, websocket
from quart_trio import QuartTrio

from api import errors, mesh, openapi, system
from api.anthropic import messages
from api.auth import Gate
from api.connection import Connection, MeshRequest
from api.dashboard import routes as dashboard
from api.images import Images, no_images
from api.localai import p2p
from api.ollama import chat as ollama_chat
from api.ollama import embed, generate
from api.ollama import models as ollama_models
from api.openai import chat, completions, edits, embeddings, metrics, models, moderations, rerank, tokenize
from api.ports import ApiOptions, Dispatcher, ImageFetcher, Mesh, Node, ResponseStore
from api.responses import routes as responses_routes
from api.responses.memory import MemoryResponses
from api.services import Services

_FAMILIES = (
    *(chat, completions, edits, embeddings, rerank, moderations, models, tokenize, metrics),
    *(messages, responses_routes),
    *(ollama_chat, generate, embed, ollama_models),
    *(p2p, mesh, system, openapi, dashboard),
)
_CORRELATION_ID = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")  # printable ASCII, no outer space

_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
    "Access-Control-Max-Age": "600",
}


def create_app(
    dispatcher: Dispatcher,
    node: Node,
    options: ApiOptions,
    swarm: Mesh | None = None,
    responses: ResponseStore | None = None,
    fetch_image: ImageFetcher = no_images,
) -> QuartTrio:
    """The application, to be served by hypercorn on trio.

    `swarm` is None for a node without one; `responses` None for one that forgets them with its process.
    `fetch_image` gets images that requests name by address.
    """
    app = QuartTrio("mesh", static_folder=None)
    app.asgi_http_class = Connection
    app.request_class = MeshRequest
    app.config["MAX_CONTENT_LENGTH"] = options.max_body_bytes
    app.config["RESPONSE_TIMEOUT"] = None  # a slow reader of a long answer is no error
    app.url_map.strict_slashes = False  # a trailing slash is the same route, not a redirect
    app.url_map.merge_slashes = False

    dispatcher = Images(dispatcher, node, fetch_image)
    services = Services(dispatcher, node, options, swarm, responses or MemoryResponses())
    for family in _FAMILIES:
        app.register_blueprint(family.blueprint(services))
    _install_edge(app, Gate(options))
    return app


def _install_edge(app: QuartTrio, gate: Gate) -> None:
    """What happens around every handler."""

    @app.before_request
    async def admit() -> Response | None:
        g.request_id = correlation_id(request)
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return _preflight(gate)  # browsers send it without keys
        g.client = gate.admit(request)
        return None

    @app.before_websocket
    async def admit_socket() -> None:
        g.request_id = correlation_id(websocket)
        g.client = gate.admit_socket(websocket)

    @app.after_request
    async def finish(response: Response) -> Response:
        response.headers["X-Correlation-ID"] = g.request_id
        if (call := g.get("answering")) is not None and call.node:
            response.headers["X-Mesh-Node"] = call.node
        if errors.dialect_of(request.path) == "anthropic":
            response.headers["request-id"] = g.request_id  # where Anthropic's clients look for it
        for name, value in _SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        if gate.configured:
            response.vary.add("Origin")
            origin = gate.allowed_origin(request.headers.get("Origin"))
            if origin is not None:
                response.headers["Access-Control-Allow-Origin"] = origin
                response.headers["Access-Control-Expose-Headers"] = "X-Correlation-ID, X-Mesh-Node, Retry-After"
        return response

    @app.errorhandler(Exception)
    async def refuse(error: Exception) -> Response:
        return errors.response(error)


def correlation_id(incoming: Request | Websocket) -> str:
    """The caller's X-Correlation-ID if it is sane (at most 128 printable ASCII characters), else a new one."""
    given = incoming.headers.get("X-Correlation-ID", "")
    return given if _CORRELATION_ID.fullmatch(given) else uuid.uuid4().hex


def _preflight(gate: Gate) -> Response:
    """The answer to a CORS preflight; without the allowing headers when the origin is not welcome."""
    response = Response(b"", status=204)
    if gate.allowed_origin(request.headers.get("Origin")) is not None:
        response.headers.update(_PREFLIGHT_HEADERS)
        wanted = request.headers.get("Access-Control-Request-Headers")
        if wanted and re.fullmatch(r"[\w\-, ]{1,1000}", wanted, re.ASCII):
            response.headers["Access-Control-Allow-Headers"] = wanted
    return response
