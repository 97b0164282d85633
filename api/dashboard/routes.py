"""GET /: the dashboard for browsers, a greeting for programs; and the files that the page needs."""

from __future__ import annotations

import io

import segno
from quart import Blueprint, Response, request
from werkzeug.exceptions import NotFound

from api.dashboard.files import INDEX, File, built
from api.errors import NoSwarm
from api.services import Services, json_response

CONTENT_SECURITY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""What the page may do: load its own files, ask its own node. Markup in a name stays text; this is the second lock."""

_FOR_EVER = "public, max-age=31536000, immutable"  # their names have a hash of their content in them
_HOW_TO_BUILD = (
    "The dashboard is not built here: `make run` in a source checkout builds it, which needs Node.js 20.19 or newer "
    "with npm, or the package registry. Everything else works without it.\n"
)


def wants_page() -> bool:
    """Whether a browser's address bar asked, and not a program."""
    return "text/html" in request.headers.get("Accept", "")


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("dashboard", __name__)

    @routes.get("/")
    async def page() -> Response:
        """The dashboard, for a browser; for programs what this node is, and where its API begins."""
        if "ollama" in request.headers.get("User-Agent", "").lower():  # its clients ask here whether it runs
            return Response(b"Ollama is running", content_type="text/plain; charset=utf-8")
        if not wants_page():
            response = _greeting(services)
        elif (index := built().get(INDEX)) is not None:
            response = _sent(index, "no-cache")
            response.headers["Content-Security-Policy"] = CONTENT_SECURITY
        else:
            response = Response(_HOW_TO_BUILD.encode(), content_type="text/plain; charset=utf-8")
        response.vary.add("Accept")
        return response

    @routes.get("/assets/<path:name>")
    async def asset(name: str) -> Response:
        """A file of the dashboard, under a name that changes with its content."""
        found = built().get(f"assets/{name}")
        if found is None:
            raise NotFound
        return _sent(found, _FOR_EVER)

    @routes.get("/api/mesh/token/qr")
    async def token_code() -> Response:
        """The join token as a QR code, for a camera: an SVG image."""
        text = services.mesh.token() if services.mesh is not None else None
        if not text:
            raise NoSwarm("This node takes part in no swarm, so it has no token.")
        picture = io.BytesIO()
        segno.make(text, error="m", micro=False).save(
            picture, kind="svg", border=4, dark="#000", light="#fff", xmldecl=False, svgns=True
        )
        headers = {"Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin"}
        return Response(picture.getvalue(), headers=headers, content_type="image/svg+xml")

    return routes


def _greeting(services: Services) -> Response:
    return json_response(
        {
            "message": "This is a mesh node. Its API speaks the dialects of OpenAI and Anthropic under /v1, and "
            "Ollama's under /api.",
            "version": services.options.version,
            "endpoints": [
                *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/responses"),
                *("/v1/messages", "/api/chat", "/api/generate", "/api/embed", "/api/tags"),
            ],
        }
    )


def _sent(file: File, cache: str) -> Response:
    packed = file.packed if request.accept_encodings.quality("gzip") > 0 else None
    response = Response(packed or file.data, content_type=file.content_type)
    if packed:
        response.headers["Content-Encoding"] = "gzip"
    response.vary.add("Accept-Encoding")
    response.headers["Cache-Control"] = cache
    return response
